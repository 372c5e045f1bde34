//! The flags that say how the outside reaches the gateway; `tidegate` takes the same.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use clap::Args;
use ipnet::IpNet;

use crate::{
    client::{ForwardedBy, Proxies},
    cors::Origin,
    limits::RedisUrl,
    tls::{self, TlsFiles},
};

/// Encryption, proxies in front, pages of other origins, limits.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "The edge")]
pub struct EdgeArgs {
    /// Serve HTTPS with this certificate in PEM, its intermediates after it; replaced files are taken within seconds
    #[arg(long, env = "TIDEGATE_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key in PEM
    #[arg(long, env = "TIDEGATE_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Tell browsers to come by HTTPS only, for so long (Strict-Transport-Security); 0 tells them nothing
    #[arg(long, env = "TIDEGATE_HSTS_SECONDS", default_value_t = 0, value_name = "N")]
    pub hsts_seconds: u32,
    /// A proxy in front whose word about client addresses is taken: an address or a network such as 10.0.0.0/8;
    /// repeatable
    #[arg(
        long = "trusted-proxy",
        env = "TIDEGATE_TRUSTED_PROXY",
        value_name = "CIDR",
        value_delimiter = ','
    )]
    pub trusted_proxies: Vec<String>,
    /// The header to which trusted proxies append the client's address; the other one is ignored
    #[arg(long, env = "TIDEGATE_FORWARDED_BY", value_enum, default_value_t, value_name = "HEADER")]
    pub forwarded_by: ForwardedBy,
    /// Another origin whose pages may use this API with credentials, such as https://app.example; repeatable
    #[arg(long = "cors-origin", env = "TIDEGATE_CORS_ORIGIN", value_name = "ORIGIN", value_delimiter = ',')]
    pub cors_origins: Vec<String>,
    /// Share limits with other gateways through this Redis; what the limits are, says [limits] in --config
    #[arg(long, env = "TIDEGATE_LIMITS_REDIS", hide_env_values = true, value_name = "URL")]
    pub limits_redis: Option<String>,
}

/// How the outside reaches the gateway, checked.
#[derive(Clone, Debug, Default)]
pub struct Edge {
    /// Whose word about a client's address is taken.
    pub proxies: Proxies,
    /// Other origins whose pages may use the API.
    pub origins: Vec<Origin>,
    /// The certificate; plain HTTP without one.
    pub tls: Option<TlsFiles>,
    /// For how long browsers are told to come by HTTPS only; zero tells them nothing.
    pub hsts: Duration,
    /// The Redis through which gateways share their limits; wins over the one that the limits name.
    pub limits_redis: Option<RedisUrl>,
}

impl EdgeArgs {
    /// Checks all values, and that the certificate can be used.
    pub(super) fn check(&self, errors: &mut Vec<String>) -> Edge {
        let mut trusted = Vec::new();
        for proxy in &self.trusted_proxies {
            match proxy.parse::<IpNet>().ok().or_else(|| proxy.parse::<IpAddr>().ok().map(IpNet::from)) {
                Some(network) => trusted.push(network),
                None => errors
                    .push(format!("--trusted-proxy {proxy:?} is no address or network such as 10.0.0.0/8")),
            }
        }
        let mut origins = Vec::new();
        for origin in &self.cors_origins {
            match origin.parse() {
                Ok(origin) => origins.push(origin),
                Err(expected) => errors.push(format!("--cors-origin {origin:?} is not {expected}")),
            }
        }
        let tls = match (&self.tls_cert, &self.tls_key) {
            (Some(cert), Some(key)) => Some(TlsFiles { cert: cert.clone(), key: key.clone() }),
            (None, None) => None,
            _ => {
                errors.push("--tls-cert and --tls-key need each other".into());
                None
            }
        };
        errors.extend(
            tls.as_ref()
                .and_then(|files| tls::check(files).err())
                .map(|error| format!("--tls-cert: {error}")),
        );
        if self.hsts_seconds > 0 && tls.is_none() {
            errors.push("--hsts-seconds makes sense with --tls-cert only".into());
        }
        let limits_redis = self.limits_redis.as_ref().map(|url| url.parse()).transpose();
        let limits_redis = limits_redis.unwrap_or_else(|error| {
            errors.push(format!("--limits-redis {error}"));
            None
        });
        Edge {
            proxies: Proxies { trusted, field: self.forwarded_by },
            origins,
            tls,
            hsts: Duration::from_secs(self.hsts_seconds.into()),
            limits_redis,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        edge: EdgeArgs,
    }

    fn check(flags: &[&str]) -> (Edge, Vec<String>) {
        let mut errors = Vec::new();
        let line = Line::try_parse_from(["gateway"].iter().chain(flags)).unwrap();
        (line.edge.check(&mut errors), errors)
    }

    #[test]
    fn lists_may_be_repeated_or_separated_by_commas() {
        let (edge, errors) = check(&[
            "--trusted-proxy=10.0.0.0/8,::1",
            "--trusted-proxy=192.0.2.7",
            "--cors-origin=https://a.example,https://b.example",
            "--forwarded-by=forwarded",
        ]);
        assert_eq!((errors, edge.proxies.trusted.len(), edge.origins.len()), (vec![], 3, 2));
    }

    #[test]
    fn every_error_is_told_and_no_password() {
        let (_, errors) = check(&[
            "--trusted-proxy=nonsense",
            "--cors-origin=*,null",
            "--tls-cert=/does/not/exist",
            "--hsts-seconds=1",
            "--limits-redis=http://:secret@h",
        ]);
        assert_eq!(errors.len(), 6, "{errors:?}");
        assert!(!errors.iter().any(|error| error.contains("secret")), "{errors:?}");
    }
}
