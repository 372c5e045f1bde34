//! Keys and tokens for development and for machines: what `tidegate token` makes.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{API_KEY_PREFIX, fingerprint, hex, sha256};

/// Why no token could be made.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    /// The file holds no private key that is understood.
    #[error("is no private Ed25519 key as `tidegate token init` makes them (a JSON Web Key with d)")]
    Key,
    /// The secret is too short (RFC 7518, section 3.2).
    #[error("an HS256 secret must have at least 32 bytes")]
    Secret,
    /// The cryptographic library refused.
    #[error("the token could not be signed")]
    Sign,
}

/// A key that signs tokens.
pub struct SigningKey {
    key: EncodingKey,
    algorithm: Algorithm,
    kid: Option<String>,
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigningKey({:?}, {:?})", self.algorithm, self.kid)
    }
}

/// A private Ed25519 key (RFC 8037).
#[derive(Deserialize)]
struct PrivateJwk {
    kty: String,
    crv: String,
    kid: String,
    d: String,
}

/// A new Ed25519 key: the private JSON Web Key, and the key set that verifies its tokens.
///
/// # Errors
/// If the cryptographic library refuses.
pub fn ed25519() -> Result<(Value, Value), MintError> {
    let seed: [u8; 32] = rand::random();
    let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| MintError::Sign)?;
    let x = URL_SAFE_NO_PAD.encode(pair.public_key());
    let public = json!({
        "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": fingerprint(x.as_bytes()), "x": x,
    });
    let mut private = public.clone();
    private["d"] = Value::String(URL_SAFE_NO_PAD.encode(seed));
    Ok((private, json!({ "keys": [public] })))
}

/// A new API key with 256 random bits, and its hash.
///
/// One round of SHA-256 is enough for it: what has 256 bits cannot be guessed, however fast one guesses.
pub fn api_key() -> (String, [u8; 32]) {
    let key = format!("{API_KEY_PREFIX}{}", URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>()));
    let hash = sha256(key.as_bytes());
    (key, hash)
}

/// A hash as the configuration file has it.
pub fn sha256_hex(hash: &[u8; 32]) -> String {
    hex(hash)
}

impl SigningKey {
    /// From a private JSON Web Key.
    ///
    /// # Errors
    /// [`MintError::Key`] when it is none.
    pub fn from_jwk(text: &str) -> Result<Self, MintError> {
        /// What stands before the seed in a private key of PKCS #8 (RFC 8410).
        const PKCS8: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
        let jwk: PrivateJwk = serde_json::from_str(text).map_err(|_| MintError::Key)?;
        let seed = URL_SAFE_NO_PAD.decode(&jwk.d).map_err(|_| MintError::Key)?;
        if jwk.kty != "OKP" || jwk.crv != "Ed25519" || seed.len() != 32 {
            return Err(MintError::Key);
        }
        let key = EncodingKey::from_ed_der(&[&PKCS8[..], &seed].concat());
        Ok(Self { key, algorithm: Algorithm::EdDSA, kid: Some(jwk.kid) })
    }

    /// From a shared secret.
    ///
    /// # Errors
    /// [`MintError::Secret`] when it is too short.
    pub fn from_secret(text: &str) -> Result<Self, MintError> {
        let secret = text.trim().as_bytes();
        if secret.len() < 32 {
            return Err(MintError::Secret);
        }
        Ok(Self { key: EncodingKey::from_secret(secret), algorithm: Algorithm::HS256, kid: None })
    }

    /// Signs `claims`.
    ///
    /// # Errors
    /// [`MintError::Sign`] when the cryptographic library refuses.
    pub fn sign(&self, claims: &impl Serialize) -> Result<String, MintError> {
        let header = Header { kid: self.kid.clone(), ..Header::new(self.algorithm) };
        jsonwebtoken::encode(&header, claims, &self.key).map_err(|_| MintError::Sign)
    }
}
