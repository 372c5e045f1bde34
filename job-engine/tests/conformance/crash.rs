//! What only a directory can suffer: the process killed, a torn journal, a full or failing disk, a second process.
//!
//! The process that is killed is this test program again, running one of the `child_…` tests below.

use std::{
    collections::BTreeMap,
    fs::OpenOptions,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use job_engine::store::{
    Commit, CommitOutcome, Expect, Store, StoreError,
    embedded::{Durability, EmbeddedStore},
};

use super::{
    open,
    suite::{absent, commit, head, load, must, put, remove},
};

const HOUR: Duration = Duration::from_secs(3600);
const CHILD_DIR: &str = "CONFORMANCE_CHILD_DIR";
const CHILD_SYNC: &str = "CONFORMANCE_CHILD_SYNC";
/// Streams that the child writes to at the same time.
const WRITERS: usize = 8;
/// A child's stream is deleted and made anew behind this number.
const LIFE: u64 = 60;
/// And keeps this many events.
const KEPT: u64 = 25;

fn child(test: &str, dir: &Path, durability: Durability) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("the path of this program"));
    command.args(["--exact", test, "--ignored", "--nocapture", "--test-threads", "1"]);
    command.env(CHILD_DIR, dir);
    if durability == Durability::Sync {
        command.env(CHILD_SYNC, "1");
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

fn child_store() -> EmbeddedStore {
    let dir = PathBuf::from(std::env::var_os(CHILD_DIR).expect("run by another test"));
    let durability =
        if std::env::var_os(CHILD_SYNC).is_some() { Durability::Sync } else { Durability::Buffer };
    EmbeddedStore::open(dir, durability).expect("the directory can be opened")
}

/// What the child tells after every acknowledged commit: writer, life of its stream, head (0: deleted).
fn tell(writer: usize, life: u64, seq: u64) {
    let line = format!("ack {writer} {life} {seq}\n");
    std::io::stdout().write_all(line.as_bytes()).expect("the parent listens");
}

/// Writes until it is killed or refused.
async fn write_on(store: &EmbeddedStore, writer: usize) -> StoreError {
    let name = format!("w{writer}");
    let there = store.load(vec![name.clone()]).await.expect("the store answers").remove(0);
    let (mut life, mut seq) =
        there.map_or((1, 0), |now| (now.head.epoch.parse().expect("a number"), now.head.seq));
    loop {
        let member = format!("{name}-{life}-{seq}");
        if seq >= LIFE {
            match store.delete(&name, head(seq, &life.to_string()), vec![remove("heads", &member)]).await {
                Ok(outcome) => assert!(matches!(outcome, CommitOutcome::Committed(_))),
                Err(error) => return error,
            }
            tell(writer, life, 0);
            (life, seq) = (life + 1, 0);
            continue;
        }
        let epoch = life.to_string();
        // One to three events, of a size that crosses blocks now and then.
        let last = seq + 1 + (seq + life) % 3;
        let events: Vec<_> = (seq + 1..=last).map(|i| event(&name, life, i)).collect();
        let next = Commit {
            events: events.into_iter().map(Into::into).collect(),
            first_seq: (last + 1).saturating_sub(KEPT),
            index: vec![remove("heads", &member), put("heads", &format!("{name}-{life}-{last}"), HOUR)],
            ..commit(&name, if seq == 0 { absent(&epoch) } else { Expect::At(head(seq, &epoch)) }, "", &[])
        };
        match store.commit(Commit { state: last.to_string().into(), ..next }).await {
            Ok(CommitOutcome::Committed(at)) => assert_eq!(at, head(last, &epoch)),
            Ok(CommitOutcome::Conflict(now)) => panic!("{name} expected {seq} and met {now:?}"),
            Err(error) => return error,
        }
        tell(writer, life, last);
        seq = last;
    }
}

fn event(name: &str, life: u64, seq: u64) -> String {
    let size = if seq.is_multiple_of(20) { 9000 } else { 40 };
    format!("{name} {life} {seq} {}", "x".repeat(size))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the process that the kill tests kill"]
async fn child_writes_until_it_is_killed() {
    let store = child_store();
    let writers = (0..WRITERS).map(|writer| write_on(&store, writer));
    let errors = futures_util::future::join_all(writers).await;
    // Only a failing disk leads here.
    for error in errors {
        assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    }
    for _ in 0..3 {
        store.ping().await.expect_err("a failed store stays so");
        let refused = store.commit(commit("new", absent("e"), "", &["x"])).await;
        assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    }
    let names = (0..WRITERS).map(|writer| format!("w{writer}")).collect();
    let there = store.load(names).await.expect("what was stored can still be read");
    assert!(there.iter().any(Option::is_some));
    println!("refused");
}

/// Notes every acknowledgement, until the child has ended; `acks` is the number after which to kill it.
fn follow(mut child: std::process::Child, acks: usize, acked: &mut BTreeMap<usize, (u64, u64)>) -> bool {
    let output = BufReader::new(child.stdout.take().expect("a piped output"));
    let (mut seen, mut refused) = (0, false);
    for line in output.lines() {
        let line = line.expect("text");
        refused |= line.ends_with("refused");
        let Some((_, ack)) = line.split_once("ack ") else { continue };
        let numbers: Vec<u64> = ack.split(' ').map(|n| n.parse().expect("a number")).collect();
        let [writer, life, seq] = numbers[..] else { panic!("{line}") };
        acked.insert(usize::try_from(writer).expect("a small number"), (life, seq));
        seen += 1;
        if seen == acks {
            child.kill().expect("the child can be killed");
        }
    }
    child.wait().expect("the child has ended");
    assert!(seen >= acks.min(1), "the child committed nothing");
    refused
}

/// Checks that everything acknowledged is there, and nothing is half there.
async fn check(store: &dyn Store, acked: &BTreeMap<usize, (u64, u64)>) {
    let mut heads: Vec<_> =
        store.list("heads", None, 1000).await.expect("an answer").into_iter().map(|h| h.1).collect();
    for (writer, (life, seq)) in acked {
        let name = format!("w{writer}");
        let Some(now) = load(store, &name).await else {
            assert!(*seq == 0 || *seq >= LIFE, "{name} is gone, though {life}/{seq} was acknowledged");
            continue;
        };
        let now_life: u64 = now.head.epoch.parse().expect("a number");
        let newer = now_life > *life && (*seq == 0 || *seq >= LIFE);
        assert!(
            newer || (now_life == *life && *seq != 0 && now.head.seq >= *seq),
            "{name} {now:?} < {life}/{seq}"
        );
        assert_eq!(now.state, now.head.seq.to_string(), "state and head belong together");
        let page = store.read(&name, 0, 1000, usize::MAX).await.expect("an answer").expect("the stream");
        assert_eq!(page.entries.len() as u64, now.head.seq + 1 - now.first_seq);
        assert_eq!(now.first_seq, (now.head.seq + 1).saturating_sub(KEPT).max(1));
        for (entry, seq) in page.entries.iter().zip(now.first_seq..) {
            assert_eq!((entry.seq, &entry.data[..]), (seq, event(&name, now_life, seq).as_bytes()));
        }
        let member = format!("{name}-{now_life}-{}", now.head.seq);
        let at = heads.iter().position(|h| *h == member);
        heads.swap_remove(at.unwrap_or_else(|| panic!("{member} is not in {heads:?}")));
    }
    assert!(heads.is_empty(), "members without a stream: {heads:?}");
}

async fn kill_loop(durability: Durability) {
    let dir = tempfile::tempdir().expect("a scratch directory");
    let mut acked = BTreeMap::new();
    for round in 0..6 {
        let running = child("crash::child_writes_until_it_is_killed", dir.path(), durability).spawn();
        // Whenever the kill comes, it comes in the middle of something: eight writers never wait.
        follow(running.expect("this program runs"), 37 + 401 * round, &mut acked);
        let store = open(dir.path());
        check(&*store, &acked).await;
    }
}

#[tokio::test]
async fn j3_killed_process_loses_nothing_acknowledged_synced() {
    kill_loop(Durability::Sync).await;
}

#[tokio::test]
async fn j3_killed_process_loses_nothing_acknowledged_buffered() {
    kill_loop(Durability::Buffer).await;
}

#[tokio::test]
async fn failing_disk_ends_writing_and_loses_nothing_acknowledged() {
    for durability in [Durability::Sync, Durability::Buffer] {
        let dir = tempfile::tempdir().expect("a scratch directory");
        drop(open(dir.path()));
        let program = child("crash::child_writes_until_it_is_killed", dir.path(), durability);
        // No file may grow beyond 1 MiB: the journal's writes fail there.
        let mut limited = Command::new("sh");
        limited.args(["-c", "trap '' XFSZ; ulimit -f 2048; exec \"$0\" \"$@\""]);
        limited.arg(program.get_program()).args(program.get_args());
        limited.envs(program.get_envs().filter_map(|(key, value)| value.map(|value| (key, value))));
        let running = limited.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("sh is there");
        let mut acked = BTreeMap::new();
        assert!(follow(running, usize::MAX, &mut acked), "the child met no failing disk");
        check(&*open(dir.path()), &acked).await;
    }
}

#[tokio::test]
async fn full_disk_refuses_commits_but_not_deletions() {
    let dir = tempfile::tempdir().expect("a scratch directory");
    let at = must(&*open(dir.path()), commit("a", absent("e"), "s", &["x"])).await;
    let store = EmbeddedStore::open_with_reserve(dir.path(), Durability::Buffer, u64::MAX).expect("it opens");
    let refused = store.commit(commit("a", Expect::At(at.clone()), "t", &["y"])).await;
    assert!(matches!(refused, Err(StoreError::Full(_))), "{refused:?}");
    assert!(matches!(store.ping().await, Err(StoreError::Full(_))));
    assert_eq!(load(&store, "a").await.map(|now| now.head), Some(at.clone()));
    let gone = store.delete("a", at, vec![]).await.expect("an answer");
    assert!(matches!(gone, CommitOutcome::Committed(_)));
}

#[tokio::test]
async fn second_opener_is_told_which_directory_is_taken() {
    let dir = tempfile::tempdir().expect("a scratch directory");
    let store = open(dir.path());
    let refused =
        EmbeddedStore::open(dir.path(), Durability::Buffer).err().expect("one at a time").to_string();
    assert!(refused.contains(&*dir.path().to_string_lossy()) && refused.contains("in use"), "{refused}");
    must(&*store, commit("a", absent("e"), "s", &["x"])).await;
    drop(store);
    assert!(load(&*open(dir.path()), "a").await.is_some());
}

#[tokio::test]
async fn newer_format_is_refused_by_name() {
    let dir = tempfile::tempdir().expect("a scratch directory");
    drop(open(dir.path()));
    {
        let db = fjall::Database::builder(dir.path().join("log")).open().expect("fjall opens");
        let meta = db.keyspace("meta", fjall::KeyspaceCreateOptions::default).expect("the keyspace");
        meta.insert("format", 3u64.to_be_bytes()).expect("it is written");
    }
    let refused = EmbeddedStore::open(dir.path(), Durability::Buffer).err().expect("it is refused");
    assert!(matches!(&refused, StoreError::Damaged(text) if text.contains("format 3")), "{refused}");
}

#[tokio::test]
async fn interrupted_creation_is_begun_again() {
    let dir = tempfile::tempdir().expect("a scratch directory");
    std::fs::create_dir_all(dir.path().join("log.new/keyspaces/1")).expect("a directory");
    std::fs::write(dir.path().join("log.new/0.jnl"), b"half").expect("a file");
    must(&*open(dir.path()), commit("a", absent("e"), "s", &["x"])).await;
    assert!(load(&*open(dir.path()), "a").await.is_some());
}

#[tokio::test]
async fn reopened_log_is_what_was_closed() {
    let dir = tempfile::tempdir().expect("a scratch directory");
    let store = open(dir.path());
    let made = Commit {
        index: vec![put("i", "a", HOUR), put("i", "b", Duration::ZERO), put("j", "a", Duration::ZERO)],
        ..commit("a", absent("e"), "s", &["x", "y"])
    };
    must(&*store, made).await;
    assert_eq!(store.claim("j", 1, HOUR).await.expect("an answer"), ["a"]);
    let listed = [
        store.list("i", None, 9).await.expect("an answer"),
        store.list("j", None, 9).await.expect("an answer"),
    ];
    let now = store.now_ms();
    drop(store);
    let store = open(dir.path());
    assert!(store.now_ms() >= now);
    let again = [
        store.list("i", None, 9).await.expect("an answer"),
        store.list("j", None, 9).await.expect("an answer"),
    ];
    assert_eq!(again, listed);
    assert!(store.claim("j", 1, HOUR).await.expect("an answer").is_empty(), "the hold is kept");
    assert_eq!(store.claim("i", 9, HOUR).await.expect("an answer"), ["b"]);
}

#[tokio::test]
async fn torn_journal_keeps_every_older_commit() {
    const N: u64 = 60;
    let made = tempfile::tempdir().expect("a scratch directory");
    let store = open(made.path());
    let mut expect = absent("1");
    for i in 1..=N {
        let text = event("a", 1, i);
        expect = Expect::At(must(&*store, commit("a", expect, &i.to_string(), &[&text])).await);
    }
    drop(store);
    let journal = newest_journal(&made.path().join("log"));
    let written = std::fs::read(&journal).expect("the journal");
    let end = written.iter().rposition(|b| *b != 0).expect("something was written") + 1;
    let mut kept = Vec::new();
    for (i, back) in [0, 1, 5, 13, 60, 100, 150, 300, 1000, 5000, 9000].into_iter().enumerate() {
        for damage in [Damage::CutOff, Damage::Zeros, Damage::Noise, Damage::OneByte] {
            if matches!(damage, Damage::OneByte) && back > 150 {
                continue; // not in the last batch any more: see the test below
            }
            let dir = tempfile::tempdir().expect("a scratch directory");
            copy(made.path(), dir.path());
            let journal = newest_journal(&dir.path().join("log"));
            damage.apply(&journal, end - back, end);
            let store = EmbeddedStore::open(dir.path(), Durability::Buffer)
                .unwrap_or_else(|e| panic!("{damage:?} of the last {back} bytes: {e}"));
            let now = load(&store, "a")
                .await
                .unwrap_or_else(|| panic!("{damage:?} of {back} bytes lost everything"));
            let page = store.read("a", 0, 1000, usize::MAX).await.expect("an answer").expect("the stream");
            assert_eq!(now.state, now.head.seq.to_string());
            assert_eq!(page.entries.len() as u64, now.head.seq);
            for (entry, seq) in page.entries.iter().zip(1..) {
                assert_eq!(&entry.data[..], event("a", 1, seq).as_bytes());
            }
            // What is not torn is all there.
            let lost = (back as u64).div_ceil(110);
            assert!(now.head.seq + lost + 1 >= N, "{damage:?} of {back} bytes lost {}", N - now.head.seq);
            if i == 0 {
                assert_eq!(now.head.seq, N);
            }
            kept.push(now.head.seq);
            must(&store, commit("a", Expect::At(now.head), "on", &["it goes on"])).await;
        }
    }
    assert!(kept.iter().any(|seq| *seq < N), "no damage had an effect");
}

#[tokio::test]
async fn damage_before_whole_commits_is_told_rather_than_cut_off() {
    let dir = tempfile::tempdir().expect("a scratch directory");
    let store = open(dir.path());
    let mut expect = absent("1");
    for i in 1..=10 {
        let text = event("a", 1, i);
        expect = Expect::At(must(&*store, commit("a", expect, "s", &[&text])).await);
    }
    drop(store);
    let journal = newest_journal(&dir.path().join("log"));
    let mut bytes = std::fs::read(&journal).expect("the journal");
    let needle = event("a", 1, 5).into_bytes();
    let at = bytes.windows(needle.len()).position(|w| w == needle).expect("the event is in the journal");
    bytes[at + needle.len() - 1] ^= 1;
    std::fs::write(&journal, &bytes).expect("it is written");
    let refused = EmbeddedStore::open(dir.path(), Durability::Buffer).err().expect("it is refused");
    let text = refused.to_string();
    assert!(
        matches!(refused, StoreError::Damaged(_)) && text.contains(&*dir.path().to_string_lossy()),
        "{text}"
    );
    assert!(std::fs::read(&journal).expect("the journal")[at..] == bytes[at..], "nothing was thrown away");
}

#[derive(Clone, Copy, Debug)]
enum Damage {
    CutOff,
    Zeros,
    Noise,
    OneByte,
}

impl Damage {
    fn apply(self, journal: &Path, from: usize, end: usize) {
        let mut bytes = std::fs::read(journal).expect("the journal");
        match self {
            Self::CutOff => bytes.truncate(from),
            Self::Zeros => bytes[from..end].fill(0),
            Self::Noise => {
                bytes[from..end].iter_mut().zip((0..=255).cycle()).for_each(|(b, noise)| *b ^= noise | 1);
            }
            Self::OneByte => bytes[from..end].iter_mut().take(1).for_each(|b| *b ^= 0x55),
        }
        let mut file = OpenOptions::new().write(true).truncate(true).open(journal).expect("the journal");
        file.write_all(&bytes).expect("it is written");
    }
}

fn newest_journal(dir: &Path) -> PathBuf {
    let files = std::fs::read_dir(dir).expect("the directory").map(|f| f.expect("an entry").path());
    files.filter(|f| f.extension().is_some_and(|e| e == "jnl")).max().expect("a journal")
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).expect("the directory") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            std::fs::create_dir_all(&target).expect("a directory");
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).expect("a copy");
        }
    }
}
