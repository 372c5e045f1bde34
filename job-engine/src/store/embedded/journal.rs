//! Cuts the torn end off fjall's journal, where fjall itself refuses to open it.
//!
//! After a loss of power the last batches, never synced and never acknowledged as such, may be there in part. fjall
//! drops a batch that ends too soon, but takes one whose checksum is wrong for damage and refuses. It is the same
//! accident when nothing whole follows: then the end is cut off, and kept in a file aside. When a whole batch does
//! follow, something that was synced is damaged, and a human has to know.
//! Format (version 3, integers little-endian): batches of start = 1, count u32, seqno u64; items = 2, kind u8,
//! compression u8, keyspace u64, key length u16, value length u32, stored length u32, key, value; or clears = 4,
//! keyspace u64; end = 3, xxh3 of the items u64, magic.

use std::{
    fs::{File, OpenOptions},
    io,
    path::{Path, PathBuf},
};

const MAGIC: &[u8] = b"FJL\x03";
const START: usize = 13;
const ITEM: usize = 21;
const CLEAR: usize = 9;
const END: usize = 13;

/// Cuts the newest journal of the database in `path` before its first broken batch, if no whole one follows, and
/// writes what was cut to `aside`. Answers how many bytes that was; `None` when there was nothing to cut.
pub(super) fn cut_torn_end(path: &Path, aside: &Path) -> io::Result<Option<u64>> {
    let Some(journal) = newest(path)? else { return Ok(None) };
    // Bounded by the size at which fjall begins a new journal; only read whole after an accident.
    let bytes = std::fs::read(&journal)?;
    let (mut at, mut broken) = (0, None);
    while let Some((length, whole)) = bytes.get(at..).and_then(batch) {
        match (whole, broken) {
            (true, Some(_)) => return Ok(None),
            (false, None) => broken = Some(at),
            _ => {}
        }
        at += length;
    }
    // Behind the last batch that can be made out there is nothing, or the noise that fjall stumbled over.
    let broken = broken.unwrap_or(at);
    let end = bytes.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
    if end <= broken {
        return Ok(None);
    }
    std::fs::write(aside, &bytes[broken..end])?;
    File::open(aside)?.sync_all()?;
    let file = OpenOptions::new().write(true).open(&journal)?;
    file.set_len(broken as u64)?;
    file.sync_all()?;
    Ok(Some((end - broken) as u64))
}

fn newest(path: &Path) -> io::Result<Option<PathBuf>> {
    let mut newest = None;
    for entry in std::fs::read_dir(path)? {
        let file = entry?.path();
        if file.extension().is_some_and(|e| e == "jnl")
            && let Some(number) =
                file.file_stem().and_then(|s| s.to_str()).and_then(|s| s.parse::<u64>().ok())
        {
            newest = newest.max(Some((number, file)));
        }
    }
    Ok(newest.map(|(_, file)| file))
}

/// The length of the batch at the beginning of `bytes`, and whether it is whole; `None` when there is none.
fn batch(bytes: &[u8]) -> Option<(usize, bool)> {
    if *bytes.first()? != 1 {
        return None;
    }
    let count = number(bytes, 1, 4)?;
    let (mut at, mut items) = (START, 0);
    loop {
        match bytes.get(at)? {
            2 => at += ITEM + number(bytes, at + 11, 2)? + number(bytes, at + 17, 4)?,
            4 => at += CLEAR,
            3 => {
                let end = bytes.get(at..at + END)?;
                let whole = end.get(9..)? == MAGIC
                    && items == count
                    && end.get(1..9)? == xxhash_rust::xxh3::xxh3_64(&bytes[START..at]).to_le_bytes();
                return Some((at + END, whole));
            }
            _ => return None,
        }
        items += 1;
    }
}

fn number(bytes: &[u8], at: usize, length: usize) -> Option<usize> {
    let field = bytes.get(at..at.checked_add(length)?)?;
    Some(field.iter().rev().fold(0, |n, b| n << 8 | usize::from(*b)))
}
