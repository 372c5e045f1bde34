//! Owners that supersede each other in one database.

use super::*;

fn store(path: &Path, attempt: u32, lease: &str) -> Store {
    let owner = Owner { job_id: "j".into(), attempt, lease: lease.into() };
    Store::open(path, "t", owner, CancellationToken::new()).unwrap()
}

fn mark(rows: u64) -> Mark {
    Mark { place: Place { offset: rows * 10, line: rows }, rows, rejected: 0 }
}

const SOURCE: Source = Source { size: 1, modified_ns: 2 };

fn columns() -> Vec<Column> {
    vec![("a".into(), Type::Integer)]
}

#[test]
fn j1_fenced_worker_cannot_write() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.db");
    let mut old = store(&path, 1, "a");
    assert_eq!(old.claim().unwrap(), Claim::Fresh);
    old.create(&columns(), SOURCE, mark(0)).unwrap();
    old.prepare(&columns());
    old.begin().unwrap();
    assert!(old.row(&["1"]).unwrap());
    old.commit(mark(1), false).unwrap();
    // The lease runs out; a later attempt takes over, and the first comes back to life.
    let mut new = store(&path, 2, "b");
    assert_eq!(new.claim().unwrap(), Claim::Begun { source: SOURCE, columns: columns(), mark: mark(1) });
    old.begin().unwrap();
    old.row(&["666"]).unwrap();
    assert!(matches!(old.commit(mark(2), false), Err(StoreError::Fenced)));
    assert!(matches!(old.claim(), Err(StoreError::Fenced)));
    new.prepare(&columns());
    new.begin().unwrap();
    new.row(&["2"]).unwrap();
    new.commit(mark(2), true).unwrap();
    let rows: i64 = new.db.query_row("SELECT sum(a) FROM t", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 3);
    assert_eq!(store(&path, 3, "c").claim().unwrap(), Claim::Done(mark(2)));
}

#[test]
fn j23_an_attempt_number_granted_twice_is_fenced_by_its_lease() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.db");
    let (mut one, mut two) = (store(&path, 1, "a"), store(&path, 1, "b"));
    assert_eq!(one.claim().unwrap(), Claim::Fresh);
    assert_eq!(two.claim().unwrap(), Claim::Fresh);
    assert!(matches!(one.create(&columns(), SOURCE, mark(0)), Err(StoreError::Fenced)));
    two.create(&columns(), SOURCE, mark(0)).unwrap();
}
