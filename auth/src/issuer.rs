//! One issuer of JWTs: which tokens it may have signed, and what their claims say. Pure.
//!
//! The token names its issuer, its key and its algorithm, and none of them is believed: the issuer must be configured,
//! the key one of the issuer's, the algorithm both one of the issuer's and the one the key is for.

use std::{collections::HashMap, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, errors::ErrorKind};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Map, Value};
use tidegate_proto::limits;

use crate::{Credential, Principal, Refused, Scope, Scopes, file::is_subject, fingerprint, jwks::Key};

/// An issuer as the file has it.
#[derive(Clone)]
pub(crate) struct IssuerSettings {
    pub(crate) issuer: String,
    pub(crate) audiences: Vec<String>,
    pub(crate) algorithms: Vec<Algorithm>,
    pub(crate) keys: KeySource,
    pub(crate) tenant: Tenant,
    pub(crate) subject_claim: String,
    pub(crate) subject_prefix: String,
    pub(crate) scopes_claim: String,
    /// What other scopes and roles stand for.
    pub(crate) grants: HashMap<String, Scopes>,
    /// How wrong clocks may be, in seconds.
    pub(crate) leeway: u64,
    /// How often a set behind a URL is fetched again.
    pub(crate) refresh: Duration,
    /// Changes with whatever else decides what a token is good for.
    pub(crate) reading: String,
}

/// Where the keys come from.
#[derive(Clone)]
pub(crate) enum KeySource {
    /// One shared secret, for HS256.
    Secret { secret: Vec<u8>, fingerprint: String },
    /// A key set in a file.
    File(Vec<Key>),
    /// A key set behind a URL.
    Url(String),
}

/// How a token's tenant is found.
#[derive(Clone)]
pub(crate) enum Tenant {
    Fixed(String),
    Claim(String),
}

/// An issuer with its keys.
pub(crate) struct Issuer {
    pub(crate) settings: IssuerSettings,
    /// None while a set behind a URL was never read.
    pub(crate) keys: Option<Vec<Key>>,
}

/// What a token says of itself before anything is verified.
pub(crate) struct Unverified {
    algorithm: Algorithm,
    kid: Option<String>,
    pub(crate) issuer: String,
}

impl Unverified {
    pub(crate) fn read(token: &str) -> Result<Self, Refused> {
        #[derive(Deserialize)]
        struct Header {
            alg: String,
            kid: Option<String>,
            crit: Option<IgnoredAny>,
        }
        #[derive(Deserialize)]
        struct Claims {
            iss: Option<String>,
        }
        let mut parts = token.split('.');
        let (Some(header), Some(claims), Some(_), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Refused::Malformed);
        };
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| Refused::Malformed);
        let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| Refused::Malformed)?;
        let claims: Claims = serde_json::from_slice(&decode(claims)?).map_err(|_| Refused::Malformed)?;
        if header.crit.is_some() {
            return Err(Refused::Malformed); // RFC 7515, section 4.1.11: what is not understood is refused
        }
        // `none`, and everything else that is no algorithm of ours, has no value here.
        let algorithm = header.alg.parse().map_err(|_| Refused::Algorithm)?;
        Ok(Self { algorithm, kid: header.kid, issuer: claims.iss.ok_or(Refused::Claim("iss"))? })
    }
}

impl Issuer {
    /// The key that must have signed the token.
    fn key(&self, token: &Unverified) -> Result<Key, Refused> {
        if !self.settings.algorithms.contains(&token.algorithm) {
            return Err(Refused::Algorithm);
        }
        if let KeySource::Secret { secret, fingerprint } = &self.settings.keys {
            let key = DecodingKey::from_secret(secret);
            return Ok(Key { kid: None, algorithm: Algorithm::HS256, key, fingerprint: fingerprint.clone() });
        }
        let keys = self.keys.as_deref().ok_or(Refused::Unavailable)?;
        let key = match (&token.kid, keys) {
            (Some(kid), keys) => {
                // Two keys of different kinds may share a name.
                let named = |key: &&Key| key.kid.as_ref() == Some(kid);
                let fits = keys.iter().filter(named).find(|key| key.algorithm == token.algorithm);
                fits.or_else(|| keys.iter().find(named))
            }
            (None, [only]) => Some(only),
            (None, _) => None,
        };
        let key = key.ok_or(Refused::UnknownKey)?;
        if key.algorithm != token.algorithm {
            return Err(Refused::Algorithm);
        }
        Ok(key.clone())
    }

    /// The principal of a token that names this issuer.
    pub(crate) fn verify(&self, token: &str, unverified: &Unverified) -> Result<Principal, Refused> {
        let settings = &self.settings;
        let key = self.key(unverified)?;
        let mut rules = Validation::new(key.algorithm);
        rules.set_audience(&settings.audiences);
        rules.set_issuer(&[&settings.issuer]);
        rules.set_required_spec_claims(&["exp", "iss", "aud"]);
        rules.validate_nbf = true;
        rules.leeway = settings.leeway;
        let verified = jsonwebtoken::decode::<Map<String, Value>>(token, &key.key, &rules);
        let claims = verified.map_err(|error| refusal(error.kind()))?.claims;

        let subject =
            claim(&claims, &settings.subject_claim).and_then(Value::as_str).ok_or(Refused::Claim("sub"))?;
        let subject = format!("{}{subject}", settings.subject_prefix);
        let tenant = match &settings.tenant {
            Tenant::Fixed(tenant) => tenant,
            Tenant::Claim(name) => {
                claim(&claims, name).and_then(Value::as_str).ok_or(Refused::Claim("of the tenant"))?
            }
        };
        if !is_subject(&subject) {
            return Err(Refused::Claim("sub"));
        }
        if !limits::is_name(tenant) {
            return Err(Refused::Claim("of the tenant"));
        }
        let jti = match claims.get("jti") {
            None => None,
            Some(Value::String(jti)) if jti.len() <= 256 => Some(jti.clone()),
            Some(_) => return Err(Refused::Claim("jti")),
        };
        Ok(Principal {
            tenant: tenant.to_owned(),
            subject,
            scopes: self.scopes(&claims),
            expires: Some(seconds(&claims, "exp").ok_or(Refused::Claim("exp"))?),
            credential: Credential::Token {
                issuer: settings.issuer.clone(),
                root: self.root(&key.fingerprint),
                jti,
                issued: seconds(&claims, "iat"),
            },
        })
    }

    /// The scopes that a token's claim names, directly or by a grant; a text with blanks (RFC 8693) or a list.
    ///
    /// What reaches beyond the token's tenant is had by a grant only: an issuer that may speak for one tenant must not be
    /// able to speak for all by a word in a claim.
    fn scopes(&self, claims: &Map<String, Value>) -> Scopes {
        let mut scopes = Scopes::default();
        let mut add = |name: &str| {
            scopes.extend(Scope::from_name(name).filter(|scope| scope.is_of_jobs()));
            scopes.extend(self.settings.grants.get(name).into_iter().flat_map(|granted| granted.iter()));
        };
        match claim(claims, &self.settings.scopes_claim) {
            Some(Value::String(names)) => names.split(' ').for_each(&mut add),
            Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).for_each(&mut add),
            _ => {}
        }
        scopes
    }

    /// What a token stands on that a key of that fingerprint verified: the key, and how this issuer's tokens are read.
    fn root(&self, key: &str) -> String {
        fingerprint(format!("{}/{key}", self.settings.reading).as_bytes())
    }

    /// Whether a token may still stand on `root`; unknown while the set was never read.
    pub(crate) fn has_root(&self, root: &str) -> Option<bool> {
        if let KeySource::Secret { fingerprint, .. } = &self.settings.keys {
            return Some(self.root(fingerprint) == root);
        }
        Some(self.keys.as_deref()?.iter().any(|key| self.root(&key.fingerprint) == root))
    }
}

/// A claim by its name, or by a JSON pointer (RFC 6901) such as `/realm_access/roles`.
fn claim<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    let Some(path) = name.strip_prefix('/') else { return claims.get(name) };
    let unescape = |part: &str| part.replace("~1", "/").replace("~0", "~");
    let mut parts = path.split('/').map(unescape);
    let first = claims.get(&parts.next()?)?;
    parts.try_fold(first, |value, part| value.get(&part))
}

/// A time in whole seconds; fractions are cut, so that nothing lasts longer than it says.
fn seconds(claims: &Map<String, Value>, name: &str) -> Option<u64> {
    let value = claims.get(name)?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "bounded, and cut on purpose"
    )]
    value.as_u64().or_else(|| value.as_f64().filter(|s| (0.0..1e15).contains(s)).map(|s| s as u64))
}

fn refusal(error: &ErrorKind) -> Refused {
    match error {
        ErrorKind::InvalidSignature => Refused::Signature,
        ErrorKind::ExpiredSignature => Refused::Expired,
        ErrorKind::ImmatureSignature => Refused::NotYet,
        ErrorKind::InvalidAudience => Refused::Audience,
        ErrorKind::InvalidIssuer => Refused::UnknownIssuer,
        ErrorKind::InvalidAlgorithm => Refused::Algorithm,
        ErrorKind::MissingRequiredClaim(name) | ErrorKind::InvalidClaimFormat(name) => Refused::Claim(
            ["exp", "nbf", "iss", "aud"].into_iter().find(|known| known == name).unwrap_or("?"),
        ),
        _ => Refused::Malformed,
    }
}
