//! One part of the log: a slot's keys on one server, what changes them, and what watches over it.
//!
//! On a Cluster there are several ([`super::slots`]), which share nothing but the hints' listener; elsewhere one is the
//! whole log. Does not: know of the others ([`super::RedisStore`] asks them all where all are meant).

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use redis::{cmd, pipe};
use tokio::{
    sync::{broadcast, mpsc, oneshot},
    time::Instant,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Acknowledge, RedisOptions,
    change::Change,
    clock::{Clock, LOOK},
    committer::{Committer, QUEUE, Request, STUCK},
    confirm,
    connection::{Connection, Script},
    head_of,
    keys::Keys,
    millis,
    origin::Origin,
    parse,
    server::Server,
    tail::Tail,
};
use crate::{
    store::{CommitOutcome, Entry, Extent, Head, Hint, Page, Snapshot, StoreError},
    vitals::Vitals,
};

/// How many entries one XRANGE asks for.
const CHUNK: usize = 128;
/// How much is kept of what was committed last, in bytes of events and states, by all partitions together.
const TAIL: usize = 32 << 20;

/// The scripts, by what they are for.
pub(super) struct Scripts {
    pub(super) commit: Script,
    pub(super) delete: Script,
    read: Script,
    claim: Script,
    take: Script,
    renew: Script,
}

impl Scripts {
    pub(super) fn new(cluster: bool) -> Self {
        let (queues, commit) = (include_str!("queues.lua"), include_str!("commit.lua"));
        let oom = "#!lua flags=allow-oom\n";
        Self {
            commit: Script::new(cluster, &[queues, commit]),
            delete: Script::new(cluster, &[oom, queues, commit]),
            read: Script::new(cluster, &[include_str!("read.lua")]),
            claim: Script::new(cluster, &[include_str!("claim.lua")]),
            take: Script::new(cluster, &[oom, queues, include_str!("take.lua")]),
            renew: Script::new(cluster, &[include_str!("renew.lua")]),
        }
    }
}

/// What partitions have in common.
pub(super) struct Common {
    pub(super) options: RedisOptions,
    pub(super) scripts: Arc<Scripts>,
    pub(super) hints: broadcast::Sender<Hint>,
    pub(super) vitals: Vitals,
    /// How many there are.
    pub(super) partitions: usize,
}

/// A part of the log.
pub(super) struct Partition {
    connection: Connection,
    committer: Arc<Committer>,
    commits: mpsc::Sender<Request>,
    /// `None` when an answer is all that is asked for.
    confirms: Option<mpsc::Sender<confirm::Request>>,
    scripts: Arc<Scripts>,
    keys: Keys,
    clock: Arc<Clock>,
    origin: Arc<Origin>,
    _tasks: [AbortOnDropHandle<()>; 2],
}

impl Partition {
    /// Connects, and begins to watch.
    pub(super) async fn connect(
        common: &Common,
        server: Arc<Server>,
        tag: String,
    ) -> Result<Self, StoreError> {
        let Common { options, scripts, hints, vitals, partitions } = common;
        let RedisOptions { acknowledge, patience, .. } = *options;
        let keys = Keys { tag };
        let origin = Origin::new(keys.origin());
        let connection = Connection::new(server, origin.clone(), acknowledge, patience);
        let clock = Arc::new(Clock::read(connection.clone()).await?);
        let committer = Arc::new(Committer {
            connection: connection.clone(),
            keys: keys.clone(),
            scripts: scripts.clone(),
            origin: origin.clone(),
            tail: Mutex::new(Tail::new(TAIL / (partitions + 1))),
        });
        let (commits, requests) = mpsc::channel(QUEUE);
        // Ends with the store, when what it was given is answered.
        tokio::spawn(committer.clone().run(requests, vitals.pulse("the committer", STUCK)));
        let confirms = (acknowledge != Acknowledge::Memory).then(|| {
            let (confirms, requests) = mpsc::channel(confirm::QUEUE);
            let (connection, keys) = (connection.separate(), keys.clone());
            let confirmer = confirm::Confirmer { connection, keys, acknowledge, patience };
            tokio::spawn(confirmer.run(requests, vitals.pulse("the wait for disk or replica", STUCK)));
            confirms
        });
        let ticks = vitals.pulse("the look at Redis's clock", patience * 3 + LOOK);
        let mends = vitals.pulse("the repair of losses", STUCK);
        let tasks = [
            tokio::spawn(clock.clone().follow(origin.clone(), hints.clone(), ticks)),
            tokio::spawn(committer.clone().make_good(mends)),
        ];
        Ok(Self {
            connection,
            committer,
            commits,
            confirms,
            scripts: scripts.clone(),
            keys,
            clock,
            origin,
            _tasks: tasks.map(AbortOnDropHandle::new),
        })
    }

    pub(super) async fn commit(&self, change: Change) -> Result<CommitOutcome, StoreError> {
        let stopped = || StoreError::Unavailable("the event log has stopped".into());
        let (reply, answer) = oneshot::channel();
        let request = Request { change, give_up: self.connection.give_up(), reply };
        self.commits.send(request).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }

    pub(super) async fn delete(&self, change: Change) -> Result<CommitOutcome, StoreError> {
        self.committer.delete(change, self.connection.give_up()).await
    }

    pub(super) async fn load<S: AsRef<str>>(
        &self,
        streams: &[S],
    ) -> Result<Vec<Option<Snapshot>>, StoreError> {
        let found = self.committer.load(streams).await?;
        // Was it ever there? Who has it in memory looks at the generation.
        if found.iter().any(Option::is_none) {
            self.connection.check_origin().await?;
        }
        Ok(found)
    }

    pub(super) async fn read(
        &self,
        stream: &str,
        after: u64,
        limit: usize,
        max_bytes: usize,
    ) -> Result<Option<Page>, StoreError> {
        let mut page: Option<Page> = None;
        let (mut next, mut bytes) = (after, 0);
        loop {
            let have = page.as_ref().map_or(0, |p| p.entries.len());
            let want = (limit - have).min(CHUNK);
            let (head, entries) = self.range(stream, next, want).await?;
            let Some((head, first_seq)) = head else { return Ok(page) };
            let page = page.get_or_insert(Page { head: head.clone(), first_seq, entries: Vec::new() });
            // A log that was made anew between two chunks continues nothing.
            if page.head.epoch != head.epoch {
                break;
            }
            let full = entries.len() == want;
            for entry in entries {
                let expected =
                    if page.entries.is_empty() { (after + 1).max(page.first_seq) } else { next + 1 };
                if entry.seq != expected && page.entries.is_empty() {
                    return Err(StoreError::Damaged(format!("{stream} lacks event {expected}")));
                }
                bytes += entry.data.len();
                // A hole behind a dense beginning was trimmed meanwhile: the next page will say so.
                if entry.seq != expected || (bytes > max_bytes && !page.entries.is_empty()) {
                    return Ok(Some(page.clone()));
                }
                next = entry.seq;
                page.entries.push(entry);
            }
            if !full || page.entries.len() >= limit || bytes >= max_bytes {
                break;
            }
        }
        Ok(page)
    }

    async fn range(
        &self,
        stream: &str,
        after: u64,
        count: usize,
    ) -> Result<(Option<(Head, u64)>, Vec<Entry>), StoreError> {
        let keys = [self.keys.state(stream), self.keys.log(stream)];
        let args = [after.saturating_add(1).to_string().into(), count.to_string().into()];
        let (reply, _) =
            self.connection.run(&self.scripts.read, &keys, &args, self.connection.give_up()).await?;
        type Raw = ((Option<String>, Option<u64>), Vec<(String, Vec<(String, Vec<u8>)>)>);
        let ((head, first), raw): Raw = parse(reply)?;
        let head = match (head, first) {
            (Some(text), Some(first)) => Some((head_of(&text)?, first)),
            _ => None,
        };
        let entries = raw.into_iter().map(|(id, mut fields)| {
            let seq = id.split_once('-').and_then(|(seq, _)| seq.parse().ok());
            match (seq, fields.pop()) {
                (Some(seq), Some((_, data))) => Ok(Entry { seq, data: Bytes::from(data) }),
                _ => Err(StoreError::Damaged(format!("entry {id} of {stream}"))),
            }
        });
        Ok((head, entries.collect::<Result<_, _>>()?))
    }

    /// Members that are due; tried again until `give_up`, as for the next ones.
    pub(super) async fn claim(
        &self,
        index: &str,
        n: usize,
        hold: Duration,
        give_up: Instant,
    ) -> Result<Vec<String>, StoreError> {
        let args = [Bytes::from(n.to_string()), Bytes::from(millis(hold).to_string())];
        parse(self.connection.run(&self.scripts.claim, &[self.keys.index(index)], &args, give_up).await?.0)
    }

    pub(super) async fn take(
        &self,
        queue: &str,
        n: usize,
        hold: Duration,
        give_up: Instant,
    ) -> Result<Vec<String>, StoreError> {
        let args = [Bytes::from(n.to_string()), Bytes::from(millis(hold).to_string())];
        parse(self.connection.run(&self.scripts.take, &[self.keys.queue(queue)], &args, give_up).await?.0)
    }

    /// Whether the queue has, or may soon have, members here; asked once.
    pub(super) async fn has_queue(&self, queue: &str) -> Result<bool, StoreError> {
        let ring = self.keys.queue(queue);
        let mut pipe = pipe();
        pipe.cmd("EXISTS").arg(format!("{ring}!")).arg(&ring);
        let (found,): (u8,) = parse(self.connection.pipeline_once(&pipe).await?)?;
        Ok(found > 0)
    }

    pub(super) async fn renew(
        &self,
        index: &str,
        members: Vec<String>,
        after: Duration,
        give_up: Instant,
    ) -> Result<Vec<bool>, StoreError> {
        let mut args = vec![Bytes::from(millis(after).to_string())];
        args.extend(members.into_iter().map(Bytes::from));
        parse(self.connection.run(&self.scripts.renew, &[self.keys.index(index)], &args, give_up).await?.0)
    }

    pub(super) async fn count(&self, extents: &[Extent]) -> Result<Vec<u64>, StoreError> {
        let mut pipe = pipe();
        for extent in extents {
            pipe.cmd("ZCARD").arg(match extent {
                Extent::Index(index) => self.keys.index(index),
                Extent::Lane { queue, lane } => Keys::lane(&self.keys.queue(queue), lane),
                Extent::Waiting { gate, lane } => Keys::lane(&self.keys.gate(gate), lane),
            });
        }
        parse(self.connection.pipeline(&pipe).await?)
    }

    pub(super) async fn list(
        &self,
        index: &str,
        before: Option<&(u64, String)>,
        limit: usize,
    ) -> Result<Vec<(u64, String)>, StoreError> {
        let key = self.keys.index(index);
        let max = before.map_or("+inf".to_owned(), |(due, _)| due.to_string());
        let mut found: Vec<(u64, String)> = Vec::new();
        let mut offset = 0;
        loop {
            let mut cmd = cmd("ZREVRANGEBYSCORE");
            cmd.arg(&key).arg(&max).arg("-inf").arg("WITHSCORES").arg("LIMIT").arg(offset).arg(limit);
            let page: Vec<(String, f64)> = parse(self.connection.command(&cmd).await?)?;
            let (rows, last) = (page.len(), page.len() < limit);
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            // scores are ms, below 2^53
            let keys = page.into_iter().map(|(member, due)| (due as u64, member));
            // Members due in the same ms as `before` come again: skip them by name.
            found.extend(keys.filter(|key| before.is_none_or(|before| key < before)));
            if last || found.len() >= limit {
                found.truncate(limit);
                return Ok(found);
            }
            offset += rows;
        }
    }

    /// Whether the server answers; asked once.
    pub(super) async fn ping(&self) -> Result<(), StoreError> {
        self.connection.ping().await.map(drop)
    }

    pub(super) async fn confirm(&self, stream: &str, at: &Head) -> Result<(), StoreError> {
        match &self.confirms {
            Some(confirms) => confirm::ask(confirms, stream, at).await,
            None => Ok(()),
        }
    }

    /// Until when a request that is made now is tried again.
    pub(super) fn give_up(&self) -> Instant {
        self.connection.give_up()
    }

    /// Whether the server answered when it was last asked.
    pub(super) fn is_up(&self) -> bool {
        self.connection.is_up()
    }

    /// How many connections were made after the first of their kind.
    pub(super) fn reconnects(&self) -> u64 {
        self.connection.reconnects()
    }

    pub(super) fn generation(&self) -> u64 {
        self.origin.generation()
    }

    /// The time on the server's clock, about.
    pub(super) fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }
}
