//! Where Redis is: one address, a master that Sentinel knows, or a slot of a Cluster.
//!
//! The address is looked up anew for every connection, by DNS or by asking the sentinels or the nodes, so that a
//! connection made after a failover leads to the new master. Does not: connect, or judge what it finds ([`super::inspect`]).

use redis::{
    Client, ConnectionInfo, IntoConnectionInfo as _, RedisResult,
    sentinel::{SentinelClient, SentinelNodeConnectionInfo, SentinelServerType},
};
use std::sync::Arc;

use tokio::sync::Mutex;

use super::cluster::{Cluster, with_port};
use crate::store::StoreError;

/// The port of a sentinel that is given without one.
const SENTINEL_PORT: u16 = 26379;

/// Where Redis is.
pub(super) enum Server {
    /// `redis://`: always there, though the name may come to mean another host.
    Single(Client),
    /// `redis+sentinel://`: wherever the sentinels say.
    Sentinel(Mutex<SentinelClient>),
    /// `redis+cluster://`: the master that has a slot, or any node.
    Cluster(Arc<Cluster>, Option<u16>),
}

impl Server {
    /// `redis://[user:password@]host[:port][/db]`,
    /// `redis+sentinel://[user:password@]host[:port][,host[:port]…]/master-name[?db=0]`, or
    /// `redis+cluster://[user:password@]host[:port][,host[:port]…]`.
    ///
    /// User and password are the masters'; the sentinels are asked without.
    pub(super) fn parse(url: &str) -> Result<Self, StoreError> {
        let unusable = |what: &str| StoreError::Unfit(format!("the URL of Redis: {what}"));
        match url.split_once("://") {
            Some(("redis", _)) => Ok(Self::Single(Client::open(url).map_err(|e| unusable(&e.to_string()))?)),
            Some(("redis+sentinel", rest)) => sentinel(rest).map_err(|what| unusable(&what)),
            Some(("redis+cluster", rest)) => {
                let cluster = Cluster::parse(rest).map_err(|what| unusable(&what))?;
                Ok(Self::Cluster(Arc::new(cluster), None))
            }
            Some(("rediss" | "rediss+sentinel" | "rediss+cluster", _)) => {
                Err(unusable("this build speaks no TLS; put a TLS proxy beside it, or use a private network"))
            }
            _ => Err(unusable("it begins with redis://, redis+sentinel:// or redis+cluster://")),
        }
    }

    /// Where a slot is; everywhere the same place, but on a Cluster.
    pub(super) fn with_slot(self: &Arc<Self>, slot: u16) -> Arc<Self> {
        match &**self {
            Self::Cluster(cluster, _) => Arc::new(Self::Cluster(cluster.clone(), Some(slot))),
            _ => self.clone(),
        }
    }

    pub(super) fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster(..))
    }

    /// A client for where Redis is now.
    pub(super) async fn client(&self) -> RedisResult<Client> {
        match self {
            Self::Single(client) => Ok(client.clone()),
            Self::Sentinel(sentinels) => sentinels.lock().await.async_get_client().await,
            Self::Cluster(cluster, Some(slot)) => cluster.master(*slot).await,
            Self::Cluster(cluster, None) => cluster.any().await,
        }
    }
}

/// What follows `redis+sentinel://`.
fn sentinel(rest: &str) -> Result<Server, String> {
    let (authority, path) = rest.split_once('/').ok_or("the master's name is missing: …/master-name")?;
    let (name, query) = path.split_once('?').unwrap_or((path, ""));
    if name.is_empty() || name.contains('/') {
        return Err("the path is the master's name as the sentinels know it: …/master-name?db=0".into());
    }
    let db = match query.split_once('=') {
        None if query.is_empty() => 0,
        Some(("db", number)) => number.parse::<u32>().map_err(|_| "db is a number")?,
        _ => return Err("the query is db=<number>, or nothing".into()),
    };
    let (user, hosts) = authority.rsplit_once('@').map_or(("", authority), |(user, hosts)| (user, hosts));
    let mut sentinels = Vec::new();
    for host in hosts.split(',') {
        let info = format!("redis://{}", with_port(host, SENTINEL_PORT))
            .into_connection_info()
            .map_err(|e| format!("the sentinel {host:?}: {e}"))?;
        sentinels.push(info);
    }
    // The user part is read by the library, so that it means the same as in a redis:// URL.
    let node: ConnectionInfo = format!("redis://{user}{}master/{db}", if user.is_empty() { "" } else { "@" })
        .into_connection_info()
        .map_err(|e| e.to_string())?;
    let node = SentinelNodeConnectionInfo::default()
        .set_redis_connection_info(node.redis_settings().clone())
        .set_tcp_settings(node.tcp_settings().clone());
    let kind = SentinelServerType::Master;
    let client = SentinelClient::build(sentinels, name.to_owned(), Some(node), kind);
    Ok(Server::Sentinel(Mutex::new(client.map_err(|e| e.to_string())?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_understood_or_refused_with_a_reason() {
        for good in [
            "redis://127.0.0.1:6379",
            "redis://user:secret@redis/3",
            "redis+sentinel://a,b:26380,[::1]:26381/mymaster",
            "redis+sentinel://:secret@a:1/mymaster?db=2",
            "redis+cluster://a,b:7001,[::1]:7002",
            "redis+cluster://user:secret@a",
        ] {
            assert!(Server::parse(good).is_ok(), "{good}");
        }
        for (bad, why) in [
            ("redis+sentinel://a:1", "name is missing"),
            ("redis+sentinel://a:1/", "master's name"),
            ("redis+sentinel://a:1/m?db=x", "db is a number"),
            ("redis+sentinel://a:1/m?tls=1", "db=<number>"),
            ("redis+cluster://a:1/1", "no numbered databases"),
            ("redis+cluster://", "node"),
            ("rediss://a:1", "TLS"),
            ("http://a:1", "redis://"),
            ("a:1", "redis://"),
        ] {
            let text = Server::parse(bad).err().expect("it is refused").to_string();
            assert!(text.contains(why), "{bad}: {text}");
        }
    }
}
