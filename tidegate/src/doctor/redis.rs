//! Whether a Redis is fit to keep an event log: asked of it directly, because no gateway tells.

use std::time::Duration;

use redis::{Client, RedisError};
use tokio::time::timeout;

use super::findings::Finding;

/// How long Redis may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
const CHECK: &str = "redis";

/// Looks at the settings by which a Redis loses jobs.
pub(super) async fn look(url: &str) -> Finding {
    match timeout(PATIENCE, info(url)).await {
        Ok(Ok(info)) => judge(&info),
        // The words of the error may have the URL, and with it the password, in them; the kind has not.
        Ok(Err(error)) => unknown(&format!("{:?}", error.kind())),
        Err(_) => unknown("no answer in time"),
    }
}

async fn info(url: &str) -> Result<String, RedisError> {
    let mut connection = Client::open(url)?.get_multiplexed_async_connection().await?;
    redis::cmd("INFO").query_async(&mut connection).await
}

fn unknown(why: &str) -> Finding {
    Finding::fault(
        CHECK,
        format!("Redis cannot be asked: {why}"),
        "check --redis; the engine's log says what it sees",
    )
}

fn judge(info: &str) -> Finding {
    let value =
        |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    match (value("maxmemory_policy"), value("aof_enabled")) {
        (Some("noeviction"), Some("1")) => {
            Finding::well(CHECK, "it evicts nothing, and keeps an append-only file")
        }
        (Some("noeviction"), _) => Finding::warning(
            CHECK,
            "it evicts nothing, but keeps no append-only file: a restart loses every job",
            "set appendonly yes",
        ),
        (Some(policy), _) => Finding::fault(
            CHECK,
            format!(
                "it evicts keys when its memory is full ({policy}): jobs vanish, and engines refuse to use it"
            ),
            "set maxmemory-policy noeviction",
        ),
        (None, _) => unknown("INFO does not tell maxmemory_policy"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::findings::Level;
    use super::*;

    #[test]
    fn j24_a_redis_that_evicts_is_found() {
        for (info, level) in [
            ("# Memory\r\nmaxmemory_policy:noeviction\r\naof_enabled:1\r\n", Level::Well),
            ("maxmemory_policy:noeviction\r\naof_enabled:0\r\n", Level::Warning),
            ("maxmemory_policy:allkeys-lru\r\naof_enabled:1\r\n", Level::Fault),
            ("", Level::Fault),
        ] {
            assert_eq!(judge(info).level, level, "{info}");
        }
    }
}
