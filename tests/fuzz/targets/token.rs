//! E49: whatever a token says of itself, nobody comes in without the issuer's signature; and what the issuer signs is
//! taken only if its header names the algorithm that is configured.
#![no_main]

use std::{io::Write as _, sync::LazyLock};

use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as B64};
use libfuzzer_sys::{arbitrary, fuzz_target};
use serde_json::Value;
use tidegate_auth::Authenticator;
use tokio::runtime::{Builder, Runtime};

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

#[derive(arbitrary::Arbitrary, Debug)]
enum Token<'a> {
    /// Any text.
    Raw(&'a str),
    /// Three parts, put together well, with any signature.
    Forged { header: &'a str, claims: &'a str, signature: &'a [u8] },
    /// Signed by the issuer, whatever it says.
    Signed { header: &'a str, claims: &'a str },
}

static ISSUER: LazyLock<(Runtime, Authenticator)> = LazyLock::new(|| {
    let mut config = tempfile::NamedTempFile::new().expect("a scratch file");
    let secret = std::str::from_utf8(SECRET).expect("letters");
    let mut secret_file = tempfile::NamedTempFile::new().expect("a scratch file");
    secret_file.write_all(secret.as_bytes()).expect("written");
    write!(
        config,
        "[[auth.issuer]]\nissuer = \"https://idp.example\"\naudience = \"tidegate\"\nalgorithms = [\"HS256\"]\nsecret_file = {:?}\n",
        secret_file.path()
    )
    .expect("written");
    let auth =
        Authenticator::from_file(config.path()).expect("a good configuration").expect("a section [auth]");
    (Builder::new_current_thread().build().expect("a runtime"), auth)
});

fuzz_target!(|token: Token<'_>| {
    let (runtime, auth) = &*ISSUER;
    let (text, signed) = match &token {
        Token::Raw(text) => ((*text).to_owned(), None),
        Token::Forged { header, claims, signature } => {
            (format!("{}.{}.{}", B64.encode(header), B64.encode(claims), B64.encode(signature)), None)
        }
        Token::Signed { header, claims } => {
            let message = format!("{}.{}", B64.encode(header), B64.encode(claims));
            let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET), message.as_bytes());
            (format!("{message}.{}", B64.encode(tag)), Some((header, claims)))
        }
    };
    if let Ok(principal) = runtime.block_on(auth.bearer(&text)) {
        let (header, claims) = signed.expect("somebody came in without a signature");
        let header: Value = serde_json::from_str(header).expect("a header in JSON");
        let claims: Value = serde_json::from_str(claims).expect("claims in JSON");
        assert_eq!(header["alg"], "HS256");
        assert_eq!(claims["iss"], "https://idp.example");
        assert!(claims["exp"].is_number(), "a token without an end");
        assert!(!principal.subject.is_empty() && !principal.subject.contains(['\r', '\n', '\0']));
    }
});
