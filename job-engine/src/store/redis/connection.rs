//! The command connection: scripts by hash, retries over reconnects, errors typed once.
//!
//! One multiplexed connection carries every command and pipelines what is sent at the same time. The connection
//! manager reconnects with backoff but never repeats a command; [`Connection::run`] does, within its patience,
//! which is safe because everything sent through here is idempotent.

use std::time::Duration;

use bytes::Bytes;
use redis::{
    Client, Cmd, ErrorKind, Pipeline, RedisError, RedisResult, ServerErrorKind, Value,
    aio::{ConnectionLike as _, ConnectionManager, ConnectionManagerConfig},
};
use tokio::time::Instant;

use crate::store::StoreError;

/// A Lua script, known to the server by its hash.
pub(super) struct Script {
    source: &'static str,
    hash: String,
}

impl Script {
    pub(super) fn new(source: &'static str) -> Self {
        Self { source, hash: redis::Script::new(source).get_hash().to_owned() }
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
pub(super) struct Connection {
    manager: ConnectionManager,
    patience: Duration,
}

impl Connection {
    pub(super) async fn open(client: Client, patience: Duration) -> Result<Self, StoreError> {
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(Duration::from_secs(3)))
            // Longer than a stall worth surviving, shorter than a lease.
            .set_response_timeout(Some(Duration::from_secs(10)))
            .set_min_delay(Duration::from_millis(20))
            .set_max_delay(Duration::from_secs(1));
        let manager = ConnectionManager::new_with_config(client, config).await.map_err(|e| typed(&e))?;
        Ok(Self { manager, patience })
    }

    /// Runs a script; also says whether it was sent more than once, so that an earlier try may have taken effect.
    pub(super) async fn run(
        &self,
        script: &Script,
        keys: &[String],
        args: &[Bytes],
    ) -> Result<(Value, bool), StoreError> {
        let mut cmd = script.command(keys.len());
        for key in keys {
            cmd.arg(key);
        }
        for arg in args {
            cmd.arg(&arg[..]);
        }
        self.evaluate(script, &cmd, self.give_up()).await
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
        Instant::now() + self.patience
    }

    pub(super) async fn command(&self, cmd: &Cmd) -> Result<Value, StoreError> {
        self.retry(Request::Command(cmd), self.give_up()).await.map(|(value, _)| value)
    }

    pub(super) async fn pipeline(&self, pipe: &Pipeline) -> Result<Value, StoreError> {
        self.retry(Request::Pipeline(pipe), self.give_up()).await.map(|(value, _)| value)
    }

    async fn retry(&self, request: Request<'_>, give_up: Instant) -> Result<(Value, bool), StoreError> {
        let mut pause = Duration::from_millis(20);
        let mut repeated = false;
        loop {
            match self.once(&request).await {
                Ok(value) => return Ok((value, repeated)),
                Err(error) => {
                    let error = typed(&error);
                    if !matches!(error, StoreError::Unavailable(_)) || Instant::now() + pause > give_up {
                        return Err(error);
                    }
                    tracing::debug!(%error, "trying again");
                }
            }
            repeated = true;
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    async fn once(&self, request: &Request<'_>) -> RedisResult<Value> {
        let mut manager = self.manager.clone();
        match request {
            Request::Command(cmd) => send(&mut manager, cmd).await,
            Request::Pipeline(pipe) => pipe.query_async(&mut manager).await,
            Request::Script(script, cmd) => match send(&mut manager, cmd).await {
                Err(e) if e.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                    send(&mut manager, redis::cmd("SCRIPT").arg("LOAD").arg(script.source)).await?;
                    send(&mut manager, cmd).await
                }
                other => other,
            },
        }
    }
}

/// Sends one command; an error that the server answers is an error.
///
/// So is one inside an array that will pass: a server refuses the first write of a script for such a reason, hence
/// every change in it that could be made, and all of it can be tried again.
async fn send(manager: &mut ConnectionManager, cmd: &Cmd) -> RedisResult<Value> {
    let passing = |item: &Value| match item {
        Value::ServerError(error) => {
            let error = RedisError::from(error.clone());
            matches!(typed(&error), StoreError::Unavailable(_)).then_some(error)
        }
        _ => None,
    };
    match manager.req_packed_command(cmd).await? {
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

/// The one place where a Redis error gets its meaning.
pub(super) fn typed(error: &RedisError) -> StoreError {
    let text = error.to_string();
    match error.kind() {
        _ if error.code() == Some("OOM") => StoreError::Full(text),
        _ if matches!(error.code(), Some("MISCONF" | "NOREPLICAS")) => StoreError::Unavailable(text),
        ErrorKind::Server(
            ServerErrorKind::BusyLoading
            | ServerErrorKind::ReadOnly
            | ServerErrorKind::MasterDown
            | ServerErrorKind::TryAgain
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::Moved
            | ServerErrorKind::Ask
            | ServerErrorKind::NoScript,
        )
        | ErrorKind::Io => StoreError::Unavailable(text),
        _ if error.is_timeout() || error.is_connection_dropped() || error.is_unrecoverable_error() => {
            StoreError::Unavailable(text)
        }
        // NOAUTH, a wrong password, an unknown command: repeating will not help, and the text says what will.
        ErrorKind::AuthenticationFailed | ErrorKind::InvalidClientConfig => StoreError::Damaged(text),
        _ => StoreError::Damaged(text),
    }
}

/// An evicted key is a lost job: refuse a server that evicts.
pub(super) async fn require_noeviction(connection: &Connection) -> Result<(), StoreError> {
    let reply = connection.command(redis::cmd("INFO").arg("memory")).await?;
    let info: String = super::parse(reply)?;
    match info.lines().find_map(|line| line.strip_prefix("maxmemory_policy:")).map(str::trim) {
        Some("noeviction") => Ok(()),
        Some(policy) => Err(StoreError::Damaged(format!(
            "Redis evicts keys (maxmemory-policy {policy}) and would lose jobs; \
             run `CONFIG SET maxmemory-policy noeviction` and make it permanent"
        ))),
        None => {
            tracing::warn!("cannot see the server's maxmemory-policy; it must be noeviction");
            Ok(())
        }
    }
}
