//! On whose behalf a request is made: the one place where authentication will slot in.

use axum::extract::FromRequestParts;
use http::request::Parts;
use tidegate_proto::v1;

use crate::problem::Problem;

/// A subject within a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    tenant: String,
    subject: String,
}

impl Caller {
    /// Who makes this request. There is no authentication yet: everybody is the same.
    fn of(_request: &Parts) -> Result<Self, Problem> {
        Ok(Self { tenant: "default".into(), subject: "anonymous".into() })
    }

    /// Whether a job of this tenant and owner may be seen; the engine decides by the same rule.
    pub(crate) fn may_see(&self, tenant: &str, owner: &str) -> bool {
        self.tenant == tenant && self.subject == owner
    }

    /// As the engine is told.
    pub(crate) fn proto(&self) -> Option<v1::Caller> {
        Some(v1::Caller { tenant: self.tenant.clone(), subject: self.subject.clone() })
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Self::of(parts)
    }
}
