//! Where engines are: URLs whose hosts are addresses, or names with any number of addresses.

use std::{fmt, io, net::SocketAddr, str::FromStr, sync::Arc};

use tonic::codegen::{BoxFuture, http::Uri};

/// The engines' URLs, at least one; each host may stand for several engines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Targets(Vec<Uri>);

/// Why a list of URLs names no engines.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// The list is empty.
    #[error("at least one engine is needed, such as http://127.0.0.1:50051")]
    None,
    /// A URL is not of the form `http://host:port`.
    #[error(
        "{0:?} is no engine address; it looks like http://127.0.0.1:50051 or http://engine.internal:50051"
    )]
    Malformed(String),
    /// A URL asks for TLS.
    #[error("{0:?}: engines are reached by http:// only; leave TLS to a proxy or a mesh beside them")]
    Tls(String),
}

/// Finds the addresses of a host and port.
pub(super) type Resolver = Arc<dyn Fn(String, u16) -> BoxFuture<Vec<SocketAddr>, io::Error> + Send + Sync>;

impl Targets {
    /// Reads URLs such as `http://127.0.0.1:50051`; several may stand in one text, separated by commas.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn parse<I: IntoIterator<Item: AsRef<str>>>(urls: I) -> Result<Self, Vec<TargetError>> {
        let (mut uris, mut errors) = (Vec::new(), Vec::new());
        for urls in urls {
            for url in urls.as_ref().split(',').map(str::trim) {
                match target(url) {
                    Ok(uri) if !uris.contains(&uri) => uris.push(uri),
                    Ok(_) => {}
                    Err(error) => errors.push(error),
                }
            }
        }
        if errors.is_empty() && uris.is_empty() {
            errors.push(TargetError::None);
        }
        if errors.is_empty() { Ok(Self(uris)) } else { Err(errors) }
    }

    pub(super) fn uris(&self) -> &[Uri] {
        &self.0
    }
}

impl FromStr for Targets {
    type Err = TargetError;

    /// Reads URLs separated by commas; the first error counts.
    fn from_str(urls: &str) -> Result<Self, TargetError> {
        Self::parse([urls]).map_err(|errors| errors.into_iter().next().unwrap_or(TargetError::None))
    }
}

impl fmt::Display for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, uri) in self.0.iter().enumerate() {
            let comma = if n > 0 { "," } else { "" };
            write!(f, "{comma}{}", uri.to_string().trim_end_matches('/'))?;
        }
        Ok(())
    }
}

fn target(url: &str) -> Result<Uri, TargetError> {
    let malformed = || TargetError::Malformed(url.to_owned());
    let uri: Uri = url.parse().map_err(|_| malformed())?;
    let bare = matches!(uri.path(), "" | "/") && uri.query().is_none();
    let user = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
    match uri.scheme_str() {
        Some("http") if bare && !user && uri.host().is_some_and(|host| !host.is_empty()) => Ok(uri),
        Some("https") => Err(TargetError::Tls(url.to_owned())),
        _ => Err(malformed()),
    }
}

/// The host, without the brackets of an IPv6 address, and the port.
pub(super) fn host_and_port(uri: &Uri) -> (String, u16) {
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    (host.to_owned(), uri.port_u16().unwrap_or(80))
}

/// The system's resolver: /etc/hosts, DNS, or whatever the machine is set up for.
pub(super) fn system() -> Resolver {
    Arc::new(|host, port| {
        Box::pin(async move { Ok(tokio::net::lookup_host((host.as_str(), port)).await?.collect()) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_every_error_is_told() {
        let targets = Targets::parse(["http://a:1,http://[::1]:2", "http://a:1", "http://c"]).unwrap();
        let found: Vec<_> = targets.uris().iter().map(host_and_port).collect();
        assert_eq!(found, [("a".into(), 1), ("::1".into(), 2), ("c".into(), 80)]);
        assert_eq!(targets.to_string(), "http://a:1,http://[::1]:2,http://c");
        let bad = [
            "",
            "nonsense",
            "ftp://a",
            "http://a/path",
            "http://a?q",
            "http://u@a",
            "https://a",
            "http://:1",
        ];
        assert_eq!(Targets::parse(bad).unwrap_err().len(), bad.len());
        assert_eq!(Targets::parse([""; 0]), Err(vec![TargetError::None]));
    }
}
