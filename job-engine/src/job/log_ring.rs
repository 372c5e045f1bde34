//! Bounds a job's log by count and bytes, in constant space.
//!
//! The log is accounted in at most [`SEGMENTS`] + 1 segments of equal budget; when the whole is over budget the
//! oldest segment is dropped, and with it its events. So between 15/16 and all of the budget is kept, and the
//! account costs a few bytes however long the log is. Pure: it decides what to drop, the store drops it.

/// Into how many parts the budget is divided.
const SEGMENTS: u64 = 16;

/// The account of a log.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct LogRing {
    /// Oldest first.
    #[prost(message, repeated, tag = "1")]
    pub segments: Vec<Segment>,
}

/// A stretch of the log.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Segment {
    /// Its first event.
    #[prost(uint64, tag = "1")]
    pub first_seq: u64,
    /// The size of its events so far.
    #[prost(uint64, tag = "2")]
    pub bytes: u64,
}

/// How large a log may grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogBudget {
    /// Events, at least 16.
    pub events: u64,
    /// Bytes of events, at least one segment's worth is always kept.
    pub bytes: u64,
}

impl LogRing {
    /// Accounts for the event `seq` of `len` bytes; returns the oldest event to keep.
    pub fn push(&mut self, seq: u64, len: u64, budget: LogBudget) -> u64 {
        match self.segments.last_mut() {
            Some(s)
                if s.bytes + len <= budget.bytes / SEGMENTS
                    && seq - s.first_seq < budget.events / SEGMENTS =>
            {
                s.bytes += len;
            }
            _ => self.segments.push(Segment { first_seq: seq, bytes: len }),
        }
        let mut total: u64 = self.segments.iter().map(|s| s.bytes).sum();
        let mut drop = 0;
        while drop + 1 < self.segments.len()
            && (total > budget.bytes || seq + 1 - self.segments[drop].first_seq > budget.events)
        {
            total -= self.segments[drop].bytes;
            drop += 1;
        }
        self.segments.drain(..drop);
        self.segments[0].first_seq
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn j28_log_stays_within_its_budget(lens in prop::collection::vec(1u64..400, 1..2000)) {
            let budget = LogBudget { events: 64, bytes: 4096 };
            let mut ring = LogRing::default();
            let mut first = 1;
            for (i, len) in lens.iter().enumerate() {
                let seq = i as u64 + 1;
                let keep = ring.push(seq, *len, budget);
                prop_assert!(keep >= first && keep <= seq, "the beginning never moves back, the newest event is kept");
                first = keep;
                let kept: u64 = lens.iter().take(i + 1).skip(usize::try_from(first - 1).expect("small")).sum();
                prop_assert!(kept <= budget.bytes && seq + 1 - first <= budget.events);
                prop_assert!(ring.segments.len() as u64 <= budget.bytes / 256 + SEGMENTS + 1);
            }
        }

        #[test]
        fn nothing_is_dropped_below_the_budget(n in 1u64..=64) {
            let mut ring = LogRing::default();
            for seq in 1..=n {
                prop_assert_eq!(ring.push(seq, 10, LogBudget { events: 64, bytes: 4096 }), 1);
            }
        }
    }
}
