//! The engine's configuration: flags with environment twins.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use tidegate_auth::Authenticator;
use tidegate_telemetry::admin::AdminToken;

use crate::{
    engine::Bounds,
    job::machine::Rules,
    store::{embedded::Durability, redis::Acknowledge},
};

/// What an engine is told at its start.
#[derive(Clone, Debug, Args)]
pub struct Config {
    /// Where gRPC listens.
    #[arg(long, env = "TIDEGATE_GRPC_LISTEN", default_value = "127.0.0.1:50051", value_name = "ADDR")]
    pub grpc_listen: SocketAddr,

    /// Where /metrics, /healthz and /readyz of the engine listen.
    #[arg(
        long = "engine-admin-listen",
        visible_alias = "admin-listen",
        env = "TIDEGATE_ENGINE_ADMIN_LISTEN",
        default_value = "127.0.0.1:9465",
        value_name = "ADDR"
    )]
    pub admin_listen: SocketAddr,

    /// A file with the token that /metrics and /loglevel of the admin port ask for, as `Authorization: Bearer …`; read for each request. Nobody is asked without it.
    #[arg(long, env = "TIDEGATE_ADMIN_TOKEN_FILE", value_name = "FILE")]
    pub admin_token_file: Option<PathBuf>,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub log: LogConfig,

    /// A TOML file with the lists: who may call ([auth]).
    #[arg(long, env = "TIDEGATE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// How closely progress reports of one job may follow each other before they are merged, in milliseconds; 0 keeps every one.
    #[arg(long, env = "TIDEGATE_PROGRESS_INTERVAL_MS", default_value_t = 100, value_name = "MS")]
    pub progress_interval_ms: u64,

    /// How long a worker may give no sign of life before its jobs are given to others, in seconds (1 to 3600).
    #[arg(long, env = "TIDEGATE_LEASE_SECONDS", default_value_t = 15, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub lease_seconds: u64,

    /// How long a worker has to obey a cancellation, in seconds (1 to 3600).
    #[arg(long, env = "TIDEGATE_CANCEL_GRACE_SECONDS", default_value_t = 10, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub cancel_grace_seconds: u64,

    /// How many events of one job's log are kept; the oldest go first, and viewers are told (at least 16).
    #[arg(long, env = "TIDEGATE_LOG_EVENTS", default_value_t = 50_000, value_name = "N", value_parser = clap::value_parser!(u64).range(16..))]
    pub log_events: u64,

    /// How many bytes of one job's log are kept (at least 65536).
    #[arg(long, env = "TIDEGATE_LOG_BYTES", default_value_t = 16 << 20, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(65536..))]
    pub log_bytes: u64,

    /// How many jobs of one owner and kind may wait for a worker before more are refused (at least 1).
    #[arg(long, env = "TIDEGATE_MAX_QUEUED_PER_OWNER", default_value_t = 100_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub max_queued_per_owner: u64,

    /// How many jobs may be kept, finished ones included, before more are refused (at least 1).
    #[arg(long, env = "TIDEGATE_MAX_JOBS", default_value_t = 1_000_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub max_jobs: u64,

    /// How close two firings of a schedule may be, in seconds (1 to 3600); whoever wants it to fire more often is refused.
    #[arg(long, env = "TIDEGATE_SCHEDULE_MIN_SECONDS", default_value_t = 60, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub schedule_min_seconds: u64,
}

/// Where the event log is.
#[derive(Clone, Debug, Args)]
pub struct LogConfig {
    /// Where the embedded event log and the workers' files are kept.
    #[arg(long, env = "TIDEGATE_DATA_DIR", default_value = "./tidegate-data", value_name = "DIR")]
    pub data_dir: PathBuf,

    /// Keep the event log in Redis or Valkey instead: redis://[user:password@]host[:port][/db]; where Sentinel watches
    /// over it, redis+sentinel://[user:password@]host[:port][,host[:port]...]/master-name[?db=0]; on a Cluster,
    /// redis+cluster://[user:password@]host[:port][,host[:port]...].
    #[arg(long, env = "TIDEGATE_REDIS", value_name = "URL", hide_env_values = true)]
    pub redis: Option<String>,

    /// Read that URL from a file instead: a password in it shows neither in the environment nor among the arguments.
    #[arg(long, env = "TIDEGATE_REDIS_FILE", value_name = "FILE", conflicts_with = "redis")]
    pub redis_file: Option<PathBuf>,

    /// The prefix of every key in Redis; engines that share it share their jobs.
    #[arg(long, env = "TIDEGATE_REDIS_NAMESPACE", default_value = "tidegate", value_name = "NAME")]
    pub redis_namespace: String,

    /// What Redis must have done before a report or a submission is answered.
    #[arg(long, env = "TIDEGATE_ACKNOWLEDGE", default_value = "memory", value_name = "LEVEL")]
    pub acknowledge: AcknowledgeLevel,

    /// What the embedded event log waits for before it answers.
    #[arg(long, env = "TIDEGATE_DURABILITY", default_value = "sync", value_name = "LEVEL")]
    pub durability: DurabilityLevel,
}

/// What an acknowledged event survives on the embedded log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DurabilityLevel {
    /// A power cut: events are on the disk, many by one sync.
    Sync,
    /// A crash of the process, but not of the machine: events are with the operating system.
    Buffer,
}

/// What an acknowledged event survives on Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AcknowledgeLevel {
    /// What Redis's own settings make of its answer; a failover may lose the last moments, which readers are told.
    Memory,
    /// A power cut of Redis's machine: its append-only file is synced (Redis 7.2, or `appendfsync always`).
    Fsync,
    /// The loss of Redis's machine: a replica has it.
    Replica,
}

impl From<AcknowledgeLevel> for Acknowledge {
    fn from(level: AcknowledgeLevel) -> Self {
        match level {
            AcknowledgeLevel::Memory => Acknowledge::Memory,
            AcknowledgeLevel::Fsync => Acknowledge::Fsync,
            AcknowledgeLevel::Replica => Acknowledge::Replica,
        }
    }
}

impl From<DurabilityLevel> for Durability {
    fn from(level: DurabilityLevel) -> Self {
        match level {
            DurabilityLevel::Sync => Durability::Sync,
            DurabilityLevel::Buffer => Durability::Buffer,
        }
    }
}

impl LogConfig {
    /// Whether the log is in Redis.
    pub fn in_redis(&self) -> bool {
        self.redis.is_some() || self.redis_file.is_some()
    }

    /// Redis's URL, from wherever it was given.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn redis_url(&self) -> anyhow::Result<Option<String>> {
        let Some(file) = &self.redis_file else { return Ok(self.redis.clone()) };
        let url = std::fs::read_to_string(file)
            .map_err(|e| anyhow::anyhow!("cannot read {} (--redis-file): {e}", file.display()))?;
        Ok(Some(url.trim().to_owned()))
    }
}

impl Config {
    /// Who may call; without an `[auth]` section everybody on this machine.
    ///
    /// # Errors
    /// Everything that is wrong, in words that say what to do.
    pub fn check(&self, insecure: bool) -> Result<Option<Authenticator>, Vec<String>> {
        let auth = self.config.as_deref().map_or(Ok(None), Authenticator::from_file);
        let guarded = insecure || matches!(auth, Ok(Some(_)));
        let open = |(flag, addr): (&str, SocketAddr)| {
            (!addr.ip().is_loopback() && !guarded).then(|| {
                format!(
                    "{flag} {addr} can be reached by others, and there is no authentication: configure it ([auth] in \
                     --config), bind to 127.0.0.1, or add --insecure if everybody may see and steer every job"
                )
            })
        };
        let addresses = [("--grpc-listen", self.grpc_listen), ("--admin-listen", self.admin_listen)];
        let mut errors: Vec<String> = addresses.into_iter().filter_map(open).collect();
        if !self.log.in_redis() && self.log.acknowledge != AcknowledgeLevel::Memory {
            errors
                .push("--acknowledge is for --redis; what the embedded log survives is --durability".into());
        }
        let admin_token = self.admin_token_file.as_deref().map(AdminToken::file);
        errors.extend(admin_token.and_then(Result::err).map(|error| error.to_string()));
        match auth {
            Ok(auth) if errors.is_empty() => Ok(auth),
            Ok(_) => Err(errors),
            Err(found) => {
                errors.extend(found.0);
                Err(errors)
            }
        }
    }

    /// How much is taken in.
    pub fn bounds(&self) -> Bounds {
        Bounds {
            queued_per_owner: self.max_queued_per_owner,
            jobs: self.max_jobs,
            schedule_distance: Duration::from_secs(self.schedule_min_seconds),
        }
    }

    /// The state machine's rules.
    pub fn rules(&self) -> Rules {
        let mut rules = Rules {
            lease: Duration::from_secs(self.lease_seconds),
            cancel_grace: Duration::from_secs(self.cancel_grace_seconds),
            ..Rules::default()
        };
        (rules.log.events, rules.log.bytes) = (self.log_events, self.log_bytes);
        rules
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        config: Config,
    }

    fn log(flags: &[&str]) -> LogConfig {
        Flags::parse_from(["engine"].iter().chain(flags)).config.log
    }

    #[test]
    fn the_redis_url_may_lie_in_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("url");
        std::fs::write(&file, "redis://:secret@redis:6379\n").unwrap();
        let flag = format!("--redis-file={}", file.display());
        assert_eq!(log(&[&flag]).redis_url().unwrap().as_deref(), Some("redis://:secret@redis:6379"));
        assert_eq!(log(&["--redis=redis://a"]).redis_url().unwrap().as_deref(), Some("redis://a"));
        assert_eq!(log(&[]).redis_url().unwrap(), None);
        let error = log(&["--redis-file=/does/not/exist"]).redis_url().unwrap_err().to_string();
        assert!(error.contains("/does/not/exist (--redis-file)"), "{error}");
        assert!(Flags::try_parse_from(["engine", &flag, "--redis=redis://a"]).is_err());
    }
}
