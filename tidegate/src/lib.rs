//! The `tidegate` command: everything in one process, and a client of a running gateway.
//!
//! As a library it offers what tests and load clients share with the command: the event stream parser [`sse`],
//! the reconnecting [`follow::Follower`], and the HTTP client [`api`].

pub mod api;
pub mod args;
pub mod commands;
mod config;
mod doctor;
pub mod exit;
pub mod follow;
pub mod schedules;
pub mod serve;
pub mod sse;
pub mod text;
pub mod tls;
pub mod token;
pub mod view;
pub mod watch;
