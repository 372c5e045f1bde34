//! System tests: real processes, real sockets, a real Redis, and what happens when each of them is killed.
//!
//! The binaries are those beside this test's own executable; `tests/run`, or `cargo build --workspace`, makes
//! them. Nothing is skipped: what is missing is a failure that says how to get it.
// A test may panic: that is how it fails.
#![allow(clippy::unwrap_used)]

mod auth;
mod bad_input;
mod crash;
mod docs;
mod doctor;
mod fleet;
mod herd;
mod import;
mod metrics;
mod resume;
mod schedules;
mod steer;
mod support;
mod traces;
mod viewers;
mod whole;
