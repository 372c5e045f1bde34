//! The worker with the built-in kinds, as a process.

use std::process::ExitCode;

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

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let _output = match args.output.start("tidegate-worker", "info") {
        Ok(output) => output,
        Err(error) => {
            eprintln!("tidegate-worker: {error}");
            return Ok(ExitCode::from(EXIT_CONFIG));
        }
    };

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
