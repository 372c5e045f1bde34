//! The workers connected to this engine, and their free slots.
//!
//! A [`Slot`] is the right to give a session one more job; it lives with the job's owner task and frees itself when
//! dropped, so no path can leak it. The registry also remembers which kinds may have work waiting, so that the
//! dispatcher asks the store only about kinds that somebody here can run.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

use crate::session::Assigned;

/// The connected workers; clones share them.
#[derive(Clone, Default)]
pub struct Registry {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    sessions: Mutex<HashMap<u64, Arc<Member>>>,
    next_id: AtomicU64,
    dirty: Mutex<HashSet<String>>,
    wake: Notify,
}

/// A worker's session as the dispatcher sees it.
pub struct Member {
    id: u64,
    /// The worker's name, for people.
    pub name: String,
    kinds: Vec<String>,
    capacity: usize,
    held: AtomicUsize,
    /// Set while the session takes no new jobs: before it entered, and once it leaves.
    away: AtomicBool,
    /// Set while nothing is heard from the worker, although it should have been.
    silent: AtomicBool,
    /// Where assignments go.
    pub to_session: mpsc::Sender<Assigned>,
}

/// A session's place in the registry; dropping it takes the session out.
pub struct Membership {
    registry: Registry,
    /// The session.
    pub member: Arc<Member>,
}

/// How much is connected.
#[derive(Clone, Debug, Default)]
pub struct Load {
    /// Workers.
    pub workers: usize,
    /// The jobs they can run at once.
    pub slots: usize,
    /// The jobs they hold.
    pub used: usize,
    /// How many workers offer each kind.
    pub by_kind: HashMap<String, usize>,
}

/// The right to one more job of a session.
pub struct Slot {
    registry: Registry,
    /// The session.
    pub member: Arc<Member>,
}

impl Registry {
    /// Takes a session in. It gets no jobs before it says [`Membership::enter`].
    pub fn join(
        &self,
        name: String,
        kinds: Vec<String>,
        capacity: usize,
        to_session: mpsc::Sender<Assigned>,
    ) -> Membership {
        let id = self.inner.next_id.fetch_add(1, Ordering::Relaxed);
        let (held, away, silent) = (AtomicUsize::new(0), AtomicBool::new(true), AtomicBool::new(false));
        let member = Arc::new(Member { id, name, kinds, capacity, held, away, silent, to_session });
        self.inner.sessions.lock().insert(id, member.clone());
        Membership { registry: self.clone(), member }
    }

    /// Notes that a kind may have work waiting.
    pub fn touch<S: AsRef<str>>(&self, kinds: &[S]) {
        self.inner.dirty.lock().extend(kinds.iter().map(|k| k.as_ref().to_owned()));
        self.inner.wake.notify_one();
    }

    /// Every kind that a connected worker offers.
    pub fn kinds(&self) -> Vec<String> {
        let sessions = self.inner.sessions.lock();
        let kinds: HashSet<_> = sessions.values().flat_map(|m| m.kinds.iter().cloned()).collect();
        kinds.into_iter().collect()
    }

    /// Waits until a kind may have work waiting, and takes all such kinds.
    pub async fn dirty(&self) -> HashSet<String> {
        loop {
            let dirty = std::mem::take(&mut *self.inner.dirty.lock());
            if !dirty.is_empty() {
                return dirty;
            }
            self.inner.wake.notified().await;
        }
    }

    /// How much is connected, and how much of it is in use.
    pub fn load(&self) -> Load {
        let sessions = self.inner.sessions.lock();
        let mut load = Load { workers: sessions.len(), ..Load::default() };
        for member in sessions.values() {
            load.slots += member.capacity;
            load.used += member.held.load(Ordering::Relaxed);
            for kind in &member.kinds {
                *load.by_kind.entry(kind.clone()).or_default() += 1;
            }
        }
        load
    }

    /// How many jobs of the kind could start here now.
    pub fn free(&self, kind: &str) -> usize {
        self.inner.sessions.lock().values().filter(|m| m.runs(kind)).map(|m| m.free()).sum()
    }

    /// Takes a slot of the session that has the most free ones.
    pub fn reserve(&self, kind: &str) -> Option<Slot> {
        let sessions = self.inner.sessions.lock();
        let best = sessions.values().filter(|m| m.runs(kind) && m.free() > 0).max_by_key(|m| m.free())?;
        Some(self.slot(best))
    }

    /// A slot for a job that the session already holds; may exceed its capacity for a while.
    pub fn slot(&self, member: &Arc<Member>) -> Slot {
        member.held.fetch_add(1, Ordering::Relaxed);
        Slot { registry: self.clone(), member: member.clone() }
    }
}

impl Member {
    fn free(&self) -> usize {
        self.capacity.saturating_sub(self.held.load(Ordering::Relaxed))
    }

    fn runs(&self, kind: &str) -> bool {
        !self.away.load(Ordering::Relaxed) && !self.is_silent() && self.kinds.iter().any(|k| k == kind)
    }

    /// Gives the session no new jobs until it is [heard](Membership::heard) again: its worker may be gone.
    pub fn fall_silent(&self) {
        self.silent.store(true, Ordering::Relaxed);
    }

    /// Whether nothing is heard from the worker.
    pub fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed)
    }

    /// Gives the session no new jobs from now on.
    pub fn leave(&self) {
        self.away.store(true, Ordering::Relaxed);
    }
}

impl Membership {
    /// Gives the session new jobs from now on; its kinds may have work waiting.
    pub fn enter(&self) {
        self.member.away.store(false, Ordering::Relaxed);
        self.registry.touch(&self.member.kinds);
    }

    /// Notes a sign of life.
    pub fn heard(&self) {
        if self.member.silent.swap(false, Ordering::Relaxed) {
            self.registry.touch(&self.member.kinds);
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.registry.inner.sessions.lock().remove(&self.member.id);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.member.held.fetch_sub(1, Ordering::Relaxed);
        self.registry.touch(&self.member.kinds);
    }
}
