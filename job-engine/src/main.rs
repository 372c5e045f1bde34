//! The `job-engine` binary.

use std::process::ExitCode;

use clap::Parser;
use job_engine::{config::Config, server};
use tidegate_telemetry::Output;

/// The exit code for bad configuration (`EX_USAGE`).
const EXIT_CONFIG: u8 = 64;

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
    #[command(flatten)]
    output: Output,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let _output = match cli.output.start("tidegate-engine", "info") {
        Ok(output) => output,
        Err(error) => {
            eprintln!("the configuration has errors:\n  {error}");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    let auth = match cli.config.check(cli.insecure) {
        Ok(auth) => auth,
        Err(errors) => {
            eprintln!("the configuration has errors:\n  {}", errors.join("\n  "));
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    match server::run(&cli.config, auth).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
