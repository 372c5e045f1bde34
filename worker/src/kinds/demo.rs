//! `demo`: a simulated job that takes its time and shows every kind of event. It does no work and touches nothing.

use std::time::Duration;

use futures_util::{FutureExt as _, future::BoxFuture};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use super::seconds;
use crate::{JobContext, JobError, JobHandler, JobResult, Offer, Progress};

/// The handler of `demo`.
#[derive(Clone, Copy, Debug)]
pub struct Demo;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Input {
    /// How many steps, 1 to 10,000.
    steps: u32,
    /// How long all steps take together, 0 to 86,400.
    seconds: f64,
    /// Fail at this step, in the first attempt of every job; none by default.
    fail_at: Option<u32>,
    /// Whether that failure may be tried again.
    retryable: bool,
    /// Publish a chart every so many steps; 0 means never.
    custom_every: u32,
    /// The result.
    result: Value,
}

impl Default for Input {
    fn default() -> Self {
        Self {
            steps: 24,
            seconds: 120.0,
            fail_at: None,
            retryable: false,
            custom_every: 4,
            result: json!("Success!"),
        }
    }
}

impl JobHandler for Demo {
    fn offer(&self) -> Offer {
        Offer {
            kind: "demo".to_owned(),
            description: "Simulates a long job: steps, log lines, checkpoints and a chart.".to_owned(),
            input_schema: json!({
                "type": "object",
                "additionalProperties": false,
                "properties": {
                    "steps": {"type": "integer", "minimum": 1, "maximum": 10000, "default": 24},
                    "seconds": {"type": "number", "minimum": 0, "maximum": 86400, "default": 120,
                        "description": "How long all steps take together."},
                    "failAt": {"type": "integer", "minimum": 1, "description": "Fail at this step of the first attempt."},
                    "retryable": {"type": "boolean", "default": false,
                        "description": "Whether that failure may be tried again."},
                    "customEvery": {"type": "integer", "minimum": 0, "default": 4,
                        "description": "Publish a chart every so many steps; 0 means never."},
                    "result": {"default": "Success!", "description": "What the job results in."},
                },
            }),
            example: json!({"steps": 24, "seconds": 120}),
        }
    }

    fn run(&self, job: JobContext) -> BoxFuture<'_, JobResult> {
        run(job).boxed()
    }
}

async fn run(job: JobContext) -> JobResult {
    let input: Input = job.input()?;
    if !(1..=10_000).contains(&input.steps) {
        return Err(JobError::input_invalid("steps must lie between 1 and 10000"));
    }
    if !(0.0..=86_400.0).contains(&input.seconds) {
        return Err(JobError::input_invalid("seconds must lie between 0 and 86400"));
    }
    let each = Duration::from_secs_f64(input.seconds / f64::from(input.steps));
    let done =
        job.last_checkpoint().and_then(|(_, data)| std::str::from_utf8(data).ok()?.parse().ok()).unwrap_or(0);
    if done > 0 {
        job.info(format!("Resuming after step {done}")).await;
    }
    let begun = Instant::now();
    for step in done + 1..=input.steps {
        job.info(match step {
            1 => "Processing file data.csv...".to_owned(),
            _ => format!("Processing part {step} of data.csv..."),
        })
        .await;
        tokio::select! {
            () = job.cancelled() => return Err(JobError::Cancelled),
            () = sleep_until(begun + each * (step - done)) => {}
        }
        if input.fail_at == Some(step) && job.attempt() == 1 {
            let message = format!("step {step} failed, as it was asked to");
            return Err(JobError::Failed {
                code: "demo_failure".into(),
                message,
                retryable: input.retryable,
            });
        }
        report(&job, &input, step, each).await;
        job.checkpoint(&format!("step {step}"), step.to_string()).await?;
        if input.custom_every > 0 && step % input.custom_every == 0 {
            let series: Vec<_> = (1..=step).map(|x| json!([x, throughput(x)])).collect();
            // A chart of ten thousand points would break the limit on custom events; the last ones tell enough.
            let shown = &series[series.len().saturating_sub(200)..];
            job.custom("chart", &json!({"title": "Throughput", "x": "step", "y": "rows/s", "series": shown}))
                .await?;
        }
    }
    Ok(input.result)
}

async fn report(job: &JobContext, input: &Input, step: u32, each: Duration) {
    job.progress(Progress {
        percent: Some(f64::from(step) * 100.0 / f64::from(input.steps)),
        done: Some(step.into()),
        total: Some(input.steps.into()),
        unit: "steps".to_owned(),
        step: Some(step),
        steps: Some(input.steps),
        rate: (!each.is_zero()).then(|| 1.0 / each.as_secs_f64()),
        eta: seconds(each.as_secs_f64() * f64::from(input.steps - step)),
        message: format!("Step {step}/{} complete", input.steps),
        ..Default::default()
    })
    .await;
}

/// What the chart shows: rows a second, warming up and then swelling gently. A function of the step alone, so that a
/// resumed job goes on with the line that it left.
fn throughput(step: u32) -> f64 {
    let at = f64::from(step);
    let warm_up = 1.0 - 0.4 * (-at / 2.5).exp();
    // Waves whose periods have no common multiple never look alike twice.
    let swell = 0.07 * (at / 6.1).sin() + 0.03 * (at / 1.9).sin() + 0.02 * (at * 1.7).sin();
    (12_000.0 * warm_up * (1.0 + swell)).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::throughput;

    #[test]
    fn the_chart_is_a_gentle_line() {
        let series: Vec<_> = (1..=10_000).map(throughput).collect();
        assert!(series.iter().all(|rate| (400.0..1_400.0).contains(rate)));
        assert!(series.windows(2).all(|pair| (pair[1] - pair[0]).abs() < 150.0));
        assert!(series.windows(20).all(|part| part.iter().any(|rate| *rate != part[0])), "it is not flat");
    }
}
