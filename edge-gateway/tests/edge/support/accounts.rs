//! A configuration file with an issuer and API keys, and the tokens of its users.

use std::{borrow::Borrow, fs, path::PathBuf};

use serde_json::{Value, json};
use tidegate_auth::{Authenticator, mint};

/// The file, its keys, and what was made with them.
pub(crate) struct Accounts {
    dir: tempfile::TempDir,
    signer: mint::SigningKey,
    pub(crate) key: String,
    key_entry: String,
}

/// A header line with a bearer token.
pub(crate) fn bearer(token: &str) -> String {
    format!("authorization: Bearer {token}\r\n")
}

impl Accounts {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let secret = "an edge test's secret of more than 32 bytes";
        fs::write(dir.path().join("hs.secret"), secret).unwrap();
        let (key, hash) = mint::api_key();
        let key_entry = format!(
            "[[auth.api_key]]\nname = 'ci'\nsha256 = '{}'\nsubject = 'anonymous'\nscopes = ['jobs:read']\n",
            mint::sha256_hex(&hash)
        );
        let accounts = Self { dir, signer: mint::SigningKey::from_secret(secret).unwrap(), key, key_entry };
        accounts.write("");
        accounts
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("tidegate.toml")
    }

    /// Writes the file with `more` behind the issuer and the API key.
    pub(crate) fn write(&self, more: &str) {
        self.write_whole(&format!("{}\n{more}", self.key_entry));
    }

    /// Writes the file with the issuer and `more`.
    pub(crate) fn write_whole(&self, more: &str) {
        let text = format!(
            "[auth]\nreload_seconds = 1\nsecret_file = 'edge.secret'\n[[auth.issuer]]\nissuer = 'test'\n\
             audience = 'tidegate'\nalgorithms = ['HS256']\nsecret_file = 'hs.secret'\ntenant_claim = 'tenant'\n{more}"
        );
        // Renamed, because a file that is read half written is another test.
        let new = self.dir.path().join("new.toml");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.path()).unwrap();
    }

    pub(crate) fn authenticator(&self) -> Authenticator {
        Authenticator::from_file(&self.path()).unwrap().unwrap()
    }

    /// A token that lasts `seconds`, with `changes` to its claims.
    pub(crate) fn token(&self, seconds: u64, changes: impl Borrow<Value>) -> String {
        let now = tidegate_auth::now();
        let mut claims = json!({
            "iss": "test", "aud": "tidegate", "sub": "anonymous", "tenant": "default", "iat": now,
            "exp": now + seconds, "scope": "jobs:read jobs:submit jobs:control",
        });
        for (name, value) in changes.borrow().as_object().unwrap() {
            claims[name] = value.clone();
        }
        self.signer.sign(&claims).unwrap()
    }

    /// A header line with the token of `subject` in the tenant "default".
    pub(crate) fn user(&self, subject: &str) -> String {
        bearer(&self.token(600, json!({ "sub": subject })))
    }
}
