//! Waits until what was committed is on a disk or on a replica: `WAITAOF` or `WAIT`, for many at once.
//!
//! Both commands speak of the writes of their own connection, and block it, so they have a connection to themselves:
//! one pipeline looks at the heads that are asked for, writes a mark, and waits for the mark. What a server has already
//! when it takes the mark lies before it in its history; so when the mark is safe, every head that was found is.
//! Because heads and mark are of one connection they are of one server: a head that was lost in a failover is not found.
//! While one pipeline waits the next gathers.
//! Does not: try again. Who is told [`StoreError::Unconfirmed`] asks once more or tells its caller.

use std::{collections::HashMap, time::Duration};

use redis::{Value, pipe};
use tokio::sync::{mpsc, oneshot};

use super::{
    Acknowledge,
    connection::{Connection, response_timeout},
    head_of,
    keys::Keys,
    millis, parse,
};
use crate::{
    store::{Head, StoreError},
    vitals::Pulse,
};

/// How many may wait for the task; more wait in their callers.
pub(super) const QUEUE: usize = 1024;
/// How many share one wait.
const BATCH: usize = 512;
/// How long one wait may last, on the server, at most; shorter than an answer may take in any case.
const WAIT: Duration = Duration::from_secs(2);
/// Replicas that must have it under [`Acknowledge::Replica`].
const REPLICAS: u64 = 1;

/// A head that is to be confirmed.
pub(super) struct Request {
    pub(super) stream: String,
    pub(super) at: Head,
    pub(super) reply: oneshot::Sender<Result<(), StoreError>>,
}

/// What it takes to confirm.
pub(super) struct Confirmer {
    /// Of its own.
    pub(super) connection: Connection,
    pub(super) keys: Keys,
    pub(super) acknowledge: Acknowledge,
    /// See [`super::RedisOptions::patience`].
    pub(super) patience: Duration,
}

impl Confirmer {
    /// Confirms what is asked for until every asker is gone.
    pub(super) async fn run(self, mut requests: mpsc::Receiver<Request>, pulse: Pulse) {
        loop {
            pulse.rest();
            let mut batch = Vec::new();
            if requests.recv_many(&mut batch, BATCH).await == 0 {
                return;
            }
            pulse.beat();
            let heads = self.confirmed(&batch).await;
            for Request { stream, at, reply } in batch {
                let answer = match &heads {
                    Ok(heads) => match heads.get(&stream) {
                        Some(now) if now.epoch == at.epoch && now.seq >= at.seq => Ok(()),
                        _ => Err(StoreError::Unconfirmed("it is not in the log any more".into())),
                    },
                    Err(error) => Err(error.clone()),
                };
                // Who stopped waiting needs no answer.
                let _ = reply.send(answer);
            }
        }
    }

    /// The heads of the streams asked for, all of them safe.
    async fn confirmed(&self, batch: &[Request]) -> Result<HashMap<String, Head>, StoreError> {
        let unconfirmed = |error: StoreError| StoreError::Unconfirmed(error.to_string());
        let live = self.connection.live().await.map_err(unconfirmed)?;
        let fsync = self.acknowledge == Acknowledge::Fsync;
        // Then every answer comes after the sync, that of the look at the heads, too.
        let wait = !(fsync && live.facts.answers_after_sync());
        let mut pipe = pipe();
        for request in batch {
            pipe.cmd("HGET").arg(self.keys.state(&request.stream)).arg("h");
        }
        pipe.cmd("SET").arg(self.keys.mark()).arg("1");
        let longest = WAIT.min(response_timeout(self.patience) / 2);
        match (wait, fsync) {
            (false, _) => {}
            (true, true) => drop(pipe.cmd("WAITAOF").arg(1).arg(0).arg(millis(longest))),
            (true, false) => drop(pipe.cmd("WAIT").arg(REPLICAS).arg(millis(longest))),
        }
        let reply = self.connection.pipeline_once(&pipe).await.map_err(unconfirmed)?;
        let mut replies: Vec<Value> = parse(reply)?;
        if wait {
            // WAIT answers the number of replicas, WAITAOF that of local and of remote syncs.
            let reached = match replies.pop() {
                Some(Value::Int(n)) => n,
                Some(Value::Array(counts)) => match counts.first() {
                    Some(Value::Int(n)) => *n,
                    _ => 0,
                },
                _ => 0,
            };
            if reached < 1 {
                let what = if fsync { "Redis's disk has not synced it" } else { "no replica has it" };
                return Err(StoreError::Unconfirmed(format!("{what} after {longest:?}")));
            }
        }
        let mut heads = HashMap::with_capacity(batch.len());
        for (request, head) in batch.iter().zip(replies) {
            if let Some(head) = parse::<Option<String>>(head)? {
                heads.insert(request.stream.clone(), head_of(&head)?);
            }
        }
        Ok(heads)
    }
}

/// Hands requests to the task; nothing when there is nothing to wait for.
pub(super) fn ask(
    requests: &mpsc::Sender<Request>,
    stream: &str,
    at: &Head,
) -> impl Future<Output = Result<(), StoreError>> + Send + use<> {
    let (reply, answer) = oneshot::channel();
    let request = Request { stream: stream.to_owned(), at: at.clone(), reply };
    let requests = requests.clone();
    async move {
        let stopped = || StoreError::Unavailable("the event log has stopped".into());
        requests.send(request).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }
}
