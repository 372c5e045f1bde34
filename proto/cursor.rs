//! The cursor: a position in one particular log, `<seq>-<epoch>`.
//!
//! One format everywhere: SSE `id`, gRPC `cursor`, command-line flag. The epoch is a random token made with the
//! log, so a cursor of another job, or of a log that was lost, is recognised and never reinterpreted.
//! At most [`Cursor::MAX_LEN`] bytes of `[A-Za-z0-9._-]`, which needs no escaping in headers, URLs or SSE fields
//! and no CORS preflight. Parsing is strict: what [`Cursor`] accepts, it prints back byte for byte.

use std::{fmt, str::FromStr};

/// A position in a log: everything up to and including `seq` has been seen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cursor {
    /// The last event seen; 0 means none.
    pub seq: u64,
    /// The token of the log.
    pub epoch: String,
}

/// Why a text is no cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CursorError {
    /// Longer than [`Cursor::MAX_LEN`].
    #[error("a cursor has at most {} bytes", Cursor::MAX_LEN)]
    TooLong,
    /// Not of the form `<seq>-<epoch>`.
    #[error("a cursor looks like 17-q7x2ma: a number, a dash, and the log's token")]
    Malformed,
}

impl Cursor {
    /// The longest cursor, in bytes.
    pub const MAX_LEN: usize = 64;

    /// A cursor at `seq` of the log `epoch`.
    pub fn new(seq: u64, epoch: impl Into<String>) -> Self {
        Self { seq, epoch: epoch.into() }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.seq, self.epoch)
    }
}

impl FromStr for Cursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        if text.len() > Self::MAX_LEN {
            return Err(CursorError::TooLong);
        }
        let (seq, epoch) = text.split_once('-').ok_or(CursorError::Malformed)?;
        let canonical = seq == "0" || (!seq.starts_with('0') && seq.bytes().all(|b| b.is_ascii_digit()));
        let token = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if seq.is_empty() || !canonical || epoch.is_empty() || !epoch.bytes().all(token) {
            return Err(CursorError::Malformed);
        }
        let seq = seq.parse().map_err(|_| CursorError::Malformed)?;
        Ok(Self { seq, epoch: epoch.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn e23_cursor_is_parsed_strictly() {
        let long = format!("1-{}", "a".repeat(63));
        for bad in [
            "",
            "-",
            "17",
            "17-",
            "-q7",
            "017-q7",
            "+1-q7",
            "1 -q7",
            "1-q 7",
            "$",
            "+",
            ">",
            "1-q\n",
            "1-q\0",
            "1-ü",
            "18446744073709551616-q",
            "0x1-q",
            &long,
        ] {
            assert!(bad.parse::<Cursor>().is_err(), "{bad:?} was accepted");
        }
        assert_eq!("17-q7x2ma".parse(), Ok(Cursor::new(17, "q7x2ma")));
        assert_eq!("0-a-b.c_d".parse(), Ok(Cursor::new(0, "a-b.c_d")));
    }

    proptest! {
        #[test]
        fn what_is_accepted_prints_back_the_same(text in "\\PC{0,70}|[0-9]{1,21}-[A-Za-z0-9._-]{0,44}") {
            if let Ok(cursor) = text.parse::<Cursor>() {
                prop_assert_eq!(cursor.to_string(), text);
            }
        }
    }
}
