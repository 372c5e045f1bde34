//! The life of a command: spawned into a process group of its own, read, waited for, stopped.
//!
//! Invariant: however the job ends (the command exits, is cancelled, times out, or the future is dropped), nothing of
//! the process group is left running, and the command itself is reaped. A process that leaves the group (`setsid`) is
//! out of reach, and so is the group if the worker itself is killed with SIGKILL.

use std::{
    os::unix::process::ExitStatusExt as _,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::{Child, Command},
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    ExecConfig,
    lines::{self, Directive, Flood, Lines, Masks},
};
use crate::{JobContext, JobError, JobResult, LogLevel, Progress, kinds::share};

/// What of the worker's environment a command sees.
const INHERITED: [&str; 3] = ["PATH", "HOME", "LANG"];
/// How many lines may wait; the command waits in its `write` when there are more.
const WAITING_LINES: usize = 64;
/// How long output may still come from a process that left the group but kept the pipe.
const LATE_OUTPUT: Duration = Duration::from_secs(1);
/// How much of it is read; a pipe holds 64 KiB, which the command itself may have left in it.
const LATE_BYTES: usize = 1024 * 1024;
/// The time between the end of a cancelled command and the deadline that the engine set.
const MARGIN: Duration = Duration::from_millis(500);

/// A line and where it was printed.
#[derive(Debug)]
struct Line {
    stderr: bool,
    text: String,
}

/// Kills the group when dropped.
#[derive(Debug)]
struct Group(Pid);

impl Group {
    fn signal(&self, signal: Signal) {
        // It fails when nothing of the group is left, which is no harm.
        let _ = killpg(self.0, signal);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}

/// Why a command was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stopped {
    Told,
    TimedOut,
    /// One of its reports was refused.
    Refused,
}

/// Runs the command to its end.
pub(super) async fn run(config: &ExecConfig, arguments: &[String], job: &JobContext) -> JobResult {
    let (mut child, group) = spawn(config, arguments, job)?;
    let (tell, heard) = mpsc::channel(WAITING_LINES);
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (exited, refused) = (CancellationToken::new(), CancellationToken::new());
    let mut output = Output::new(config, job);
    let talking = async {
        // Both readers keep a sender; the channel closes when both pipes have.
        let reading = async {
            tokio::join!(
                read(stdout, false, tell.clone(), &exited),
                read(stderr, true, tell.clone(), &exited)
            );
            drop(tell);
        };
        let reporting = async {
            let reported = output.report(heard).await;
            if reported.is_err() {
                refused.cancel();
            }
            reported
        };
        tokio::join!(reading, reporting).1
    };
    let waiting = async {
        let ended = supervise(&mut child, &group, config, job, &refused).await;
        // What the command left behind in its group goes with it, and so lets go of the pipes.
        group.signal(Signal::SIGKILL);
        exited.cancel();
        ended
    };
    let (reported, ended) = {
        tokio::pin!(talking, waiting);
        tokio::select! {
            reported = &mut talking => (reported, waiting.await),
            ended = &mut waiting => match ended {
                // A stopped command's last words are not worth waiting for a slow engine.
                Ok((_, Some(_))) => (timeout(LATE_OUTPUT, talking).await.unwrap_or(Ok(())), ended),
                _ => (talking.await, ended),
            },
        }
    };
    let (status, stopped) = ended?;
    output.summarise().await;
    match stopped {
        Some(Stopped::Told) => Err(JobError::Cancelled),
        Some(Stopped::TimedOut) => {
            let seconds = config.timeout_seconds.unwrap_or_default();
            Err(JobError::fatal("timeout", format!("the command was stopped after {seconds} seconds")))
        }
        Some(Stopped::Refused) | None => {
            reported?;
            conclude(config, status, output.result)
        }
    }
}

fn spawn(config: &ExecConfig, arguments: &[String], job: &JobContext) -> Result<(Child, Group), JobError> {
    let (program, rest) =
        arguments.split_first().ok_or_else(|| JobError::fatal("spawn_failed", "no program"))?;
    let mut command = Command::new(program);
    command.args(rest).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.process_group(0).kill_on_drop(true).env_clear();
    command.envs(INHERITED.iter().filter_map(|name| Some((name, std::env::var_os(name)?)))).envs(&config.env);
    command.env("TIDEGATE_JOB_ID", job.job_id()).env("TIDEGATE_ATTEMPT", job.attempt().to_string());
    command.env("TIDEGATE_INPUT", job.input_json());
    if let Some((_, data)) = job.last_checkpoint() {
        command.env("TIDEGATE_CHECKPOINT", String::from_utf8_lossy(data).as_ref());
    }
    if let Some(at) = job.scheduled_for() {
        command.env("TIDEGATE_SCHEDULED_FOR", prost_types::Timestamp::from(at).to_string());
    }
    if let Some(cwd) = &config.cwd {
        command.current_dir(cwd);
    }
    let failed = |what: &dyn std::fmt::Display| {
        JobError::fatal("spawn_failed", format!("{program} cannot be started: {what}"))
    };
    let child = command.spawn().map_err(|error| failed(&error))?;
    let id = child.id().and_then(|id| i32::try_from(id).ok()).ok_or_else(|| failed(&"no process id"))?;
    Ok((child, Group(Pid::from_raw(id))))
}

/// Waits for the command, and stops it when it is to be stopped.
async fn supervise(
    child: &mut Child,
    group: &Group,
    config: &ExecConfig,
    job: &JobContext,
    refused: &CancellationToken,
) -> Result<(ExitStatus, Option<Stopped>), JobError> {
    let lost = |error: std::io::Error| JobError::retryable("wait_failed", error.to_string());
    let time_is_up = async {
        match config.timeout_seconds {
            Some(seconds) => sleep_until(Instant::now() + Duration::from_secs_f64(seconds)).await,
            None => std::future::pending().await,
        }
    };
    let why = tokio::select! {
        status = child.wait() => return Ok((status.map_err(lost)?, None)),
        () = job.cancelled() => Stopped::Told,
        () = time_is_up => Stopped::TimedOut,
        () = refused.cancelled() => Stopped::Refused,
    };
    group.signal(Signal::SIGTERM);
    let mut kill_at = Instant::now() + config.kill_after();
    if let (Stopped::Told, Some(reason)) = (why, job.stop_reason()) {
        kill_at = reason.deadline().checked_sub(MARGIN).map_or(kill_at, |latest| kill_at.min(latest));
    }
    tokio::select! {
        status = child.wait() => return Ok((status.map_err(lost)?, Some(why))),
        () = sleep_until(kill_at) => group.signal(Signal::SIGKILL),
    }
    Ok((child.wait().await.map_err(lost)?, Some(why)))
}

/// Reads a pipe to its end. After the command has exited, only a process that left the group can hold the pipe open:
/// it is not waited for, and what it writes is bounded.
async fn read(
    pipe: Option<impl AsyncRead + Unpin>,
    stderr: bool,
    tell: mpsc::Sender<Line>,
    exited: &CancellationToken,
) {
    let Some(mut pipe) = pipe else { return };
    let (mut lines, mut block) = (Lines::default(), vec![0; 8192]);
    let mut late = LATE_BYTES;
    while late > 0 {
        let gone = async {
            exited.cancelled().await;
            sleep(LATE_OUTPUT).await;
        };
        let read = tokio::select! {
            biased;
            // A broken pipe is the end of the output.
            read = pipe.read(&mut block) => read.unwrap_or(0),
            () = gone => 0,
        };
        if read == 0 {
            break;
        }
        if exited.is_cancelled() {
            late = late.saturating_sub(read);
        }
        let mut complete = Vec::new();
        lines.push(&block[..read], |line| complete.push(line));
        for text in complete {
            if tell.send(Line { stderr, text }).await.is_err() {
                return;
            }
        }
    }
    if let Some(text) = lines.finish() {
        // The reader of lines may have ended, and then nobody wants the last one.
        let _ = tell.send(Line { stderr, text }).await;
    }
}

/// Turns lines into reports.
struct Output<'a> {
    job: &'a JobContext,
    masks: Masks,
    flood: Flood,
    lines_per_second: u32,
    result: Option<Value>,
}

impl<'a> Output<'a> {
    fn new(config: &ExecConfig, job: &'a JobContext) -> Self {
        let lines_per_second = config.lines_per_second;
        let flood = Flood::new(lines_per_second, std::time::Instant::now());
        Self { job, masks: Masks::default(), flood, lines_per_second, result: None }
    }

    async fn report(&mut self, mut heard: mpsc::Receiver<Line>) -> Result<(), JobError> {
        while let Some(line) = heard.recv().await {
            match if line.stderr { None } else { lines::directive(&line.text) } {
                Some(directive) => self.obey(directive).await?,
                None => self.log(line).await,
            }
        }
        Ok(())
    }

    async fn obey(&mut self, directive: Directive) -> Result<(), JobError> {
        let Self { job, masks, .. } = self;
        match directive {
            Directive::Percent(percent, message) => {
                job.progress(share(Some(percent), masks.apply(message))).await;
            }
            Directive::Count(done, total, message) => {
                #[allow(clippy::cast_precision_loss, reason = "a share is shown, not counted with")]
                let percent = Some(done as f64 * 100.0 / total as f64);
                let progress = share(percent, masks.apply(message));
                job.progress(Progress { done: Some(done), total: Some(total), ..progress }).await;
            }
            // A checkpoint is the command's own memory, which viewers never see: it is not masked.
            Directive::Checkpoint(name, data) => job.checkpoint(&masks.apply(name), data).await?,
            Directive::Custom(name, json) => job.custom_json(&name, masks.apply(json)).await?,
            Directive::Result(result) => {
                let masked = masks.apply(result.to_string());
                // Masking inside JSON can break it, for instance a number; then only the text is left.
                self.result = Some(serde_json::from_str(&masked).unwrap_or(Value::String(masked)));
            }
            Directive::Mask(secret) => {
                if !masks.add(secret) {
                    job.log(LogLevel::Warn, "exec", "too many masks: this one is not in force").await;
                }
            }
        }
        Ok(())
    }

    async fn log(&mut self, line: Line) {
        let Some(dropped) = self.flood.admit(std::time::Instant::now()) else { return };
        self.tell_dropped(dropped).await;
        let (level, source) =
            if line.stderr { (LogLevel::Warn, "stderr") } else { (LogLevel::Info, "stdout") };
        // Masked before it is made printable and cut: a secret may be changed by the one and halved by the other.
        let text = lines::printable(&self.masks.apply(line.text));
        self.job.log(level, source, text).await;
    }

    async fn summarise(&mut self) {
        let dropped = self.flood.finish();
        self.tell_dropped(dropped).await;
    }

    async fn tell_dropped(&self, dropped: u64) {
        if dropped > 0 {
            let text = format!("{dropped} lines left out: more than {} a second", self.lines_per_second);
            self.job.log(LogLevel::Warn, "exec", text).await;
        }
    }
}

fn conclude(config: &ExecConfig, status: ExitStatus, result: Option<Value>) -> JobResult {
    if status.success() {
        return Ok(result.unwrap_or_else(|| json!({"exitCode": 0})));
    }
    let (code, message, retryable) = match (status.code(), status.signal()) {
        (Some(code), _) => {
            let retryable = config.retry_exit_codes.contains(&code);
            (format!("exit_{code}"), format!("the command exited with code {code}"), retryable)
        }
        (None, Some(signal)) => {
            (format!("signal_{signal}"), format!("the command was killed by signal {signal}"), false)
        }
        (None, None) => ("unknown_end".to_owned(), format!("the command ended with {status}"), false),
    };
    Err(JobError::Failed { code, message, retryable })
}
