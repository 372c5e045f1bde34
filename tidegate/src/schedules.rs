//! `tidegate schedule`: jobs that are submitted again and again.

use std::io::{self, Write as _};

use clap::{Args, Subcommand, ValueEnum};
use reqwest::Method;
use serde::Serialize;
use serde_json::{Value, value::RawValue};

use crate::{
    args::{JobOptions, Target},
    commands::{client, list, read_input},
    exit::Failure,
    text::visible_json,
    view::payload,
};

/// Recurring jobs.
#[derive(Debug, Subcommand)]
pub enum Schedule {
    /// Make a schedule, or replace what the one of this name says; the same twice changes nothing
    #[command(after_help = PUT_EXAMPLES)]
    Put(Box<Put>),
    /// List schedules, newest first
    List(List),
    /// Show a schedule as JSON
    Show(One),
    /// Remove a schedule; the jobs that it made stay
    Delete(One),
}

const PUT_EXAMPLES: &str = "\
Examples:
  tidegate schedule put nightly csv-import @import.json --cron '30 2 * * *' --time-zone Europe/Berlin
  tidegate schedule put poll exec '{}' --cron '*/15 * * * *' --max-attempts 3 --timeout 600
  tidegate schedule put nightly csv-import @import.json --cron '30 2 * * *' --time-zone Europe/Berlin --paused
                                                      no more jobs, until it is put without --paused
";

/// Arguments of `put`.
#[derive(Args, Debug)]
#[command(mut_arg("delay_seconds", |arg| arg.hide(true)), mut_arg("run_at", |arg| arg.hide(true)))]
pub struct Put {
    /// The schedule's name
    pub name: String,
    /// The kind of its jobs; `tidegate kinds` lists them
    pub kind: String,
    /// The input of each job: JSON, or @FILE, or - for standard input
    #[arg(value_name = "JSON")]
    pub input: String,
    /// When: minute, hour, day of month, month, day of week; with seconds in front if there are six fields; or @daily, …
    #[arg(long, value_name = "EXPRESSION")]
    pub cron: String,
    /// The IANA time zone in which --cron is read
    #[arg(long, default_value = "UTC", value_name = "ZONE")]
    pub time_zone: String,
    /// What happens while the job of the firing before has not ended: no job, or one more
    #[arg(long, value_enum, default_value_t = Overlap::Skip)]
    pub overlap: Overlap,
    /// How late a job may be submitted when its time had passed unseen, 60 to 86400
    #[arg(long, default_value_t = 3600.0, value_name = "SECONDS")]
    pub catch_up: f64,
    /// Make no jobs until the schedule is put without this
    #[arg(long)]
    pub paused: bool,
    /// Of each job.
    #[command(flatten)]
    pub options: JobOptions,
    /// Which gateway.
    #[command(flatten)]
    pub target: Target,
}

/// What happens while the job of the firing before has not ended.
#[derive(Clone, Copy, Debug, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Overlap {
    /// No job.
    Skip,
    /// One more.
    Allow,
}

/// Arguments of `list`.
#[derive(Args, Debug)]
pub struct List {
    /// Print JSON, one schedule a line
    #[arg(long)]
    pub json: bool,
    /// Which gateway.
    #[command(flatten)]
    pub target: Target,
}

/// One schedule at one gateway.
#[derive(Args, Debug)]
pub struct One {
    /// The schedule's name
    pub name: String,
    /// Whose schedule, for those who may see the whole tenant [default: one's own]
    #[arg(long, value_name = "SUBJECT")]
    pub owner: Option<String>,
    /// Which gateway.
    #[command(flatten)]
    pub target: Target,
}

/// The body of a put.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Wanted<'a> {
    kind: &'a str,
    input: &'a RawValue,
    options: &'a JobOptions,
    cron: &'a str,
    time_zone: &'a str,
    overlap: Overlap,
    catch_up_seconds: f64,
    paused: bool,
}

/// Runs a command of `tidegate schedule`.
///
/// # Errors
/// See [`Failure`].
pub async fn run(command: Schedule) -> Result<u8, Failure> {
    match command {
        Schedule::Put(args) => put(&args).await,
        Schedule::List(args) => all(&args).await,
        Schedule::Show(one) => {
            let answer = ask(Method::GET, &one).await?;
            writeln!(io::stdout(), "{}", visible_json(format_args!("{answer:#}")))?;
            Ok(0)
        }
        Schedule::Delete(one) => ask(Method::DELETE, &one).await.map(|_| 0),
    }
}

async fn put(args: &Put) -> Result<u8, Failure> {
    let input = read_input(&args.input)?;
    let client = client(&args.target)?;
    let wanted = Wanted {
        kind: &args.kind,
        input: &input,
        options: &args.options,
        cron: &args.cron,
        time_zone: &args.time_zone,
        overlap: args.overlap,
        catch_up_seconds: args.catch_up,
        paused: args.paused,
    };
    let request = client.request(Method::PUT, &["api", "schedules", &args.name]).json(&wanted);
    writeln!(io::stdout(), "{}", row(&client.call(request).await?))?;
    Ok(0)
}

async fn all(args: &List) -> Result<u8, Failure> {
    let client = client(&args.target)?;
    if !args.json {
        writeln!(io::stdout(), "{:24}  {:24}  {:24}  {:16}  CRON", "SCHEDULE", "NEXT", "LAST", "KIND")?;
    }
    list(&client, "schedules", &[], usize::MAX, |schedule| {
        if args.json { visible_json(schedule) } else { row(schedule) }
    })
    .await
}

async fn ask(method: Method, one: &One) -> Result<Value, Failure> {
    let client = client(&one.target)?;
    let owner = [("owner", one.owner.as_deref().unwrap_or_default())];
    Ok(client.call(client.query(method, &["api", "schedules", &one.name], &owner)).await?)
}

fn row(schedule: &Value) -> String {
    let text = |key: &str| match &schedule[key] {
        Value::Null => "-".to_owned(),
        value => payload(value),
    };
    let next = if schedule["paused"] == true { "paused".to_owned() } else { text("nextAt") };
    let (name, last, kind) = (text("name"), text("lastAt"), text("kind"));
    let missed = schedule["missed"].as_u64().filter(|n| *n > 0).map(|n| format!("  missed {n}"));
    let when = format!("{} {}", text("cron"), text("timeZone"));
    format!("{name:24}  {next:24}  {last:24}  {kind:16}  {when}{}", missed.unwrap_or_default())
}
