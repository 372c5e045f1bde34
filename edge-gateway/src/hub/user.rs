//! Who keeps a hub: viewers, and requests that are about to become viewers.
//!
//! Invariant: the hub's task hears of it when the last one leaves. When the hub then goes is the task's to say
//! ([`super::upstream`]).

use std::{
    ops::Deref,
    sync::{Arc, atomic::Ordering},
};

use super::Hub;

/// One user of a hub; the hub may go when the last is dropped.
#[derive(Debug)]
pub(super) struct User(Arc<Hub>);

impl User {
    pub(super) fn new(hub: &Arc<Hub>) -> Self {
        hub.users.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(hub))
    }
}

impl Drop for User {
    fn drop(&mut self) {
        if self.0.users.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.deserted.notify_one();
        }
    }
}

impl Deref for User {
    type Target = Hub;

    fn deref(&self) -> &Hub {
        &self.0
    }
}
