//! The worker with the built-in kinds, as a process.

use std::{io::IsTerminal as _, process::ExitCode};

use clap::Parser as _;
use tidegate_worker::{
    Status,
    config::{Args, EXIT_CONFIG},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let filter = EnvFilter::try_from_env("TIDEGATE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();

    let shutdown = CancellationToken::new();
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn({
        let shutdown = shutdown.clone();
        async move {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            shutdown.cancel();
        }
    });
    let worker = match args.settings() {
        Ok(settings) => {
            tidegate_worker::run(settings, watch::Sender::new(Status::Connecting), shutdown).await
        }
        Err(error) => Err(error),
    };
    Ok(match worker {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tidegate-worker: {error}");
            ExitCode::from(EXIT_CONFIG)
        }
    })
}
