//! Indexes in memory: members ordered by due time, mirroring what is on the disk.
//!
//! Invariant: `by_due` and `due` hold the same members. Nothing is read from the disk after opening, and nothing
//! here decides what is written there.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

/// One index.
#[derive(Default)]
pub(super) struct Index {
    by_due: BTreeSet<(u64, Arc<str>)>,
    due: HashMap<Arc<str>, u64>,
}

impl Index {
    /// Moves a member to be due at `due` (ms), adding it if need be; `None` removes it.
    pub(super) fn set(&mut self, member: &str, due: Option<u64>) {
        let name = match self.due.remove_entry(member) {
            Some((name, before)) => {
                let key = (before, name);
                self.by_due.remove(&key);
                key.1
            }
            None => Arc::from(member),
        };
        if let Some(due) = due {
            self.by_due.insert((due, name.clone()));
            self.due.insert(name, due);
        }
    }

    pub(super) fn contains(&self, member: &str) -> bool {
        self.due.contains_key(member)
    }

    pub(super) fn len(&self) -> usize {
        self.due.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.due.is_empty()
    }

    /// Whether a member is due at `now`.
    pub(super) fn has_due(&self, now: u64) -> bool {
        self.by_due.first().is_some_and(|(due, _)| *due <= now)
    }

    /// Up to `n` members that are due at `now`, soonest first.
    pub(super) fn due(&self, now: u64, n: usize) -> Vec<Arc<str>> {
        self.by_due.iter().take_while(|(due, _)| *due <= now).take(n).map(|(_, m)| m.clone()).collect()
    }

    /// Up to `limit` members in descending order, below `before` if given.
    pub(super) fn list(&self, before: Option<(u64, String)>, limit: usize) -> Vec<(u64, String)> {
        let listed = |(due, member): &(u64, Arc<str>)| (*due, member.as_ref().to_owned());
        match before {
            Some((due, member)) => {
                self.by_due.range(..(due, Arc::from(member))).rev().take(limit).map(listed).collect()
            }
            None => self.by_due.iter().rev().take(limit).map(listed).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moving_and_removing_leave_no_trace() {
        let mut index = Index::default();
        for due in [5, 1, 9] {
            index.set("a", Some(due));
        }
        index.set("b", Some(9));
        assert_eq!(index.list(None, 10), [(9, "b".into()), (9, "a".into())]);
        assert_eq!(index.list(Some((9, "b".into())), 10), [(9, "a".into())]);
        assert!(index.due(8, 10).is_empty() && !index.has_due(8) && index.has_due(9));
        index.set("a", None);
        index.set("b", None);
        index.set("b", None);
        assert!(index.is_empty() && index.by_due.is_empty());
    }
}
