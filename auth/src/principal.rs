//! A principal: on whose behalf a request is made, and what it may do.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Something that one may be allowed to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Scope {
    /// Submit jobs.
    Submit = 0,
    /// See one's own jobs, their logs and streams.
    Read = 1,
    /// Cancel, retry and delete one's own jobs.
    Control = 2,
    /// All of the above, for the jobs of every subject of one's own tenant.
    Admin = 3,
    /// Call the engine on behalf of anybody: for gateways.
    Delegate = 4,
    /// Take jobs from the engine: for workers.
    Work = 5,
}

impl Scope {
    /// All there are.
    pub const ALL: [Self; 6] =
        [Self::Submit, Self::Read, Self::Control, Self::Admin, Self::Delegate, Self::Work];

    /// As tokens and the configuration file call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Submit => "jobs:submit",
            Self::Read => "jobs:read",
            Self::Control => "jobs:control",
            Self::Admin => "jobs:admin",
            Self::Delegate => "engine:delegate",
            Self::Work => "engine:work",
        }
    }

    /// Whether it is about the jobs of one tenant, and not about the engine and so about all.
    pub fn is_of_jobs(self) -> bool {
        matches!(self, Self::Submit | Self::Read | Self::Control | Self::Admin)
    }

    /// The scope of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.name() == name)
    }
}

/// A set of scopes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Scopes(u8);

impl Scopes {
    /// What an own user of a gateway without authentication may do.
    pub const EVERYDAY: Self = Self(0b111);

    /// Whether `scope` is allowed; `jobs:admin` includes the other scopes of jobs, and nothing of the engine's.
    pub fn allow(self, scope: Scope) -> bool {
        let has = |scope: Scope| self.0 & (1 << scope as u8) != 0;
        has(scope) || (has(Scope::Admin) && scope.is_of_jobs())
    }

    /// Those of them that are among `these`.
    #[must_use]
    pub fn only(self, these: &[Scope]) -> Self {
        self.iter().filter(|scope| these.contains(scope)).collect()
    }

    /// Whether these allow all that `other` names.
    pub fn cover(self, other: Self) -> bool {
        other.iter().all(|scope| self.allow(scope))
    }

    /// Those that are named.
    pub fn iter(self) -> impl Iterator<Item = Scope> {
        Scope::ALL.into_iter().filter(move |scope| self.0 & (1 << *scope as u8) != 0)
    }

    /// Their names.
    pub fn names(self) -> Vec<&'static str> {
        self.iter().map(Scope::name).collect()
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<T: IntoIterator<Item = Scope>>(scopes: T) -> Self {
        Self(scopes.into_iter().fold(0, |set, scope| set | 1 << scope as u8))
    }
}

impl Extend<Scope> for Scopes {
    fn extend<T: IntoIterator<Item = Scope>>(&mut self, scopes: T) {
        self.0 |= Self::from_iter(scopes).0;
    }
}

/// What a principal's word rests on; enough to notice that it was taken back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Credential {
    /// An API key.
    #[serde(rename = "k")]
    ApiKey {
        /// The beginning of its hash.
        #[serde(rename = "f")]
        fingerprint: String,
    },
    /// A JWT.
    #[serde(rename = "t")]
    Token {
        /// Its `iss`.
        #[serde(rename = "i")]
        issuer: String,
        /// The fingerprint of the key that verified it, and of how its issuer's tokens are read.
        #[serde(rename = "f")]
        root: String,
        /// Its `jti`.
        #[serde(rename = "j", default, skip_serializing_if = "Option::is_none")]
        jti: Option<String>,
        /// Its `iat`, in seconds since 1970.
        #[serde(rename = "a", default, skip_serializing_if = "Option::is_none")]
        issued: Option<u64>,
    },
    /// A key that this process made for its own parts.
    #[serde(rename = "p")]
    Process,
}

/// On whose behalf a request is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Principal {
    /// The tenant.
    #[serde(rename = "t")]
    pub tenant: String,
    /// The subject within the tenant.
    #[serde(rename = "s")]
    pub subject: String,
    /// What it may do.
    #[serde(rename = "c")]
    pub scopes: Scopes,
    /// When it ends, in seconds since 1970; never if unset.
    #[serde(rename = "e", default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    /// What this rests on.
    #[serde(rename = "r")]
    pub credential: Credential,
}

impl Principal {
    /// How long it lasts from now on, by this machine's clock; [`Duration::MAX`] if it has no end.
    pub fn left(&self) -> Duration {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.expires.map_or(Duration::MAX, |at| Duration::from_secs(at).saturating_sub(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admin_includes_the_scopes_of_jobs_and_none_of_the_engine() {
        let admin = Scopes::from_iter([Scope::Admin]);
        for scope in Scope::ALL {
            let of_jobs = scope.name().starts_with("jobs:");
            assert_eq!(admin.allow(scope), of_jobs, "{scope:?}");
            assert_eq!(Scope::from_name(scope.name()), Some(scope));
            assert!(!Scopes::default().allow(scope));
        }
        assert!(admin.cover(Scopes::EVERYDAY) && !Scopes::EVERYDAY.cover(admin));
        assert_eq!(Scopes::EVERYDAY.names(), ["jobs:submit", "jobs:read", "jobs:control"]);
    }
}
