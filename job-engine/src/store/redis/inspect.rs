//! Whether a server may be trusted with jobs: asked of every new connection, before anything else is sent over it.
//!
//! [`judge`] is pure: what a server says of itself in, a verdict and warnings out. A managed server that does not
//! answer INFO or CONFIG is used with a warning, because nothing says that it is wrong. Does not: look again while a
//! connection lasts; who changes a server's settings at run time is heard at the next reconnect.

use redis::{RedisError, aio::MultiplexedConnection, cmd};

use super::{Acknowledge, errors::typed};
use crate::store::StoreError;

/// What a server says of itself; what it does not say is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// `redis_version`; Valkey says the version of Redis that it is compatible with.
    pub(super) version: Option<(u32, u32)>,
    cluster: Option<bool>,
    replica: bool,
    loading: bool,
    policy: Option<String>,
    aof: Option<bool>,
    appendfsync: Option<String>,
    snapshots: Option<bool>,
    /// Which process with which history: it changes when the server restarts or a replica takes over.
    pub(super) identity: Option<String>,
}

impl Facts {
    /// Asks the server.
    pub(super) async fn of(connection: &mut MultiplexedConnection) -> Result<Self, StoreError> {
        let info: Option<String> = allowed(cmd("INFO").query_async(connection).await)?;
        let mut command = cmd("CONFIG");
        command.arg("GET").arg("save").arg("appendfsync");
        let config: Option<Vec<(String, String)>> = allowed(command.query_async(connection).await)?;
        Ok(Self::parse(&info.unwrap_or_default(), &config.unwrap_or_default()))
    }

    fn parse(info: &str, config: &[(String, String)]) -> Self {
        let field = |name: &str| {
            let value = |line: &str| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim().to_owned());
            info.lines().find_map(value)
        };
        let config = |name: &str| config.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
        let version = field("redis_version").and_then(|version| {
            let mut numbers = version.split('.').map(|n| n.parse().ok());
            Some((numbers.next()??, numbers.next()??))
        });
        Self {
            version,
            cluster: field("redis_mode").map(|mode| mode == "cluster"),
            replica: field("role").is_some_and(|role| role == "slave"),
            loading: field("loading").is_some_and(|loading| loading == "1"),
            policy: field("maxmemory_policy"),
            aof: field("aof_enabled").map(|aof| aof == "1"),
            appendfsync: config("appendfsync"),
            snapshots: config("save").map(|save| !save.is_empty()),
            identity: field("run_id")
                .map(|run| format!("{run}/{}", field("master_replid").unwrap_or_default())),
        }
    }

    /// Whether `WAITAOF` is there.
    fn has_waitaof(&self) -> bool {
        self.version.is_some_and(|version| version >= (7, 2))
    }

    /// Whether an answer is as good as a sync, so that nothing needs to be waited for.
    pub(super) fn answers_after_sync(&self) -> bool {
        self.aof == Some(true) && self.appendfsync.as_deref() == Some("always")
    }
}

/// `None` when the server does not let us ask.
fn allowed<T>(answer: Result<T, RedisError>) -> Result<Option<T>, StoreError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) => match typed(&error) {
            // NOPERM, or a command that a provider has renamed.
            StoreError::Unfit(_) | StoreError::Damaged(_) if error.code() != Some("NOAUTH") => Ok(None),
            error => Err(error),
        },
    }
}

/// What to warn of, or why the server cannot be used: [`StoreError::Unavailable`] if that may pass by itself.
/// `cluster`: whether a node of a Cluster is expected.
pub(super) fn judge(
    facts: &Facts,
    acknowledge: Acknowledge,
    cluster: bool,
) -> Result<Vec<String>, StoreError> {
    let unfit = |what: String| Err(StoreError::Unfit(what));
    if facts.loading {
        return Err(StoreError::Unavailable("Redis is loading its data".into()));
    }
    if facts.replica {
        return Err(StoreError::Unavailable(
            "this Redis is a replica; jobs are written to its master".into(),
        ));
    }
    match (facts.cluster, cluster) {
        (Some(true), false) => return unfit("this is a Redis Cluster; use redis+cluster://".into()),
        (Some(false), true) => return unfit("this Redis is no node of a Cluster; use redis://".into()),
        _ => {}
    }
    match facts.version {
        Some((major, minor)) if major < 7 => {
            return unfit(format!("Redis {major}.{minor} is too old; 7.0 or newer, or Valkey, is needed"));
        }
        _ => {}
    }
    if let Some(policy) = facts.policy.as_deref().filter(|policy| *policy != "noeviction") {
        return unfit(format!(
            "Redis may evict keys (maxmemory-policy {policy}) and would lose jobs; \
             run `CONFIG SET maxmemory-policy noeviction` and make it permanent"
        ));
    }
    let mut warnings = Vec::new();
    if acknowledge == Acknowledge::Fsync && !facts.answers_after_sync() {
        if facts.aof == Some(false) {
            return unfit(
                "--acknowledge fsync needs Redis to keep an append-only file: set `appendonly yes`".into(),
            );
        }
        if !facts.has_waitaof() {
            let version = facts.version.map_or("this server".into(), |(a, b)| format!("Redis {a}.{b}"));
            return unfit(format!(
                "--acknowledge fsync needs WAITAOF (Redis 7.2 or newer), which {version} lacks; \
                 or set `appendfsync always`, with which every answer comes after the sync"
            ));
        }
    }
    match (facts.aof, facts.snapshots) {
        (Some(false), Some(false)) => warnings.push(
            "Redis keeps nothing on disk (appendonly no, no snapshots): a restart of Redis loses every job; \
             set `appendonly yes`"
                .into(),
        ),
        (Some(false), _) => warnings.push(
            "Redis keeps no append-only file: a crash of Redis loses everything since its last snapshot; \
             set `appendonly yes`"
                .into(),
        ),
        _ => {}
    }
    if facts.policy.is_none() {
        warnings.push(
            "cannot see Redis's settings (INFO is not allowed); maxmemory-policy must be noeviction, \
                       appendonly should be yes"
                .into(),
        );
    }
    Ok(warnings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(info: &str, config: &[(&str, &str)]) -> Facts {
        let base = "redis_version:7.0.15\r\nrole:master\r\nmaxmemory_policy:noeviction\r\nloading:0\r\n\
                    run_id:a\r\nmaster_replid:b\r\nredis_mode:standalone\r\n";
        let config: Vec<_> = config.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        Facts::parse(&format!("{info}\r\n{base}"), &config)
    }

    const DURABLE: &[(&str, &str)] = &[("save", ""), ("appendfsync", "everysec")];

    #[test]
    fn j24_a_server_is_refused_or_warned_of_with_what_to_do() {
        let verdict = |info: &str, config, acknowledge| match judge(&facts(info, config), acknowledge, false)
        {
            Ok(warnings) => warnings.join("\n"),
            Err(error) => error.to_string(),
        };
        let memory = |info| verdict(info, DURABLE, Acknowledge::Memory);
        assert_eq!(memory("aof_enabled:1"), "");
        for (info, word) in [
            ("redis_version:6.2.14", "too old"),
            ("maxmemory_policy:allkeys-lru", "noeviction"),
            ("maxmemory_policy:volatile-lru", "noeviction"),
            ("redis_mode:cluster", "redis+cluster://"),
            ("role:slave", "replica"),
            ("loading:1", "loading"),
            ("aof_enabled:0", "loses every job"),
        ] {
            assert!(memory(info).contains(word), "{info}: {}", memory(info));
        }
        assert!(matches!(
            judge(&facts("role:slave", DURABLE), Acknowledge::Memory, false),
            Err(StoreError::Unavailable(_))
        ));
        let snapshots = &[("save", "3600 1"), ("appendfsync", "everysec")];
        assert!(verdict("aof_enabled:0", snapshots, Acknowledge::Memory).contains("last snapshot"));
        assert!(
            judge(&Facts::default(), Acknowledge::Memory, false)
                .is_ok_and(|w| w.len() == 1 && w[0].contains("cannot see"))
        );
    }

    #[test]
    fn j30_fsync_is_refused_where_it_cannot_be_had() {
        let refused = |info: &str, fsync: &str| {
            judge(&facts(info, &[("save", ""), ("appendfsync", fsync)]), Acknowledge::Fsync, false)
                .err()
                .map(|e| e.to_string())
        };
        let old = refused("aof_enabled:1", "everysec").expect("7.0 has no WAITAOF");
        assert!(old.contains("Redis 7.0 lacks") && old.contains("appendfsync always"), "{old}");
        assert_eq!(refused("aof_enabled:1", "always"), None);
        assert_eq!(refused("aof_enabled:1\r\nredis_version:7.2.4", "everysec"), None);
        assert!(
            refused("aof_enabled:0\r\nredis_version:7.2.4", "everysec")
                .is_some_and(|e| e.contains("appendonly yes"))
        );
    }
}
