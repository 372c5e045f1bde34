//! `csv-import` end to end: files of every kind of badness. Imports that are interrupted: [`super::csv_interrupted`].

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use rusqlite::{Connection, types::Value as Sql};
use serde_json::{Value, json};
use tidegate_proto::v1::{LogLevel, report::Body};
use tidegate_worker::kinds::csv_import::CsvImport;

use crate::{
    Running,
    engine::{Engine, Stream, code, job, logs, result},
    start,
};

/// An engine, a worker that imports, and the directories of both.
pub(crate) struct Bench {
    pub(crate) stream: Stream,
    pub(crate) dir: tempfile::TempDir,
    jobs: u32,
    pub(crate) engine: Engine,
    _worker: Running,
}

impl Bench {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("in")).unwrap();
        let import = CsvImport::new(&[dir.path().join("in")], dir.path().join("data")).unwrap();
        let mut engine = Engine::start().await;
        let worker = start(&[engine.uri()], vec![Arc::new(import)]);
        let stream = engine.welcome().await;
        Self { stream, dir, jobs: 0, engine, _worker: worker }
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join("in").join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    pub(crate) async fn import(&mut self, input: Value) -> (Vec<Body>, Body) {
        self.jobs += 1;
        self.stream.play(&job(&format!("job-{}", self.jobs), "csv-import", &input)).await
    }

    pub(crate) async fn fails(&mut self, input: Value, expected: &str) {
        let (_, end) = self.import(input.clone()).await;
        assert_eq!(code(&end), expected, "{input}");
        assert!(matches!(&end, Body::Fail(failed) if !failed.retryable), "{end:?}");
    }

    pub(crate) fn db(&self) -> Connection {
        Connection::open(self.dir.path().join("data/imports.db")).unwrap()
    }
}

pub(crate) fn rows(db: &Connection, sql: &str) -> Vec<Vec<Sql>> {
    let mut query = db.prepare(sql).unwrap();
    let width = query.column_count();
    let rows = query.query_map([], |row| (0..width).map(|i| row.get(i)).collect()).unwrap();
    rows.collect::<Result<_, _>>().unwrap()
}

pub(crate) fn text(text: &str) -> Sql {
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

pub(crate) fn print(value: &Sql) -> String {
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
