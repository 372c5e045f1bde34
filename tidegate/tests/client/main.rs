//! The client commands and the follower against a scripted gateway: every way a connection can go wrong.

// A test may panic: that is how it fails.
#![allow(clippy::unwrap_used)]

mod command;
mod follower;
mod script;
