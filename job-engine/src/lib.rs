//! The state of jobs, the event log, and dispatch: Tidegate's gRPC server.
//!
//! To follow one event from a worker to a reader: [`session`] takes the report, [`owner`] applies it by
//! [`job::machine`] and commits it to a [`store`], whose hint rings a bell in [`follow`], upon which [`watch`] reads
//! the log and streams the event to whoever follows the job. [`schedule`] submits jobs by itself, when it is time.

pub mod access;
pub mod config;
pub mod dispatch;
pub mod engine;
pub mod error;
pub mod follow;
pub mod idempotency;
pub mod intake;
pub mod job;
pub mod json;
pub mod kinds;
pub mod measured;
pub mod metrics;
pub mod owner;
pub mod page;
pub mod registry;
pub mod rpc;
pub mod schedule;
pub mod server;
pub mod session;
pub mod store;
pub mod submission;
pub mod unique;
pub mod vitals;
pub mod watch;
