//! The waiting viewers of a hub: who sleeps, who is to be woken, who is to leave.
//!
//! Slots live in shards of 64, so that a shard's sleepers are the bits of one word and nobody holds a lock over the
//! whole crowd. Invariant: no wake-up is lost. A viewer arms its slot under the shard's lock and only if the hub's
//! version is still the one it looked at; a publisher raises the version first and visits the shards afterwards.
//! A viewer that is busy (its socket is full) is not armed, and so costs a publisher nothing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::Waker,
};

use parking_lot::{Mutex, RwLock};

/// Slots per shard: the bits of a word.
const SLOTS: usize = 64;

/// All slots of a hub.
#[derive(Debug, Default)]
pub(crate) struct Crowd {
    shards: RwLock<Vec<Arc<Shard>>>,
    /// Counts everything that viewers may want to see; raised before anybody is woken.
    version: AtomicU64,
}

/// 64 slots under one lock.
#[derive(Debug, Default)]
struct Shard {
    /// Who is asked to leave, one bit a slot; written under the lock, and looked at with every frame without it.
    leaving: AtomicU64,
    slots: Mutex<Slots>,
}

/// Which slots are taken, and which sleep: one bit a slot.
#[derive(Debug, Default)]
struct Slots {
    taken: u64,
    armed: u64,
    /// Kept while a viewer stays, because its waker hardly ever changes.
    wakers: Vec<Option<Waker>>,
}

/// A way to ask the viewer in a slot to leave; must not be used once the slot may be another's.
#[derive(Debug)]
pub(crate) struct Leaver {
    shard: Arc<Shard>,
    bit: usize,
}

/// A viewer's place; given back on drop.
#[derive(Debug)]
pub(crate) struct Slot {
    shard: Arc<Shard>,
    bit: usize,
}

impl Crowd {
    /// The current version; what is read from the hub afterwards is at least as new.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Takes a free slot.
    pub(crate) fn join(&self) -> Slot {
        for shard in self.shards.read().iter() {
            if let Some(bit) = shard.slots.lock().take() {
                return Slot { shard: Arc::clone(shard), bit };
            }
        }
        let shard = Arc::<Shard>::default();
        let bit = shard.slots.lock().take().unwrap_or_default(); // a new shard has a free slot
        self.shards.write().push(Arc::clone(&shard));
        Slot { shard, bit }
    }

    /// Announces something new, and wakes everybody who waits for it.
    pub(crate) fn wake(&self) {
        self.version.fetch_add(1, Ordering::AcqRel);
        // Shard by shard by number: shards are only ever added, and a viewer in a newer one has seen the version.
        let mut number = 0;
        while let Some(shard) = self.shard(number) {
            let mut slots = shard.slots.lock();
            let mut armed = std::mem::take(&mut slots.armed);
            while armed != 0 {
                let bit = armed.trailing_zeros() as usize;
                armed &= armed - 1;
                if let Some(waker) = &slots.wakers[bit] {
                    waker.wake_by_ref();
                }
            }
            number += 1;
        }
    }

    /// How many viewers there are.
    pub(crate) fn len(&self) -> usize {
        self.shards.read().iter().map(|shard| shard.slots.lock().taken.count_ones() as usize).sum()
    }

    /// Asks up to `limit` viewers who were not asked yet to leave; answers how many were.
    pub(crate) fn dismiss(&self, limit: usize) -> usize {
        let mut dismissed = 0;
        let mut number = 0;
        while let Some(shard) = self.shard(number)
            && dismissed < limit
        {
            let mut slots = shard.slots.lock();
            let mut staying = slots.taken & !shard.leaving.load(Ordering::Relaxed);
            while staying != 0 && dismissed < limit {
                let bit = staying.trailing_zeros() as usize;
                staying &= staying - 1;
                shard.dismiss(&mut slots, bit);
                dismissed += 1;
            }
            number += 1;
        }
        dismissed
    }

    fn shard(&self, number: usize) -> Option<Arc<Shard>> {
        self.shards.read().get(number).cloned()
    }
}

impl Slots {
    fn take(&mut self) -> Option<usize> {
        let bit = (!self.taken).trailing_zeros() as usize;
        if bit == SLOTS {
            return None;
        }
        self.taken |= 1 << bit;
        if self.wakers.len() <= bit {
            self.wakers.resize(bit + 1, None);
        }
        Some(bit)
    }

    /// Remembers whom to wake for a slot; hardly ever somebody else than before.
    fn keep(&mut self, bit: usize, waker: &Waker) {
        match &mut self.wakers[bit] {
            Some(known) => known.clone_from(waker),
            unknown => *unknown = Some(waker.clone()),
        }
    }
}

impl Shard {
    fn dismiss(&self, slots: &mut Slots, bit: usize) {
        self.leaving.fetch_or(1 << bit, Ordering::Release);
        slots.armed &= !(1 << bit);
        if let Some(waker) = &slots.wakers[bit] {
            waker.wake_by_ref();
        }
    }
}

impl Slot {
    /// Sleeps until the crowd is woken, unless its version is no longer `seen`: then answers false, and the caller looks again.
    pub(crate) fn arm(&self, crowd: &Crowd, waker: &Waker, seen: u64) -> bool {
        let mut slots = self.shard.slots.lock();
        if crowd.version() != seen || self.leaving() {
            return false;
        }
        slots.armed |= 1 << self.bit;
        slots.keep(self.bit, waker);
        true
    }

    /// Leaves word whom to wake when the viewer is asked to leave, while it waits for something else; answers false if it was
    /// asked already.
    pub(crate) fn remember(&self, waker: &Waker) -> bool {
        let mut slots = self.shard.slots.lock();
        slots.keep(self.bit, waker);
        !self.leaving()
    }

    /// A way to ask this viewer to leave.
    pub(crate) fn leaver(&self) -> Leaver {
        Leaver { shard: Arc::clone(&self.shard), bit: self.bit }
    }

    /// Whether the viewer is the one in 64 that measures for the others.
    pub(crate) fn is_first(&self) -> bool {
        self.bit == 0
    }

    /// Whether the viewer was asked to leave.
    pub(crate) fn leaving(&self) -> bool {
        self.shard.leaving.load(Ordering::Acquire) & (1 << self.bit) != 0
    }
}

impl Leaver {
    /// Asks.
    pub(crate) fn dismiss(&self) {
        self.shard.dismiss(&mut self.shard.slots.lock(), self.bit);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut slots = self.shard.slots.lock();
        let mask = !(1 << self.bit);
        slots.taken &= mask;
        slots.armed &= mask;
        self.shard.leaving.fetch_and(mask, Ordering::Relaxed);
        let waker = slots.wakers[self.bit].take();
        drop(slots);
        drop(waker); // may drop a task: not under the lock
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn e36_only_sleepers_are_woken_and_only_once() {
        let crowd = Crowd::default();
        let slots: Vec<_> = (0..200).map(|_| crowd.join()).collect();
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        for slot in slots.iter().take(150) {
            assert!(slot.arm(&crowd, &waker, crowd.version()));
        }
        crowd.wake();
        crowd.wake();
        assert_eq!(count.0.load(Ordering::Relaxed), 150);
        assert_eq!(crowd.len(), 200);
        drop(slots);
        assert_eq!(crowd.len(), 0);
        assert_eq!(Arc::strong_count(&count), 2, "a slot that is free holds no waker");
    }

    #[test]
    fn e31_what_was_published_since_the_look_forbids_sleep() {
        let crowd = Crowd::default();
        let slot = crowd.join();
        let seen = crowd.version();
        crowd.wake();
        assert!(!slot.arm(&crowd, Waker::noop(), seen));
        assert!(slot.arm(&crowd, Waker::noop(), crowd.version()));
    }

    #[test]
    fn e41_dismissal_reaches_each_viewer_once_asleep_or_not() {
        let crowd = Crowd::default();
        let slots: Vec<_> = (0..100).map(|_| crowd.join()).collect();
        assert_eq!(crowd.dismiss(30), 30);
        assert_eq!(crowd.dismiss(100), 70);
        assert_eq!(crowd.dismiss(100), 0);
        assert!(slots.iter().all(Slot::leaving));
        assert!(
            !slots[0].arm(&crowd, Waker::noop(), crowd.version()),
            "who is to leave does not go to sleep"
        );
    }
}
