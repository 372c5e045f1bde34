//! The `tidegate` binary; see the library for everything it does.

use std::process::ExitCode;

use clap::Parser as _;
use tidegate::{
    args::Cli,
    commands,
    exit::{self, Failure},
    serve,
};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Printing can only fail when nobody reads; the exit code still tells.
            let _ = error.print();
            return if error.use_stderr() { exit::USAGE.into() } else { ExitCode::SUCCESS };
        }
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("tidegate: cannot start: {error}");
            return exit::INTERNAL.into();
        }
    };
    let result = runtime.block_on(async {
        match cli.command {
            Some(command) => commands::run(command).await,
            None => {
                let output = cli.serve.output.start("tidegate", "warn");
                let _output = output.map_err(|error| Failure::Usage(error.to_string()))?;
                serve::run(&cli.serve).await
            }
        }
    });
    // A blocking read of standard input must not keep the process alive.
    runtime.shutdown_background();
    match result {
        Ok(code) => code.into(),
        Err(failure) => {
            if failure.code() != exit::PIPE_CLOSED {
                eprintln!("tidegate: {failure}");
            }
            failure.code().into()
        }
    }
}
