//! Configuration: flags, their environment twins, and what must hold between them.
//!
//! All errors are found before anything starts, and told together. Bound to anything but loopback, the gateway
//! refuses to start without authentication or `--insecure`.

mod edge;

use std::{collections::HashSet, fmt, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::Parser;
use tidegate_auth::Authenticator;
use tidegate_proto::{bearer::Bearer, pool::Targets};
use tidegate_telemetry::admin::AdminToken;

pub use self::edge::{Edge, EdgeArgs};
use crate::{file, hub::Timing, limits::LimitSettings};

/// Flags of the `edge-gateway` binary. Values are texts here, so that [`Args::check`] can list every error at once.
#[derive(Clone, Debug, Parser)]
#[command(name = "edge-gateway", version, about)]
pub struct Args {
    /// Where browsers connect
    #[arg(long, env = "TIDEGATE_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDR")]
    pub listen: String,
    /// Where /metrics, /healthz and /readyz are served; never the public address
    #[arg(long, env = "TIDEGATE_ADMIN_LISTEN", default_value = "127.0.0.1:9464", value_name = "ADDR")]
    pub admin_listen: String,
    /// A file with the token that /metrics and /loglevel of the admin port ask for, as `Authorization: Bearer …`; read for
    /// each request. Nobody is asked without it
    #[arg(long, env = "TIDEGATE_ADMIN_TOKEN_FILE", value_name = "FILE")]
    pub admin_token_file: Option<PathBuf>,
    /// A job engine's gRPC address; repeatable, or separated by commas. A name may lead to several engines
    ///
    /// Engines share one Redis, so each can answer for every job. Calls and streams go to those that are healthy; when
    /// one dies, falls silent or drains, viewers go on at another within a second, and see nothing of it. Names are resolved
    /// again every few seconds.
    #[arg(
        long = "engine",
        env = "TIDEGATE_ENGINE",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:50051",
        value_name = "URL"
    )]
    pub engines: Vec<String>,
    /// A file with the token or API key that the engines ask for; read again when it changes
    #[arg(long, env = "TIDEGATE_ENGINE_TOKEN_FILE", value_name = "FILE")]
    pub engine_token_file: Option<PathBuf>,
    /// Connections served at once; more wait in the listen queue
    #[arg(long, env = "TIDEGATE_MAX_CONNECTIONS", default_value = "18000", value_name = "N")]
    pub max_connections: String,
    /// Event streams served at once; more are told to come back
    #[arg(long, env = "TIDEGATE_MAX_STREAMS", default_value = "16000", value_name = "N")]
    pub max_streams: String,
    /// After how long a stream is asked to reconnect, in seconds, so that streams move to gateways that were added; each
    /// lasts three quarters of it at least; 0 lets them last
    #[arg(long, env = "TIDEGATE_MAX_STREAM_SECONDS", default_value = "14400", value_name = "N")]
    pub max_stream_seconds: String,
    /// How long a shutdown may take, in seconds
    #[arg(long, env = "TIDEGATE_DRAIN_SECONDS", default_value = "10", value_name = "N")]
    pub drain_seconds: String,
    /// A TOML file with the lists: who may connect ([auth]), how much they may have ([limits])
    #[arg(long, env = "TIDEGATE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Serve without authentication on an address that others can reach
    #[arg(long, env = "TIDEGATE_INSECURE")]
    pub insecure: bool,
    /// How the outside reaches the gateway.
    #[command(flatten)]
    pub edge: EdgeArgs,
    /// Where logs and traces go.
    #[command(flatten)]
    pub output: tidegate_telemetry::Output,
}

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where browsers connect; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where operators look; `None` serves no admin port.
    pub admin_listen: Option<SocketAddr>,
    /// What operators present there; without it nobody is asked.
    pub admin_token: Option<AdminToken>,
    /// The engines.
    pub engines: Targets,
    /// What they are shown.
    pub bearer: Bearer,
    /// Connections at once.
    pub max_connections: usize,
    /// Streams at once.
    pub max_streams: usize,
    /// How long a shutdown may take.
    pub drain: Duration,
    /// The longest that a stream lasts; `None` for as long as it likes.
    pub longest_stream: Option<Duration>,
    /// Serve without authentication on an address that is not loopback.
    pub insecure: bool,
    /// Who comes in; without it everybody does.
    pub auth: Option<Authenticator>,
    /// The secret of tickets and sessions where the configuration file names none; made if it is not there.
    pub secret_file: Option<PathBuf>,
    /// How much clients may have.
    pub limits: LimitSettings,
    /// How the outside reaches the gateway.
    pub edge: Edge,
    /// Times of the hubs; tests shorten them.
    pub timing: Timing,
}

/// Everything that is wrong with a configuration.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(Vec<String>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration has errors:")?;
        self.0.iter().try_for_each(|error| write!(f, "\n  {error}"))
    }
}

impl Config {
    /// The defaults, for the engines at `engines`, on free loopback ports: for embedders and tests.
    pub fn local(engines: Targets) -> Self {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            listen: loopback,
            admin_listen: Some(loopback),
            admin_token: None,
            engines,
            bearer: Bearer::default(),
            max_connections: 18_000,
            max_streams: 16_000,
            drain: Duration::from_secs(10),
            longest_stream: None,
            insecure: false,
            auth: None,
            secret_file: None,
            limits: LimitSettings::default(),
            edge: Edge::default(),
            timing: Timing::default(),
        }
    }

    /// Refuses what would be reachable by strangers without having been asked to.
    ///
    /// # Errors
    /// When `listen` or `admin_listen` is not loopback, there is no authentication, and `insecure` is not set.
    pub fn check(&self) -> Result<(), ConfigErrors> {
        let mut errors = Vec::new();
        for (flag, addr) in [("--listen", Some(self.listen)), ("--admin-listen", self.admin_listen)] {
            if let Some(addr) =
                addr.filter(|addr| !addr.ip().is_loopback() && !self.insecure && self.auth.is_none())
            {
                errors.push(format!(
                    "{flag} {addr} can be reached by others, and there is no authentication: configure it \
                     ([auth] in --config), bind to 127.0.0.1, or add --insecure if everybody may see and steer every job"
                ));
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(ConfigErrors(errors)) }
    }
}

impl Args {
    /// Checks all values.
    ///
    /// # Errors
    /// With every error there is, not only the first.
    pub fn check(&self) -> Result<Config, ConfigErrors> {
        let mut errors = Vec::new();
        let listen = parse(&mut errors, "--listen", &self.listen, "an address such as 127.0.0.1:8080");
        let admin =
            parse(&mut errors, "--admin-listen", &self.admin_listen, "an address such as 127.0.0.1:9464");
        let max_connections = parse(&mut errors, "--max-connections", &self.max_connections, "a number");
        let max_streams = parse(&mut errors, "--max-streams", &self.max_streams, "a number");
        let drain: Option<u16> = parse(&mut errors, "--drain-seconds", &self.drain_seconds, "whole seconds");
        let longest: Option<u32> =
            parse(&mut errors, "--max-stream-seconds", &self.max_stream_seconds, "whole seconds");
        let engines = Targets::parse(&self.engines);
        if let Err(found) = &engines {
            errors.extend(found.iter().map(|error| format!("--engine {error}")));
        }
        let engines = engines.ok();
        for (flag, value) in [("--max-connections", max_connections), ("--max-streams", max_streams)] {
            if value == Some(0) {
                errors.push(format!("{flag} must be at least 1"));
            }
        }
        let auth = self.config.as_deref().map_or(Ok(None), Authenticator::from_file);
        let auth = auth.unwrap_or_else(|found| {
            errors.extend(found.0);
            None
        });
        let bearer = self.engine_token_file.as_deref().map_or(Ok(Bearer::default()), Bearer::file);
        let bearer = bearer.unwrap_or_else(|error| {
            errors.push(format!("--engine-token-file: {error}"));
            Bearer::default()
        });
        let admin_token = self.admin_token_file.as_deref().map(AdminToken::file).transpose();
        let admin_token = admin_token.unwrap_or_else(|error| {
            errors.push(error.to_string());
            None
        });
        let edge = self.edge.check(&mut errors);
        let limits = match self.config.as_deref().map(file::limits).transpose() {
            Ok(limits) => limits.flatten(),
            Err(found) => {
                errors.extend(found);
                None
            }
        };
        // Strangers come from other addresses, or through a proxy; a Redis is named for the sake of limits.
        let public = listen.is_some_and(|addr: SocketAddr| !addr.ip().is_loopback())
            || !edge.proxies.trusted.is_empty()
            || self.edge.limits_redis.is_some();
        let mut limits =
            limits.unwrap_or_else(|| if public { LimitSettings::public() } else { LimitSettings::default() });
        limits.redis = edge.limits_redis.clone().or(limits.redis);
        // Any engine will do to check the addresses.
        let some_engine = engines.clone().or_else(|| "http://127.0.0.1".parse().ok());
        if let (Some(listen), Some(engine)) = (listen, some_engine) {
            let (insecure, auth) = (self.insecure, auth.clone());
            let addresses = Config { listen, admin_listen: admin, insecure, auth, ..Config::local(engine) };
            if let Err(ConfigErrors(more)) = addresses.check() {
                errors.extend(more);
            }
        }
        // Who comes in and how much they may have stand in one file: what keeps it from being read is told once.
        let mut told = HashSet::new();
        errors.retain(|error| told.insert(error.clone()));
        match (listen, admin, engines, max_connections, max_streams, drain, longest) {
            (
                Some(listen),
                Some(admin),
                Some(engines),
                Some(max_connections),
                Some(max_streams),
                Some(drain),
                Some(longest),
            ) if errors.is_empty() => Ok(Config {
                listen,
                admin_listen: Some(admin),
                admin_token,
                max_connections,
                max_streams,
                drain: Duration::from_secs(drain.into()),
                longest_stream: (longest > 0).then(|| Duration::from_secs(longest.into())),
                insecure: self.insecure,
                auth,
                bearer,
                limits,
                edge,
                ..Config::local(engines)
            }),
            _ => Err(ConfigErrors(errors)),
        }
    }
}

fn parse<T: FromStr>(errors: &mut Vec<String>, flag: &str, value: &str, expected: &str) -> Option<T> {
    let parsed = value.parse().ok();
    if parsed.is_none() {
        errors.push(format!("{flag} {value:?} is not {expected}"));
    }
    parsed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(flags: &[&str]) -> Result<Config, ConfigErrors> {
        Args::try_parse_from(["edge-gateway"].iter().chain(flags)).unwrap().check()
    }

    #[test]
    fn defaults_are_loopback_only() {
        let config = check(&[]).unwrap();
        assert!(config.listen.ip().is_loopback());
        assert!(config.admin_listen.unwrap().ip().is_loopback());
    }

    #[test]
    fn an_open_address_needs_a_word_for_it() {
        let error = check(&["--listen", "0.0.0.0:8080"]).unwrap_err().to_string();
        assert!(error.contains("--insecure"), "{error}");
        assert!(check(&["--listen", "0.0.0.0:8080", "--insecure"]).is_ok());
        assert!(check(&["--admin-listen", "[::]:1"]).is_err());
    }

    #[test]
    fn limits_hold_where_strangers_can_connect_and_wherever_they_are_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tidegate.toml");
        std::fs::write(&file, "[limits.ip]\nstreams = 3\n[[exec]]\nkind = 'a'\n").unwrap();
        let named = format!("--config={}", file.display());
        assert_eq!(check(&[]).unwrap().limits, LimitSettings::default());
        assert_eq!(check(&["--listen=0.0.0.0:1", "--insecure"]).unwrap().limits, LimitSettings::public());
        assert_eq!(check(&["--trusted-proxy=127.0.0.1"]).unwrap().limits, LimitSettings::public());
        assert_eq!(check(&[&named]).unwrap().limits.ip.streams, Some(3));
        std::fs::write(&file, "[limits]\nstream = 3\n[typo]\n").unwrap();
        let ConfigErrors(errors) = check(&[&named, "--trusted-proxy=10.0.0.0/33"]).unwrap_err();
        assert_eq!(errors.len(), 2, "{errors:?}");
    }

    #[test]
    fn all_errors_are_told_at_once() {
        let flags = ["--listen=x", "--engine=", "--max-streams=0", "--drain-seconds=-1", "--admin-listen=y"];
        let ConfigErrors(errors) = check(&flags).unwrap_err();
        assert_eq!(errors.len(), 5, "{errors:?}");
    }
}
