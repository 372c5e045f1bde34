//! The state of jobs, the event log, and dispatch.

pub mod job;
pub mod store;
