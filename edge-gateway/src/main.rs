//! The `edge-gateway` binary: flags, logs, signals.

use std::process::ExitCode;

use clap::Parser as _;
use edge_gateway::config::Args;
use tokio::signal::unix::{SignalKind, signal};

/// `EX_USAGE`: the configuration is wrong, restarting will not help.
const USAGE: u8 = 64;

#[tokio::main]
async fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let _output = match args.output.start("tidegate-gateway", "info") {
        Ok(output) => output,
        Err(error) => {
            eprintln!("edge-gateway: {error}");
            return ExitCode::from(USAGE);
        }
    };
    let config = match args.check() {
        Ok(config) => config,
        Err(errors) => {
            eprintln!("edge-gateway: {errors}");
            return ExitCode::from(USAGE);
        }
    };
    match edge_gateway::run(config, shutdown()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("edge-gateway: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Completes at the first SIGTERM or SIGINT.
async fn shutdown() {
    match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(mut terminate), Ok(mut interrupt)) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        }
        _ => std::future::pending().await,
    }
}
