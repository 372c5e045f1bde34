//! Texts that only holders of a secret can make or read: tickets and session cookies.
//!
//! AES-256-GCM-SIV (RFC 8452) under a random nonce: authenticated, and readable to nobody else, because tickets stand in
//! URLs and a subject is often an e-mail address. Gateways that share the secret read each other's texts, and none of them
//! stores any. Whether a text has ended is for its reader to know.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Serialize, de::DeserializeOwned};

use crate::{hex, unhex};

/// The longest text that is opened, in bytes.
const LONGEST: usize = 4096;

/// Why there is no secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be read or made.
    #[error("{path}: {error}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A line of the file is no secret.
    #[error("{0}: each line must have 64 hexadecimal digits (make one with `openssl rand -hex 32`)")]
    Malformed(PathBuf),
    /// The cryptographic library refused.
    #[error("the cryptographic library refused a key")]
    Library,
}

/// Seals and opens.
pub struct Sealer {
    /// The first seals; all of them open, so that a secret can be replaced without a break.
    keys: Vec<RandomizedNonceKey>,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer")
    }
}

impl Sealer {
    /// With a secret that lives as long as this process.
    ///
    /// # Errors
    /// If the cryptographic library refuses.
    pub fn ephemeral() -> Result<Self, SecretError> {
        Self::with(&[rand::random()])
    }

    /// With the secrets of a file, one a line; a file that does not exist is made, readable to its owner only.
    ///
    /// # Errors
    /// When the file cannot be read or made, or holds no secret.
    pub fn from_file(path: &Path) -> Result<Self, SecretError> {
        let failed = |error| SecretError::File { path: path.to_owned(), error };
        match make(path) {
            Ok(()) => tracing::info!(path = %path.display(), "made the secret of tickets and sessions"),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed(error)),
        }
        let text = fs::read_to_string(path).map_err(failed)?;
        let secrets: Option<Vec<_>> = text.lines().map(|line| unhex(line.trim())).collect();
        match secrets {
            Some(secrets) if !secrets.is_empty() => Self::with(&secrets),
            _ => Err(SecretError::Malformed(path.to_owned())),
        }
    }

    fn with(secrets: &[[u8; 32]]) -> Result<Self, SecretError> {
        let key = |secret: &[u8; 32]| RandomizedNonceKey::new(&AES_256_GCM_SIV, secret);
        let keys = secrets.iter().map(key).collect::<Result<_, _>>().map_err(|_| SecretError::Library)?;
        Ok(Self { keys })
    }

    /// A text that [`open`](Self::open) turns into `value` again, for the same `purpose` only.
    pub fn seal(&self, purpose: &str, value: &impl Serialize) -> Option<String> {
        let mut sealed = serde_json::to_vec(value).ok()?;
        let nonce = self.keys.first()?.seal_in_place_append_tag(Aad::from(purpose), &mut sealed).ok()?;
        let text: Vec<u8> = nonce.as_ref().iter().copied().chain(sealed).collect();
        Some(URL_SAFE_NO_PAD.encode(text))
    }

    /// What was sealed for `purpose`; nothing if the text is not exactly what [`seal`](Self::seal) gave.
    pub fn open<T: DeserializeOwned>(&self, purpose: &str, text: &str) -> Option<T> {
        if text.len() > LONGEST {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (nonce, sealed) = bytes.split_at_checked(NONCE_LEN)?;
        self.keys.iter().find_map(|key| {
            let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
            let mut sealed = sealed.to_vec();
            let opened = key.open_in_place(nonce, Aad::from(purpose), &mut sealed).ok()?;
            serde_json::from_slice(opened).ok()
        })
    }
}

/// Makes the file with a new secret, unless there is one: whole or not at all, because another gateway may be about to read it.
fn make(path: &Path) -> io::Result<()> {
    if fs::exists(path)? {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", hex(&rand::random::<[u8; 8]>())));
    let new = PathBuf::from(name);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    let made = file
        .write_all(format!("{}\n", hex(&rand::random::<[u8; 32]>())).as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::hard_link(&new, path));
    fs::remove_file(&new)?;
    made
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_is_sealed_opens_unchanged_or_not_at_all() {
        let sealer = Sealer::ephemeral().unwrap();
        let text = sealer.seal("ticket", &"alice@example.org").unwrap();
        assert_eq!(sealer.open::<String>("ticket", &text).unwrap(), "alice@example.org");
        assert!(sealer.open::<String>("session", &text).is_none(), "made for another purpose");
        assert!(Sealer::ephemeral().unwrap().open::<String>("ticket", &text).is_none());
        for at in 0..text.len() {
            let mut forged = text.clone().into_bytes();
            forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
            let forged = String::from_utf8(forged).unwrap();
            assert!(sealer.open::<String>("ticket", &forged).is_none(), "byte {at} was not looked at");
        }
        for bad in ["", "A", &text[1..], &"A".repeat(5000), "ä", &text[..20]] {
            assert!(sealer.open::<String>("ticket", bad).is_none());
        }
        assert!(!format!("{sealer:?} {text}").contains("alice"));
    }

    #[test]
    fn a_secret_is_made_once_shared_and_replaced_without_a_break() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("edge.secret");
        let start = || {
            let path = path.clone();
            std::thread::spawn(move || Sealer::from_file(&path).unwrap())
        };
        let started: Vec<_> = (0..16).map(|_| start()).collect();
        let sealers: Vec<_> = started.into_iter().map(|thread| thread.join().unwrap()).collect();
        let (one, two) = (&sealers[0], &sealers[15]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left lying about");
        let text = one.seal("t", &1).unwrap();
        assert_eq!(two.open::<u8>("t", &text), Some(1));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let old = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{}\n{old}", "ab".repeat(32))).unwrap();
        let new = Sealer::from_file(&path).unwrap();
        assert_eq!(new.open::<u8>("t", &text), Some(1));
        assert_eq!(one.open::<u8>("t", &new.seal("t", &2).unwrap()), None);
        fs::write(&path, "secret\n").unwrap();
        assert!(Sealer::from_file(&path).unwrap_err().to_string().contains("openssl rand -hex 32"));
        fs::write(&path, "").unwrap();
        assert!(Sealer::from_file(&path).is_err());
    }
}
