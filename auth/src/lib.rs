//! Who makes a request, and what that one may do.
//!
//! - [`Principal`]: a tenant, a subject, scopes, an end, and the credential they come from.
//! - [`Authenticator`]: turns bearer tokens (JWT, RFC 7519, or API keys) into principals by the `[auth]` section of the
//!   configuration file, and follows that file and its key sets while it runs.
//! - [`Sealer`]: texts that only their maker can read or make: tickets and session cookies.
//! - [`mint`]: keys and tokens for development.
//!
//! Invariants: the algorithm and the key of a token come from the configuration, never from the token; whatever cannot
//! be understood is refused; a file that turned bad leaves what was good before in force; no text of an error, no
//! `Debug` and no log line carries a token, a key or a secret. It decides nothing about jobs: that is the engine's part.

mod authenticator;
mod cache;
mod file;
mod issuer;
mod jwks;
pub mod mint;
mod principal;
mod seal;
mod state;

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};

pub use crate::{
    authenticator::Authenticator,
    file::{ConfigErrors, SessionSettings, TicketSettings},
    principal::{Credential, Principal, Scope, Scopes},
    seal::{Sealer, SecretError},
};

/// The longest token that is looked at, in bytes.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// How every API key begins.
pub const API_KEY_PREFIX: &str = "tg_";

/// Why a credential is not accepted. The texts are for the one who presented it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Longer than [`MAX_TOKEN_BYTES`].
    #[error("the token is longer than {MAX_TOKEN_BYTES} bytes")]
    TooLong,
    /// Neither an API key nor a JWT.
    #[error("the token cannot be understood")]
    Malformed,
    /// No such API key, or it has ended.
    #[error("the API key is not known")]
    UnknownApiKey,
    /// The token's `iss` is not configured.
    #[error("the token's issuer is not known")]
    UnknownIssuer,
    /// The token's `alg` is not one that its issuer is configured for.
    #[error("the token's algorithm is not one of its issuer's")]
    Algorithm,
    /// The token's `kid` is not among its issuer's keys, or it has none and there are several.
    #[error("the token's key is not known")]
    UnknownKey,
    /// The signature is not the key's.
    #[error("the token's signature is wrong")]
    Signature,
    /// The token's `aud` is somebody else.
    #[error("the token is for another audience")]
    Audience,
    /// It has ended.
    #[error("the token has expired")]
    Expired,
    /// It has not begun.
    #[error("the token is not valid yet")]
    NotYet,
    /// A claim is missing or has no usable value.
    #[error("the token's claim {0} is missing or cannot be used")]
    Claim(&'static str),
    /// It was taken back, or what it stands on is gone.
    #[error("the credential was revoked")]
    Revoked,
    /// The issuer's keys were never read, so nothing can be said about the token.
    #[error("the keys of the token's issuer cannot be had now; try again later")]
    Unavailable,
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// SHA-256.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|b| [b >> 4, b & 15]).map(|d| char::from(DIGITS[usize::from(d)])).collect()
}

/// 32 bytes from 64 hexadecimal digits.
pub(crate) fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

/// What a hash is called where it need not be complete: 64 bits of it.
pub(crate) fn fingerprint(bytes: &[u8]) -> String {
    hex(&sha256(bytes)[..8])
}
