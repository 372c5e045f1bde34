//! Where a new viewer begins to read: one pure decision.
//!
//! Given the position a client asks for and what is known of the log, exactly one [`Plan`] follows. Nothing is
//! reinterpreted: a position of another log, or beyond the head, starts over and says so.

use std::str::FromStr;

use tidegate_proto::cursor::{Cursor, CursorError};

/// The position a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Position {
    /// From the oldest event kept.
    Earliest,
    /// Only what comes.
    Latest,
    /// After the event it saw last.
    After(Cursor),
}

impl FromStr for Position {
    type Err = CursorError;

    /// Reads a cursor, `earliest` or `latest`; nothing at all means `earliest`.
    fn from_str(text: &str) -> Result<Self, CursorError> {
        match text {
            "" | "earliest" => Ok(Self::Earliest),
            "latest" => Ok(Self::Latest),
            cursor => cursor.parse().map(Self::After),
        }
    }
}

/// What is known of a log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    /// The log's token.
    pub(crate) epoch: &'a str,
    /// The oldest event kept.
    pub(crate) first: u64,
    /// The newest event stored; 0 when there is none.
    pub(crate) head: u64,
    /// Whether the newest event ended the job.
    pub(crate) terminal: bool,
}

/// What a new viewer gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// No position was given: read after `after`.
    Fresh { after: u64 },
    /// Read on exactly where the viewer stopped.
    Exact { after: u64 },
    /// The events from `from` to `after` are no longer kept.
    Trimmed { from: u64, after: u64 },
    /// The position belongs to another log: start over after `after`.
    Reset { after: u64 },
    /// The position is beyond what this gateway knows: the engine has to say whether it exists.
    Ahead { seq: u64 },
    /// The viewer has seen the end.
    Finished,
}

/// Decides.
pub(crate) fn decide(position: &Position, view: View<'_>) -> Plan {
    let oldest = view.first.saturating_sub(1);
    let cursor = match position {
        // Whoever comes first must know, too, that the beginning is missing.
        Position::Earliest if oldest > 0 => return Plan::Trimmed { from: 1, after: oldest },
        Position::Earliest => return Plan::Fresh { after: oldest },
        // A finished job has nothing to come, but every stream says how its job ended.
        Position::Latest if view.terminal => {
            return Plan::Fresh { after: view.head.saturating_sub(1).max(oldest) };
        }
        Position::Latest => return Plan::Fresh { after: view.head },
        Position::After(cursor) => cursor,
    };
    if cursor.epoch != view.epoch {
        Plan::Reset { after: oldest }
    } else if cursor.seq > view.head {
        Plan::Ahead { seq: cursor.seq }
    } else if view.terminal && cursor.seq == view.head {
        Plan::Finished
    } else if cursor.seq < oldest {
        Plan::Trimmed { from: cursor.seq + 1, after: oldest }
    } else {
        Plan::Exact { after: cursor.seq }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn j15_every_cursor_has_a_defined_outcome() {
        let view = View { epoch: "e", first: 5, head: 9, terminal: false };
        let after = |seq, epoch: &str| Position::After(Cursor::new(seq, epoch));
        assert_eq!(decide(&Position::Earliest, view), Plan::Trimmed { from: 1, after: 4 });
        let whole = View { first: 1, ..view };
        assert_eq!(decide(&Position::Earliest, whole), Plan::Fresh { after: 0 });
        assert_eq!(decide(&Position::Latest, view), Plan::Fresh { after: 9 });
        assert_eq!(decide(&after(4, "e"), view), Plan::Exact { after: 4 });
        assert_eq!(decide(&after(9, "e"), view), Plan::Exact { after: 9 });
        assert_eq!(decide(&after(3, "e"), view), Plan::Trimmed { from: 4, after: 4 });
        assert_eq!(decide(&after(0, "e"), view), Plan::Trimmed { from: 1, after: 4 });
        assert_eq!(decide(&after(10, "e"), view), Plan::Ahead { seq: 10 });
        assert_eq!(decide(&after(7, "f"), view), Plan::Reset { after: 4 });
        let ended = View { terminal: true, ..view };
        assert_eq!(decide(&after(9, "e"), ended), Plan::Finished);
        assert_eq!(decide(&after(9, "f"), ended), Plan::Reset { after: 4 });
        assert_eq!(decide(&Position::Latest, ended), Plan::Fresh { after: 8 });
    }

    proptest! {
        #[test]
        fn e26_no_plan_skips_an_event_in_silence(
            seq in 0u64..40, own in any::<bool>(), first in 1u64..20, len in 0u64..20, terminal in any::<bool>(),
        ) {
            let view = View { epoch: "e", first, head: first + len - 1, terminal: terminal && len > 0 };
            let cursor = Cursor::new(seq, if own { "e" } else { "f" });
            match decide(&Position::After(cursor), view) {
                Plan::Fresh { .. } => prop_assert!(false, "a cursor was ignored"),
                Plan::Exact { after } => prop_assert!(own && after == seq && after + 1 >= first && after <= view.head),
                Plan::Trimmed { from, after } => prop_assert!(own && from == seq + 1 && after + 1 == first && from <= after),
                Plan::Reset { after } => prop_assert!(!own && after + 1 == first),
                Plan::Ahead { .. } => prop_assert!(own && seq > view.head),
                Plan::Finished => prop_assert!(own && view.terminal && seq == view.head),
            }
        }
    }
}
