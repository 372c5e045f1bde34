//! What keeps this command from trusting a server, in words that say what to change.
//!
//! The library says it deep inside an error; here it becomes one of a few faults. What it does not do: verify anything
//! itself, or offer to go on without.

use std::{error::Error as _, fmt, io};

use tokio_rustls::rustls::{CertificateError, Error, InvalidMessage};

/// What is wrong with the encryption that a server offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Its certificate's time is over.
    Expired,
    /// Its certificate's time has not come.
    NotYetValid,
    /// Nobody that is trusted here has signed its certificate.
    UnknownIssuer,
    /// Its certificate is for another name.
    OtherName,
    /// It does not speak TLS at all.
    NoTls,
    /// Something else, in the library's words.
    Other(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expired => "the server's certificate has expired",
            Self::NotYetValid => "the server's certificate is not valid yet",
            Self::UnknownIssuer => {
                "the server's certificate is self-signed, or signed by somebody who is not trusted here"
            }
            Self::OtherName => "the server's certificate is not for this name",
            Self::NoTls => "the server does not speak TLS on this port",
            Self::Other(words) => return write!(f, "TLS failed: {words}"),
        })
    }
}

impl Fault {
    /// What to do about it.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Expired => "renew it; the gateway takes new files without a restart",
            Self::NotYetValid => "wait, or set the clocks right: run NTP on both machines",
            Self::UnknownIssuer => {
                "serve one of a public authority with all its intermediates, or trust your own authority: --ca FILE here, the system's \
                 store in browsers"
            }
            Self::OtherName => {
                "use the name that it is for, or add this one to its subject alternative names"
            }
            Self::NoTls => "use http://, or the port that serves HTTPS",
            Self::Other(_) => "look at the server's TLS settings: TLS 1.2 or 1.3 is spoken here",
        }
    }

    /// The fault behind an error of the HTTP client, if there is one.
    pub(crate) fn of(error: &reqwest::Error) -> Option<Self> {
        let mut cause = error.source();
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref() {
                return Some(Self::named(error));
            }
            // What an I/O error holds is not among its sources, and may be one itself.
            let held = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            cause = held.map_or_else(|| error.source(), |held| Some(held));
        }
        None
    }

    fn named(error: &Error) -> Self {
        match error {
            Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. },
            ) => Self::Expired,
            Error::InvalidCertificate(
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
            ) => Self::NotYetValid,
            Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            ) => Self::OtherName,
            // A certificate that signed itself may also be one of an authority, which no server's may be.
            Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
                Self::UnknownIssuer
            }
            Error::InvalidCertificate(CertificateError::Other(other))
                if other.to_string().contains("CaUsedAsEndEntity") =>
            {
                Self::UnknownIssuer
            }
            Error::InvalidMessage(InvalidMessage::InvalidContentType) => Self::NoTls,
            other => Self::Other(other.to_string()),
        }
    }
}
