//! The names of a partition's keys, all under its hash tag.

use crate::store::{Gate, IndexChange};

/// See [`super`] for what the keys hold.
#[derive(Clone)]
pub(super) struct Keys {
    /// What stands in the braces.
    pub(super) tag: String,
}

impl Keys {
    pub(super) fn state(&self, stream: &str) -> String {
        format!("{{{}}}s:{stream}", self.tag)
    }
    pub(super) fn log(&self, stream: &str) -> String {
        format!("{{{}}}l:{stream}", self.tag)
    }
    pub(super) fn index(&self, index: &str) -> String {
        format!("{{{}}}i:{index}", self.tag)
    }
    /// The ring of a queue: see `queues.lua`, as for the next two.
    pub(super) fn queue(&self, queue: &str) -> String {
        format!("{{{}}}q:{}:{queue}", self.tag, queue.len())
    }
    pub(super) fn gate(&self, gate: &str) -> String {
        format!("{{{}}}g:{}:{gate}", self.tag, gate.len())
    }
    pub(super) fn lane(ring: &str, lane: &str) -> String {
        format!("{ring}:{lane}")
    }
    /// The key that an index change is about.
    pub(super) fn of(&self, change: &IndexChange) -> String {
        match change {
            IndexChange::Put { index, .. } | IndexChange::Remove { index, .. } => self.index(index),
            IndexChange::Enqueue { gate: Some(Gate { name, .. }), .. } => self.gate(name),
            IndexChange::Enqueue { place, .. } | IndexChange::Dequeue { place } => self.queue(&place.queue),
            IndexChange::Leave { gate, .. } => self.gate(gate),
        }
    }
    pub(super) fn channel(&self) -> String {
        format!("{{{}}}w", self.tag)
    }
    pub(super) fn mark(&self) -> String {
        format!("{{{}}}m", self.tag)
    }
    pub(super) fn origin(&self) -> String {
        format!("{{{}}}o", self.tag)
    }
}
