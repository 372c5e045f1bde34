//! The command connection: made on demand, looked at before use, retried within the caller's patience.
//!
//! One multiplexed connection carries every command and pipelines what is sent at the same time. There is no task that
//! keeps it alive and so none that could die: whoever needs it and finds none makes it, the others wait for the
//! outcome or share a refusal until the next try is due. An error that says that the connection, or the server behind
//! it, is not what it was drops it; the address is looked up anew ([`Server`]).
//! Invariant: nothing is sent to a server that [`inspect`] refused. Everything sent through here is idempotent, because
//! it is sent again when its answer was lost.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use redis::{
    AsyncConnectionConfig, Cmd, ErrorKind, Pipeline, RedisError, ServerErrorKind, Value,
    aio::{ConnectionLike as _, MultiplexedConnection},
};
use tokio::time::{Instant, timeout};

use super::{
    Acknowledge,
    errors::{is_over, typed, unreached},
    inspect::{self, Facts},
    origin::Origin,
    server::Server,
};
use crate::store::StoreError;

/// The pause after a first failure, before jitter, and the longest one.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// How long a connection may take to be made and looked at.
const CONNECT: Duration = Duration::from_secs(3);

/// A Lua script, known to the server by its hash.
pub(super) struct Script {
    source: String,
    hash: String,
}

/// What scripts begin with on a Cluster. While a slot moves, a key that is not here may be on the node that it moves to,
/// and a script that needs it would fail half-way; so none begins before the slot has moved. A name that nobody uses
/// is not here for sure, and asking for it fails then.
const STAY: &str = "\
local here = redis.pcall('EXISTS', string.match(KEYS[1], '^{[^}]*}') .. '?')
if type(here) == 'table' then return redis.error_reply('TRYAGAIN the slot is moving') end
";

impl Script {
    /// A script of these parts, the first of which may begin with a shebang.
    pub(super) fn new(cluster: bool, parts: &[&str]) -> Self {
        let mut source = parts.concat();
        if cluster {
            let behind = if source.starts_with("#!") { source.find('\n').map_or(0, |at| at + 1) } else { 0 };
            source.insert_str(behind, STAY);
        }
        let hash = redis::Script::new(&source).get_hash().to_owned();
        Self { source, hash }
    }

    /// A call with this many keys; they and the arguments are yet to be added.
    pub(super) fn command(&self, keys: usize) -> Cmd {
        let mut cmd = Cmd::new();
        cmd.arg("EVALSHA").arg(&self.hash).arg(keys);
        cmd
    }
}

/// The connection; clones share it.
#[derive(Clone)]
pub(super) struct Connection(Arc<Inner>);

struct Inner {
    server: Arc<Server>,
    origin: Arc<Origin>,
    acknowledge: Acknowledge,
    patience: Duration,
    current: Mutex<Current>,
    /// Held by whoever makes a connection.
    connecting: tokio::sync::Mutex<Option<Failure>>,
    /// Connections made after the first; shared with those that are [`separate`](Connection::separate).
    reconnects: Arc<AtomicU64>,
}

#[derive(Default)]
struct Current {
    live: Option<Live>,
    made: u64,
    warned: Vec<String>,
}

/// A connection that was found fit.
#[derive(Clone)]
pub(super) struct Live {
    pub(super) connection: MultiplexedConnection,
    /// What the server said.
    pub(super) facts: Arc<Facts>,
    number: u64,
}

/// Why there is no connection, and until when nobody tries again.
struct Failure {
    error: StoreError,
    until: Instant,
    pause: Duration,
}

impl Connection {
    /// A connection that is made when it is needed. `patience` is how long a command is tried again.
    pub(super) fn new(
        server: Arc<Server>,
        origin: Arc<Origin>,
        acknowledge: Acknowledge,
        patience: Duration,
    ) -> Self {
        Self::counted(server, origin, acknowledge, patience, Arc::default())
    }

    fn counted(
        server: Arc<Server>,
        origin: Arc<Origin>,
        acknowledge: Acknowledge,
        patience: Duration,
        reconnects: Arc<AtomicU64>,
    ) -> Self {
        let (current, connecting) = (Mutex::default(), tokio::sync::Mutex::default());
        Self(Arc::new(Inner { server, origin, acknowledge, patience, current, connecting, reconnects }))
    }

    /// Another connection to the same server, for what blocks.
    pub(super) fn separate(&self) -> Self {
        let inner = &self.0;
        let (server, origin) = (inner.server.clone(), inner.origin.clone());
        Self::counted(server, origin, inner.acknowledge, inner.patience, inner.reconnects.clone())
    }

    /// How many connections were made after the first.
    pub(super) fn reconnects(&self) -> u64 {
        self.0.reconnects.load(Ordering::Relaxed)
    }

    /// Runs a script, tried again until `give_up`; also says whether it was sent more than once, so that an earlier try
    /// may have taken effect.
    pub(super) async fn run(
        &self,
        script: &Script,
        keys: &[String],
        args: &[Bytes],
        give_up: Instant,
    ) -> Result<(Value, bool), StoreError> {
        let mut cmd = script.command(keys.len());
        for key in keys {
            cmd.arg(key);
        }
        for arg in args {
            cmd.arg(&arg[..]);
        }
        self.evaluate(script, &cmd, give_up).await
    }

    /// Like [`run`](Self::run) with a command of [`Script::command`], tried again until `give_up`. An error inside
    /// an array is part of the reply.
    pub(super) async fn evaluate(
        &self,
        script: &Script,
        cmd: &Cmd,
        give_up: Instant,
    ) -> Result<(Value, bool), StoreError> {
        self.retry(Request::Script(script, cmd), give_up).await
    }

    /// Until when a request that is made now is tried again.
    pub(super) fn give_up(&self) -> Instant {
        Instant::now() + self.0.patience
    }

    pub(super) async fn command(&self, cmd: &Cmd) -> Result<Value, StoreError> {
        self.retry(Request::Command(cmd), self.give_up()).await.map(|(value, _)| value)
    }

    pub(super) async fn pipeline(&self, pipe: &Pipeline) -> Result<Value, StoreError> {
        self.retry(Request::Pipeline(pipe), self.give_up()).await.map(|(value, _)| value)
    }

    /// Sends a pipeline once: the caller wants to know at once, or decides itself about trying again.
    pub(super) async fn pipeline_once(&self, pipe: &Pipeline) -> Result<Value, StoreError> {
        self.once(&Request::Pipeline(pipe)).await
    }

    /// Whether a server answers, and may be used; asked once.
    pub(super) async fn ping(&self) -> Result<Arc<Facts>, StoreError> {
        self.once(&Request::Command(&redis::cmd("PING"))).await?;
        Ok(self.live().await?.facts)
    }

    /// Looks whether the log is still the one that it was; see [`Origin`].
    pub(super) async fn check_origin(&self) -> Result<(), StoreError> {
        let mut live = self.live().await?;
        self.0.origin.observe(&mut live.connection, &live.facts).await
    }

    async fn retry(&self, request: Request<'_>, give_up: Instant) -> Result<(Value, bool), StoreError> {
        let mut pause = PAUSES.0;
        let mut repeated = false;
        loop {
            match self.once(&request).await {
                Ok(value) => return Ok((value, repeated)),
                Err(error) => {
                    if !matches!(error, StoreError::Unavailable(_)) || Instant::now() + pause > give_up {
                        return Err(error);
                    }
                    tracing::debug!(%error, "trying again");
                }
            }
            repeated = true;
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    async fn once(&self, request: &Request<'_>) -> Result<Value, StoreError> {
        let mut live = self.live().await?;
        let connection = &mut live.connection;
        let answer = match request {
            Request::Command(cmd) => send(connection, cmd).await,
            Request::Pipeline(pipe) => pipe.query_async(connection).await,
            Request::Script(script, cmd) => match send(connection, cmd).await {
                Err(e) if e.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                    match send(connection, redis::cmd("SCRIPT").arg("LOAD").arg(&script.source)).await {
                        Ok(_) => send(connection, cmd).await,
                        Err(e) => Err(e),
                    }
                }
                other => other,
            },
        };
        answer.map_err(|error| {
            if is_over(&error) {
                self.drop_if(live.number, &error);
            }
            match error.kind() {
                ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::CrossSlot)
                    if !self.0.server.is_cluster() =>
                {
                    StoreError::Unfit(format!("this is a Redis Cluster; use redis+cluster:// ({error})"))
                }
                _ => typed(&error),
            }
        })
    }

    /// Whether there is a connection now, which says that the server answered when it was last asked.
    pub(super) fn is_up(&self) -> bool {
        self.0.current.lock().live.is_some()
    }

    /// The connection that there is, or a new one.
    pub(super) async fn live(&self) -> Result<Live, StoreError> {
        if let Some(live) = self.0.current.lock().live.clone() {
            return Ok(live);
        }
        let mut last = self.0.connecting.lock().await;
        if let Some(live) = self.0.current.lock().live.clone() {
            return Ok(live);
        }
        if let Some(failure) = last.as_ref().filter(|failure| Instant::now() < failure.until) {
            return Err(failure.error.clone());
        }
        let late = |_| StoreError::Unavailable("Redis does not answer".into());
        match timeout(CONNECT, self.connect()).await.map_err(late).flatten() {
            Ok(live) => {
                *last = None;
                Ok(live)
            }
            Err(error) => {
                let pause = last.as_ref().map_or(PAUSES.0, |failure| (failure.pause * 2).min(PAUSES.1));
                let until = Instant::now() + pause.mul_f64(rand::random_range(0.5..1.0));
                tracing::debug!(%error, "no connection to Redis");
                *last = Some(Failure { error: error.clone(), until, pause });
                Err(error)
            }
        }
    }

    async fn connect(&self) -> Result<Live, StoreError> {
        let inner = &*self.0;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT))
            .set_response_timeout(Some(response_timeout(inner.patience)));
        let client = inner.server.client().await.map_err(|e| unreached(&e))?;
        let connection = client.get_multiplexed_async_connection_with_config(&config).await;
        let mut connection = connection.map_err(|e| unreached(&e))?;
        let facts = Facts::of(&mut connection).await?;
        let warnings = inspect::judge(&facts, inner.acknowledge, inner.server.is_cluster())?;
        inner.origin.observe(&mut connection, &facts).await?;
        let mut current = inner.current.lock();
        if current.warned != warnings {
            warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
            current.warned = warnings;
        }
        if current.made > 0 {
            inner.reconnects.fetch_add(1, Ordering::Relaxed);
        }
        current.made += 1;
        let live = Live { connection, facts: Arc::new(facts), number: current.made };
        current.live = Some(live.clone());
        Ok(live)
    }

    /// Lets a connection go that turned out to be no good; it may have been replaced already.
    fn drop_if(&self, number: u64, error: &RedisError) {
        let mut current = self.0.current.lock();
        if current.live.as_ref().is_some_and(|live| live.number == number) {
            tracing::warn!(%error, "the connection to Redis is given up");
            current.live = None;
        }
    }
}

/// How long an answer may take: longer than a stall worth surviving, shorter than the caller's patience.
pub(super) fn response_timeout(patience: Duration) -> Duration {
    patience.mul_f64(0.6).clamp(Duration::from_secs(1), Duration::from_secs(6))
}

/// Sends one command; an error that the server answers is an error.
///
/// So is one inside an array that will pass: a server refuses the first write of a script for such a reason, hence
/// every change in it that could be made, and all of it can be tried again.
async fn send(connection: &mut MultiplexedConnection, cmd: &Cmd) -> Result<Value, RedisError> {
    let passing = |item: &Value| match item {
        Value::ServerError(error) => {
            let error = RedisError::from(error.clone());
            matches!(typed(&error), StoreError::Unavailable(_)).then_some(error)
        }
        _ => None,
    };
    match connection.req_packed_command(cmd).await? {
        Value::ServerError(error) => Err(error.into()),
        Value::Array(items) => match items.iter().find_map(passing) {
            Some(error) => Err(error),
            None => Ok(Value::Array(items)),
        },
        other => Ok(other),
    }
}

/// What can be sent.
enum Request<'a> {
    Script(&'a Script, &'a Cmd),
    Command(&'a Cmd),
    Pipeline(&'a Pipeline),
}
