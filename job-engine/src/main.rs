//! The `job-engine` binary.

use std::process::ExitCode;

use clap::Parser;
use job_engine::{config::Config, server};
use tokio_util::sync::CancellationToken;

/// Keeps the state of jobs in an event log, hands them to workers, and streams their progress by gRPC.
#[derive(Parser)]
#[command(
    version,
    after_help = "\
Examples:
  job-engine                                        # embedded log in ./tidegate-data
  job-engine --redis redis://127.0.0.1:6379         # log in Redis, shared by several engines
  grpcurl -plaintext 127.0.0.1:50051 list           # what it offers"
)]
struct Cli {
    #[command(flatten)]
    config: Config,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()),
        )
        .with_writer(std::io::stderr)
        .init();
    match run(&cli.config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(config: &Config) -> anyhow::Result<()> {
    let bound = server::bind(config).await?;
    tracing::info!(grpc = %bound.grpc_addr()?, "listening");
    let stop = CancellationToken::new();
    let on_signal = stop.clone();
    tokio::spawn(async move {
        let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).ok();
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            () = async { match &mut term { Some(term) => { term.recv().await; } None => std::future::pending().await } } => {}
        }
        on_signal.cancel();
    });
    bound.serve(stop).await
}
