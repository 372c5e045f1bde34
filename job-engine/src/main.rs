//! The `job-engine` binary.

use std::{io, process::ExitCode};

use clap::Parser;
use job_engine::{config::Config, server};
use tidegate_telemetry::Output;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Keeps the state of jobs in an event log, hands them to workers, and streams their progress by gRPC.
#[derive(Parser)]
#[command(
    version,
    max_term_width = 110,
    after_help = "\
Examples:
  job-engine                                        # embedded log in ./tidegate-data
  job-engine --redis redis://127.0.0.1:6379         # log in Redis, shared by several engines
  grpcurl -plaintext 127.0.0.1:50051 list           # what it offers"
)]
struct Cli {
    #[command(flatten)]
    config: Config,
    /// Serve addresses that are not loopback although nobody has to authenticate.
    #[arg(long, env = "TIDEGATE_INSECURE")]
    insecure: bool,
    /// How many threads do the engine's work (1 to 1024); by default one for every two cores, because the log, workers and callers want some, too.
    #[arg(long, env = "TIDEGATE_THREADS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    #[command(flatten)]
    output: Output,
}

fn main() -> io::Result<ExitCode> {
    let cli = Cli::parse();
    Ok(server::runtime(cli.threads)?.block_on(run(&cli)))
}

async fn run(cli: &Cli) -> ExitCode {
    let refused = |errors: &str| {
        eprintln!("the configuration has errors:\n  {errors}");
        ExitCode::from(64) // EX_USAGE
    };
    let _output = match cli.output.start("tidegate-engine", "info") {
        Ok(output) => output,
        Err(error) => return refused(&error.to_string()),
    };
    let auth = match cli.config.check(cli.insecure) {
        Ok(auth) => auth,
        Err(errors) => return refused(&errors.join("\n  ")),
    };
    match server::run(&cli.config, auth).await.inspect_err(|error| tracing::error!("{error:#}")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
