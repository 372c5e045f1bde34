//! Who is at the other end: the peer of the connection, or whom trusted proxies say they speak for.
//!
//! The right-most rule: a proxy appends the address it saw, so reading from the right, the first address that is not a
//! trusted proxy's is the client, and everything to its left is hearsay. A peer that is no trusted proxy is the client,
//! whatever it claims. Only the one configured field is looked at, because a proxy passes on the others as they came.

use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use axum::extract::FromRequestParts;
use http::{Extensions, HeaderMap, HeaderName, header, request::Parts};
use ipnet::IpNet;

/// The other end of the connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    pub(crate) addr: SocketAddr,
    /// Whether the connection is encrypted.
    pub(crate) tls: bool,
}

/// The client's address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Client(pub(crate) IpAddr);

impl Client {
    /// The address found for a request; one for all if there is none, so that nobody escapes by having none.
    pub(crate) fn of(extensions: &Extensions) -> IpAddr {
        extensions.get().map_or(Ipv4Addr::UNSPECIFIED.into(), |Self(ip)| *ip)
    }
}

impl<S: Sync> FromRequestParts<S> for Client {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(Self::of(&parts.extensions)))
    }
}

/// The field in which trusted proxies name the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ForwardedBy {
    /// `X-Forwarded-For: client, proxy`.
    #[default]
    XForwardedFor,
    /// `Forwarded: for=client;proto=https` (RFC 7239).
    Forwarded,
}

/// The proxies whose word is taken.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    /// Their networks.
    pub trusted: Vec<IpNet>,
    /// The field that they append to.
    pub field: ForwardedBy,
}

impl Proxies {
    /// The address that limits and logs go by.
    pub(crate) fn client(&self, peer: SocketAddr, headers: &HeaderMap) -> Client {
        let mut client = peer.ip().to_canonical();
        if !self.trusts(client) {
            return Client(client);
        }
        let (field, parse): (HeaderName, fn(&str) -> Option<IpAddr>) = match self.field {
            ForwardedBy::XForwardedFor => (HeaderName::from_static("x-forwarded-for"), address),
            ForwardedBy::Forwarded => (header::FORWARDED, forwarded_for),
        };
        let values: Vec<_> =
            headers.get_all(field).iter().map(|value| value.to_str().unwrap_or("?")).collect();
        for hop in values.iter().rev().flat_map(|value| value.rsplit(',')) {
            // An entry that cannot be read ends what is known: the client is whoever sent it.
            let Some(ip) = parse(hop.trim()) else { break };
            client = ip.to_canonical();
            if !self.trusts(client) {
                break;
            }
        }
        Client(client)
    }

    /// Whether this is the address of a trusted proxy.
    pub(crate) fn trusts(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.trusted.iter().any(|net| net.contains(&ip))
    }
}

/// An address, perhaps in brackets, perhaps with a port.
fn address(text: &str) -> Option<IpAddr> {
    let inner = text.strip_prefix('[').and_then(|rest| rest.split_once(']')).map(|(inner, _)| inner);
    let bare = inner.unwrap_or(text);
    bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|addr| addr.ip()))
}

/// The `for` of one element of `Forwarded`.
fn forwarded_for(element: &str) -> Option<IpAddr> {
    element.split(';').find_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        name.eq_ignore_ascii_case("for").then(|| address(value.trim_matches('"'))).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(proxies: &Proxies, peer: &str, headers: &[(&'static str, &'static str)]) -> String {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), http::HeaderValue::from_static(value))
        };
        let headers: HeaderMap = headers.iter().map(pair).collect();
        let Client(ip) = proxies.client(SocketAddr::new(peer.parse().unwrap(), 1), &headers);
        ip.to_string()
    }

    fn trust(field: ForwardedBy) -> Proxies {
        Proxies { trusted: vec!["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()], field }
    }

    #[test]
    fn e51_only_trusted_proxies_are_believed_and_only_from_the_right() {
        let proxies = trust(ForwardedBy::XForwardedFor);
        for (peer, forwarded, expected) in [
            ("203.0.113.9", "1.1.1.1", "203.0.113.9"),
            ("10.0.0.1", "1.1.1.1", "1.1.1.1"),
            ("10.0.0.1", "6.6.6.6, 1.1.1.1", "1.1.1.1"),
            ("10.0.0.1", "6.6.6.6, 1.1.1.1, 10.1.2.3", "1.1.1.1"),
            ("10.0.0.1", "10.9.9.9,10.1.2.3", "10.9.9.9"),
            ("10.0.0.1", "6.6.6.6, nonsense, 10.1.2.3", "10.1.2.3"),
            ("10.0.0.1", "unknown", "10.0.0.1"),
            ("10.0.0.1", "", "10.0.0.1"),
            ("10.0.0.1", "1.1.1.1,", "10.0.0.1"),
            ("10.0.0.1", "1.1.1.1:4711", "1.1.1.1"),
            ("::1", "[2001:db8::7]:80", "2001:db8::7"),
            ("::1", "2001:db8::7", "2001:db8::7"),
            ("::ffff:10.0.0.1", "::ffff:1.1.1.1", "1.1.1.1"),
        ] {
            assert_eq!(
                client(&proxies, peer, &[("x-forwarded-for", forwarded)]),
                expected,
                "{peer} {forwarded}"
            );
        }
        assert_eq!(client(&proxies, "10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(client(&Proxies::default(), "10.0.0.1", &[("x-forwarded-for", "1.1.1.1")]), "10.0.0.1");
    }

    #[test]
    fn e51_a_field_that_comes_twice_is_one_list() {
        let mut headers = HeaderMap::new();
        headers.append("x-forwarded-for", "6.6.6.6".parse().unwrap());
        headers.append("x-forwarded-for", "1.1.1.1, 10.2.2.2".parse().unwrap());
        let Client(ip) = trust(ForwardedBy::XForwardedFor).client("10.0.0.1:1".parse().unwrap(), &headers);
        assert_eq!(ip.to_string(), "1.1.1.1");
    }

    #[test]
    fn e51_the_field_that_is_not_configured_is_hearsay() {
        let both = [
            ("x-forwarded-for", "6.6.6.6"),
            ("forwarded", "for=\"[2001:db8::7]:80\";proto=https, for=10.1.1.1"),
        ];
        assert_eq!(client(&trust(ForwardedBy::XForwardedFor), "10.0.0.1", &both), "6.6.6.6");
        assert_eq!(client(&trust(ForwardedBy::Forwarded), "10.0.0.1", &both), "2001:db8::7");
        assert_eq!(
            client(&trust(ForwardedBy::Forwarded), "10.0.0.1", &[("forwarded", "For=1.1.1.1")]),
            "1.1.1.1"
        );
        assert_eq!(
            client(&trust(ForwardedBy::Forwarded), "10.0.0.1", &[("forwarded", "for=_hidden")]),
            "10.0.0.1"
        );
    }
}
