//! The event log on Redis or Valkey: one hash and one Redis stream a stream, one sorted set an index.
//!
//! Keys of one partition stand under one hash tag, so that every commit touches a single slot. On a Cluster there are
//! several partitions ([`slots`]), elsewhere one, whose tag is the namespace:
//! `{tag}s:<stream>` hash of `h` head (`<last seq> <epoch>`), `f` first seq kept, `v` state, `b` fixed;
//! `{tag}l:<stream>` Redis stream, entry id `<seq>-0` (which Redis refuses unless it grows), field `d`;
//! `{tag}i:<index>` sorted set, score = due time in ms on the server's clock; `{tag}w` pub/sub channel of hints;
//! `{tag}q:…` and `{tag}g:…` queues and gates, see `queues.lua`.
//! `{tag}o` token of the log's origin ([`origin`]); `{tag}m` what is written to be waited for ([`confirm`]);
//! `{tag}?` is never used, see [`connection`].
//!
//! Invariant: every change happens inside one run of a Lua script, so whole or not at all; one run makes many
//! changes that have nothing to do with each other ([`committer`]). A command whose answer was lost is sent again:
//! scripts are idempotent, and a commit that finds its own work done recognises it (`own_work`).
//! Needs `maxmemory-policy noeviction`; refuses to start otherwise, because an evicted stream is a lost job
//! ([`inspect`]).

mod change;
mod clock;
mod cluster;
mod committer;
mod confirm;
mod connection;
mod errors;
mod hints;
mod inspect;
mod keys;
mod origin;
mod partition;
mod server;
mod slots;
mod spread;
mod tail;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use ::redis::{FromRedisValue, Value};
use bytes::Bytes;
use futures_util::future::{join_all, try_join_all};
use tokio::{sync::broadcast, time::Instant};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Answer, Commit, CommitOutcome, Expect, Extent, HINT_BUFFER, Head, Hint, IndexChange, Page, Snapshot,
    Store, StoreError,
};
use crate::vitals::Vitals;
use change::Change;
use keys::Keys;
use partition::{Common, Partition, Scripts};
use server::Server;
use spread::{apart, gather};

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
    /// `redis://[user:password@]host[:port][/db]`,
    /// `redis+sentinel://[user:password@]host[:port][,host[:port]…]/master-name[?db=0]`, or
    /// `redis+cluster://[user:password@]host[:port][,host[:port]…]`.
    pub url: String,
    /// The hash tag of every key, or what it begins with on a Cluster: `[A-Za-z0-9:_-]{1,64}`. Engines that share it share their jobs.
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
    /// In the order of their slots; one unless on a Cluster.
    partitions: Vec<Partition>,
    hints: broadcast::Sender<Hint>,
    vitals: Vitals,
    /// Which partition is asked first, in turn.
    turn: AtomicUsize,
    /// How often the listener subscribed.
    subscriptions: Arc<AtomicU64>,
    _listener: AbortOnDropHandle<()>,
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
        let server = Arc::new(Server::parse(&options.url)?);
        let cluster = server.is_cluster();
        let tags = if cluster { slots::tags(&options.namespace) } else { vec![options.namespace.clone()] };
        let channels = tags.iter().map(|tag| Keys { tag: tag.clone() }.channel()).collect();
        let (hints, _) = broadcast::channel(HINT_BUFFER);
        let common = Common {
            options: options.clone(),
            scripts: Arc::new(Scripts::new(cluster)),
            hints: hints.clone(),
            vitals: Vitals::default(),
            partitions: tags.len(),
        };
        let parts = tags.into_iter().map(|tag| {
            let server = server.with_slot(slots::slot(&tag));
            Partition::connect(&common, server, tag)
        });
        let partitions = try_join_all(parts).await?;
        let patience = options.patience;
        let subscriptions: Arc<AtomicU64> = Arc::default();
        let (told, subscribed) = (hints.clone(), subscriptions.clone());
        let listener = hints::Listener { server, channels, hints: told, patience, subscriptions: subscribed };
        let vitals = common.vitals;
        let hears = vitals.pulse("the subscription to hints", patience * 3);
        let listener = AbortOnDropHandle::new(tokio::spawn(listener.listen(hears)));
        Ok(Self { partitions, hints, vitals, turn: AtomicUsize::new(0), subscriptions, _listener: listener })
    }

    /// The partition of a stream, or of an index's member.
    fn of(&self, name: &str) -> &Partition {
        &self.partitions[slots::partition(name, self.partitions.len())]
    }

    /// Until when a request to every partition is tried again. Where there are several, one that is away must not hold
    /// up the others: it is asked once.
    fn give_up(&self) -> Instant {
        if let [only] = &self.partitions[..] { only.give_up() } else { Instant::now() }
    }

    /// Every partition, another one first each time.
    fn in_turn(&self) -> Vec<&Partition> {
        let n = self.partitions.len();
        let first = self.turn.fetch_add(1, Ordering::Relaxed) % n;
        self.partitions.iter().cycle().skip(first).take(n).collect()
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
            let partition = self.of(&stream);
            partition.commit(Change { stream, expected, done, state, fixed, events, first_seq, index }).await
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
        Box::pin(async move { self.of(&change.stream).delete(change).await })
    }

    fn load(&self, streams: Vec<String>) -> Answer<'_, Vec<Option<Snapshot>>> {
        Box::pin(async move {
            if let [only] = &self.partitions[..] {
                return if streams.is_empty() { Ok(Vec::new()) } else { only.load(&streams).await };
            }
            apart(
                &self.partitions,
                streams,
                |partition, streams| async move { partition.load(&streams).await },
            )
            .await
        })
    }

    fn read(&self, stream: &str, after: u64, limit: usize, max_bytes: usize) -> Answer<'_, Option<Page>> {
        let stream = stream.to_owned();
        Box::pin(async move { self.of(&stream).read(&stream, after, limit, max_bytes).await })
    }

    fn claim(&self, index: &str, n: usize, hold: Duration) -> Answer<'_, Vec<String>> {
        let index = index.to_owned();
        Box::pin(async move {
            let give_up = self.give_up();
            gather(self.in_turn(), n, |partition, n| partition.claim(&index, n, hold, give_up)).await
        })
    }

    fn take(&self, queue: &str, n: usize, hold: Duration) -> Answer<'_, Vec<String>> {
        let queue = queue.to_owned();
        Box::pin(async move {
            let give_up = self.give_up();
            let mut parts = self.in_turn();
            if parts.len() > 1 {
                // Who is asked for nothing has nothing to hide meanwhile.
                let there = join_all(parts.iter().map(|partition| partition.has_queue(&queue))).await;
                let there = parts.into_iter().zip(there);
                parts = there.filter(|(_, has)| *has.as_ref().unwrap_or(&false)).map(|(p, _)| p).collect();
            }
            gather(parts, n, |partition, n| partition.take(&queue, n, hold, give_up)).await
        })
    }

    fn count(&self, extents: Vec<Extent>) -> Answer<'_, Vec<u64>> {
        Box::pin(async move {
            let mut sums = vec![0; extents.len()];
            if extents.is_empty() {
                return Ok(sums);
            }
            let counts = self.partitions.iter().map(|partition| partition.count(&extents));
            for counts in try_join_all(counts).await? {
                sums.iter_mut().zip(counts).for_each(|(sum, n)| *sum += n);
            }
            Ok(sums)
        })
    }

    fn renew(&self, index: &str, members: Vec<String>, after: Duration) -> Answer<'_, Vec<bool>> {
        let index = index.to_owned();
        Box::pin(async move {
            let (index, give_up) = (&index, self.give_up());
            apart(&self.partitions, members, |partition, members| {
                partition.renew(index, members, after, give_up)
            })
            .await
        })
    }

    fn list(
        &self,
        index: &str,
        before: Option<(u64, String)>,
        limit: usize,
    ) -> Answer<'_, Vec<(u64, String)>> {
        let index = index.to_owned();
        Box::pin(async move {
            let lists = self.partitions.iter().map(|p| p.list(&index, before.as_ref(), limit));
            let mut lists = try_join_all(lists).await?;
            if let [only] = &mut lists[..] {
                return Ok(std::mem::take(only));
            }
            let mut found = lists.concat();
            found.sort_unstable_by(|a, b| b.cmp(a));
            found.truncate(limit);
            Ok(found)
        })
    }

    fn now_ms(&self) -> u64 {
        self.partitions[0].now_ms()
    }

    fn hints(&self) -> broadcast::Receiver<Hint> {
        self.hints.subscribe()
    }

    fn ping(&self) -> Answer<'_, ()> {
        Box::pin(async move {
            try_join_all(self.partitions.iter().map(Partition::ping)).await?;
            self.vitals.check().map_err(StoreError::Unavailable)
        })
    }

    fn confirm(&self, stream: &str, at: &Head) -> Answer<'_, ()> {
        let (stream, at) = (stream.to_owned(), at.clone());
        Box::pin(async move { self.of(&stream).confirm(&stream, &at).await })
    }

    fn generation(&self) -> u64 {
        self.partitions.iter().map(Partition::generation).sum()
    }

    fn reconnects(&self) -> u64 {
        let subscribed_again = self.subscriptions.load(Ordering::Relaxed).saturating_sub(1);
        self.partitions.iter().map(Partition::reconnects).sum::<u64>() + subscribed_again
    }

    fn is_whole(&self) -> bool {
        self.partitions.len() == 1 || self.partitions.iter().all(Partition::is_up)
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
