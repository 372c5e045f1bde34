//! The tests of indexes, hints and the clock that hold for every store. Each gets an empty one.

use std::time::{Duration, SystemTime};

use job_engine::store::{Commit, Expect, Hint};

use super::{
    Subject,
    suite::{HOUR, PATIENCE, absent, commit, eventually, members, must, must_index, put, remove},
};

pub(crate) async fn index_members_are_put_moved_and_removed(s: &Subject) {
    let store = &*s.store;
    must_index(store, "s", vec![put("i", "a", HOUR), put("i", "b", 2 * HOUR), put("j", "a", HOUR)]).await;
    assert_eq!(members(store, "i").await, ["b", "a"]);
    let before = store.now_ms();
    must_index(store, "s", vec![put("i", "a", 3 * HOUR)]).await;
    let listed = store.list("i", None, 10).await.expect("an answer");
    assert_eq!(listed.iter().map(|(_, m)| m.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    let due = Duration::from_millis(listed[0].0 - before);
    assert!(due.abs_diff(3 * HOUR) < Duration::from_secs(5), "due {due:?} from now on the store's clock");
    must_index(store, "s", vec![remove("i", "b"), remove("i", "never there"), remove("none", "b")]).await;
    assert_eq!(members(&*s.other, "i").await, ["a"]);
    assert_eq!(members(store, "j").await, ["a"]);
    must_index(store, "s", vec![remove("i", "a")]).await;
    assert!(members(store, "i").await.is_empty());
}

pub(crate) async fn index_changes_apply_in_order(s: &Subject) {
    let store = &*s.store;
    let changes = vec![
        put("i", "a", HOUR),
        remove("i", "a"),
        put("i", "b", HOUR),
        remove("i", "b"),
        put("i", "b", 2 * HOUR),
        put("i", "c", 3 * HOUR),
        put("i", "c", HOUR),
    ];
    must_index(store, "s", changes).await;
    assert_eq!(members(store, "i").await, ["b", "c"]);
}

pub(crate) async fn claim_takes_the_due_soonest_first(s: &Subject) {
    let store = &*s.store;
    assert!(store.claim("i", 10, HOUR).await.expect("an answer").is_empty());
    for member in ["c", "a", "b"] {
        must_index(store, "s", vec![put("i", member, Duration::ZERO), put("i", "later", HOUR)]).await;
        let put_before = store.now_ms();
        // Let the clock move on, so that their order is that of their due times.
        eventually("the clock moves", async || (store.now_ms() > put_before + 1).then_some(())).await;
    }
    assert!(store.claim("i", 0, HOUR).await.expect("an answer").is_empty());
    assert_eq!(store.claim("i", 2, HOUR).await.expect("an answer"), ["c", "a"]);
    assert_eq!(s.other.claim("i", 2, HOUR).await.expect("an answer"), ["b"]);
    assert!(store.claim("i", 2, HOUR).await.expect("an answer").is_empty());
    assert_eq!(members(store, "i").await.len(), 4, "a claim removes nothing");
}

pub(crate) async fn claim_hides_until_the_hold_ends(s: &Subject) {
    let store = &*s.store;
    must_index(store, "s", vec![put("i", "a", Duration::ZERO), put("i", "soon", Duration::from_millis(150))])
        .await;
    let (begun, hold) = (std::time::Instant::now(), Duration::from_millis(200));
    assert_eq!(store.claim("i", 1, hold).await.expect("an answer"), ["a"]);
    let mut seen = Vec::new();
    while seen.len() < 2 {
        seen.extend(
            eventually("a member is due", async || {
                Some(s.other.claim("i", 1, HOUR).await.expect("an answer")).filter(|due| !due.is_empty())
            })
            .await,
        );
        // The store's clock counts in ms, so a hold may seem a ms or two shorter.
        let least = if seen.last().is_some_and(|m| m == "a") { 195 } else { 140 };
        assert!(begun.elapsed() > Duration::from_millis(least), "{seen:?} after {:?}", begun.elapsed());
    }
    assert_eq!(seen, ["soon", "a"]);
}

pub(crate) async fn claims_at_once_share_nothing(s: &Subject) {
    let names: Vec<String> = (0..500).map(|i| format!("m{i:03}")).collect();
    must_index(&*s.store, "s", names.iter().map(|m| put("i", m, Duration::ZERO)).collect()).await;
    let mut claimers = tokio::task::JoinSet::new();
    for claimer in 0..50 {
        let store = if claimer % 2 == 0 { s.store.clone() } else { s.other.clone() };
        claimers.spawn(async move {
            let mut mine = Vec::new();
            loop {
                let some = store.claim("i", 7, HOUR).await.expect("an answer");
                if some.is_empty() {
                    return mine;
                }
                mine.extend(some);
            }
        });
    }
    let mut all: Vec<String> = claimers.join_all().await.concat();
    all.sort();
    assert_eq!(all, names);
}

pub(crate) async fn renew_moves_only_what_is_there(s: &Subject) {
    let store = &*s.store;
    must_index(store, "s", vec![put("i", "a", Duration::ZERO), put("i", "b", HOUR)]).await;
    let renewed = store.renew("i", ["a", "gone", "b"].map(String::from).to_vec(), 2 * HOUR).await;
    assert_eq!(renewed.expect("an answer"), [true, false, true]);
    assert_eq!(members(store, "i").await, ["b", "a"], "the one that was not there is not added");
    assert!(store.claim("i", 10, HOUR).await.expect("an answer").is_empty());
    let due = store.renew("i", vec!["b".into()], Duration::ZERO).await.expect("an answer");
    assert_eq!(due, [true]);
    assert_eq!(store.claim("i", 10, HOUR).await.expect("an answer"), ["b"]);
    assert_eq!(store.renew("none", vec!["a".into()], HOUR).await.expect("an answer"), [false]);
    assert!(members(store, "none").await.is_empty());
    assert!(store.renew("i", vec![], HOUR).await.expect("an answer").is_empty());
}

pub(crate) async fn list_pages_downwards(s: &Subject) {
    let store = &*s.store;
    // Most are due in the same ms, so that the member decides.
    let mut changes: Vec<_> = (0..100).map(|i| put("i", &format!("m{i:02}"), HOUR)).collect();
    changes.push(put("i", "a-late", 2 * HOUR));
    changes.push(put("i", "z-soon", Duration::from_secs(60)));
    must_index(store, "s", changes).await;
    let all = store.list("i", None, 1000).await.expect("an answer");
    assert_eq!(all.len(), 102);
    assert!(all.windows(2).all(|w| w[0] > w[1]), "descending by (due, member)");
    assert_eq!((all[0].1.as_str(), all[101].1.as_str()), ("a-late", "z-soon"));
    for limit in [1, 7, 50, 101, 102, 103] {
        let (mut before, mut pages) = (None, Vec::new());
        loop {
            let page = store.list("i", before, limit).await.expect("an answer");
            assert_eq!(page.len(), limit.min(102 - pages.len()), "pages of {limit}");
            let Some(last) = page.last() else { break };
            before = Some(last.clone());
            pages.extend(page);
        }
        assert_eq!(pages, all);
    }
    let between = (all[50].0, format!("{}x", all[50].1));
    assert_eq!(store.list("i", Some(between), 1).await.expect("an answer")[0], all[50]);
    assert!(store.list("i", Some((0, String::new())), 10).await.expect("an answer").is_empty());
    assert!(store.list("none", None, 10).await.expect("an answer").is_empty());
}

pub(crate) async fn hints_tell_of_streams_and_indexes(s: &Subject) {
    let mut listeners = [s.store.hints(), s.other.hints()];
    // A listener on another connection is there when a first hint reaches it.
    for listener in &mut listeners {
        eventually("the listener hears", async || {
            must_index(&*s.store, "warm-up", vec![]).await;
            let heard = |hint: &Hint| matches!(hint, Hint::Stream(name, _) if &**name == "warm-up");
            listener.try_recv().ok().filter(heard)
        })
        .await;
    }
    let made = Commit {
        index: vec![put("now", "a", Duration::ZERO), put("later", "a", HOUR)],
        ..commit("a", absent("e"), "", &["x"])
    };
    let at = must(&*s.store, made).await;
    let at = must(&*s.store, commit("a", Expect::At(at), "", &["y", "z"])).await;
    s.store.delete("a", at, vec![]).await.expect("an answer");
    for mut listener in listeners {
        let (mut streams, mut woken) = (Vec::new(), Vec::new());
        while streams.last() != Some(&None) {
            let hint = tokio::time::timeout(PATIENCE, listener.recv()).await.expect("a hint in time");
            match hint.expect("no hint is lost here") {
                Hint::Stream(name, seq) if &*name == "a" => streams.push(seq),
                Hint::Index(name) => woken.push(name.to_string()),
                Hint::Stream(..) | Hint::Lost => {}
            }
        }
        assert_eq!(streams, [Some(1), Some(3), None]);
        assert_eq!(woken, ["now"], "only what is due at once wakes");
    }
}

pub(crate) async fn clock_is_near_and_never_goes_back(s: &Subject) {
    let system = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_millis();
    let mut last = s.store.now_ms();
    assert!(u128::from(last).abs_diff(system) < 5000, "{last} is near {system}");
    for _ in 0..1000 {
        let now = s.store.now_ms();
        assert!(now >= last);
        last = now;
    }
}
