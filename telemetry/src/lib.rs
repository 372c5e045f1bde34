//! How the parts of Tidegate tell what they do: [metrics](Recorder), [logs](Output) and [traces](trace), and where
//! operators ask ([`admin`]), once for all binaries.
//!
//! Invariant: what is exported names neither tokens nor cursors nor anything that a user wrote. What it does not do:
//! decide what is worth telling, or bind a port.

pub mod admin;
mod handles;
mod loglevel;
mod output;
mod recorder;
pub mod trace;

pub use self::{
    handles::{Counter, Gauge, Histogram, NameAndValue, counter, gauge, histogram},
    output::{Format, Guard, Output, OutputError},
    recorder::{CONTENT_TYPE, LONG, QUICK, Recorder, SIZES},
};
