//! One worker with many jobs, each of which reports without a pause until it is told to finish.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tidegate_proto::v1::{
    Assignment, Completed, Hello, Log, ReportAck, ReportResult, report::Body, work_response::Message,
};
use tokio::{task::JoinHandle, time::Instant};

use crate::{
    PATIENCE, Running,
    worker::{Worker, hello},
};

/// How long a job waits between an answer and its next report.
const PACE: Duration = Duration::from_millis(300);

/// Many jobs that run.
pub(crate) struct Crowd {
    finish: Arc<AtomicBool>,
    accepted: Arc<AtomicU64>,
    work: JoinHandle<HashMap<String, Accepted>>,
}

/// What was accepted of one job.
#[derive(Default)]
pub(crate) struct Accepted {
    /// The texts of its log lines, in the order in which they were accepted.
    pub(crate) texts: Vec<String>,
    /// Who may write: the tokens in the order in which they were used.
    tokens: Vec<String>,
    pub(crate) completions: usize,
}

struct Run {
    lease: Assignment,
    number: u64,
    text: String,
    /// When the next report is due; `None` while one is unanswered.
    due: Option<Instant>,
}

impl Crowd {
    /// Connects a worker that takes so many jobs.
    pub(crate) async fn start(engine: &Running, jobs: usize) -> Self {
        let capacity = u32::try_from(jobs).expect("not that many");
        let worker =
            Worker::say_hello(engine, Hello { capacity, ..hello(&["demo"]) }).await.expect("welcome");
        let (finish, accepted) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let work = tokio::spawn(work(worker, jobs, finish.clone(), accepted.clone()));
        Self { finish, accepted, work }
    }

    /// How many reports have been accepted so far.
    pub(crate) fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Lets all jobs complete, and returns what was accepted of each.
    pub(crate) async fn finish(self) -> HashMap<String, Accepted> {
        self.finish.store(true, Ordering::Relaxed);
        tokio::time::timeout(PATIENCE, self.work).await.expect("all complete in time").expect("no panic")
    }
}

async fn work(
    mut worker: Worker,
    jobs: usize,
    finish: Arc<AtomicBool>,
    accepted: Arc<AtomicU64>,
) -> HashMap<String, Accepted> {
    let mut runs: HashMap<String, Run> = HashMap::new();
    let mut all: HashMap<String, Accepted> = HashMap::new();
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    while all.values().filter(|job| job.completions > 0).count() < jobs {
        tokio::select! {
            message = worker.next() => match message.expect("the engine stays") {
                Message::Assignment(lease) => {
                    let due = Some(Instant::now());
                    let run = Run { number: 0, text: String::new(), due, lease };
                    runs.insert(run.lease.lease_token.clone() + &run.lease.job_id, run);
                }
                Message::Ack(ack) => {
                    let key = ack.lease_token.clone() + &ack.job_id;
                    if answered(&ack, &mut runs, &mut all) {
                        runs.remove(&key);
                    }
                    accepted.fetch_add(1, Ordering::Relaxed);
                }
                Message::LeaseLost(lost) => drop(runs.remove(&(lost.lease_token + &lost.job_id))),
                other => panic!("unexpected: {other:?}"),
            },
            _ = tick.tick() => {
                for run in runs.values_mut().filter(|run| run.due.is_some_and(|due| due <= Instant::now())) {
                    (run.number, run.due) = (run.number + 1, None);
                    let body = if finish.load(Ordering::Relaxed) {
                        run.text.clear();
                        Body::Complete(Completed { result_json: "1".into() })
                    } else {
                        run.text = format!("{}/{}", run.lease.lease_token, run.number);
                        Body::Log(Log { text: run.text.clone(), ..Log::default() })
                    };
                    worker.send(&run.lease, run.number, body).await;
                }
            }
        }
    }
    all
}

/// Takes an answer in; says whether it was the run's last.
fn answered(ack: &ReportAck, runs: &mut HashMap<String, Run>, all: &mut HashMap<String, Accepted>) -> bool {
    let run = runs.get_mut(&(ack.lease_token.clone() + &ack.job_id));
    match ack.result() {
        ReportResult::Ok => {
            let run = run.expect("whose report is accepted has the lease");
            assert_eq!(run.number, ack.number);
            let job = all.entry(ack.job_id.clone()).or_default();
            // The fence: once another lease was used, none from before is.
            if job.tokens.last() != Some(&ack.lease_token) {
                assert!(!job.tokens.contains(&ack.lease_token), "two leases of {} in turn", ack.job_id);
                job.tokens.push(ack.lease_token.clone());
            }
            assert_eq!(job.completions, 0, "{} goes on after its end", ack.job_id);
            run.due = Some(Instant::now() + PACE);
            if run.text.is_empty() {
                job.completions += 1;
                return true;
            }
            job.texts.push(run.text.clone());
            false
        }
        ReportResult::LeaseLost => true,
        other => panic!("{other:?}: {ack:?}"),
    }
}
