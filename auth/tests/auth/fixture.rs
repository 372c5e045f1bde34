//! Keys of three issuers, and tokens that are put together byte by byte and signed by the cryptographic library itself,
//! not by what verifies them.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use aws_lc_rs::{
    hmac,
    rand::SystemRandom,
    rsa::{KeyPair as RsaKeyPair, KeySize},
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256,
    },
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as B64};
use serde_json::{Value, json};
use tidegate_auth::{Authenticator, now};

pub(crate) const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

pub(crate) fn b64(bytes: impl AsRef<[u8]>) -> String {
    B64.encode(bytes)
}

/// Header and claims, not signed yet.
pub(crate) fn unsigned(header: &Value, claims: &Value) -> String {
    format!("{}.{}", b64(header.to_string()), b64(claims.to_string()))
}

pub(crate) fn signed(header: &Value, claims: &Value, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    let message = unsigned(header, claims);
    let signature = sign(message.as_bytes());
    format!("{message}.{}", b64(signature))
}

pub(crate) fn hs256(key: &[u8], claims: &Value) -> String {
    let sign =
        |message: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message).as_ref().to_vec();
    signed(&json!({"alg": "HS256", "typ": "JWT"}), claims, sign)
}

pub(crate) fn claims(changes: Value) -> Value {
    let mut claims = json!({
        "iss": "https://idp.example", "aud": "tidegate", "sub": "alice", "exp": now() + 600, "iat": now(),
        "scope": "openid jobs:read jobs:submit", "org": "acme", "jti": "j1",
    });
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        } else {
            claims[name] = value.clone();
        }
    }
    claims
}

/// Three issuers' keys, and a configuration in a directory of its own.
pub(crate) struct Fixture {
    pub(crate) dir: tempfile::TempDir,
    rsa: RsaKeyPair,
    ec: EcdsaKeyPair,
    ed: Ed25519KeyPair,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let rsa = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let ec = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let ed = Ed25519KeyPair::generate().unwrap();
        fs::write(dir.path().join("hs.secret"), SECRET).unwrap();
        let fixture = Self { dir, rsa, ec, ed };
        fs::write(fixture.dir.path().join("jwks.json"), fixture.jwks(&["rsa", "ec", "ed"]).to_string())
            .unwrap();
        fixture
    }

    pub(crate) fn modulus(&self) -> Vec<u8> {
        self.rsa.public_key().modulus().big_endian_without_leading_zero().to_vec()
    }

    pub(crate) fn jwks(&self, kids: &[&str]) -> Value {
        let ec = self.ec.public_key().as_ref();
        let keys = [
            json!({"kty": "RSA", "kid": "rsa", "use": "sig", "n": b64(self.modulus()),
                   "e": b64(self.rsa.public_key().exponent().big_endian_without_leading_zero())}),
            json!({"kty": "EC", "crv": "P-256", "kid": "ec", "alg": "ES256", "x": b64(&ec[1..33]), "y": b64(&ec[33..])}),
            json!({"kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": b64(self.ed.public_key())}),
        ];
        let wanted = |key: &Value| kids.contains(&key["kid"].as_str().unwrap());
        // What is not understood must not spoil the rest.
        let odd = [json!({"kty": "future"}), json!({"kty": "oct", "kid": "oct", "k": b64(SECRET)}), json!(7)];
        json!({"keys": keys.into_iter().filter(wanted).chain(odd).collect::<Vec<_>>()})
    }

    pub(crate) fn rs256(&self, header: Value, claims: &Value) -> String {
        signed(&header, claims, |message| {
            let mut signature = vec![0; self.rsa.public_modulus_len()];
            self.rsa.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature).unwrap();
            signature
        })
    }

    pub(crate) fn es256(&self, header: Value, claims: &Value) -> String {
        signed(&header, claims, |m| self.ec.sign(&SystemRandom::new(), m).unwrap().as_ref().to_vec())
    }

    pub(crate) fn eddsa(&self, header: Value, claims: &Value) -> String {
        signed(&header, claims, |m| self.ed.sign(m).as_ref().to_vec())
    }

    pub(crate) fn write(&self, auth: &str) -> PathBuf {
        let path = self.dir.path().join("tidegate.toml");
        // Renamed, because a file that is read half written is another test.
        let new = self.dir.path().join("new.toml");
        fs::write(&new, auth).unwrap();
        fs::rename(new, &path).unwrap();
        path
    }

    pub(crate) fn public(&self) -> Authenticator {
        from(&self.write(
            r#"
            [[exec]]
            kind = "another part's"
            [[auth.issuer]]
            issuer = "https://idp.example"
            audience = ["other", "tidegate"]
            algorithms = ["RS256", "ES256", "EdDSA"]
            jwks = "jwks.json"
            leeway_seconds = 5
            tenant_claim = "org"
            "#,
        ))
    }

    pub(crate) fn shared(&self) -> Authenticator {
        from(&self.write(&shared("")))
    }
}

pub(crate) fn shared(more: &str) -> String {
    format!(
        "[auth]\nreload_seconds = 1\n[[auth.issuer]]\nissuer = 'https://idp.example'\naudience = 'tidegate'\n\
         algorithms = ['HS256']\nsecret_file = 'hs.secret'\nleeway_seconds = 5\n{more}"
    )
}

pub(crate) fn from(path: &Path) -> Authenticator {
    Authenticator::from_file(path).unwrap().unwrap()
}

pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < Duration::from_secs(20), "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
