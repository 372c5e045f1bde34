//! How long a viewer may stay: until its credential ends or is taken back, and never longer than a stream may last, so
//! that streams move to gateways that were added, or leave one that is crowded. Whoever may know of a stream may close it.
//!
//! One book of all open streams, ordered by their ends, and one task that looks at it: no timer a viewer. A stream ends a
//! little before its credential does, by a margin of its own, so that a thousand with one end do not come back as one
//! wave; never after it, whatever becomes of the clock. When anything behind the credentials changes, every one is asked
//! again. It decides nothing about jobs.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use tidegate_auth::{Authenticator, Principal, Refused};

use super::crowd::{Leaver, Slot};
use crate::{caller::Caller, problem::Problem, sse::Goodbye};

/// How often the book is looked at, at least; what an end is early by is more.
const LOOK: Duration = Duration::from_millis(250);
/// The least and the most that a stream ends before its credential, in milliseconds.
const EARLY: (u64, u64) = (500, 10_000);
/// The longest that a viewer is told to wait before it asks again, in milliseconds.
const LONGEST_RETRY: u64 = 60_000;

/// The name of a stream, by which it is listed and closed; a connection that carries several jobs has one. It is random, so
/// that no other gateway has a stream of that name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct StreamId(u64);

impl StreamId {
    pub(crate) fn random() -> Self {
        Self(rand::random())
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for StreamId {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        let id = u64::from_str_radix(text, 16).map(Self).map_err(|_| Problem::NotFound)?;
        if id.to_string() == text { Ok(id) } else { Err(Problem::NotFound) }
    }
}

/// An open stream, as it is told.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) stream: StreamId,
    pub(crate) jobs: Vec<Arc<str>>,
    /// None where nobody has to say who it is.
    pub(crate) subject: Option<String>,
    /// When it was opened, in milliseconds since 1970.
    pub(crate) since: u64,
    /// When it will end at the latest, likewise; nothing if nobody knows.
    pub(crate) until: Option<u64>,
}

/// When a stream is to end, in milliseconds since 1970, and its number.
type Key = (u64, u64);

/// All open streams; a cheap handle.
#[derive(Clone, Debug)]
pub(crate) struct Tenures(Arc<Book>);

#[derive(Debug)]
struct Book {
    auth: Option<Authenticator>,
    /// The longest that a stream lasts; nothing for as long as it likes.
    longest: Option<Duration>,
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    by_end: BTreeMap<Key, Entry>,
    last: u64,
}

#[derive(Debug)]
struct Entry {
    stream: StreamId,
    job: Arc<str>,
    /// When it was opened, in milliseconds since 1970.
    since: u64,
    /// None where nobody has to say who it is.
    principal: Option<Principal>,
    leaver: Leaver,
    /// What is said when it is due.
    why: u8,
    ended: Arc<AtomicU8>,
}

/// A viewer's line in the book; struck out on drop, which must come before its slot is free.
#[derive(Debug)]
pub(super) struct Tenure {
    book: Arc<Book>,
    key: Key,
    ended: Arc<AtomicU8>,
    expires: Option<u64>,
}

const STAYS: u8 = 0;
const EXPIRED: u8 = 1;
const REVOKED: u8 = 2;
const MOVED: u8 = 3;
const CLOSED: u8 = 4;

impl Tenures {
    /// A book for credentials of `auth`, and for streams that last `longest` at most.
    pub(crate) fn new(auth: Option<Authenticator>, longest: Option<Duration>) -> Self {
        Self(Arc::new(Book { auth, longest, entries: Mutex::default() }))
    }

    /// Enters a viewer of `job` as part of `stream`; refuses it if its credential was taken back meanwhile.
    pub(super) fn enter(
        &self,
        caller: &Caller,
        slot: &Slot,
        stream: StreamId,
        job: &Arc<str>,
    ) -> Result<Tenure, Problem> {
        let book = &self.0;
        let principal = book.auth.as_ref().map(|_| caller.as_reader());
        let (expires, now) = (principal.as_ref().and_then(|principal| principal.expires), millis());
        let expiry = expires.map_or(u64::MAX, |expires| due(expires.saturating_mul(1000), now));
        let moved = book.longest.map_or(u64::MAX, |longest| now.saturating_add(lifetime(longest)));
        let (due, why) = if moved < expiry { (moved, MOVED) } else { (expiry, EXPIRED) };
        let ended = Arc::<AtomicU8>::default();
        let entry = Entry {
            stream,
            job: Arc::clone(job),
            since: now,
            principal: principal.clone(),
            leaver: slot.leaver(),
            why,
            ended: Arc::clone(&ended),
        };
        let mut entries = book.entries.lock();
        entries.last += 1;
        let key = (due, entries.last);
        entries.by_end.insert(key, entry);
        drop(entries);
        let tenure = Tenure { book: Arc::clone(book), key, ended, expires };
        // From here on a change is noticed by the task; one that came before is noticed here.
        match book.standing(principal.as_ref()) {
            Err(refused) if refused != Refused::Unavailable => Err(refused.into()),
            _ => Ok(tenure),
        }
    }

    /// The streams that `caller` may know of, the oldest first: its own, or the whole tenant's.
    pub(crate) fn list(&self, caller: &Caller) -> Vec<Listed> {
        let mut listed: HashMap<StreamId, Listed> = HashMap::new();
        for ((due, _), entry) in
            self.0.entries.lock().by_end.iter().filter(|(_, entry)| entry.is_known_to(caller))
        {
            let line = listed.entry(entry.stream).or_insert_with(|| Listed {
                stream: entry.stream,
                jobs: Vec::new(),
                subject: entry.principal.as_ref().map(|principal| principal.subject.clone()),
                since: entry.since,
                // In the order of their ends: the first job to leave takes the connection along.
                until: Some(*due).filter(|due| *due < u64::MAX),
            });
            line.jobs.push(Arc::clone(&entry.job));
        }
        let mut listed: Vec<_> = listed.into_values().collect();
        listed.sort_unstable_by_key(|line| (line.since, line.stream.0));
        listed
    }

    /// Closes a stream, if `caller` may know of it and it is still open.
    pub(crate) fn close(&self, caller: &Caller, stream: StreamId) -> bool {
        let mut found = false;
        self.0.entries.lock().by_end.retain(|_, entry| {
            let meant = entry.stream == stream && entry.is_known_to(caller);
            if meant {
                found = true;
                entry.end(CLOSED);
            }
            !meant
        });
        found
    }

    /// Ends streams, for ever.
    pub(crate) async fn run(self) {
        let book = self.0;
        let mut changes = book.auth.as_ref().map(Authenticator::changes);
        let changed = AtomicBool::new(false);
        loop {
            let wait = async {
                match &mut changes {
                    Some(changes) => {
                        // A sender that is gone changes nothing any more.
                        if changes.changed().await.is_err() {
                            std::future::pending::<()>().await;
                        }
                        changed.store(true, Ordering::Relaxed);
                    }
                    None => std::future::pending().await,
                }
            };
            let _ = tokio::time::timeout(LOOK, wait).await;
            if changed.swap(false, Ordering::Relaxed) {
                book.ask_all();
            }
            book.end_due(millis());
        }
    }
}

impl Book {
    fn standing(&self, principal: Option<&Principal>) -> Result<(), Refused> {
        match (&self.auth, principal) {
            (Some(auth), Some(principal)) => auth.standing(principal),
            _ => Ok(()),
        }
    }

    fn end_due(&self, now: u64) {
        let mut entries = self.entries.lock();
        while let Some(first) = entries.by_end.first_entry()
            && first.key().0 <= now
        {
            let entry = first.remove();
            entry.end(entry.why);
        }
    }

    fn ask_all(&self) {
        let mut entries = self.entries.lock();
        entries.by_end.retain(|_, entry| match self.standing(entry.principal.as_ref()) {
            Ok(()) | Err(Refused::Unavailable) => true,
            Err(refused) => {
                entry.end(if refused == Refused::Expired { EXPIRED } else { REVOKED });
                false
            }
        });
    }
}

impl Entry {
    /// Whose streams one may see are those whose jobs one may see.
    fn is_known_to(&self, caller: &Caller) -> bool {
        self.principal.as_ref().is_none_or(|of| caller.may_see(&of.tenant, &of.subject))
    }

    fn end(&self, why: u8) {
        self.ended.store(why, Ordering::Release);
        self.leaver.dismiss();
    }
}

impl Tenure {
    /// Why the viewer has to leave, if it has to.
    pub(super) fn ended(&self) -> Option<Goodbye> {
        match self.ended.load(Ordering::Acquire) {
            STAYS => None,
            EXPIRED => Some(Goodbye::Expired),
            MOVED => Some(Goodbye::Moved),
            CLOSED => Some(Goodbye::Closed),
            _ => Some(Goodbye::Revoked),
        }
    }

    /// How much later than others it may ask again, in milliseconds: not before the credential has really ended.
    pub(super) fn rest(&self) -> u32 {
        let rest = self.expires.map_or(0, |expires| expires.saturating_mul(1000).saturating_sub(millis()));
        u32::try_from(rest.min(LONGEST_RETRY)).unwrap_or_default()
    }
}

impl Drop for Tenure {
    fn drop(&mut self) {
        self.book.entries.lock().by_end.remove(&self.key);
    }
}

/// When a stream ends whose credential ends at `expires`: early by up to a tenth of what is left.
fn due(expires: u64, now: u64) -> u64 {
    let (least, most) = EARLY;
    let most = (expires.saturating_sub(now) / 10).clamp(least, most);
    expires.saturating_sub(rand::random_range(least..=most))
}

/// How long a stream lasts that may last `longest`: three quarters of it at least, in milliseconds.
fn lifetime(longest: Duration) -> u64 {
    let longest = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX);
    rand::random_range(longest - longest / 4..=longest)
}

fn millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e47_a_stream_ends_before_its_token_by_a_margin_of_its_own() {
        let ends: Vec<u64> = (0..1000).map(|_| due(3_600_000, 0)).collect();
        assert!(ends.iter().all(|end| (3_590_000..=3_599_500).contains(end)));
        let (first, last) = (ends.iter().min().unwrap(), ends.iter().max().unwrap());
        assert!(last - first > 5_000, "they would come back as one wave");
        assert!(EARLY.0 > u64::try_from(LOOK.as_millis()).unwrap(), "never late");
        assert_eq!(due(1000, 1000), 500);
        assert_eq!(due(0, 5), 0);
    }

    #[test]
    fn e40_streams_that_began_together_do_not_end_together() {
        let ends: Vec<u64> = (0..1000).map(|_| lifetime(Duration::from_secs(3600))).collect();
        assert!(ends.iter().all(|end| (2_700_000..=3_600_000).contains(end)));
        let (first, last) = (ends.iter().min().unwrap(), ends.iter().max().unwrap());
        assert!(last - first > 600_000, "they would come back as one wave");
        assert_eq!(lifetime(Duration::ZERO), 0);
    }
}
