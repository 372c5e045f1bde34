//! The limit of open files, of which every connection is one.
//!
//! Shells and service managers start programs with a soft limit of 1,024 and a hard one far above it; whoever can do
//! with more descriptors than `select` knows may raise the one to the other (getrlimit(2)). It never lowers anything.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors besides those of connections: listeners, the way to the engines, logs, files that are being read.
const OTHERS: u64 = 256;

/// Raises the limit so far that `connections` fit, or as far as it goes, and says so if that is not far enough.
pub(crate) fn make_room(connections: usize) {
    let wanted = OTHERS.saturating_add(connections as u64);
    let room = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < wanted {
            setrlimit(Resource::RLIMIT_NOFILE, wanted.min(hard), hard)?;
        }
        Ok(soft.max(wanted.min(hard)))
    });
    match room {
        Ok(room) if room >= wanted => {}
        Ok(room) => tracing::warn!(
            room,
            wanted,
            "fewer files may be open than --max-connections asks for: raise the hard limit (ulimit -Hn, LimitNOFILE=)"
        ),
        Err(error) => tracing::warn!(%error, "cannot read or raise the limit of open files"),
    }
}
