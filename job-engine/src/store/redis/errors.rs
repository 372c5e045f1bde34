//! What Redis's errors mean: whether a request can be sent again, and whether over the same connection.

use redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::store::StoreError;

/// The one place where a Redis error gets its meaning.
pub(super) fn typed(error: &RedisError) -> StoreError {
    let text = error.to_string();
    match error.kind() {
        _ if error.code() == Some("OOM") => StoreError::Full(text),
        // A disk that fails, replicas that are missing, a script that blocks, a master that has just become a replica.
        _ if matches!(error.code(), Some("MISCONF" | "NOREPLICAS" | "BUSY" | "UNBLOCKED")) => {
            StoreError::Unavailable(text)
        }
        // A slot that has moved, is moving, or has no master yet.
        ErrorKind::Server(
            ServerErrorKind::Moved
            | ServerErrorKind::Ask
            | ServerErrorKind::TryAgain
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::BusyLoading
            | ServerErrorKind::ReadOnly
            | ServerErrorKind::MasterDown
            | ServerErrorKind::NoScript,
        )
        | ErrorKind::MasterNameNotFoundBySentinel
        | ErrorKind::Io => StoreError::Unavailable(text),
        _ if error.is_timeout() || error.is_connection_dropped() => StoreError::Unavailable(text),
        _ if text.contains("max number of clients") => StoreError::Unavailable(text),
        // A wrong password, a forbidden command: repeating will not help, and the text says what will.
        ErrorKind::AuthenticationFailed
        | ErrorKind::InvalidClientConfig
        | ErrorKind::Server(ServerErrorKind::NoPerm) => StoreError::Unfit(text),
        _ if matches!(error.code(), Some("NOAUTH" | "WRONGPASS" | "NOPERM")) => StoreError::Unfit(text),
        _ => StoreError::Damaged(text),
    }
}

/// What prevents a connection is passing, unless it is known not to be.
pub(super) fn unreached(error: &RedisError) -> StoreError {
    match typed(error) {
        StoreError::Damaged(text) => StoreError::Unavailable(text),
        // No sentinel answered: the library calls that a configuration error.
        StoreError::Unfit(text) if error.kind() == ErrorKind::InvalidClientConfig => {
            StoreError::Unavailable(text)
        }
        error => error,
    }
}

/// Whether the connection, or what is behind it, is not what it was: the next command goes over a new one.
pub(super) fn is_over(error: &RedisError) -> bool {
    let demoted = matches!(
        error.kind(),
        ErrorKind::Server(
            ServerErrorKind::ReadOnly
                | ServerErrorKind::MasterDown
                | ServerErrorKind::BusyLoading
                | ServerErrorKind::Moved
                | ServerErrorKind::ClusterDown
        )
    );
    demoted
        || error.is_io_error()
        || error.is_unrecoverable_error()
        || matches!(error.code(), Some("UNBLOCKED" | "NOAUTH"))
}
