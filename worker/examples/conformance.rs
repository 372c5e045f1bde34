//! The Rust library's conformance worker: runs the scripts that `tests/conformance` sends it.
//!
//! What each step does, and what is written on stdout, is fixed in `tests/conformance/README.md`. Everything that the
//! suite judges is the library's doing; this file only follows the script.

use std::{io::Write as _, path::PathBuf, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use futures_util::{FutureExt as _, future::BoxFuture};
use serde::Deserialize;
use serde_json::{Value, json};
use tidegate_worker::{
    JobContext, JobError, JobHandler, JobResult, LogLevel, Offer, Progress, ReportError, Worker,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[derive(Deserialize)]
struct Script {
    steps: Vec<Step>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Step {
    Progress(ProgressStep),
    Log { text: String, level: Option<String>, source: Option<String> },
    Checkpoint { name: String, base64: String },
    Custom { name: String, value: Value },
    Resumed(bool),
    Oversized(Oversized),
    Print(String),
    Sleep(u64),
    AwaitFile(PathBuf),
    WaitStop(bool),
    IgnoreStop(u64),
    Busy(u64),
    Flood { logs: usize, bytes: usize },
    ProgressFlood(u64),
    Fail { code: String, message: String, retryable: bool },
    Throw(String),
    Complete(Value),
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
#[derive(Default)]
struct ProgressStep {
    percent: Option<f64>,
    done: Option<String>,
    total: Option<String>,
    unit: String,
    step: Option<u32>,
    steps: Option<u32>,
    message: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Oversized {
    Checkpoint(usize),
    Custom(usize),
    Log(usize),
    Result(usize),
}

struct Conformance;

impl JobHandler for Conformance {
    fn offer(&self) -> Offer {
        Offer {
            kind: "conformance".into(),
            description: "Follows a script of the conformance suite.".into(),
            input_schema: json!({"type": "object", "required": ["steps"]}),
            example: json!({"steps": [{"progress": {"percent": 50}}, {"complete": "done"}]}),
        }
    }

    fn run(&self, job: JobContext) -> BoxFuture<'_, JobResult> {
        async move {
            let trace = Trace { job: job.job_id().to_owned(), attempt: job.attempt() };
            trace.line("begin", &Value::Null);
            let script: Script = job.input()?;
            for step in script.steps {
                if let Some(result) = follow(&job, &trace, step).await? {
                    return Ok(result);
                }
            }
            Ok(Value::Null)
        }
        .boxed()
    }
}

/// Does one step; a value when the script ends with it.
async fn follow(job: &JobContext, trace: &Trace, step: Step) -> Result<Option<Value>, JobError> {
    match step {
        Step::Progress(step) => {
            let number =
                |text: Option<String>| text.map(|t| t.parse().map_err(JobError::from_bad)).transpose();
            let progress = Progress {
                percent: step.percent,
                done: number(step.done)?,
                total: number(step.total)?,
                unit: step.unit,
                step: step.step,
                steps: step.steps,
                message: step.message,
                ..Progress::default()
            };
            job.progress(progress).await;
        }
        Step::Log { text, level, source } => {
            let level = match level.as_deref() {
                Some("DEBUG") => LogLevel::Debug,
                Some("WARN") => LogLevel::Warn,
                Some("ERROR") => LogLevel::Error,
                _ => LogLevel::Info,
            };
            job.log(level, &source.unwrap_or_default(), text).await;
        }
        Step::Checkpoint { name, base64 } => {
            let data = BASE64.decode(base64).map_err(JobError::from_bad)?;
            trace.rejection(job.checkpoint(&name, data).await)?;
        }
        Step::Custom { name, value } => trace.rejection(job.custom(&name, &value).await)?,
        Step::Resumed(false) | Step::WaitStop(false) => {}
        Step::Resumed(true) => {
            let checkpoint = job
                .last_checkpoint()
                .map(|(name, data)| json!({"name": name, "base64": BASE64.encode(data)}));
            let value = json!({"attempt": job.attempt(), "checkpoint": checkpoint});
            trace.rejection(job.custom("resumed", &value).await)?;
        }
        Step::Oversized(Oversized::Checkpoint(size)) => {
            trace.rejection(job.checkpoint("big", vec![0; size]).await)?;
        }
        Step::Oversized(Oversized::Custom(size)) => {
            trace.rejection(job.custom("big", &json!("x".repeat(size))).await)?;
        }
        Step::Oversized(Oversized::Log(size)) => job.info("x".repeat(size)).await,
        Step::Oversized(Oversized::Result(size)) => return Ok(Some(json!("x".repeat(size)))),
        Step::Print(text) => trace.line("print", &json!({"text": text})),
        Step::Sleep(millis) => unless_stopped(job, tokio::time::sleep(Duration::from_millis(millis))).await?,
        Step::AwaitFile(path) => {
            let exists = async {
                while !path.exists() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            unless_stopped(job, exists).await?;
        }
        Step::WaitStop(true) => {
            job.cancelled().await;
            trace.line("stopping", &Value::Null);
            return Err(JobError::Cancelled);
        }
        Step::IgnoreStop(millis) => tokio::time::sleep(Duration::from_millis(millis)).await,
        Step::Busy(millis) => {
            let until = std::time::Instant::now() + Duration::from_millis(millis);
            let compute = move || while std::time::Instant::now() < until {};
            tokio::task::spawn_blocking(compute).await.map_err(JobError::from_bad)?;
        }
        Step::Flood { logs, bytes } => {
            for n in 0..logs {
                job.info(format!("{:x<bytes$}", format!("{n} "))).await;
            }
        }
        Step::ProgressFlood(count) => {
            for n in 1..=count {
                let progress = Progress { done: Some(n), total: Some(count), ..Progress::default() };
                job.progress(progress).await;
            }
        }
        Step::Fail { code, message, retryable } => {
            return Err(JobError::Failed { code, message, retryable });
        }
        #[allow(clippy::panic, reason = "the script asks for it")]
        Step::Throw(text) => panic!("{text}"),
        Step::Complete(value) => return Ok(Some(value)),
    }
    Ok(None)
}

/// Waits for `work`, or leaves the handler when the job is to stop.
async fn unless_stopped(job: &JobContext, work: impl Future<Output = ()>) -> Result<(), JobError> {
    tokio::select! {
        () = work => Ok(()),
        () = job.cancelled() => Err(JobError::Cancelled),
    }
}

/// What the suite learns of a run besides its reports. Dropped with the handler, however that ends.
struct Trace {
    job: String,
    attempt: u32,
}

impl Trace {
    fn line(&self, at: &str, more: &Value) {
        let mut line = json!({"job": self.job, "attempt": self.attempt, "at": at});
        if let (Some(line), Some(more)) = (line.as_object_mut(), more.as_object()) {
            line.extend(more.clone());
        }
        let mut out = std::io::stdout().lock();
        // Nobody listens any more: there is nobody to tell.
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }

    /// Says that a report was refused, and goes on; a lost job leaves the handler.
    fn rejection(&self, result: Result<(), ReportError>) -> Result<(), JobError> {
        match result {
            Err(ReportError::Rejected(message)) => {
                self.line("rejected", &json!({"message": message}));
                Ok(())
            }
            result => Ok(result?),
        }
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        self.line("end", &Value::Null);
    }
}

/// Input that is not what the script format says.
trait FromBad {
    fn from_bad(error: impl std::fmt::Display) -> Self;
}

impl FromBad for JobError {
    fn from_bad(error: impl std::fmt::Display) -> Self {
        Self::input_invalid(error.to_string())
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let setting = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let engines = setting("TIDEGATE_ENGINE", "http://127.0.0.1:50051");
    let worker = Worker::builder(engines.split(','))
        .name("conformance")
        .capacity(setting("TIDEGATE_CAPACITY", "4").parse()?)
        .grace(Duration::from_secs(setting("TIDEGATE_GRACE_SECONDS", "5").parse()?))
        .handlers([Arc::new(Conformance) as Arc<dyn JobHandler>])
        .build()
        .map_err(|errors| anyhow::anyhow!("{errors:?}"))?;
    let shutdown = CancellationToken::new();
    let mut term = signal(SignalKind::terminate())?;
    tokio::spawn({
        let shutdown = shutdown.clone();
        async move {
            term.recv().await;
            shutdown.cancel();
        }
    });
    worker.run(shutdown).await;
    Ok(())
}
