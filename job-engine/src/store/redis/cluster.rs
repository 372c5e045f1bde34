//! Which node of a Redis Cluster has a slot: asked anew for every connection, of whichever node answers.
//!
//! There is one connection to each partition ([`super::slots`]), and it leads to one slot. So nothing needs to be routed
//! command by command: a connection that is told `MOVED`, or that breaks, is let go, and its successor goes to where
//! the slot is then. A slot that is moving (`ASK`, `TRYAGAIN`) is waited for, and never followed half-way: a script
//! needs all its keys in one place ([`super::connection::Script`]).
//! Does not: read from replicas, or keep a map up to date that nobody asks for.

use std::time::Duration;

use rand::seq::SliceRandom as _;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo as _,
    RedisError, RedisResult, Value, cmd,
};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

const PORT: u16 = 6379;
/// How long one node may take to answer where slots are.
const ANSWER: Duration = Duration::from_secs(1);
/// Who asks within this time of an answer is given the same.
const FRESH: Duration = Duration::from_millis(100);

type Address = (String, u16);

/// The nodes of a Cluster, as far as they are known.
pub(super) struct Cluster {
    /// Credentials, and the first seed.
    template: ConnectionInfo,
    seeds: Vec<Address>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    masters: Vec<(std::ops::RangeInclusive<u16>, Address)>,
    nodes: Vec<Address>,
    at: Option<Instant>,
}

impl Cluster {
    /// What follows `redis+cluster://`: `[user:password@]host[:port][,host[:port]…]`.
    pub(super) fn parse(rest: &str) -> Result<Self, String> {
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?']) {
            return Err("a Cluster has no numbered databases, and the URL ends with its nodes".into());
        }
        let (user, hosts) = rest.rsplit_once('@').map_or(("", rest), |(user, hosts)| (user, hosts));
        let user = if user.is_empty() { String::new() } else { format!("{user}@") };
        let mut seeds = Vec::new();
        let mut template = None;
        for host in hosts.split(',') {
            if host.is_empty() {
                return Err("it names its nodes: host[:port][,host[:port]...]".into());
            }
            let info = format!("redis://{user}{}", with_port(host, PORT)).into_connection_info();
            let info = info.map_err(|error| format!("the node {host:?}: {error}"))?;
            let ConnectionAddr::Tcp(name, port) = info.addr() else {
                return Err(format!("the node {host:?} is no TCP address"));
            };
            seeds.push((name.clone(), *port));
            template.get_or_insert(info);
        }
        let template = template.ok_or("it names no node")?;
        Ok(Self { template, seeds, known: Mutex::default() })
    }

    /// The master that has a slot.
    pub(super) async fn master(&self, slot: u16) -> RedisResult<Client> {
        let mut known = self.known.lock().await;
        if known.at.is_none_or(|at| at.elapsed() > FRESH) {
            *known = self.look(&known.nodes).await?;
        }
        let owner = known.masters.iter().find(|(slots, _)| slots.contains(&slot));
        let (_, address) =
            owner.ok_or_else(|| away(format!("no node of the Redis Cluster has the slot {slot}")))?;
        self.client(address)
    }

    /// Any node; another one each time.
    pub(super) async fn any(&self) -> RedisResult<Client> {
        let mut known = self.known.lock().await;
        if known.nodes.is_empty() {
            *known = self.look(&[]).await?;
        }
        let at = rand::random_range(0..known.nodes.len().max(1));
        let address = known.nodes.get(at).ok_or_else(|| away("the Redis Cluster has no nodes".into()))?;
        self.client(address)
    }

    fn client(&self, (host, port): &Address) -> RedisResult<Client> {
        Client::open(self.template.clone().set_addr(ConnectionAddr::Tcp(host.clone(), *port)))
    }

    /// Asks those who were known, then the seeds, in a new order each time: one of them may be cut off from the others
    /// and not know it.
    async fn look(&self, nodes: &[Address]) -> RedisResult<Known> {
        let (mut first, mut then) = (nodes.to_vec(), self.seeds.clone());
        first.shuffle(&mut rand::rng());
        then.shuffle(&mut rand::rng());
        let mut last = away("the Redis Cluster has no nodes".into());
        for address in first.into_iter().chain(then) {
            match timeout(ANSWER, self.ask(&address)).await {
                Ok(Ok(known)) => return Ok(known),
                Ok(Err(error)) => last = error,
                Err(_) => last = away(format!("{}:{} does not answer", address.0, address.1)),
            }
        }
        Err(last)
    }

    async fn ask(&self, address: &Address) -> RedisResult<Known> {
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(ANSWER));
        let client = self.client(address)?;
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        let reply: Value = cmd("CLUSTER").arg("SLOTS").query_async(&mut connection).await?;
        let known = understand(&reply, &address.0).ok_or_else(|| {
            RedisError::from((ErrorKind::UnexpectedReturnType, "CLUSTER SLOTS cannot be understood"))
        })?;
        if known.nodes.is_empty() {
            return Err(away(format!("{}:{} belongs to no Cluster", address.0, address.1)));
        }
        Ok(known)
    }
}

/// `host`, or `host:port` if it has none.
pub(super) fn with_port(host: &str, port: u16) -> String {
    let has_one = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    if has_one { host.to_owned() } else { format!("{host}:{port}") }
}

fn away(what: String) -> RedisError {
    RedisError::from((ErrorKind::Io, "the Redis Cluster is away", what))
}

/// The answer of `CLUSTER SLOTS`; a node that does not know its own address means the one that was asked.
fn understand(reply: &Value, asked: &str) -> Option<Known> {
    let Value::Array(ranges) = reply else { return None };
    let mut known = Known { at: Some(Instant::now()), ..Known::default() };
    for range in ranges {
        let Value::Array(range) = range else { return None };
        let [Value::Int(from), Value::Int(to), nodes @ ..] = &range[..] else { return None };
        let slots = u16::try_from(*from).ok()?..=u16::try_from(*to).ok()?;
        for (i, node) in nodes.iter().enumerate() {
            let Value::Array(node) = node else { return None };
            let [host, Value::Int(port), ..] = &node[..] else { return None };
            let host = match host {
                Value::BulkString(name) if !name.is_empty() && name != b"?" => {
                    String::from_utf8(name.clone()).ok()?
                }
                _ => asked.to_owned(),
            };
            let address = (host, u16::try_from(*port).ok()?);
            if i == 0 {
                known.masters.push((slots.clone(), address.clone()));
            }
            if !known.nodes.contains(&address) {
                known.nodes.push(address);
            }
        }
    }
    Some(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn an_answer_is_understood_or_refused() {
        let node = |host: Value, port| Value::Array(vec![host, Value::Int(port), text("id")]);
        let range = |from, to, nodes: Vec<Value>| {
            Value::Array([vec![Value::Int(from), Value::Int(to)], nodes].concat())
        };
        let reply = Value::Array(vec![
            range(0, 8191, vec![node(text("10.0.0.1"), 7000), node(text("10.0.0.2"), 7001)]),
            range(8192, 16383, vec![node(Value::Nil, 7002), node(text("10.0.0.1"), 7000)]),
        ]);
        let known = understand(&reply, "seed").expect("an answer");
        assert_eq!(known.nodes.len(), 3);
        assert_eq!(known.masters[1], (8192..=16383, ("seed".to_owned(), 7002)));
        for bad in [Value::Nil, Value::Array(vec![Value::Nil]), Value::Array(vec![range(0, 99_999, vec![])])]
        {
            assert!(understand(&bad, "seed").is_none(), "{bad:?}");
        }
    }
}
