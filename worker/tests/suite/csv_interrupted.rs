//! Imports by `csv-import` that are killed, repeated, superseded, or find another file: no row is lost or doubled.

use std::{fmt::Write as _, fs, io::Write as _, path::Path, process::Stdio, sync::Arc, time::Duration};

use rusqlite::{Connection, types::Value as Sql};
use serde_json::json;
use tidegate_proto::v1::{self, ReportResult, report::Body};
use tidegate_worker::kinds::csv_import::CsvImport;
use tokio::process::{Child, Command};

use crate::{
    PATIENCE,
    csv_import::{Bench, print, rows, text},
    engine::{Engine, Stream, code, is_end, job, result},
    start,
};

#[tokio::test]
async fn j4_a_finished_import_answers_again_without_importing_again() {
    let mut bench = Bench::new().await;
    bench.write("t.csv", b"a\n1\n2\n");
    let first = job("same", "csv-import", &json!({"path": "t.csv"}));
    let (_, end) = bench.stream.play(&first).await;
    // The engine never heard of the end, and tries again.
    let again = v1::Assignment { attempt: 2, lease_token: "2-x".into(), ..first };
    let (_, end_again) = bench.stream.play(&again).await;
    assert_eq!(result(&end), result(&end_again));
    assert_eq!(rows(&bench.db(), "SELECT count(*) FROM t"), [[Sql::Integer(2)]]);
}

/// A file whose rows tell themselves apart, and one reject.
fn big_file(path: &Path, rows: u32) {
    let mut text = String::from("id,code,value\n");
    for id in 0..rows {
        writeln!(text, "{id},{:05},{}.5", id % 100_000, id % 977).unwrap();
        if id == rows / 2 {
            text.push_str("ragged\n");
        }
    }
    fs::File::create(path).unwrap().write_all(text.as_bytes()).unwrap();
}

/// The position that SQLite itself keeps of the one import in `database`.
fn position(database: &Path) -> (i64, i64) {
    let db = Connection::open(database).unwrap();
    db.query_row("SELECT rows, rejected FROM tidegate_import", [], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
}

fn spawn_worker(engine: &Engine, dir: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_tidegate-worker"))
        .args(["--engine", &engine.uri(), "--capacity", "1", "--import-dir"])
        .arg(dir.join("in"))
        .arg("--data-dir")
        .arg(dir.join("data"))
        .env("TIDEGATE_LOG", "error")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

#[tokio::test]
async fn j2_an_import_killed_at_any_batch_resumes_with_no_row_lost_or_doubled() {
    const ROWS: u32 = 40_000;
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("in")).unwrap();
    big_file(&dir.path().join("in/big.csv"), ROWS);
    let database = dir.path().join("data/imports.db");
    let mut engine = Engine::start().await;
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let (mut attempt, mut resumed) = (0, 0);
    let end = loop {
        attempt += 1;
        let mut worker = spawn_worker(&engine, dir.path());
        let mut stream = engine.welcome().await;
        let first = job("j", "csv-import", &json!({"path": "big.csv"}));
        stream.assign(&v1::Assignment { attempt, lease_token: format!("{attempt}-x"), ..first }).await;
        // Killed after some of its checkpoints, none of which the engine passes on: SQLite alone knows the truth.
        let mut left = if attempt < 6 { (seed >> (8 * attempt)) % 4 } else { u64::MAX };
        let delay = Duration::from_micros((seed >> (7 * attempt)) % 4000);
        let end = loop {
            let report = stream.report().await;
            stream.answer(&report, ReportResult::Ok).await;
            match report.body.unwrap() {
                Body::Checkpoint(_) if left == 0 => {
                    // At a random moment of the batches that follow.
                    tokio::time::sleep(delay).await;
                    break None;
                }
                Body::Checkpoint(_) => left -= 1,
                Body::Log(log) if log.text.starts_with("Resuming") => resumed += 1,
                body if is_end(&body) => break Some(body),
                _ => {}
            }
        };
        worker.kill().await.unwrap();
        let (written, rejected) = position(&database);
        let db = Connection::open(&database).unwrap();
        let counted = rows(&db, "SELECT count(*), count(DISTINCT id) FROM big");
        assert_eq!(counted, [[Sql::Integer(written), Sql::Integer(written)]], "rows and position agree");
        assert!(rejected <= 1);
        if let Some(end) = end {
            break end;
        }
    };
    assert_eq!(result(&end), json!({"rows": ROWS, "rejected": 1, "table": "big", "database": "imports.db"}));
    assert!(resumed >= 1, "no import was resumed in {attempt} attempts");
    let db = Connection::open(&database).unwrap();
    let stored = rows(&db, "SELECT * FROM big ORDER BY rowid");
    assert_eq!(stored.len(), ROWS as usize);
    for (id, row) in (0..).zip(stored) {
        let expected =
            [Sql::Integer(id), text(&format!("{:05}", id % 100_000)), text(&format!("{}.5", id % 977))];
        assert_eq!(row.iter().map(print).collect::<Vec<_>>(), expected.iter().map(print).collect::<Vec<_>>());
    }
    assert_eq!(rows(&db, "SELECT count(*) FROM big_rejects"), [[Sql::Integer(1)]]);
}

#[tokio::test]
async fn j1_a_stale_import_that_wakes_up_adds_no_row() {
    const ROWS: u32 = 60_000;
    let mut bench = Bench::new().await;
    big_file(&bench.dir.path().join("in/big.csv"), ROWS);
    let database = bench.dir.path().join("data/imports.db");
    let first = job("j", "csv-import", &json!({"path": "big.csv"}));
    bench.stream.assign(&first).await;
    let stale = checkpoint(&mut bench.stream).await;
    // Unanswered, the import soon stands still, with its batch committed. Its lease runs out meanwhile.
    let mut before = (-1, -1);
    while before != position(&database) {
        before = position(&database);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(before.0 > 0 && before.0 < ROWS.into(), "{before:?}");
    let import = CsvImport::new(&[bench.dir.path().join("in")], bench.dir.path().join("data")).unwrap();
    let _successor = start(&[bench.engine.uri()], vec![Arc::new(import)]);
    let mut stream = bench.engine.welcome().await;
    stream.assign(&v1::Assignment { attempt: 2, lease_token: "2-x".into(), ..first }).await;
    let owned = checkpoint(&mut stream).await;
    // Now the first one wakes up in the middle of its successor's work, and the engine does not even stop it.
    bench.stream.answer(&stale, ReportResult::Ok).await;
    let bodies = bench.stream.until_end().await;
    assert_eq!(code(bodies.last().unwrap()), "stopped");
    stream.answer(&owned, ReportResult::Ok).await;
    let end = stream.until_end().await.pop().unwrap();
    assert_eq!(result(&end)["rows"], ROWS);
    let counted = rows(&bench.db(), "SELECT count(*), count(DISTINCT id) FROM big");
    assert_eq!(counted, [[ROWS, ROWS].map(|n| Sql::Integer(n.into()))]);
}

/// Answers reports until a checkpoint comes, which is left unanswered.
async fn checkpoint(stream: &mut Stream) -> v1::Report {
    loop {
        let report = stream.report().await;
        if matches!(report.body, Some(Body::Checkpoint(_))) {
            return report;
        }
        stream.answer(&report, ReportResult::Ok).await;
    }
}

#[tokio::test]
async fn a_file_that_changed_between_attempts_is_not_mixed() {
    let mut bench = Bench::new().await;
    let path = bench.dir.path().join("in/big.csv");
    big_file(&path, 30_000);
    let first = job("j", "csv-import", &json!({"path": "big.csv"}));
    bench.stream.assign(&first).await;
    checkpoint(&mut bench.stream).await;
    // Held up by its window, the import stands still; it is called off there.
    bench.stream.cancel(&first, Duration::from_secs(20)).await;
    loop {
        let report = bench.stream.report().await;
        bench.stream.answer(&report, ReportResult::Ok).await;
        if report.body.as_ref().is_some_and(is_end) {
            assert!(matches!(report.body, Some(Body::Stopped(_))));
            break;
        }
    }
    let (written, _) = position(&bench.dir.path().join("data/imports.db"));
    assert!(written > 0 && written < 30_000, "{written}");
    assert_eq!(
        rows(&bench.db(), "SELECT count(*) FROM big"),
        [[Sql::Integer(written)]],
        "consistent when cancelled"
    );
    big_file(&path, 29_999);
    let again = v1::Assignment { attempt: 2, lease_token: "2-x".into(), ..first };
    let (_, end) = tokio::time::timeout(PATIENCE, bench.stream.play(&again)).await.unwrap();
    assert_eq!(code(&end), "input_changed");
}
