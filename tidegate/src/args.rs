//! The command line: flags, their environment twins, and the help that teaches them.

mod operate;

use std::path::PathBuf;

pub use self::operate::{Config, Doctor, Health};
use crate::{schedules::Schedule, token::Token};
use clap::{Args, Parser, Subcommand, builder::styling};
use serde::Serialize;

/// Where the client commands look for the gateway unless told otherwise.
pub const DEFAULT_SERVER: &str = "http://127.0.0.1:8080";

const SERVE_EXAMPLES: &str = "\
Examples:
  tidegate                                            everything on this machine, console at http://127.0.0.1:8080
  tidegate --import-dir ./data                        let csv-import read below ./data
  tidegate --redis redis://127.0.0.1:6379             keep the log in Redis instead of --data-dir
  tidegate submit demo '{\"steps\": 4, \"seconds\": 8}' --watch
  tidegate submit csv-import '{\"path\": \"data/zipcodes.csv\"}' --watch
  tidegate jobs --status processing
  tidegate cancel 01902f5e-… --reason 'wrong file'
";

/// Runs long jobs and shows them live: alone it is engine, gateway and worker in one process; with a subcommand
/// it is a client of a running gateway.
#[derive(Debug, Parser)]
#[command(
    name = "tidegate",
    version,
    max_term_width = 110,
    args_conflicts_with_subcommands = true,
    subcommand_help_heading = "Client commands",
    after_long_help = format!("{SERVE_EXAMPLES}\n{}", crate::exit::HELP),
    after_help = "`tidegate --help` shows examples and exit codes; every flag has an environment twin TIDEGATE_….",
    styles = STYLES,
)]
pub struct Cli {
    /// What to serve when there is no subcommand.
    #[command(flatten)]
    pub serve: Serve,
    /// What to ask of a running gateway.
    #[command(subcommand)]
    pub command: Option<Command>,
}

const STYLES: styling::Styles = styling::Styles::styled()
    .header(styling::AnsiColor::Green.on_default().bold())
    .literal(styling::AnsiColor::Cyan.on_default());

/// The flags of the all-in-one process. Addresses are texts here, so that every error can be listed at once.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Serving")]
pub struct Serve {
    /// Where browsers connect: HTTP API, event streams and console
    #[arg(long, env = "TIDEGATE_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDR")]
    pub listen: String,
    /// Where workers and services connect by gRPC
    #[arg(long, env = "TIDEGATE_GRPC_LISTEN", default_value = "127.0.0.1:50051", value_name = "ADDR")]
    pub grpc_listen: String,
    /// The gateway's /metrics, /healthz and /readyz
    #[arg(long, env = "TIDEGATE_ADMIN_LISTEN", default_value = "127.0.0.1:9464", value_name = "ADDR")]
    pub admin_listen: String,
    /// The engine's /metrics, /healthz and /readyz
    #[arg(long, env = "TIDEGATE_ENGINE_ADMIN_LISTEN", default_value = "127.0.0.1:9465", value_name = "ADDR")]
    pub engine_admin_listen: String,
    /// A file with the token that /metrics and /loglevel of both admin ports ask for, as `Authorization: Bearer …`; read for
    /// each request. Nobody is asked without it
    #[arg(long, env = "TIDEGATE_ADMIN_TOKEN_FILE", value_name = "FILE")]
    pub admin_token_file: Option<PathBuf>,
    /// The directory of the embedded log and of what jobs produce
    #[arg(long, env = "TIDEGATE_DATA_DIR", default_value = "./tidegate-data", value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Keep the event log in this Redis instead of below --data-dir
    #[arg(long, env = "TIDEGATE_REDIS", hide_env_values = true, value_name = "URL")]
    pub redis: Option<String>,
    /// A directory below which csv-import may read; repeatable [default: import below --data-dir]
    #[arg(long = "import-dir", env = "TIDEGATE_IMPORT_DIR", value_name = "DIR", value_delimiter = ',')]
    pub import_dirs: Vec<PathBuf>,
    /// A TOML file with the lists: who may connect ([auth]), how much they may have ([limits]), commands that `exec` jobs
    /// may run ([[exec]])
    #[arg(long, env = "TIDEGATE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How many jobs the local worker runs at once; 0 runs no worker here
    #[arg(long, env = "TIDEGATE_WORKERS", default_value_t = 4, value_name = "N")]
    pub workers: u32,
    /// Serve addresses that are not loopback although nobody has to authenticate
    #[arg(long, env = "TIDEGATE_INSECURE")]
    pub insecure: bool,
    /// How the outside reaches the gateway.
    #[command(flatten)]
    pub edge: edge_gateway::config::EdgeArgs,
    /// Where logs and traces go.
    #[command(flatten)]
    pub output: tidegate_telemetry::Output,
}

/// The client commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Submit a job, and with --watch follow it to its end
    Submit(Box<Submit>),
    /// Follow a job's progress and log to its end, across lost connections
    Watch(Watch),
    /// Ask for a job's cancellation
    Cancel(Cancel),
    /// Queue a failed or cancelled job again
    Retry(JobRef),
    /// Remove a finished job and its log
    Delete(JobRef),
    /// List jobs, newest first
    Jobs(Jobs),
    /// List the kinds of job that workers offer
    Kinds(Kinds),
    /// Keep jobs that are submitted again and again, at the times of a cron expression
    #[command(subcommand)]
    Schedule(Schedule),
    /// Make keys and tokens
    #[command(subcommand)]
    Token(Token),
    /// Ask an admin port whether it is healthy; for container images, which have no curl
    Health(Health),
    /// Look from outside for what silently breaks event streams: buffering, idle cuts, compression, limits, CORS, clocks
    Doctor(Doctor),
    /// Check or show what flags, environment and configuration file add up to, without starting anything
    #[command(subcommand)]
    Config(Config),
}

/// Which gateway to talk to.
#[derive(Args, Debug)]
pub struct Target {
    /// The gateway's address, http:// or https://
    #[arg(long, env = "TIDEGATE_SERVER", default_value = DEFAULT_SERVER, value_name = "URL")]
    pub server: String,
    /// A file of certificates (PEM) to trust beside the system's: your own authority's
    #[arg(long, env = "TIDEGATE_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// The token or API key to present; others on this machine can see it there: --token-file hides it
    #[arg(long, env = "TIDEGATE_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub token: Option<String>,
    /// A file with the token or API key to present; goes before --token, and is read again when a watched stream's token has ended
    #[arg(long, env = "TIDEGATE_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// How to follow.
#[derive(Args, Debug)]
pub struct Follow {
    /// Print JSON, one object a line, instead of text for people
    #[arg(long)]
    pub json: bool,
    /// How long to try to get a lost server back, in seconds
    #[arg(long, env = "TIDEGATE_GIVE_UP", default_value_t = 600, value_name = "SECONDS")]
    pub give_up: u64,
}

/// Arguments of `submit`.
#[derive(Args, Debug)]
#[command(after_help = crate::exit::HELP, after_long_help = format!("{}{}", "\
Examples:
  tidegate submit demo '{}'                       prints the job's id
  tidegate submit demo '{\"steps\": 4}' --watch     and follows it to its end
  tidegate submit csv-import @import.json         the input from a file
  jq -n '{path: \"a.csv\"}' | tidegate submit csv-import - --key import-2026-11
                                                  the input from a pipe; the key makes a repeat harmless
  tidegate submit csv-import @import.json --max-attempts 5 --timeout 600 --concurrency imports=1
                                                  again if it fails, 10 minutes an attempt, one import at a time

", crate::exit::HELP))]
pub struct Submit {
    /// The kind of job; `tidegate kinds` lists them
    pub kind: String,
    /// The input: JSON, or @FILE, or - for standard input
    #[arg(value_name = "JSON")]
    pub input: String,
    /// Follow the job to its end
    #[arg(long)]
    pub watch: bool,
    /// An idempotency key: the same key and input yield the same job
    #[arg(long, value_name = "IDEMPOTENCY")]
    pub key: Option<String>,
    /// When and how the job is to run.
    #[command(flatten)]
    pub options: JobOptions,
    /// How to follow.
    #[command(flatten)]
    pub follow: Follow,
    /// Which gateway.
    #[command(flatten)]
    pub target: Target,
}

/// What a submitter may ask for; the gateway knows the bounds and the defaults. Serialised as its `options`.
#[derive(Args, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
#[command(next_help_heading = "Job options")]
pub struct JobOptions {
    /// Start after this many seconds
    #[arg(long = "delay", value_name = "SECONDS", conflicts_with = "run_at")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay_seconds: Option<f64>,
    /// Start at this time: 2026-11-21T08:00:00Z
    #[arg(long, value_name = "TIME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_at: Option<String>,
    /// Start before one's own jobs of a lower priority, -100 to 100 [default: 0]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// How many attempts may fail, if trying again can help [default: 1]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// The pause before the second attempt, doubled before each later one [default: 1]
    #[arg(long = "backoff", value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff_seconds: Option<f64>,
    /// The longest pause between attempts [default: 300]
    #[arg(long = "max-backoff", value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_backoff_seconds: Option<f64>,
    /// How often a worker may vanish under the job before it fails [default: 3]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_stalls: Option<u32>,
    /// End an attempt that takes longer than this
    #[arg(long = "timeout", value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<f64>,
    /// End an attempt that reports nothing for this long
    #[arg(long = "progress-deadline", value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress_deadline_seconds: Option<f64>,
    /// Run at most LIMIT jobs with this KEY at once, whoever submits them
    #[arg(long, value_name = "KEY=LIMIT", value_parser = concurrency)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<Concurrency>,
    /// Only one unfinished job with this key; a second submission prints the first one's id
    #[arg(long, value_name = "UNIQUE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unique_key: Option<String>,
    /// How long the finished job is kept [default: 604800]
    #[arg(long = "retention", value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention_seconds: Option<f64>,
}

/// How many jobs may run at once under a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Concurrency {
    key: String,
    limit: u32,
}

fn concurrency(text: &str) -> Result<Concurrency, String> {
    let (key, limit) = text.rsplit_once('=').ok_or("must be KEY=LIMIT, for example reports=2")?;
    let limit = limit.parse().map_err(|_| "must end in =LIMIT, a number, for example reports=2")?;
    Ok(Concurrency { key: key.to_owned(), limit })
}

/// Arguments of `watch`.
#[derive(Args, Debug)]
#[command(after_help = crate::exit::HELP, after_long_help = format!("{}{}", "\
Examples:
  tidegate watch 01902f5e-…                       from the beginning, then live
  tidegate watch 01902f5e-… --cursor latest       only what comes
  tidegate watch 01902f5e-… --cursor 17-q7x2ma    what follows event 17
  tidegate watch 01902f5e-… --json | jq .data     for programs

", crate::exit::HELP))]
pub struct Watch {
    /// The job's id
    pub job_id: String,
    /// Begin after this event's cursor; also `earliest` or `latest` [default: earliest]
    #[arg(long, value_name = "C")]
    pub cursor: Option<String>,
    /// How to follow.
    #[command(flatten)]
    pub follow: Follow,
    /// Which gateway.
    #[command(flatten)]
    pub target: Target,
}

/// One job at one gateway.
#[derive(Args, Debug)]
pub struct JobRef {
    /// The job's id
    pub job_id: String,
    /// Which gateway.
    #[command(flatten)]
    pub target: Target,
}

/// Arguments of `cancel`.
#[derive(Args, Debug)]
pub struct Cancel {
    /// Which job.
    #[command(flatten)]
    pub job: JobRef,
    /// Why, for those who watch
    #[arg(long, value_name = "R")]
    pub reason: Option<String>,
}

/// Arguments of `jobs`.
#[derive(Args, Debug)]
pub struct Jobs {
    /// Only jobs in this state; repeatable: scheduled, queued, processing, completed, failed, cancelled
    #[arg(long, value_delimiter = ',', ignore_case = true,
          value_parser = ["scheduled", "queued", "processing", "completed", "failed", "cancelled"], hide_possible_values = true)]
    pub status: Vec<String>,
    /// Only jobs of this kind
    #[arg(long)]
    pub kind: Option<String>,
    /// How many at most
    #[arg(long, default_value_t = 50, value_name = "N")]
    pub limit: usize,
    /// Print JSON, one job a line
    #[arg(long)]
    pub json: bool,
    /// Which gateway.
    #[command(flatten)]
    pub target: Target,
}

/// Arguments of `kinds`.
#[derive(Args, Debug)]
pub struct Kinds {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Which gateway.
    #[command(flatten)]
    pub target: Target,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent_and_every_scalar_flag_has_its_environment_twin() {
        let command = Cli::command();
        command.clone().debug_assert();
        for arg in command.get_arguments().filter(|a| !matches!(a.get_id().as_str(), "help" | "version")) {
            let long = arg.get_long().unwrap();
            let twin = match long {
                // Named by OpenTelemetry, and set for every process of a machine.
                "otlp-endpoint" => "OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(),
                "otlp-ca" => "OTEL_EXPORTER_OTLP_CERTIFICATE".to_owned(),
                _ => format!("TIDEGATE_{}", long.to_uppercase().replace('-', "_")),
            };
            assert_eq!(arg.get_env().and_then(|e| e.to_str()), Some(&*twin), "--{long}");
        }
    }

    #[test]
    fn options_that_are_not_given_are_not_sent_and_keys_may_contain_an_equals_sign() {
        let options = |flags: &[&str]| {
            let line = ["tidegate", "submit", "demo", "{}"].iter().chain(flags);
            let Some(Command::Submit(submit)) = Cli::try_parse_from(line).unwrap().command else { panic!() };
            serde_json::to_string(&submit.options).unwrap()
        };
        assert_eq!(options(&[]), "{}");
        assert_eq!(
            options(&["--concurrency", "a=b=2", "--priority", "-3", "--timeout", "1.5"]),
            r#"{"priority":-3,"timeoutSeconds":1.5,"concurrency":{"key":"a=b","limit":2}}"#
        );
        for bad in [["--concurrency", "a"], ["--concurrency", "a=b"], ["--priority", "high"]] {
            let line = ["tidegate", "submit", "demo", "{}"].iter().chain(&bad);
            assert!(Cli::try_parse_from(line).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_defaults_are_those_of_the_design() {
        let cli = Cli::try_parse_from(["tidegate"]).unwrap();
        assert_eq!(cli.serve.listen, "127.0.0.1:8080");
        assert_eq!(cli.serve.grpc_listen, "127.0.0.1:50051");
        assert!(cli.command.is_none() && !cli.serve.insecure);
    }
}
