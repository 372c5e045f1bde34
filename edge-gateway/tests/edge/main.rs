//! The gateway as its users meet it: a real gateway on real sockets, in front of a scripted engine.
//!
//! Each test starts its own pair. Nothing sleeps in place of a condition; every wait has a deadline.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod attacks;
mod auth;
mod bundle;
mod cors;
mod drain;
mod engines;
mod fanout;
mod faults;
mod http;
mod limits;
mod nginx;
mod rest;
mod resume;
mod sessions;
mod shared;
mod streams;
mod support;
mod tenure;
mod tls;
