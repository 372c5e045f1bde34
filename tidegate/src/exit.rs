//! Exit codes, and the failures that lead to them.
//!
//! 0, 1 and 2 say how a job ended; from 64 on the codes are those of `sysexits.h`.

use std::io;

use crate::{api, follow::Outcome};

/// The command line, its JSON or the configuration is wrong.
pub const USAGE: u8 = 64;
/// The server refused the request.
pub const REFUSED: u8 = 65;
/// The server cannot be reached, or was lost for too long.
pub const UNAVAILABLE: u8 = 69;
/// Something failed that should not.
pub const INTERNAL: u8 = 70;
/// Ctrl-C.
pub const INTERRUPTED: u8 = 130;
/// The reader of the output went away.
pub const PIPE_CLOSED: u8 = 141;

/// The table that `--help` prints.
pub const HELP: &str = "\
Exit codes:
    0  the job COMPLETED, or the command did what was asked
    1  the job FAILED
    2  the job was CANCELLED
   64  wrong usage, malformed JSON, or bad configuration
   65  the server refused the request
   69  the server cannot be reached
  130  interrupted; a watched job goes on";

/// Why a command ended early.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// What was asked for makes no sense.
    #[error("{0}")]
    Usage(String),
    /// The server's fault, or its refusal.
    #[error(transparent)]
    Api(#[from] api::Error),
    /// The output cannot be written.
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
    /// A part of the all-in-one process failed.
    #[error("{0:#}")]
    Internal(#[from] anyhow::Error),
}

impl Failure {
    /// The exit code.
    pub fn code(&self) -> u8 {
        match self {
            Self::Usage(_)
            | Self::Api(api::Error::BadServer(..) | api::Error::BadToken(_) | api::Error::BadCa(_)) => USAGE,
            Self::Api(api::Error::Refused(problem)) if problem.status < 500 => REFUSED,
            Self::Api(_) => UNAVAILABLE,
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => PIPE_CLOSED,
            Self::Output(_) | Self::Internal(_) => INTERNAL,
        }
    }
}

/// The exit code that says how a job ended.
pub fn of(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Completed => 0,
        Outcome::Failed => 1,
        Outcome::Cancelled => 2,
    }
}
