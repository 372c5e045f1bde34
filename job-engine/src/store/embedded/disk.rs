//! What lies on the disk: the keyspaces, their keys and values, opening, reading, and one atomic write.
//!
//! | keyspace | key | value |
//! |---|---|---|
//! | `states` | stream | 1, or 2 if there are fixed bytes, log id, seq, first seq (8 bytes each), length of the epoch (1), epoch, state |
//! | `fixed` | log id (8 bytes) | the stream's fixed bytes |
//! | `log` | log id, seq (8 bytes each, big-endian) | the event |
//! | `index` | length of the index's name (2), its name, member | due time in ms (8) |
//! | `queues` | where a member is, see [`queues`](super::queues) | its rank, and what it waits for |
//! | `meta` | `format`, `clock`, `next-log`, or `drop` + log id + first seq | 8 bytes |
//!
//! Numbers are big-endian. A stream's *log id* is given when it is made and never again, so that the events of a
//! deleted stream can be removed little by little (`drop…` → the seq behind the last one) while a stream of the
//! same name lives on. Invariant: one write is one batch, handed to the disk before any reader can see it.
//! Does not: decide anything about streams.

use std::{
    collections::HashMap,
    fs::{File, TryLockError},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable as _};

use super::{
    journal,
    queues::{Queues, Records},
    record::{EventKey, Record, damaged, event_key, index_key, number, shared, split_index_key},
};
use crate::store::{Entry, Page, Snapshot, StoreError};

/// The layout above. A store that was written by a program of another layout is refused.
const FORMAT: u64 = 2;
/// Upper bound of a stream's or member's name, in bytes; fjall's keys end at 65,535.
pub(super) const MAX_NAME: usize = 4096;

/// An open directory.
pub(super) struct Disk {
    states: Keyspace,
    fixed: Keyspace,
    log: Keyspace,
    index: Keyspace,
    queues: Keyspace,
    meta: Keyspace,
    db: Database,
    dir: PathBuf,
    /// Held for as long as the store is open. Last, so that it is released last.
    _lock: File,
}

/// How long a directory may still be locked by a process that is about to end, or by a child that somebody just forked
/// and that has yet to exec: it holds every open file for a moment.
const HANDOVER: Duration = Duration::from_secs(1);

/// Everything that one write changes; `None` removes.
#[derive(Default)]
pub(super) struct Changes {
    pub(super) streams: HashMap<String, Option<Record>>,
    /// By log id.
    pub(super) fixed: HashMap<u64, Option<Bytes>>,
    pub(super) events: HashMap<EventKey, Option<Bytes>>,
    /// By index, then member.
    pub(super) index: HashMap<String, HashMap<String, Option<u64>>>,
    pub(super) queues: Records,
    /// Events to remove later: log id and first seq, to the seq behind the last.
    pub(super) drops: HashMap<EventKey, Option<u64>>,
    pub(super) next_log: Option<u64>,
}

/// What is read once, at opening.
pub(super) struct Opened {
    pub(super) disk: Disk,
    pub(super) index: Vec<(String, String, u64)>,
    pub(super) queues: Queues,
    pub(super) drops: Vec<(EventKey, u64)>,
    pub(super) next_log: u64,
    pub(super) clock: u64,
}

impl Disk {
    /// Opens the directory, making it if need be. Blocks.
    pub(super) fn open(dir: &Path) -> Result<Opened, StoreError> {
        let at = |e: &dyn std::fmt::Display| StoreError::Unavailable(format!("{}: {e}", dir.display()));
        std::fs::create_dir_all(dir).map_err(|e| at(&e))?;
        let lock = File::options().create(true).truncate(false).write(true).open(dir.join("lock"));
        let lock = lock.map_err(|e| at(&e))?;
        let begun = Instant::now();
        while let Err(e) = lock.try_lock() {
            match e {
                TryLockError::WouldBlock if begun.elapsed() < HANDOVER => std::thread::sleep(HANDOVER / 100),
                TryLockError::WouldBlock => return Err(at(&"the directory is in use by another process")),
                TryLockError::Error(e) => return Err(at(&e)),
            }
        }
        let path = dir.join("log");
        if !path.exists() {
            // Made aside and renamed, so that a process killed meanwhile leaves nothing half made.
            let aside = dir.join("log.new");
            if aside.exists() {
                std::fs::remove_dir_all(&aside).map_err(|e| at(&e))?;
            }
            let (db, [_, _, _, _, _, meta]) = open_database(&aside).map_err(|e| at(&typed(&e)))?;
            meta.insert("format", FORMAT.to_be_bytes()).map_err(|e| at(&typed(&e)))?;
            db.persist(PersistMode::SyncAll).map_err(|e| at(&typed(&e)))?;
            drop((meta, db));
            std::fs::rename(&aside, &path).and_then(|()| File::open(dir)?.sync_all()).map_err(|e| at(&e))?;
        }
        // What lies there is input: fjall answers some of what it does not expect with a panic.
        let attempt = || std::panic::catch_unwind(|| open_database(&path));
        let mut opened = attempt();
        if matches!(&opened, Err(_) | Ok(Err(fjall::Error::JournalRecovery(_))))
            && let Some(bytes) =
                journal::cut_torn_end(&path, &dir.join("torn-journal")).map_err(|e| at(&e))?
        {
            tracing::warn!(bytes, dir = %dir.display(), "cut the torn end off the journal; it is in torn-journal");
            opened = attempt();
        }
        let damaged = |text: &str| StoreError::Damaged(format!("{}: {text}", dir.display()));
        let (db, [states, fixed, log, index, queues, meta]) = match opened {
            Ok(Ok(opened)) => opened,
            Ok(Err(e)) => match typed(&e) {
                StoreError::Damaged(text) => return Err(damaged(&text)),
                other => return Err(at(&other)),
            },
            Err(_) => return Err(damaged("opening it ended in a panic")),
        };
        let disk = Self { states, fixed, log, index, queues, meta, db, dir: dir.to_owned(), _lock: lock };
        match disk.number("format")? {
            Some(FORMAT) => disk.recall(),
            Some(other) => Err(StoreError::Damaged(format!(
                "{} was written by {} version (format {other}, this one knows {FORMAT})",
                dir.display(),
                if other > FORMAT { "a newer" } else { "an older" }
            ))),
            None => Err(StoreError::Damaged(format!("{} holds no event log", dir.display()))),
        }
    }

    /// Reads what is kept in memory.
    fn recall(self) -> Result<Opened, StoreError> {
        let damaged = |what: &str| StoreError::Damaged(format!("{}: {what}", self.dir.display()));
        let mut index = Vec::new();
        for pair in self.index.iter() {
            let (key, due) = pair.into_inner().map_err(|e| typed(&e))?;
            let (name, member) = split_index_key(&key).ok_or_else(|| damaged("an index key"))?;
            index.push((name, member, number(&due).ok_or_else(|| damaged("an index value"))?));
        }
        let mut records = Vec::new();
        for pair in self.queues.iter() {
            let (key, value) = pair.into_inner().map_err(|e| typed(&e))?;
            records.push((key.to_vec(), value.to_vec()));
        }
        let queues = Queues::recall(records).ok_or_else(|| damaged("a member of a queue"))?;
        let mut drops = Vec::new();
        for pair in self.meta.prefix("drop") {
            let (key, end) = pair.into_inner().map_err(|e| typed(&e))?;
            let id = key.get(4..12).and_then(number).zip(key.get(12..20).and_then(number));
            drops.push(id.zip(number(&end)).ok_or_else(|| damaged("a list of dropped events"))?);
        }
        let (next_log, clock) = (self.number("next-log")?.unwrap_or(1), self.number("clock")?.unwrap_or(0));
        Ok(Opened { index, queues, drops, next_log, clock, disk: self })
    }

    fn number(&self, key: &str) -> Result<Option<u64>, StoreError> {
        Ok(self.meta.get(key).map_err(|e| typed(&e))?.and_then(|v| number(&v)))
    }

    /// The stream as last written; for the writer, who alone knows that nothing is being written.
    pub(super) fn record(&self, stream: &str) -> Result<Option<Record>, StoreError> {
        self.states.get(stream).map_err(|e| typed(&e))?.map(|v| Record::decode(stream, &v)).transpose()
    }

    /// A stream's fixed bytes; for the writer, as above.
    pub(super) fn fixed(&self, stream: &str, log: u64) -> Result<Bytes, StoreError> {
        let found = self.fixed.get(log.to_be_bytes()).map_err(|e| typed(&e))?;
        found.map(|value| shared(&value)).ok_or_else(|| damaged(stream))
    }

    /// See `Store::load`. Blocks.
    pub(super) fn load(&self, streams: &[String]) -> Result<Vec<Option<Snapshot>>, StoreError> {
        let view = self.db.snapshot();
        let load = |stream: &String| {
            let found = view.get(&self.states, stream).map_err(|e| typed(&e))?;
            let Some(found) = found else { return Ok(None) };
            let mut record = Record::decode(stream, &found)?;
            if record.has_fixed {
                let fixed = view.get(&self.fixed, record.log.to_be_bytes()).map_err(|e| typed(&e))?;
                record.snapshot.fixed = shared(&fixed.ok_or_else(|| damaged(stream))?);
            }
            Ok(Some(record.snapshot))
        };
        streams.iter().map(load).collect()
    }

    /// See `Store::read`. Blocks.
    pub(super) fn read(
        &self,
        stream: &str,
        after: u64,
        limit: usize,
        max_bytes: usize,
    ) -> Result<Option<Page>, StoreError> {
        // One view of both keyspaces, so that the head and the events belong together.
        let view = self.db.snapshot();
        let Some(value) = view.get(&self.states, stream).map_err(|e| typed(&e))? else { return Ok(None) };
        let Record { log, snapshot: Snapshot { head, first_seq, .. }, .. } = Record::decode(stream, &value)?;
        let mut entries = Vec::new();
        if after < head.seq {
            let (mut next, mut bytes) = (first_seq.max(after + 1), 0);
            let range = event_key((log, next))..=event_key((log, head.seq));
            for pair in view.range(&self.log, range).take(limit) {
                let (key, data) = pair.into_inner().map_err(|e| typed(&e))?;
                if key[..] != event_key((log, next)) {
                    return Err(StoreError::Damaged(format!("{stream} lacks event {next}")));
                }
                bytes += data.len();
                if bytes > max_bytes && !entries.is_empty() {
                    return Ok(Some(Page { head, first_seq, entries }));
                }
                entries.push(Entry { seq: next, data: shared(&data) });
                next += 1;
            }
            if entries.len() < limit && next <= head.seq {
                return Err(StoreError::Damaged(format!("{stream} lacks event {next}")));
            }
        }
        Ok(Some(Page { head, first_seq, entries }))
    }

    /// Writes all the changes or none of them, and returns when they are as durable as asked for. Blocks.
    /// After an error nothing more can be written.
    pub(super) fn write(&self, changes: &Changes, clock: u64, mode: PersistMode) -> Result<(), StoreError> {
        let size = 2 * changes.streams.len() + changes.events.len() + changes.drops.len() + 2;
        let mut batch = fjall::OwnedWriteBatch::with_capacity(self.db.clone(), size).durability(Some(mode));
        for (stream, record) in &changes.streams {
            match record {
                Some(record) => batch.insert(&self.states, stream.as_str(), record.encode()),
                None => batch.remove(&self.states, stream.as_str()),
            }
        }
        for (log, fixed) in &changes.fixed {
            match fixed {
                Some(fixed) => batch.insert(&self.fixed, log.to_be_bytes(), &fixed[..]),
                None => batch.remove(&self.fixed, log.to_be_bytes()),
            }
        }
        for (key, event) in &changes.events {
            match event {
                Some(event) => batch.insert(&self.log, event_key(*key), &event[..]),
                None => batch.remove(&self.log, event_key(*key)),
            }
        }
        for (index, members) in &changes.index {
            for (member, due) in members {
                match due {
                    Some(due) => batch.insert(&self.index, index_key(index, member), due.to_be_bytes()),
                    None => batch.remove(&self.index, index_key(index, member)),
                }
            }
        }
        for (key, value) in &changes.queues {
            match value {
                Some(value) => batch.insert(&self.queues, key.as_slice(), value.as_slice()),
                None => batch.remove(&self.queues, key.as_slice()),
            }
        }
        for (key, end) in &changes.drops {
            let key = [b"drop", &event_key(*key)[..]].concat();
            match end {
                Some(end) => batch.insert(&self.meta, key, end.to_be_bytes()),
                None => batch.remove(&self.meta, key),
            }
        }
        if let Some(next_log) = changes.next_log {
            batch.insert(&self.meta, "next-log", next_log.to_be_bytes());
        }
        batch.insert(&self.meta, "clock", clock.to_be_bytes());
        batch.commit().map_err(|e| typed(&e))
    }

    /// Hands everything to the disk. Blocks.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        self.db.persist(PersistMode::SyncAll).map_err(|e| typed(&e))
    }

    /// Space left on the file system, in bytes; `None` if it will not say.
    pub(super) fn free_bytes(&self) -> Option<u64> {
        let stat = nix::sys::statvfs::statvfs(&self.dir).ok()?;
        Some(stat.blocks_available().saturating_mul(stat.fragment_size()))
    }
}

fn open_database(path: &Path) -> fjall::Result<(Database, [Keyspace; 6])> {
    let db = Database::builder(path)
        .manual_journal_persist(true)
        .worker_threads(2)
        // Bounds the time to recover as much as the space.
        .max_journaling_size(256 << 20)
        .open()?;
    let options = |memtable: u64| move || KeyspaceCreateOptions::default().max_memtable_size(memtable);
    let keyspaces = [
        db.keyspace("states", options(32 << 20))?,
        db.keyspace("fixed", options(8 << 20))?,
        db.keyspace("log", options(32 << 20))?,
        db.keyspace("index", options(8 << 20))?,
        db.keyspace("queues", options(8 << 20))?,
        db.keyspace("meta", options(1 << 20))?,
    ];
    Ok((db, keyspaces))
}

/// The one place where an error of fjall gets its meaning.
fn typed(error: &fjall::Error) -> StoreError {
    match error {
        fjall::Error::Io(e) | fjall::Error::Storage(fjall::LsmError::Io(e)) => {
            StoreError::Unavailable(format!("the disk failed: {e}"))
        }
        fjall::Error::Poisoned => StoreError::Unavailable("the disk failed before".into()),
        fjall::Error::Locked => StoreError::Unavailable("in use by another process".into()),
        other => StoreError::Damaged(other.to_string()),
    }
}
