//! What a gateway or a worker presents to an engine: a bearer token in the metadata of every call.
//!
//! A token in a file may be replaced while it is in use: the file is read again when a call finds that the last reading is
//! [`FRESH`] ago. Nothing here prints a token.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::Interceptor,
};

/// How long a token is used before its file is read again.
pub const FRESH: Duration = Duration::from_secs(5);
/// The largest file that is read, in bytes.
const LARGEST: usize = 16 * 1024;

/// Adds `authorization: Bearer …` to calls, or nothing; a cheap handle.
#[derive(Clone, Default)]
pub struct Bearer(Option<Arc<Source>>);

struct Source {
    path: Option<PathBuf>,
    current: Mutex<(MetadataValue<Ascii>, Instant)>,
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum BearerError {
    /// The file cannot be read.
    #[error("{path}: {error}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// It is empty, too long, or has bytes that no header may have.
    #[error("{0}: is no token: one line of printable ASCII")]
    Malformed(String),
}

impl fmt::Debug for Bearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Bearer(…)" } else { "Bearer(none)" })
    }
}

impl Bearer {
    /// Presents `token`.
    ///
    /// # Errors
    /// [`BearerError::Malformed`].
    pub fn token(token: &str) -> Result<Self, BearerError> {
        Self::with(None, header(token).ok_or_else(|| BearerError::Malformed("the token".into()))?)
    }

    /// Presents the token that the file at `path` holds.
    ///
    /// # Errors
    /// When the file cannot be read now, or holds no token; what happens to it later is no error.
    pub fn file(path: &Path) -> Result<Self, BearerError> {
        let failed = |error| BearerError::File { path: path.to_owned(), error };
        let text = fs::read_to_string(path).map_err(failed)?;
        let token = header(&text).ok_or_else(|| BearerError::Malformed(path.display().to_string()))?;
        Self::with(Some(path.to_owned()), token)
    }

    fn with(path: Option<PathBuf>, token: MetadataValue<Ascii>) -> Result<Self, BearerError> {
        Ok(Self(Some(Arc::new(Source { path, current: Mutex::new((token, Instant::now())) }))))
    }
}

/// The value of the header.
fn header(token: &str) -> Option<MetadataValue<Ascii>> {
    let token = token.trim();
    if token.is_empty() || token.len() > LARGEST || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return None;
    }
    let mut value: MetadataValue<Ascii> = format!("Bearer {token}").parse().ok()?;
    value.set_sensitive(true);
    Some(value)
}

impl Source {
    fn current(&self) -> MetadataValue<Ascii> {
        let mut current = self.current.lock();
        if let Some(path) = self.path.as_ref().filter(|_| current.1.elapsed() >= FRESH) {
            current.1 = Instant::now();
            // A file that is being replaced is read again later; until then the old token may still do.
            if let Some(token) = fs::read_to_string(path).ok().as_deref().and_then(header) {
                current.0 = token;
            }
        }
        current.0.clone()
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(source) = &self.0 {
            request.metadata_mut().insert("authorization", source.current());
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_into_the_metadata_and_into_no_text() {
        let mut bearer = Bearer::token(" tg_secret\n").unwrap();
        let request = bearer.call(Request::new(())).unwrap();
        assert_eq!(request.metadata().get("authorization").unwrap(), "Bearer tg_secret");
        assert!(!format!("{bearer:?} {request:?}").contains("secret"));
        assert!(Bearer::default().call(Request::new(())).unwrap().metadata().is_empty());
        for bad in ["", " \n", "a b", "a\nb", "ä", "\0"] {
            assert!(Bearer::token(bad).is_err(), "{bad:?}");
        }
        assert!(Bearer::file(Path::new("/does/not/exist")).is_err());
    }
}
