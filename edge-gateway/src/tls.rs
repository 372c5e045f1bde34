//! TLS on the public port: rustls, HTTP/2 and HTTP/1.1 by ALPN, certificates that are replaced while it runs.
//!
//! Invariant: there is always a certificate in force. A new pair of files is taken when it can be read and fits
//! together; until then, the last good pair stays, and the log says why. Open connections keep what they began with.
//! TLS 1.2 is the oldest version. It does not ask clients for certificates.

use std::{fmt, io, path::PathBuf, sync::Arc, time::Duration};

use parking_lot::RwLock;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, ServerConfig,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    },
    server::TlsStream,
};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(2);
/// The largest file that is read, in bytes.
const LARGEST: u64 = 1024 * 1024;

/// Where the certificate and its key are, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, followed by its intermediates.
    pub cert: PathBuf,
    /// The private key: PKCS #8, PKCS #1 or SEC 1.
    pub key: PathBuf,
}

/// Why a pair of files is no identity.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The certificates are no PEM, or there are none.
    #[error("{} holds no certificate in PEM", .0.display())]
    Certificate(PathBuf),
    /// The key is no PEM, or there is none.
    #[error("{} holds no private key in PEM", .0.display())]
    Key(PathBuf),
    /// They do not fit together.
    #[error("{} and {} do not make an identity: {error}", files.cert.display(), files.key.display())]
    Pair {
        /// The files.
        files: Box<TlsFiles>,
        /// What is wrong.
        error: rustls::Error,
    },
}

/// The TLS side of a port; a cheap handle.
#[derive(Clone)]
pub(crate) struct Tls(Arc<Inner>);

struct Inner {
    files: TlsFiles,
    current: RwLock<Arc<ServerConfig>>,
}

impl Tls {
    /// Reads the files.
    pub(crate) fn open(files: TlsFiles) -> Result<(Self, Seen), TlsError> {
        let (config, seen) = load(&files)?;
        Ok((Self(Arc::new(Inner { files, current: RwLock::new(config) })), seen))
    }

    /// The handshake; and whether HTTP/2 was agreed on.
    pub(crate) async fn accept(&self, stream: TcpStream) -> io::Result<(TlsStream<TcpStream>, bool)> {
        let config = Arc::clone(&self.0.current.read());
        let stream = TlsAcceptor::from(config).accept(stream).await?;
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        Ok((stream, http2))
    }

    /// Follows the files, for ever; `seen` is what is in force.
    pub(crate) async fn follow(&self, mut seen: Seen) {
        loop {
            tokio::time::sleep(LOOK).await;
            let files = self.0.files.clone();
            // Blocking, because files may lie on a slow volume.
            let Ok(read) = tokio::task::spawn_blocking(move || Read::of(&files)).await else { continue };
            let now = read.as_ref().map_or(Seen::Unreadable, |read| read.seen);
            if now == seen {
                continue;
            }
            seen = now;
            match read.and_then(|read| read.config(&self.0.files)) {
                Ok(config) => {
                    *self.0.current.write() = config;
                    tracing::info!(cert = %self.0.files.cert.display(), "a new certificate is in force");
                }
                Err(error) => {
                    tracing::error!(%error, "the new certificate cannot be used; the last good one stays in force");
                }
            }
        }
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tls").field(&self.0.files).finish()
    }
}

/// What the files were when they were last looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// This content, by its hash.
    Content([u8; 32]),
    /// They could not be read.
    Unreadable,
}

/// The content of both files.
struct Read {
    cert: Vec<u8>,
    key: Vec<u8>,
    seen: Seen,
}

impl Read {
    fn of(files: &TlsFiles) -> Result<Self, TlsError> {
        let read = |path: &PathBuf| {
            let bytes = std::fs::metadata(path).and_then(|meta| match meta.len() {
                0..=LARGEST => std::fs::read(path),
                _ => Err(io::ErrorKind::FileTooLarge.into()),
            });
            bytes.map_err(|error| TlsError::Read { path: path.clone(), error })
        };
        let (cert, key) = (read(&files.cert)?, read(&files.key)?);
        let mut hasher = Sha256::new();
        hasher.update((cert.len() as u64).to_be_bytes());
        hasher.update(&cert);
        hasher.update(&key);
        let seen = Seen::Content(hasher.finalize().into());
        Ok(Self { cert, key, seen })
    }

    fn config(&self, files: &TlsFiles) -> Result<Arc<ServerConfig>, TlsError> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.cert).collect();
        let chain = chain.ok().filter(|chain| !chain.is_empty());
        let chain = chain.ok_or_else(|| TlsError::Certificate(files.cert.clone()))?;
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|_| TlsError::Key(files.key.clone()))?;
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key));
        let mut config = config.map_err(|error| TlsError::Pair { files: Box::new(files.clone()), error })?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// Whether the files make an identity.
pub(crate) fn check(files: &TlsFiles) -> Result<(), TlsError> {
    load(files).map(|_| ())
}

fn load(files: &TlsFiles) -> Result<(Arc<ServerConfig>, Seen), TlsError> {
    let read = Read::of(files)?;
    Ok((read.config(files)?, read.seen))
}
