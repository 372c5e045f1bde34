//! Key sets (RFC 7517): which keys of a set can verify tokens, and for which one algorithm each.
//!
//! A key is good for the algorithm of its kind only: an RSA key for RS256, P-256 for ES256, Ed25519 for EdDSA. Shared
//! secrets in a key set are left out: who can read the set could sign with them. What this version does not understand
//! is left out, too; a set without any usable key is an error.

use std::{collections::HashMap, time::Duration};

use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse},
};
use serde::Deserialize;

use crate::fingerprint;

/// The largest set that is read, in bytes.
const LARGEST: usize = 512 * 1024;
/// Keys of a set that are looked at.
const MOST: usize = 100;
/// How long a set may take to arrive.
const WITHIN: Duration = Duration::from_secs(5);

/// A key that verifies tokens of one algorithm.
#[derive(Clone)]
pub(crate) struct Key {
    pub(crate) kid: Option<String>,
    pub(crate) algorithm: Algorithm,
    pub(crate) key: DecodingKey,
    pub(crate) fingerprint: String,
}

/// Why a set cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JwksError {
    #[error("is no JSON Web Key Set: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("has no key that can verify RS256, ES256 or EdDSA")]
    Empty,
    #[error("is larger than {LARGEST} bytes")]
    TooLarge,
    #[error("cannot be had: {0}")]
    Http(String),
}

impl From<reqwest::Error> for JwksError {
    fn from(error: reqwest::Error) -> Self {
        // The innermost cause says most; the URL is known to whoever reads this.
        let error = error.without_url();
        let mut cause: &dyn std::error::Error = &error;
        while let Some(next) = cause.source() {
            cause = next;
        }
        Self::Http(cause.to_string())
    }
}

/// The usable keys of a set.
pub(crate) fn parse(text: &[u8]) -> Result<Vec<Key>, JwksError> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<serde_json::Value>,
    }
    let set: Set = serde_json::from_slice(text)?;
    let keys: Vec<Key> = set.keys.into_iter().take(MOST).filter_map(usable).collect();
    if keys.is_empty() { Err(JwksError::Empty) } else { Ok(keys) }
}

fn usable(value: serde_json::Value) -> Option<Key> {
    let jwk: Jwk = serde_json::from_value(value).ok()?;
    let (algorithm, named, material) = match &jwk.algorithm {
        // Below 2048 bits an RSA key proves nothing; a modulus is a little longer in base64.
        AlgorithmParameters::RSA(rsa) if rsa.n.len() >= 342 => {
            (Algorithm::RS256, KeyAlgorithm::RS256, format!("{}.{}", rsa.n, rsa.e))
        }
        AlgorithmParameters::EllipticCurve(ec) if ec.curve == EllipticCurve::P256 => {
            (Algorithm::ES256, KeyAlgorithm::ES256, format!("{}.{}", ec.x, ec.y))
        }
        AlgorithmParameters::OctetKeyPair(ed) if ed.curve == EllipticCurve::Ed25519 => {
            (Algorithm::EdDSA, KeyAlgorithm::EdDSA, ed.x.clone())
        }
        _ => return None,
    };
    let for_signatures = matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature));
    let of_its_kind = jwk.common.key_algorithm.is_none_or(|given| given == named);
    if !for_signatures || !of_its_kind {
        return None;
    }
    let key = DecodingKey::from_jwk(&jwk).ok()?;
    Some(Key { kid: jwk.common.key_id, algorithm, key, fingerprint: fingerprint(material.as_bytes()) })
}

/// Fetches a set.
pub(crate) async fn fetch(http: &reqwest::Client, url: &str) -> Result<Vec<Key>, JwksError> {
    let get = async {
        let mut response =
            http.get(url).header("accept", "application/json").send().await?.error_for_status()?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            body.extend_from_slice(&chunk);
            if body.len() > LARGEST {
                return Err(JwksError::TooLarge);
            }
        }
        parse(&body)
    };
    let late = |_| JwksError::Http(format!("no answer within {WITHIN:?}"));
    tokio::time::timeout(WITHIN, get).await.map_err(late)?
}

/// Where a set is had from, for logs: an address may carry a password, or a key as its query.
pub(crate) fn place(url: &str) -> String {
    let parsed = reqwest::Url::parse(url).ok();
    parsed.map_or_else(String::new, |url| format!("{}{}", url.host_str().unwrap_or_default(), url.path()))
}

/// What was fetched last, by URL; kept while a fetch fails.
pub(crate) type Fetched = HashMap<String, Vec<Key>>;

/// Whether two sets have the same keys.
pub(crate) fn same(one: &[Key], two: &[Key]) -> bool {
    let name = |key: &Key| (key.kid.clone(), key.fingerprint.clone());
    one.iter().map(name).eq(two.iter().map(name))
}
