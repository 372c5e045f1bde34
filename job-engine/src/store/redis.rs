//! The event log on Redis or Valkey: one hash and one Redis stream a stream, one sorted set an index.
//!
//! Keys, all under one hash tag so that every commit touches a single slot:
//! `{ns}s:<stream>` hash of `h` head (`<last seq> <epoch>`), `f` first seq kept, `v` state, `b` fixed;
//! `{ns}l:<stream>` Redis stream, entry id `<seq>-0` (which Redis refuses unless it grows), field `d`;
//! `{ns}i:<index>` sorted set, score = due time in ms on the server's clock; `{ns}w` pub/sub channel of hints;
//! `{ns}q:…` and `{ns}g:…` queues and gates, see `queues.lua`.
//! `{ns}o` token of the log's origin ([`origin`]); `{ns}m` what is written to be waited for ([`confirm`]).
//!
//! Invariant: every change happens inside one run of a Lua script, so whole or not at all; one run makes many
//! changes that have nothing to do with each other ([`committer`]). A command whose answer was lost is sent again:
//! scripts are idempotent, and a commit that finds its own work done recognises it (`own_work`).
//! Needs `maxmemory-policy noeviction`; refuses to start otherwise, because an evicted stream is a lost job
//! ([`inspect`]). Does not: run on a Cluster.

mod committer;
mod confirm;
mod connection;
mod hints;
mod inspect;
mod origin;
mod server;
mod tail;

use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use ::redis::{FromRedisValue, Value, cmd};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Answer, Commit, CommitOutcome, Entry, Expect, Extent, Gate, HINT_BUFFER, Head, Hint, IndexChange, Page,
    Snapshot, Store, StoreError,
};
use crate::vitals::{Pulse, Vitals};
use committer::{Change, Committer, QUEUE, Request, STUCK};
use connection::{Connection, Script};
use origin::Origin;
use server::Server;

/// How many entries one XRANGE asks for.
const CHUNK: usize = 128;

/// How often the server's clock and the log's origin are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// What a report or a submission survives once it was answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Acknowledge {
    /// What Redis's own answer means: its memory has it.
    #[default]
    Memory,
    /// The loss of power on Redis's machine: its append-only file is synced.
    Fsync,
    /// The loss of Redis's machine: a replica has it, too.
    Replica,
}

/// Where Redis is and how its keys are named.
#[derive(Clone, Debug)]
pub struct RedisOptions {
    /// `redis://[user:password@]host[:port][/db]`, or
    /// `redis+sentinel://[user:password@]host[:port][,host[:port]…]/master-name[?db=0]`.
    pub url: String,
    /// The hash tag of every key: `[A-Za-z0-9:_-]{1,64}`. Engines that share it share their jobs.
    pub namespace: String,
    /// How long a command is tried again, over reconnects, before the caller is told; at least once. An answer is
    /// waited for at most 0.6 of it, within 1 s to 6 s.
    pub patience: Duration,
    /// What [`Store::confirm`] waits for.
    pub acknowledge: Acknowledge,
}

impl RedisOptions {
    /// Options with the default namespace `tidegate` and a patience of 10 s.
    pub fn new(url: impl Into<String>) -> Self {
        let (patience, acknowledge) = (Duration::from_secs(10), Acknowledge::Memory);
        Self { url: url.into(), namespace: "tidegate".into(), patience, acknowledge }
    }
}

/// The event log on Redis.
pub struct RedisStore {
    connection: Connection,
    committer: Arc<Committer>,
    commits: mpsc::Sender<Request>,
    /// `None` when an answer is all that is asked for.
    confirms: Option<mpsc::Sender<confirm::Request>>,
    read: Script,
    claim: Script,
    take: Script,
    renew: Script,
    keys: Keys,
    hints: broadcast::Sender<Hint>,
    /// Server clock minus ours, in ms.
    skew_ms: Arc<AtomicI64>,
    origin: Arc<Origin>,
    vitals: Vitals,
    _tasks: [AbortOnDropHandle<()>; 3],
}

#[derive(Clone)]
struct Keys {
    namespace: String,
}

impl Keys {
    fn state(&self, stream: &str) -> String {
        format!("{{{}}}s:{stream}", self.namespace)
    }
    fn log(&self, stream: &str) -> String {
        format!("{{{}}}l:{stream}", self.namespace)
    }
    fn index(&self, index: &str) -> String {
        format!("{{{}}}i:{index}", self.namespace)
    }
    /// The ring of a queue: see `queues.lua`, as for the next two.
    fn queue(&self, queue: &str) -> String {
        format!("{{{}}}q:{}:{queue}", self.namespace, queue.len())
    }
    fn gate(&self, gate: &str) -> String {
        format!("{{{}}}g:{}:{gate}", self.namespace, gate.len())
    }
    fn lane(ring: &str, lane: &str) -> String {
        format!("{ring}:{lane}")
    }
    /// The key that an index change is about.
    fn of(&self, change: &IndexChange) -> String {
        match change {
            IndexChange::Put { index, .. } | IndexChange::Remove { index, .. } => self.index(index),
            IndexChange::Enqueue { gate: Some(Gate { name, .. }), .. } => self.gate(name),
            IndexChange::Enqueue { place, .. } | IndexChange::Dequeue { place } => self.queue(&place.queue),
            IndexChange::Leave { gate, .. } => self.gate(gate),
        }
    }
    fn channel(&self) -> String {
        format!("{{{}}}w", self.namespace)
    }
    fn mark(&self) -> String {
        format!("{{{}}}m", self.namespace)
    }
    fn origin(&self) -> String {
        format!("{{{}}}o", self.namespace)
    }
}

impl RedisStore {
    /// Connects, checks that the server keeps what it is given, and begins to listen for hints.
    pub async fn connect(options: &RedisOptions) -> Result<Self, StoreError> {
        let name_ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b':' | b'_' | b'-');
        if options.namespace.is_empty()
            || options.namespace.len() > 64
            || !options.namespace.bytes().all(name_ok)
        {
            return Err(StoreError::Unfit("the namespace must be [A-Za-z0-9:_-]{1,64}".into()));
        }
        let keys = Keys { namespace: options.namespace.clone() };
        let server = Arc::new(Server::parse(&options.url)?);
        let origin = Origin::new(keys.origin());
        let patience = options.patience;
        let connection = Connection::new(server.clone(), origin.clone(), options.acknowledge, patience);
        let (hints, _) = broadcast::channel(HINT_BUFFER);
        let skew_ms = Arc::new(AtomicI64::new(0));
        sample_clock(&connection, &skew_ms).await?;
        let committer = Arc::new(Committer {
            connection: connection.clone(),
            keys: keys.clone(),
            commit: Script::new(concat!(include_str!("redis/queues.lua"), include_str!("redis/commit.lua"))),
            delete: Script::new(concat!(
                "#!lua flags=allow-oom\n",
                include_str!("redis/queues.lua"),
                include_str!("redis/commit.lua")
            )),
            origin: origin.clone(),
            tail: Mutex::default(),
        });
        let (commits, requests) = mpsc::channel(QUEUE);
        let vitals = Vitals::default();
        // Ends with the store, when what it was given is answered.
        tokio::spawn(committer.clone().run(requests, vitals.pulse("the committer", STUCK)));
        let confirms = (options.acknowledge != Acknowledge::Memory).then(|| {
            let (confirms, requests) = mpsc::channel(confirm::QUEUE);
            let acknowledge = options.acknowledge;
            let confirmer = confirm::Confirmer {
                connection: connection.separate(),
                keys: keys.clone(),
                acknowledge,
                patience,
            };
            tokio::spawn(confirmer.run(requests, vitals.pulse("the wait for disk or replica", STUCK)));
            confirms
        });
        let listener = hints::Listener { server, channel: keys.channel(), hints: hints.clone(), patience };
        let hears = vitals.pulse("the subscription to hints", patience * 3);
        let clock = Clock { connection: connection.clone(), skew_ms: skew_ms.clone(), hints: hints.clone() };
        let ticks = vitals.pulse("the look at Redis's clock", patience * 3 + LOOK);
        let mends = vitals.pulse("the repair of losses", STUCK);
        let tasks = [
            tokio::spawn(listener.listen(hears)),
            tokio::spawn(clock.follow(origin.clone(), ticks)),
            tokio::spawn(committer.clone().make_good(mends)),
        ];
        Ok(Self {
            committer,
            commits,
            confirms,
            read: Script::new(include_str!("redis/read.lua")),
            claim: Script::new(include_str!("redis/claim.lua")),
            take: Script::new(concat!(
                "#!lua flags=allow-oom\n",
                include_str!("redis/queues.lua"),
                include_str!("redis/take.lua")
            )),
            renew: Script::new(include_str!("redis/renew.lua")),
            connection,
            keys,
            hints,
            skew_ms,
            origin,
            vitals,
            _tasks: tasks.map(AbortOnDropHandle::new),
        })
    }

    async fn range(
        &self,
        stream: &str,
        after: u64,
        count: usize,
    ) -> Result<(Option<(Head, u64)>, Vec<Entry>), StoreError> {
        let keys = [self.keys.state(stream), self.keys.log(stream)];
        let args = [after.saturating_add(1).to_string().into(), count.to_string().into()];
        let (reply, _) = self.connection.run(&self.read, &keys, &args).await?;
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
}

impl Store for RedisStore {
    fn commit(&self, commit: Commit) -> Answer<'_, CommitOutcome> {
        Box::pin(async move {
            let Commit { stream, expect, state, events, first_seq, index } = commit;
            if events.is_empty() {
                return Err(StoreError::Damaged("a commit needs at least one event".into()));
            }
            let (expected, before, fixed) = match expect {
                Expect::Absent { epoch, fixed } => (None, Head { seq: 0, epoch }, fixed),
                Expect::At(head) => (Some(head.clone()), head, Bytes::new()),
                Expect::Lost { at, epoch } => {
                    let seq = at.seq;
                    (Some(at), Head { seq, epoch }, Bytes::new())
                }
            };
            let done = Head { seq: before.seq + events.len() as u64, epoch: before.epoch };
            let change = Change { stream, expected, done, state, fixed, events, first_seq, index };
            let stopped = || StoreError::Unavailable("the event log has stopped".into());
            let (reply, answer) = oneshot::channel();
            let request = Request { change, give_up: self.connection.give_up(), reply };
            self.commits.send(request).await.map_err(|_| stopped())?;
            answer.await.map_err(|_| stopped())?
        })
    }

    fn delete(&self, stream: &str, expect: Head, index: Vec<IndexChange>) -> Answer<'_, CommitOutcome> {
        let change = Change {
            stream: stream.to_owned(),
            expected: Some(expect.clone()),
            done: expect,
            state: Bytes::new(),
            fixed: Bytes::new(),
            events: Vec::new(),
            first_seq: 0,
            index,
        };
        Box::pin(async move { self.committer.delete(change, self.connection.give_up()).await })
    }

    fn load(&self, streams: Vec<String>) -> Answer<'_, Vec<Option<Snapshot>>> {
        Box::pin(async move {
            if streams.is_empty() {
                return Ok(Vec::new());
            }
            self.committer.load(&streams).await
        })
    }

    fn read(&self, stream: &str, after: u64, limit: usize, max_bytes: usize) -> Answer<'_, Option<Page>> {
        let stream = stream.to_owned();
        Box::pin(async move {
            let mut page: Option<Page> = None;
            let (mut next, mut bytes) = (after, 0);
            loop {
                let have = page.as_ref().map_or(0, |p| p.entries.len());
                let want = (limit - have).min(CHUNK);
                let (head, entries) = self.range(&stream, next, want).await?;
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
        })
    }

    fn claim(&self, index: &str, n: usize, hold: Duration) -> Answer<'_, Vec<String>> {
        let key = self.keys.index(index);
        Box::pin(async move {
            let args = [Bytes::from(n.to_string()), Bytes::from(millis(hold).to_string())];
            parse(self.connection.run(&self.claim, &[key], &args).await?.0)
        })
    }

    fn take(&self, queue: &str, n: usize, hold: Duration) -> Answer<'_, Vec<String>> {
        let key = self.keys.queue(queue);
        Box::pin(async move {
            let args = [Bytes::from(n.to_string()), Bytes::from(millis(hold).to_string())];
            parse(self.connection.run(&self.take, &[key], &args).await?.0)
        })
    }

    fn count(&self, extents: Vec<Extent>) -> Answer<'_, Vec<u64>> {
        Box::pin(async move {
            if extents.is_empty() {
                return Ok(Vec::new());
            }
            let mut pipe = ::redis::pipe();
            for extent in &extents {
                pipe.cmd("ZCARD").arg(match extent {
                    Extent::Index(index) => self.keys.index(index),
                    Extent::Lane { queue, lane } => Keys::lane(&self.keys.queue(queue), lane),
                    Extent::Waiting { gate, lane } => Keys::lane(&self.keys.gate(gate), lane),
                });
            }
            parse(self.connection.pipeline(&pipe).await?)
        })
    }

    fn renew(&self, index: &str, members: Vec<String>, after: Duration) -> Answer<'_, Vec<bool>> {
        let key = self.keys.index(index);
        Box::pin(async move {
            let mut args = vec![Bytes::from(millis(after).to_string())];
            args.extend(members.into_iter().map(Bytes::from));
            parse(self.connection.run(&self.renew, &[key], &args).await?.0)
        })
    }

    fn list(
        &self,
        index: &str,
        before: Option<(u64, String)>,
        limit: usize,
    ) -> Answer<'_, Vec<(u64, String)>> {
        let key = self.keys.index(index);
        Box::pin(async move {
            let max = before.as_ref().map_or("+inf".to_owned(), |(due, _)| due.to_string());
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
                found.extend(keys.filter(|key| before.as_ref().is_none_or(|before| key < before)));
                if last || found.len() >= limit {
                    found.truncate(limit);
                    return Ok(found);
                }
                offset += rows;
            }
        })
    }

    fn now_ms(&self) -> u64 {
        local_ms().saturating_add_signed(self.skew_ms.load(Ordering::Relaxed))
    }

    fn hints(&self) -> broadcast::Receiver<Hint> {
        self.hints.subscribe()
    }

    fn ping(&self) -> Answer<'_, ()> {
        Box::pin(async move {
            self.connection.ping().await?;
            self.vitals.check().map_err(StoreError::Unavailable)
        })
    }

    fn confirm(&self, stream: &str, at: &Head) -> Answer<'_, ()> {
        match &self.confirms {
            Some(confirms) => Box::pin(confirm::ask(confirms, stream, at)),
            None => Box::pin(std::future::ready(Ok(()))),
        }
    }

    fn generation(&self) -> u64 {
        self.origin.generation()
    }
}

fn snapshot(reply: Value) -> Result<Option<Snapshot>, StoreError> {
    if matches!(&reply, Value::Array(items) if items.is_empty()) {
        return Ok(None);
    }
    type Raw = (Option<String>, Option<u64>, Option<Vec<u8>>, Option<Vec<u8>>);
    let (head, first, state, fixed): Raw = parse(reply)?;
    let fixed = fixed.unwrap_or_default().into();
    Ok(match (head, first, state) {
        (Some(head), Some(first_seq), Some(state)) => {
            Some(Snapshot { head: head_of(&head)?, first_seq, state: state.into(), fixed })
        }
        _ => None,
    })
}

/// `<last seq> <epoch>`.
fn head_of(text: &str) -> Result<Head, StoreError> {
    let head = text.split_once(' ').and_then(|(seq, epoch)| Some((seq.parse().ok()?, epoch.to_owned())));
    let (seq, epoch) = head.ok_or_else(|| StoreError::Damaged(format!("the head {text:?}")))?;
    Ok(Head { seq, epoch })
}

fn parse<T: FromRedisValue>(reply: Value) -> Result<T, StoreError> {
    T::from_redis_value(reply).map_err(|e| StoreError::Damaged(format!("an unexpected reply: {e}")))
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX >> 12)
}

/// A time of this process, for the distance to the server's: nobody can set it, unlike this machine's clock.
fn local_ms() -> u64 {
    static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
    millis(BEGAN.elapsed())
}

async fn sample_clock(connection: &Connection, skew_ms: &AtomicI64) -> Result<(), StoreError> {
    let before = local_ms();
    let (seconds, micros): (u64, u64) = parse(connection.command(&cmd("TIME")).await?)?;
    let middle = u64::midpoint(before, local_ms());
    let server = seconds * 1000 + micros / 1000;
    skew_ms.store(server.cast_signed() - middle.cast_signed(), Ordering::Relaxed);
    Ok(())
}

/// Looks at the server now and then.
struct Clock {
    connection: Connection,
    skew_ms: Arc<AtomicI64>,
    hints: broadcast::Sender<Hint>,
}

impl Clock {
    /// Keeps [`Store::now_ms`] on the server's clock, and notices when the log is not the one that it was.
    async fn follow(self, origin: Arc<Origin>, pulse: Pulse) {
        let mut generation = origin.generation();
        loop {
            tokio::time::sleep(LOOK).await;
            match sample_clock(&self.connection, &self.skew_ms).await {
                Ok(()) => match self.connection.check_origin().await {
                    Ok(()) => pulse.beat(),
                    Err(error) => tracing::debug!(%error, "cannot look at the log's origin"),
                },
                Err(error) => tracing::debug!(%error, "cannot read the server's clock"),
            }
            if generation != origin.generation() {
                generation = origin.generation();
                // Whoever holds something in memory looks whether it is still there.
                let _ = self.hints.send(Hint::Lost);
            }
        }
    }
}
