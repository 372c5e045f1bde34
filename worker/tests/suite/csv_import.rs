//! `csv-import` end to end: files of every kind of badness, and imports that are killed.

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use rusqlite::{Connection, types::Value as Sql};
use serde_json::{Value, json};
use tidegate_proto::v1::{self, LogLevel, ReportResult, report::Body};
use tidegate_worker::kinds::csv_import::CsvImport;
use tokio::process::{Child, Command};

use crate::{
    PATIENCE, Running,
    engine::{Engine, Stream, code, is_end, job, logs, result},
    start,
};

/// An engine, a worker that imports, and the directories of both.
struct Bench {
    stream: Stream,
    dir: tempfile::TempDir,
    jobs: u32,
    engine: Engine,
    _worker: Running,
}

impl Bench {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("in")).unwrap();
        let import = CsvImport::new(&[dir.path().join("in")], dir.path().join("data")).unwrap();
        let mut engine = Engine::start().await;
        let worker = start(&[engine.uri()], vec![Arc::new(import)]);
        let stream = engine.welcome().await;
        Self { stream, dir, jobs: 0, engine, _worker: worker }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join("in").join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    async fn import(&mut self, input: Value) -> (Vec<Body>, Body) {
        self.jobs += 1;
        self.stream.play(&job(&format!("job-{}", self.jobs), "csv-import", &input)).await
    }

    async fn fails(&mut self, input: Value, expected: &str) {
        let (_, end) = self.import(input.clone()).await;
        assert_eq!(code(&end), expected, "{input}");
        assert!(matches!(&end, Body::Fail(failed) if !failed.retryable), "{end:?}");
    }

    fn db(&self) -> Connection {
        Connection::open(self.dir.path().join("data/imports.db")).unwrap()
    }
}

fn rows(db: &Connection, sql: &str) -> Vec<Vec<Sql>> {
    let mut query = db.prepare(sql).unwrap();
    let width = query.column_count();
    let rows = query.query_map([], |row| (0..width).map(|i| row.get(i)).collect()).unwrap();
    rows.collect::<Result<_, _>>().unwrap()
}

fn text(text: &str) -> Sql {
    Sql::Text(text.into())
}

fn columns(db: &Connection, table: &str) -> Vec<(String, String)> {
    let of = |row: &rusqlite::Row<'_>| Ok((row.get(1)?, row.get(2)?));
    let mut query = db.prepare(&format!("PRAGMA table_info(\"{table}\")")).unwrap();
    query.query_map([], of).unwrap().collect::<Result<_, _>>().unwrap()
}

#[tokio::test]
async fn types_are_inferred_without_losing_data() {
    let mut bench = Bench::new().await;
    let path = bench.write(
        "Zip codes.csv",
        "zip,n,lat,\"na,me\",NAME,,big\r\n00501,1,40.922326,\"a \"\"b\"\"\",x,,9223372036854775808\r\n10001,-2,41,\"two\nlines\",,,1\r\n"
            .as_bytes(),
    );
    let (bodies, end) = bench.import(json!({"path": path})).await;
    assert_eq!(
        result(&end),
        json!({"rows": 2, "rejected": 0, "table": "Zip_codes", "database": "imports.db"})
    );
    let db = bench.db();
    let expected = [
        ("zip", "TEXT"),
        ("n", "INTEGER"),
        ("lat", "REAL"),
        ("na_me", "TEXT"),
        ("NAME", "TEXT"),
        ("column_6", "TEXT"),
        ("big", "TEXT"),
    ];
    assert_eq!(columns(&db, "Zip_codes"), expected.map(|(n, t)| (n.to_owned(), t.to_owned())));
    assert_eq!(
        rows(&db, "SELECT * FROM Zip_codes"),
        [
            vec![
                text("00501"),
                Sql::Integer(1),
                Sql::Real(40.922_326),
                text("a \"b\""),
                text("x"),
                Sql::Null,
                text("9223372036854775808")
            ],
            vec![
                text("10001"),
                Sql::Integer(-2),
                Sql::Real(41.0),
                text("two\nlines"),
                Sql::Null,
                Sql::Null,
                text("1")
            ],
        ]
    );
    let last =
        bodies.iter().rev().find_map(|b| if let Body::Progress(p) = b { Some(p.clone()) } else { None });
    let last = last.unwrap();
    assert_eq!(
        (last.percent, last.step, last.steps, last.step_name.as_str()),
        (Some(100.0), Some(2), Some(2), "load")
    );
    assert_eq!((last.done, last.unit.as_str()), (Some(fs::metadata(&path).unwrap().len()), "bytes"));
    assert!(bodies.iter().any(|b| matches!(b, Body::Checkpoint(c) if c.name == "row 2")));
}

#[tokio::test]
async fn every_value_of_a_real_file_comes_back() {
    let mut bench = Bench::new().await;
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/airports.csv");
    let path = bench.write("airports.csv", &fs::read(&file).unwrap());
    let (_, end) = bench.import(json!({"path": path, "database": "air.db"})).await;
    assert_eq!(result(&end), json!({"rows": 3376, "rejected": 0, "table": "airports", "database": "air.db"}));
    let db = Connection::open(bench.dir.path().join("data/air.db")).unwrap();
    let mut oracle = csv::Reader::from_path(&file).unwrap();
    for (row, record) in rows(&db, "SELECT * FROM airports ORDER BY rowid").iter().zip(oracle.records()) {
        let record = record.unwrap();
        let printed: Vec<_> = row.iter().map(print).collect();
        assert_eq!(printed, record.iter().collect::<Vec<_>>());
    }
}

fn print(value: &Sql) -> String {
    match value {
        Sql::Null => String::new(),
        Sql::Integer(number) => number.to_string(),
        Sql::Real(number) => number.to_string(),
        Sql::Text(text) => text.clone(),
        Sql::Blob(_) => panic!("a blob"),
    }
}

#[tokio::test]
async fn bad_records_are_rejected_by_line_number() {
    let mut bench = Bench::new().await;
    let mut file = b"a,b\n1,2\n3\n4,5,6\n\n7,\xff\n".to_vec();
    file.extend([b"8,", &vec![b'x'; 10 * 1024 * 1024][..], b"\n9,10\n"].concat());
    let path = bench.write("ragged.csv", &file);
    let (bodies, end) = bench.import(json!({"path": path, "table": "t"})).await;
    assert_eq!(result(&end), json!({"rows": 2, "rejected": 4, "table": "t", "database": "imports.db"}));
    let warnings: Vec<_> = logs(&bodies).into_iter().filter(|l| l.0 == LogLevel::Warn).map(|l| l.2).collect();
    assert_eq!(
        warnings,
        [
            "line 3 rejected: 1 fields instead of 2",
            "line 4 rejected: 3 fields instead of 2",
            "line 6 rejected: field 2 is not UTF-8 text",
            "line 7 rejected: longer than 1 MiB or 2,000 fields; an unclosed quote?",
        ]
    );
    let db = bench.db();
    assert_eq!(rows(&db, "SELECT a, b FROM t"), [[1, 2].map(Sql::Integer), [9, 10].map(Sql::Integer)]);
    let lines = [3, 4, 6, 7].map(|line| vec![Sql::Integer(line)]);
    assert_eq!(rows(&db, "SELECT line FROM t_rejects"), lines);
}

#[tokio::test]
async fn a_flood_of_rejects_is_reported_in_part_and_kept_whole() {
    let mut bench = Bench::new().await;
    let path = bench.write("bad.csv", format!("a,b\n{}1,2\n", "x\n".repeat(5000)).as_bytes());
    let (bodies, end) = bench.import(json!({"path": path})).await;
    assert_eq!(result(&end)["rejected"], 5000);
    let warnings: Vec<_> = logs(&bodies).into_iter().filter(|l| l.0 == LogLevel::Warn).collect();
    assert_eq!(warnings.len(), 101);
    assert!(warnings[100].2.contains("5000 records were rejected"), "{:?}", warnings[100]);
    assert_eq!(rows(&bench.db(), "SELECT count(*) FROM bad_rejects"), [[Sql::Integer(5000)]]);
}

#[tokio::test]
async fn bad_files_fail_for_good_under_stable_codes() {
    let mut bench = Bench::new().await;
    let outside = bench.dir.path().join("outside.csv");
    fs::write(&outside, "a\n1\n").unwrap();
    std::os::unix::fs::symlink(&outside, bench.dir.path().join("in/link.csv")).unwrap();
    bench.write("empty.csv", b"");
    bench.write("bom.csv", b"\xef\xbb\xbf");
    bench.write("blank.csv", b"\n\n\r\n");
    bench.write("binary.csv", b"a,b\n1,\0\n");
    bench.write("latin.csv", b"gr\xf6\xdfe\n1\n");
    bench.write("header.csv", "x".repeat(2_000_000).as_bytes());
    for (path, expected) in [
        ("empty.csv", "empty_file"),
        ("bom.csv", "empty_file"),
        ("blank.csv", "empty_file"),
        ("binary.csv", "not_a_csv"),
        ("latin.csv", "not_a_csv"),
        ("header.csv", "not_a_csv"),
        (".", "not_a_csv"),
        ("missing.csv", "not_found"),
        ("link.csv", "not_allowed"),
        ("../outside.csv", "not_allowed"),
        ("../missing.csv", "not_allowed"),
        ("/etc/passwd", "not_allowed"),
        ("/etc/there/is/no/such", "not_allowed"),
    ] {
        bench.fails(json!({"path": path}), expected).await;
    }
    bench.write("good.csv", b"a\n1\n");
    for (field, value) in [
        ("table", "sqlite_x"),
        ("table", "Tidegate_import"),
        ("database", ".hidden"),
        ("database", "x.db-wal"),
        ("database", "LOCK"),
    ] {
        bench.fails(json!({"path": "good.csv", field: value}), "input_invalid").await;
    }
    let (_, end) = bench.import(json!({"path": "good.csv"})).await;
    assert_eq!(result(&end)["rows"], 1);
    bench.fails(json!({"path": "good.csv"}), "table_exists").await;
    bench.write("GOOD.csv", b"a\n1\n");
    bench.fails(json!({"path": "GOOD.csv"}), "table_exists").await;
    assert_eq!(rows(&bench.db(), "SELECT count(*) FROM good"), [[Sql::Integer(1)]], "nothing was added");
}

#[tokio::test]
async fn a_file_with_only_a_header_makes_an_empty_table() {
    let mut bench = Bench::new().await;
    bench.write("h.csv", b"a,b");
    let (_, end) = bench.import(json!({"path": "h.csv"})).await;
    assert_eq!(result(&end), json!({"rows": 0, "rejected": 0, "table": "h", "database": "imports.db"}));
    assert!(rows(&bench.db(), "SELECT * FROM h").is_empty());
}

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
