//! On whose behalf a request is made, and what that one may do.
//!
//! A [`Caller`] is put into the request once, by [`crate::access`]; handlers get it only as [`May`], so that none can
//! forget to name the scope it needs. What is not there is refused.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use http::request::Parts;
use tidegate_auth::{Credential, Principal, Scope, Scopes};
use tidegate_proto::v1;

use crate::problem::Problem;

/// How a caller proved who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Via {
    /// Nobody has to: there is no authentication.
    Nothing,
    /// By a header that pages of other sites cannot set.
    Header,
    /// By the cookie of a session.
    Cookie,
    /// By a ticket for one stream.
    Ticket,
}

/// A subject within a tenant.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) principal: Arc<Principal>,
    pub(crate) via: Via,
}

impl Caller {
    /// Everybody, where nobody has to say who it is.
    pub(crate) fn anonymous() -> Self {
        let principal = Principal {
            tenant: "default".into(),
            subject: "anonymous".into(),
            scopes: Scopes::EVERYDAY,
            expires: None,
            credential: Credential::Process,
        };
        Self { principal: Arc::new(principal), via: Via::Nothing }
    }

    /// Whether a job of this tenant and owner may be seen; the engine decides by the same rule.
    pub(crate) fn may_see(&self, tenant: &str, owner: &str) -> bool {
        self.principal.tenant == tenant && (self.sees_tenant() || self.principal.subject == owner)
    }

    fn sees_tenant(&self) -> bool {
        self.principal.scopes.allow(Scope::Admin)
    }

    /// Who pays for a request: limits count by tenant, and by subject within it.
    pub(crate) fn tenant(&self) -> &str {
        &self.principal.tenant
    }

    /// The subject within the tenant.
    pub(crate) fn subject(&self) -> &str {
        &self.principal.subject
    }

    /// Whether nobody in particular: then the subject is everybody.
    pub(crate) fn is_anonymous(&self) -> bool {
        self.via == Via::Nothing
    }

    /// As the engine is told.
    pub(crate) fn proto(&self) -> Option<v1::Caller> {
        Some(v1::Caller {
            tenant: self.principal.tenant.clone(),
            subject: self.principal.subject.clone(),
            whole_tenant: self.sees_tenant(),
        })
    }

    /// What keeps a stream open: the right to read, and nothing else that this caller may do.
    pub(crate) fn as_reader(&self) -> Principal {
        let scopes = self.principal.scopes.only(&[Scope::Read, Scope::Admin]);
        Principal { scopes, ..Principal::clone(&self.principal) }
    }
}

/// A caller that has the scope with this number.
pub(crate) struct May<const SCOPE: u8>(pub(crate) Caller);

/// May submit jobs.
pub(crate) type Submitter = May<{ Scope::Submit as u8 }>;
/// May see jobs.
pub(crate) type Reader = May<{ Scope::Read as u8 }>;
/// May steer jobs.
pub(crate) type Controller = May<{ Scope::Control as u8 }>;
/// Has proved who it is.
pub(crate) type Anybody = May<{ u8::MAX }>;

impl<S: Sync, const SCOPE: u8> FromRequestParts<S> for May<SCOPE> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let caller = parts.extensions.get::<Caller>().cloned().ok_or(Problem::Unauthenticated(None))?;
        match Scope::ALL.into_iter().find(|scope| *scope as u8 == SCOPE) {
            Some(scope) if !caller.principal.scopes.allow(scope) => Err(Problem::InsufficientScope(scope)),
            _ => Ok(Self(caller)),
        }
    }
}
