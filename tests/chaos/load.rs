//! Jobs, submitted as others end, each watched by two viewers; some are cancelled.

use std::{fmt::Write as _, fs, path::PathBuf, time::Duration};

use rand::{RngExt as _, rngs::StdRng};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tidegate::api::{Client, Error};
use tokio::{sync::watch, task::JoinHandle, time::Instant};

use crate::{
    fleet::Fleet,
    ledger,
    viewer::{self, Seen, Sightings},
};

/// Jobs under way at any time.
const AT_ONCE: usize = 10;
/// Rows of the imported files, so many that an import takes seconds: for Rust, and for Python, which is told its pace.
const ROWS: [usize; 2] = [120_000, 30_000];
/// How long a request is tried again.
const PATIENCE: Duration = Duration::from_secs(120);

/// A job that was accepted, and what became of it as far as its submitter and viewers know.
pub struct Done {
    pub id: String,
    pub kind: &'static str,
    /// The table of an import, and how many rows it should have.
    pub table: String,
    pub rows: usize,
    /// A cancellation was accepted before the job was known to be over.
    pub cancelled: bool,
    pub viewers: Vec<Seen>,
}

pub struct Load {
    pub sightings: Sightings,
    stop: watch::Sender<bool>,
    lanes: Vec<JoinHandle<Vec<Done>>>,
}

impl Load {
    /// Starts submitting.
    pub async fn start(fleet: &Fleet, mut rng: StdRng) -> Self {
        let file = write_rows(fleet, "rust.csv", ROWS[0]);
        write_rows(fleet, "python.csv", ROWS[1]);
        let sightings = Sightings::default();
        let (stop, stopped) = watch::channel(false);
        let lanes = (0..AT_ONCE)
            .map(|lane| {
                let rng = rand::SeedableRng::seed_from_u64(rng.random());
                tokio::spawn(submit_on(
                    lane,
                    fleet.client.clone(),
                    file.clone(),
                    sightings.clone(),
                    stopped.clone(),
                    rng,
                ))
            })
            .collect();
        Self { sightings, stop, lanes }
    }

    /// Submits nothing more and waits for the end of everything.
    pub async fn finish(self) -> Vec<Done> {
        self.stop.send_replace(true);
        let mut all = Vec::new();
        for lane in self.lanes {
            let done = tokio::time::timeout(PATIENCE * 2, lane).await;
            all.extend(done.expect("a job does not end, although everything runs again").unwrap());
        }
        all
    }
}

/// A file whose every row is known.
fn write_rows(fleet: &Fleet, name: &str, rows: usize) -> PathBuf {
    let path = fleet.scratch.path().join("import").join(name);
    let mut text = String::from("number,code,name\n");
    for n in 0..rows {
        writeln!(text, "{n},{:05},name of {n}", n % 90_000).unwrap();
    }
    fs::write(&path, text).unwrap();
    path
}

/// One job after the other.
async fn submit_on(
    lane: usize,
    client: Client,
    file: PathBuf,
    sightings: Sightings,
    stopped: watch::Receiver<bool>,
    mut rng: StdRng,
) -> Vec<Done> {
    let mut done = Vec::new();
    while !*stopped.borrow() {
        let table = format!("rows_{lane}_{}", done.len());
        let (kind, input) = match lane % 5 {
            0 => ("csv-import", json!({ "path": file, "table": table })),
            1 => (
                "csv-import-python",
                json!({ "path": "python.csv", "table": table, "rows_per_second": 6000 }),
            ),
            2 => (ledger::KIND, json!(rng.random_range(100..300))),
            _ => ("demo", json!({ "steps": rng.random_range(10..40), "seconds": rng.random_range(3..12) })),
        };
        let id = submit(&client, kind, &input).await;
        let watch = |_| tokio::spawn(viewer::watch(client.clone(), id.clone(), sightings.clone()));
        let viewers: Vec<_> = (0..2).map(watch).collect();
        let cancelled = match rng.random_bool(0.15) {
            true => {
                tokio::time::sleep(Duration::from_millis(rng.random_range(0..4000))).await;
                cancel(&client, &id).await
            }
            false => false,
        };
        let mut seen = Vec::new();
        for viewer in viewers {
            seen.push(viewer.await.unwrap());
        }
        done.push(Done { id, kind, table, rows: ROWS[lane % 5 % 2], cancelled, viewers: seen });
    }
    done
}

/// Submits until it is acknowledged; the key makes the repetition safe.
async fn submit(client: &Client, kind: &str, input: &Value) -> String {
    let key = format!("chaos-{:032x}", rand::random::<u128>());
    // Faults are not the jobs' fault: none may fail for having been struck too often.
    let body = json!({ "kind": kind, "input": input, "options": { "maxStalls": 100, "maxAttempts": 100, "backoffSeconds": 0.2 } });
    let begun = Instant::now();
    loop {
        let request = client.request(Method::POST, &["api", "jobs"]).header("idempotency-key", &key);
        match client.call(request.json(&body)).await {
            Ok(job) => return job["jobId"].as_str().unwrap().to_owned(),
            Err(Error::Refused(problem)) if problem.status < 500 && problem.status != 429 => {
                panic!("a submission was refused: {problem}")
            }
            Err(error) => assert!(begun.elapsed() < PATIENCE, "cannot submit: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Cancels until it is acknowledged; false when the job was over before.
async fn cancel(client: &Client, id: &str) -> bool {
    let begun = Instant::now();
    loop {
        let request = client.request(Method::POST, &["api", "jobs", id, "cancel"]);
        match client.call(request.json(&json!({ "reason": "chaos" }))).await {
            Ok(_) => return true,
            Err(Error::Refused(problem)) if problem.status == StatusCode::CONFLICT => return false,
            Err(Error::Refused(problem)) if problem.status < 500 && problem.status != 429 => {
                panic!("a cancellation was refused: {problem}")
            }
            Err(error) => assert!(begun.elapsed() < PATIENCE, "cannot cancel: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
