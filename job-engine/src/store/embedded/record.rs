//! How streams, events and index members are laid out in keys and values; the table of all is in [`disk`](super::disk).
//!
//! Pure. What cannot be read is an error, never a guess.

use bytes::{Buf as _, BufMut as _, Bytes};
use fjall::UserValue;

use crate::store::{Head, Snapshot, StoreError};

/// The first byte of a stream's value, without fixed bytes and with them.
const PLAIN: u8 = 1;
const WITH_FIXED: u8 = 2;

/// A stream as stored.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) log: u64,
    /// Whether the stream has fixed bytes; they are only in snapshots that are handed out.
    pub(super) has_fixed: bool,
    pub(super) snapshot: Snapshot,
}

/// Key of one event: log id and number.
pub(super) type EventKey = (u64, u64);

impl Record {
    pub(super) fn encode(&self) -> Vec<u8> {
        let Snapshot { head, first_seq, state, .. } = &self.snapshot;
        let mut out = Vec::with_capacity(26 + head.epoch.len() + state.len());
        out.put_u8(if self.has_fixed { WITH_FIXED } else { PLAIN });
        out.put_u64(self.log);
        out.put_u64(head.seq);
        out.put_u64(*first_seq);
        #[allow(clippy::cast_possible_truncation)] // the committer refuses longer epochs
        out.put_u8(head.epoch.len() as u8);
        out.put_slice(head.epoch.as_bytes());
        out.put_slice(state);
        out
    }

    pub(super) fn decode(stream: &str, value: &UserValue) -> Result<Self, StoreError> {
        let mut value = shared(value);
        if value.len() < 26 {
            return Err(damaged(stream));
        }
        let has_fixed = match value.get_u8() {
            PLAIN => false,
            WITH_FIXED => true,
            _ => return Err(damaged(stream)),
        };
        let (log, seq, first_seq) = (value.get_u64(), value.get_u64(), value.get_u64());
        let length = usize::from(value.get_u8());
        if value.len() < length {
            return Err(damaged(stream));
        }
        let epoch = String::from_utf8(value.split_to(length).to_vec()).map_err(|_| damaged(stream))?;
        let head = Head { seq, epoch };
        Ok(Self { log, has_fixed, snapshot: Snapshot { head, first_seq, state: value, fixed: Bytes::new() } })
    }
}

pub(super) fn damaged(stream: &str) -> StoreError {
    StoreError::Damaged(format!("the state of {stream}"))
}

pub(super) fn event_key((log, seq): EventKey) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&log.to_be_bytes());
    key[8..].copy_from_slice(&seq.to_be_bytes());
    key
}

pub(super) fn index_key(index: &str, member: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(2 + index.len() + member.len());
    #[allow(clippy::cast_possible_truncation)] // the committer refuses longer names
    key.put_u16(index.len() as u16);
    key.put_slice(index.as_bytes());
    key.put_slice(member.as_bytes());
    key
}

pub(super) fn split_index_key(key: &[u8]) -> Option<(String, String)> {
    let (length, rest) = key.split_at_checked(2)?;
    let (name, member) = rest.split_at_checked(usize::from(u16::from_be_bytes(length.try_into().ok()?)))?;
    Some((String::from_utf8(name.to_vec()).ok()?, String::from_utf8(member.to_vec()).ok()?))
}

pub(super) fn number(value: impl AsRef<[u8]>) -> Option<u64> {
    Some(u64::from_be_bytes(value.as_ref().try_into().ok()?))
}

/// A copy: small values are cheaper to copy than to keep a whole block in memory for.
pub(super) fn shared(value: &UserValue) -> Bytes {
    Bytes::copy_from_slice(value)
}
