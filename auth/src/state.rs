//! Everything that decides whether a credential is good, at one time: settings, and the key sets of their issuers.
//!
//! Pure and immutable: with any change of what is behind it the whole is replaced, under a higher version. It follows
//! nothing; that is the [`authenticator`](crate::authenticator)'s.

use crate::{
    Credential, Principal, Refused,
    file::{ApiKey, Settings},
    issuer::{Issuer, IssuerSettings, KeySource, Unverified},
    jwks::Fetched,
};

pub(crate) struct State {
    pub(crate) version: u64,
    pub(crate) settings: Settings,
    pub(crate) issuers: Vec<Issuer>,
}

impl State {
    pub(crate) fn new(version: u64, settings: Settings, fetched: &Fetched) -> Self {
        let issuer = |settings: &IssuerSettings| Issuer {
            keys: match &settings.keys {
                KeySource::Secret { .. } => None,
                KeySource::File(keys) => Some(keys.clone()),
                KeySource::Url(url) => fetched.get(url).cloned(),
            },
            settings: settings.clone(),
        };
        let issuers = settings.issuers.iter().map(issuer).collect();
        Self { version, settings, issuers }
    }

    /// The sets that came from URLs.
    pub(crate) fn fetched(&self) -> Fetched {
        let of = |issuer: &Issuer| match &issuer.settings.keys {
            KeySource::Url(url) => Some((url.clone(), issuer.keys.clone()?)),
            _ => None,
        };
        self.issuers.iter().filter_map(of).collect()
    }

    fn issuer(&self, name: &str) -> Option<&Issuer> {
        self.issuers.iter().find(|issuer| issuer.settings.issuer == name)
    }

    pub(crate) fn url_of(&self, token: &Unverified) -> Option<&str> {
        match &self.issuer(&token.issuer)?.settings.keys {
            KeySource::Url(url) => Some(url),
            _ => None,
        }
    }

    /// The principal of a token, and its issuer's leeway.
    pub(crate) fn verify(&self, token: &str, unverified: &Unverified) -> Result<(Principal, u64), Refused> {
        let issuer = self.issuer(&unverified.issuer).ok_or(Refused::UnknownIssuer)?;
        let principal = issuer.verify(token, unverified)?;
        if self.is_revoked(&principal) {
            return Err(Refused::Revoked);
        }
        Ok((principal, issuer.settings.leeway))
    }

    pub(crate) fn standing(&self, principal: &Principal, now: u64) -> Result<(), Refused> {
        if self.is_revoked(principal) {
            return Err(Refused::Revoked);
        }
        match &principal.credential {
            Credential::Process => {}
            Credential::ApiKey { fingerprint } => {
                let key = self.settings.api_keys.iter().find(|key| key.fingerprint == *fingerprint);
                let key = key.ok_or(Refused::Revoked)?;
                if !key.is_live(now) {
                    return Err(Refused::Expired);
                }
                let same = key.tenant == principal.tenant && key.subject == principal.subject;
                if !same || !key.scopes.cover(principal.scopes) {
                    return Err(Refused::Revoked);
                }
            }
            Credential::Token { issuer, root, .. } => {
                let issuer = self.issuer(issuer).ok_or(Refused::Revoked)?;
                if !issuer.has_root(root).ok_or(Refused::Unavailable)? {
                    return Err(Refused::Revoked);
                }
            }
        }
        match principal.expires {
            Some(expires) if expires <= now => Err(Refused::Expired),
            _ => Ok(()),
        }
    }

    fn is_revoked(&self, principal: &Principal) -> bool {
        let (jti, issued) = match &principal.credential {
            Credential::Token { jti, issued, .. } => (jti.as_deref(), *issued),
            _ => (None, None),
        };
        self.settings.revoked.iter().any(|revoked| {
            revoked.jti.as_deref().is_none_or(|named| Some(named) == jti)
                && revoked.subject.as_ref().is_none_or(|subject| *subject == principal.subject)
                && revoked.tenant.as_ref().is_none_or(|tenant| *tenant == principal.tenant)
                // A token that does not say when it was issued may have been issued before.
                && revoked.before.is_none_or(|before| issued.is_none_or(|issued| issued < before))
        })
    }
}

impl ApiKey {
    pub(crate) fn is_live(&self, now: u64) -> bool {
        self.expires.is_none_or(|expires| now < expires)
    }

    pub(crate) fn principal(&self) -> Principal {
        Principal {
            tenant: self.tenant.clone(),
            subject: self.subject.clone(),
            scopes: self.scopes,
            expires: self.expires,
            credential: Credential::ApiKey { fingerprint: self.fingerprint.clone() },
        }
    }
}
