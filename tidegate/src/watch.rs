//! `tidegate watch`: a job's events on the terminal, as plain lines, or as JSON lines.
//!
//! On a terminal the last line is a progress bar and everything else scrolls above it. Watching never steers the
//! job: Ctrl-C stops the watching and says so.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    api::Client,
    exit::{self, Failure},
    follow::{Follower, Outcome, Step},
    sse::Event,
    text::{visible, visible_json},
    view::{self, Bar, Line, Shown, Tone},
};

/// How a watch is to be done.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to begin: a cursor, `earliest`, `latest`, or empty.
    pub cursor: String,
    /// One JSON object a line instead of text for people.
    pub json: bool,
    /// How long to try to get a lost server back.
    pub give_up_after: Duration,
}

/// Watches until the job has ended; returns the exit code that says how.
///
/// # Errors
/// What the server refuses, and an output that cannot be written.
pub async fn watch(client: &Client, job_id: &str, options: &Options) -> Result<u8, Failure> {
    let mut follower = Follower::new(client.clone(), job_id, &options.cursor, options.give_up_after);
    let mut screen = Screen::new(options.json);
    let mut lost = false;
    let mut shown = None;
    // One listener for all steps: one a step would miss a signal that comes while an event is shown.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let result = loop {
        let step = tokio::select! {
            step = follower.next() => step,
            _ = interrupt.recv() => {
                screen.close();
                interrupted(client, job_id, follower.cursor());
                return Ok(exit::INTERRUPTED);
            }
        };
        match step {
            Err(error) => break Err(Failure::Api(error)),
            Ok(Step::Connected(_)) if lost => {
                lost = false;
                let after = follower.cursor().map_or(String::new(), |c| format!(", going on after {c}"));
                screen.notice(Tone::Quiet, &format!("connected again{after}"))?;
            }
            Ok(Step::Connected(_)) => {}
            Ok(Step::Event(event) | Step::Gap(event)) => {
                shown = Outcome::from_event(&event.name);
                screen.event(&event)?;
            }
            Ok(Step::Reconnecting { why, pause }) => {
                lost = true;
                screen.notice(
                    Tone::Warn,
                    &format!("reconnecting in {:.1} s: {}", pause.as_secs_f64(), visible(&why)),
                )?;
            }
            Ok(Step::Ended(outcome)) => break Ok(outcome),
            Ok(Step::Dismissed(reason)) => {
                screen.close();
                let left = format!("the server ended the stream for good: {}", visible(&reason));
                break Err(Failure::Api(client.foreign(left)));
            }
        }
    };
    screen.close();
    let outcome = result?;
    if shown.is_none() && !options.json {
        let job = client.job(job_id).await?;
        screen.line(&view::ended(&job, outcome))?;
    }
    Ok(exit::of(outcome))
}

/// Tells that the job goes on, and what can be done about it.
fn interrupted(client: &Client, job_id: &str, cursor: Option<&str>) {
    let server = client.server();
    let server =
        if server == crate::args::DEFAULT_SERVER { String::new() } else { format!(" --server {server}") };
    let cursor = cursor.map_or(String::new(), |c| format!(" --cursor {c}"));
    eprintln!("\nStopped watching; the job goes on.");
    eprintln!("  watch on:   tidegate watch {job_id}{cursor}{server}");
    eprintln!("  cancel it:  tidegate cancel {job_id}{server}");
}

/// Where the events go.
enum Screen {
    Json,
    Plain { last: Option<(i64, String)> },
    Terminal { bar: ProgressBar, colour: bool },
}

/// A line of `--json` output.
#[derive(Serialize)]
struct JsonLine<'a> {
    id: &'a str,
    event: &'a str,
    data: &'a RawValue,
}

impl Screen {
    fn new(json: bool) -> Self {
        if json {
            return Self::Json;
        }
        if !is_capable_terminal() {
            return Self::Plain { last: None };
        }
        let bar = ProgressBar::with_draw_target(Some(10_000), ProgressDrawTarget::stdout());
        let screen = Self::Terminal { bar, colour: colour() };
        screen.style(None);
        screen
    }

    fn event(&mut self, event: &Event) -> io::Result<()> {
        if let Self::Json = self {
            let quoted;
            let data: &RawValue = match serde_json::from_str(&event.data) {
                Ok(data) => data,
                // Only a foreign server sends data that is not JSON; it is passed on as a string.
                Err(_) => {
                    quoted = serde_json::value::to_raw_value(&event.data)?;
                    &quoted
                }
            };
            let line = serde_json::to_string(&JsonLine { id: &event.id, event: &event.name, data })?;
            return writeln!(io::stdout(), "{}", visible_json(line));
        }
        match view::show(event) {
            Shown::Bar(bar) => self.bar(&bar),
            Shown::Line(line) => self.line(&line),
        }
    }

    fn bar(&mut self, progress: &Bar) -> io::Result<()> {
        match self {
            Self::Json => Ok(()),
            Self::Plain { last } => {
                // A log file wants one line a percent, not one a second.
                #[allow(clippy::cast_possible_truncation)] // 0 to 100
                let percent = progress.percent.map_or(-1, |p| p as i64);
                let text = if percent < 0 { progress.text.clone() } else { String::new() };
                let now = Some((percent, text));
                if *last == now {
                    return Ok(());
                }
                *last = now;
                let percent = progress.percent.map_or("  ?".to_owned(), |p| format!("{p:3.0}"));
                writeln!(io::stdout(), "{}", format!("[{percent} %] {}", progress.text).trim_end())
            }
            Self::Terminal { bar, .. } => {
                let text = match progress.percent {
                    // From 0 to 100, so the cast is exact enough for a bar.
                    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                    Some(percent) => {
                        bar.set_position((percent * 100.0) as u64);
                        format!("{percent:3.0} %  {}", progress.text)
                    }
                    None => progress.text.clone(),
                };
                bar.set_message(text);
                self.style(progress.percent);
                Ok(())
            }
        }
    }

    /// A bar where the share is known, a spinner where it is not.
    fn style(&self, percent: Option<f64>) {
        let Self::Terminal { bar, colour } = self else { return };
        let template = match (percent, *colour) {
            (Some(_), true) => "{bar:28.cyan/black.bright} {wide_msg}",
            (Some(_), false) => "{bar:28} {wide_msg}",
            (None, _) => "{spinner} {elapsed} {wide_msg}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("━╸─"));
        }
        bar.enable_steady_tick(Duration::from_millis(250));
    }

    fn line(&mut self, line: &Line) -> io::Result<()> {
        match self {
            Self::Terminal { bar, colour } => {
                let text = paint(line, *colour);
                if bar.is_finished() {
                    return writeln!(io::stdout(), "{text}");
                }
                bar.println(text);
                Ok(())
            }
            _ => writeln!(io::stdout(), "{}", line.text),
        }
    }

    /// News of the connection, which is no part of the job: kept out of the output that programs read.
    fn notice(&mut self, tone: Tone, text: &str) -> io::Result<()> {
        match self {
            Self::Terminal { .. } => self.line(&Line { tone, text: text.to_owned() }),
            _ => {
                eprintln!("{text}");
                Ok(())
            }
        }
    }

    /// Takes the bar away, so that what follows begins on a clean line.
    fn close(&mut self) {
        if let Self::Terminal { bar, .. } = self {
            bar.finish_and_clear();
        }
    }
}

fn paint(line: &Line, colour: bool) -> String {
    let code = match line.tone {
        _ if !colour => "",
        Tone::Plain => "",
        Tone::Quiet => "2",
        Tone::Good => "1;32",
        Tone::Warn => "33",
        Tone::Bad => "1;31",
    };
    if code.is_empty() { line.text.clone() } else { format!("\x1b[{code}m{}\x1b[0m", line.text) }
}

fn is_capable_terminal() -> bool {
    io::stdout().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Whether colours are wanted: only on a terminal, and never where `NO_COLOR` is set and not empty.
fn colour() -> bool {
    is_capable_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_added_only_where_they_are_wanted() {
        let line = Line { tone: Tone::Bad, text: "FAILED".into() };
        assert_eq!(paint(&line, true), "\x1b[1;31mFAILED\x1b[0m");
        assert_eq!(paint(&line, false), "FAILED");
    }
}
