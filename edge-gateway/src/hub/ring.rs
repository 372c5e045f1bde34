//! The bounded window of ready frames that all viewers of a job share.
//!
//! Pure. Invariant: the frames are those of `first..next`, dense, at most [`MAX_EVENTS`] and [`MAX_BYTES`]. A viewer is
//! a cursor into it; the ring knows no viewers and never waits for one.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// How many frames a ring keeps at most; also the tail that a hub asks of the engine.
pub(crate) const MAX_EVENTS: u32 = 1024;
/// How many bytes of frames a ring keeps at most, though always the newest frame.
pub(crate) const MAX_BYTES: usize = 1024 * 1024;
/// How many bytes a viewer is handed at once, at most, unless a single frame is larger.
const MAX_BURST: usize = 16 * 1024;
/// Frames from this size on are handed out as they are: copying them costs more than another chunk.
const COPY_BELOW: usize = 8 * 1024;

/// The window.
#[derive(Debug)]
pub(crate) struct Ring {
    first: u64,
    frames: VecDeque<Bytes>,
    bytes: usize,
    /// The last burst that was joined, because viewers that wait at the same place want the same bytes.
    joined: Option<Burst>,
}

/// Ready bytes for a viewer: the frames after its cursor up to and including `last`.
#[derive(Clone, Debug)]
pub(crate) struct Burst {
    after: u64,
    pub(crate) last: u64,
    pub(crate) bytes: Bytes,
}

/// What the ring has for a cursor.
#[derive(Debug)]
pub(crate) enum Take {
    /// The next frames.
    Burst(Burst),
    /// Nothing yet: the cursor is at the head (or beyond, while an upstream catches up).
    AtHead,
    /// The frames after the cursor have left the ring, or were never in it.
    Behind,
}

impl Ring {
    /// An empty ring whose first frame will be numbered `next`.
    pub(crate) fn new(next: u64) -> Self {
        Self { first: next, frames: VecDeque::new(), bytes: 0, joined: None }
    }

    /// The bytes of all frames kept.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The number of the oldest frame, or of the next one if there is none.
    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    /// The number that the next frame will get.
    pub(crate) fn next(&self) -> u64 {
        self.first + self.frames.len() as u64
    }

    /// Appends the frame numbered [`Ring::next`], and drops the oldest ones beyond the bounds.
    pub(crate) fn push(&mut self, frame: Bytes) {
        self.bytes += frame.len();
        self.frames.push_back(frame);
        while self.frames.len() > 1 && (self.frames.len() > MAX_EVENTS as usize || self.bytes > MAX_BYTES) {
            if let Some(old) = self.frames.pop_front() {
                self.bytes -= old.len();
                self.first += 1;
            }
        }
    }

    /// Forgets everything and goes on at `next`.
    pub(crate) fn restart(&mut self, next: u64) {
        *self = Self::new(next);
    }

    /// The frames after `cursor`, as many as fit one burst.
    pub(crate) fn take(&mut self, cursor: u64) -> Take {
        if cursor + 1 >= self.next() {
            return Take::AtHead;
        }
        let Some(skip) = (cursor + 1).checked_sub(self.first) else { return Take::Behind };
        if let Some(newest) = self.frames.back().filter(|_| cursor + 2 == self.next()) {
            // What nearly every viewer wants nearly always.
            return Take::Burst(Burst { after: cursor, last: cursor + 1, bytes: newest.clone() });
        }
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let next = self.next();
        match &self.joined {
            Some(burst)
                if burst.after == cursor && (burst.last + 1 == next || burst.bytes.len() > MAX_BURST / 2) =>
            {
                return Take::Burst(burst.clone());
            }
            _ => {}
        }
        let burst = join(cursor, self.frames.range(skip..));
        if burst.last > cursor + 1 {
            self.joined = Some(burst.clone());
        }
        Take::Burst(burst)
    }
}

/// Joins `frames`, the first of which is numbered `after + 1`, to one burst: a single frame is shared, several small
/// ones are copied together, because one write and one chunk are cheaper than many.
pub(crate) fn join<'a>(after: u64, frames: impl Iterator<Item = &'a Bytes> + Clone) -> Burst {
    let mut total = 0;
    let fits = |frame: &&Bytes| {
        total += frame.len();
        frame.len() < COPY_BELOW && total <= MAX_BURST
    };
    let small = frames.clone().take_while(fits).count();
    if small < 2 {
        let bytes = frames.clone().next().cloned().unwrap_or_default();
        return Burst { after, last: after + u64::from(frames.clone().next().is_some()), bytes };
    }
    let mut bytes = BytesMut::with_capacity(frames.clone().take(small).map(Bytes::len).sum());
    frames.take(small).for_each(|frame| bytes.extend_from_slice(frame));
    Burst { after, last: after + small as u64, bytes: bytes.freeze() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(seq: u64, len: usize) -> Bytes {
        let mut text = format!("{seq};");
        text.push_str(&"x".repeat(len));
        text.push('\n');
        text.into()
    }

    /// The numbers of the frames in `bytes`.
    fn numbers(bytes: &[u8]) -> Vec<u64> {
        let text = std::str::from_utf8(bytes).unwrap();
        text.lines().map(|line| line.split(';').next().unwrap().parse().unwrap()).collect()
    }

    #[test]
    fn a_single_frame_is_shared_and_not_copied() {
        let mut ring = Ring::new(1);
        let sent = frame(1, 10);
        ring.push(sent.clone());
        let Take::Burst(burst) = ring.take(0) else { panic!("nothing") };
        assert_eq!(burst.bytes.as_ptr(), sent.as_ptr());
    }

    #[test]
    fn viewers_at_the_same_place_share_one_joined_burst() {
        let mut ring = Ring::new(1);
        (1..=5).for_each(|seq| ring.push(frame(seq, 10)));
        let (Take::Burst(a), Take::Burst(b)) = (ring.take(2), ring.take(2)) else { panic!("nothing") };
        assert_eq!((a.last, a.bytes.as_ptr()), (5, b.bytes.as_ptr()));
        ring.push(frame(6, 10));
        let Take::Burst(c) = ring.take(2) else { panic!("nothing") };
        assert_eq!((c.last, numbers(&c.bytes)), (6, vec![3, 4, 5, 6]));
    }

    proptest! {
        /// Whatever is pushed and whenever readers read, each sees a dense run, or is told that it is behind.
        #[test]
        fn e31_readers_see_each_frame_once_and_in_order(
            steps in proptest::collection::vec((0usize..4, 0usize..3, prop_oneof![0usize..200, 0usize..70_000]), 1..600),
            start in 1u64..1000,
        ) {
            let mut ring = Ring::new(start);
            let mut cursors = [start - 1; 3];
            for (action, who, len) in steps {
                if action > 0 {
                    let seq = ring.next();
                    ring.push(frame(seq, len));
                    prop_assert!(ring.frames.len() <= MAX_EVENTS as usize);
                    prop_assert!(ring.bytes <= MAX_BYTES);
                    prop_assert_eq!(ring.bytes, ring.frames.iter().map(Bytes::len).sum::<usize>());
                } else {
                    let cursor = &mut cursors[who];
                    match ring.take(*cursor) {
                        Take::AtHead => prop_assert_eq!(*cursor + 1, ring.next()),
                        Take::Behind => {
                            prop_assert!(*cursor + 1 < ring.first());
                            *cursor = ring.first() - 1;
                        }
                        Take::Burst(burst) => {
                            prop_assert_eq!(numbers(&burst.bytes), (*cursor + 1..=burst.last).collect::<Vec<_>>());
                            prop_assert!(burst.bytes.len() <= MAX_BURST || burst.last == *cursor + 1);
                            *cursor = burst.last;
                        }
                    }
                }
            }
        }
    }
}
