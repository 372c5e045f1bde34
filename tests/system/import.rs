//! A real CSV file from the command line into SQLite, and a worker that is killed on the way.

use std::{fmt::Write as _, fs, path::PathBuf};

use rusqlite::Connection;
use serde_json::json;

use crate::support::{Stack, Store, data, follow};

/// How many rows the ZIP code file has, and the generated stand-in.
const ROWS: i64 = 42_049;

/// The ZIP codes: TIDEGATE_ZIPCODES, or the file beside the checkout, or as many rows made here.
fn zipcodes() -> String {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let given = std::env::var_os("TIDEGATE_ZIPCODES").map(PathBuf::from);
    let path = given.clone().unwrap_or_else(|| root.join("../shared/data/zipcodes.csv"));
    match fs::read_to_string(&path) {
        Ok(text) => {
            println!("zip codes: {}", path.display());
            text
        }
        Err(error) => {
            assert!(given.is_none(), "TIDEGATE_ZIPCODES={}: {error}", path.display());
            println!("zip codes: generated, {ROWS} rows");
            rows(ROWS)
        }
    }
}

/// A file like that of the ZIP codes: leading zeros, numbers, quotes.
fn rows(count: i64) -> String {
    let mut text = "zip_code,latitude,longitude,city,state,county\n".to_owned();
    for n in 0..count {
        // The first is 00501, as in the original.
        let _ = writeln!(text, "{:05},{}.5,-72.637078,\"City, {n}\",NY,Suffolk", n + 501, n % 90);
    }
    text
}

async fn zip_codes_are_imported_whole(store: Store) {
    let stack = Stack::start(store).await;
    let path = stack.import_file("zipcodes.csv", zipcodes());
    let input = json!({ "path": path, "table": "zipcodes", "database": "zip.db" }).to_string();
    let output = stack.tidegate(&["submit", "csv-import", &input, "--watch"]).await;
    let shown = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{shown}\n{}", String::from_utf8_lossy(&output.stderr));
    let last = shown.lines().last().unwrap();
    let result: serde_json::Value = serde_json::from_str(last.strip_prefix("COMPLETED ").unwrap()).unwrap();
    assert_eq!((&result["rows"], &result["rejected"]), (&json!(ROWS), &json!(0)));
    assert_eq!((&result["table"], &result["database"]), (&json!("zipcodes"), &json!("zip.db")));

    let database = Connection::open(stack.path("data").join("zip.db")).unwrap();
    let count: i64 = database.query_row("SELECT count(*) FROM zipcodes", [], |r| r.get(0)).unwrap();
    assert_eq!(count, ROWS);
    let holtsville = "SELECT typeof(zip_code) FROM zipcodes WHERE zip_code = '00501'";
    let kept: String = database.query_row(holtsville, [], |r| r.get(0)).unwrap();
    assert_eq!(kept, "text", "leading zeros are lost in a number");
}

#[tokio::test(flavor = "multi_thread")]
async fn zip_codes_are_imported_whole_on_the_embedded_store() {
    zip_codes_are_imported_whole(Store::Embedded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn zip_codes_are_imported_whole_on_redis() {
    zip_codes_are_imported_whole(Store::Redis).await;
}

/// j2, j3: the rows and the position in the file are one transaction, so a second worker neither repeats nor
/// leaves out any.
#[tokio::test(flavor = "multi_thread")]
async fn j2_a_killed_import_goes_on_from_its_last_batch() {
    const MANY: i64 = 400_000;
    let mut stack = Stack::start(Store::Embedded).await;
    let path = stack.import_file("many.csv", rows(MANY));
    let job = stack.submit("csv-import", json!({ "path": path, "table": "many" })).await;
    let (half_way, mut killing) = tokio::sync::watch::channel(false);
    let viewer = tokio::spawn(follow(stack.follower(&job, ""), move |event| {
        if event.name == "checkpoint" {
            half_way.send_replace(true);
        }
    }));
    killing.wait_for(|half_way| *half_way).await.unwrap();
    stack.worker.kill();
    let status = stack.job(&job).await["status"].clone();
    assert_eq!(status, "PROCESSING", "the import was over before its worker was killed");
    stack.worker.start_again();

    let seen = viewer.await.unwrap();
    seen.assert_whole(0);
    let end = seen.events.last().unwrap();
    assert_eq!((end.name.as_str(), &data(end)["result"]["rows"]), ("complete", &json!(MANY)));
    let attempts =
        seen.events.iter().filter(|e| e.name == "state" && data(e)["status"] == "PROCESSING").count();
    assert_eq!(attempts, 2, "the job was not taken up a second time");

    let database = Connection::open(stack.path("data").join("imports.db")).unwrap();
    let exact = "SELECT count(*), count(DISTINCT zip_code), min(zip_code) FROM many";
    let counts = database.query_row(exact, [], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?))).unwrap();
    assert_eq!(counts, (MANY, MANY, "00501".to_owned()));
}
