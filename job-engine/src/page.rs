//! Pages of what an index names, newest first.
//!
//! A page ends when it is full, when it is heavy, or when enough was looked at; the last may leave it empty although more
//! follows. Its token is the place in the index of the last member that was looked at: the next page begins just behind
//! it, so none is left out and none comes twice. What it does not do: say who may see what. Its callers choose the index,
//! and what of it is wanted.

use prost::Message;

use crate::{
    error::EngineError,
    store::{Snapshot, Store, StoreError},
};

/// How many members one page looks at before it answers with what it found.
const SCAN: usize = 1000;
/// How many members are loaded at once.
const LOAD: usize = 16;
/// After how many bytes a page ends: a job has at most about 600 KiB, a message 4 MiB.
const BYTES: usize = 2 << 20;

/// A page of `size` (0: 50) of what `index` names, from where `token` says (empty: from the newest), and the token of the
/// next page, empty on the last. `wanted` reads what is stored, and has `None` for what is to be passed over.
pub async fn page<T: Message>(
    store: &dyn Store,
    index: &str,
    size: u32,
    token: &str,
    wanted: impl Fn(&Snapshot) -> Result<Option<T>, StoreError> + Send,
) -> Result<(Vec<T>, String), EngineError> {
    let limit = match size {
        0 => 50,
        n @ 1..=200 => n as usize,
        _ => return Err(EngineError::Invalid(vec![("page_size", "must be 1 to 200".into())])),
    };
    let mut before = place_of(token)?;
    let batch = limit.min(LOAD);
    let (mut items, mut seen, mut bytes, mut more) = (Vec::new(), 0, 0, true);
    while more && items.len() < limit && bytes < BYTES && seen < SCAN {
        let keys = store.list(index, before.clone(), batch).await?;
        more = keys.len() == batch;
        seen += keys.len();
        let snapshots = store.load(keys.iter().map(|(_, member)| member.clone()).collect()).await?;
        for (key, snapshot) in keys.into_iter().zip(snapshots) {
            if items.len() == limit || bytes >= BYTES {
                more = true;
                break;
            }
            before = Some(key);
            let Some(snapshot) = snapshot else { continue };
            if let Some(item) = wanted(&snapshot)? {
                bytes += item.encoded_len();
                items.push(item);
            }
        }
    }
    let next = before.filter(|_| more).map(|(due, member)| format!("{due}.{member}"));
    Ok((items, next.unwrap_or_default()))
}

/// The place in an index that a token names; none for the first page.
fn place_of(token: &str) -> Result<Option<(u64, String)>, EngineError> {
    if token.is_empty() {
        return Ok(None);
    }
    let place = token.split_once('.').and_then(|(due, member)| Some((due.parse().ok()?, member.to_owned())));
    place
        .map(Some)
        .ok_or_else(|| EngineError::Invalid(vec![("page_token", "is not one that was given out".into())]))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::store::{
        Commit, Expect, IndexChange,
        embedded::{Durability, EmbeddedStore},
    };

    /// A log with a stream for each state, in the order of the index `i`; every seventh has beside it a member whose
    /// stream is gone.
    async fn filled(states: &[String]) -> (EmbeddedStore, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(dir.path(), Durability::Buffer).unwrap();
        for (n, state) in states.iter().enumerate() {
            let put = |member| IndexChange::Put { index: "i".into(), member, after: Duration::ZERO };
            let stream = format!("s/{n:04}");
            let mut index = vec![put(stream.clone())];
            index.extend((n % 7 == 0).then(|| put(format!("gone/{n:04}"))));
            let commit = Commit {
                stream,
                expect: Expect::Absent { epoch: "e".into(), fixed: Bytes::new() },
                state: state.clone().into(),
                events: vec![Bytes::new()],
                first_seq: 0,
                index,
            };
            store.commit(commit).await.unwrap();
        }
        (store, dir)
    }

    /// Every page of those that end in `end`.
    async fn pages(store: &EmbeddedStore, size: u32, end: &str) -> Vec<Vec<String>> {
        let (mut pages, mut token) = (Vec::new(), String::new());
        loop {
            let wanted = |snapshot: &Snapshot| {
                let text = String::from_utf8(snapshot.state.to_vec()).unwrap();
                Ok(Some(text).filter(|text| text.ends_with(end)))
            };
            let (items, next) = page(store, "i", size, &token, wanted).await.unwrap();
            pages.push(items);
            if next.is_empty() {
                return pages;
            }
            token = next;
        }
    }

    #[tokio::test]
    async fn the_pages_together_have_everything_once() {
        let mut states: Vec<_> = (0..60).map(|n| format!("{n:02}")).collect();
        let (store, _dir) = filled(&states).await;
        states.reverse();
        for size in [1, 2, 15, 16, 17, 59, 60, 61, 200, 0] {
            for end in ["", "3"] {
                let found = pages(&store, size, end).await;
                let limit = if size == 0 { 50 } else { size as usize };
                assert!(found.iter().all(|page| page.len() <= limit), "{size}: {found:?}");
                let wanted: Vec<_> = states.iter().filter(|s| s.ends_with(end)).cloned().collect();
                assert_eq!(found.concat(), wanted, "{size} {end}");
            }
        }
    }

    #[tokio::test]
    async fn a_heavy_page_ends_early_and_the_next_goes_on_behind_it() {
        let states: Vec<_> = (0..20).map(|n| format!("{}{n:02}", "x".repeat(300 << 10))).collect();
        let (store, _dir) = filled(&states).await;
        let found = pages(&store, 200, "").await;
        assert_eq!(found.iter().map(Vec::len).collect::<Vec<_>>(), [7, 7, 6]);
        assert!(found.concat().iter().eq(states.iter().rev()));
    }

    #[tokio::test]
    async fn a_page_that_looked_at_enough_may_be_empty_and_is_not_the_last() {
        let states: Vec<_> = (0..SCAN).map(|n| format!("{n:04}")).collect();
        let (store, _dir) = filled(&states).await;
        assert_eq!(pages(&store, 50, "0000").await, [vec![], vec!["0000".to_owned()]]);
    }
}
