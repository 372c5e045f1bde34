//! `tidegate config`: what the flags, the environment and the configuration file add up to, and whether it is right.
//!
//! It takes the flags of serving and starts nothing: no port is bound, no directory made. What it prints holds no secret.

use std::{
    ffi::OsString,
    io::{self, Write as _},
};

use clap::{Args as _, Command, parser::ValueSource};

use crate::{
    args::{Config, Serve},
    exit::Failure,
    serve::plan::Plan,
    text::visible,
};

/// Runs the subcommand; `line` is the command line as it was given.
///
/// # Errors
/// [`Failure::Usage`] with everything that is wrong with the configuration; [`Failure::Output`].
pub(crate) fn run(command: &Config, line: impl Iterator<Item = OsString>) -> Result<u8, Failure> {
    let mut out = io::stdout();
    match command {
        Config::Check(serve) => {
            Plan::read(serve)?;
            writeln!(out, "the configuration is right")?;
        }
        // Its own name is what comes before the flags.
        Config::Print(_) => {
            for (name, value, source) in settings(line.skip_while(|word| word != "print"))? {
                writeln!(out, "{name:24} {:40} # {source}", visible(&value))?;
            }
        }
    }
    Ok(0)
}

/// Each flag with its value, and where that is from.
fn settings(line: impl Iterator<Item = OsString>) -> Result<Vec<(String, String, &'static str)>, Failure> {
    let command = Serve::augment_args(Command::new("tidegate"));
    let matches =
        command.clone().try_get_matches_from(line).map_err(|error| Failure::Usage(error.to_string()))?;
    let mut found = Vec::new();
    for arg in command.get_arguments() {
        let Some(name) = arg.get_long() else { continue };
        let id = arg.get_id().as_str();
        let source = match matches.value_source(id) {
            Some(ValueSource::CommandLine) => "flag",
            Some(ValueSource::EnvVariable) => "environment",
            Some(_) => "default",
            None => continue,
        };
        let is_set = |value: &std::ffi::OsStr| value.to_string_lossy().into_owned();
        let values: Vec<_> = matches.get_raw(id).into_iter().flatten().map(is_set).collect();
        // URLs whose values do not show in --help may have a password in them.
        let value = if arg.is_hide_env_values_set() { "(set)".to_owned() } else { values.join(",") };
        found.push((format!("--{name}"), value, source));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_setting_is_told_with_its_source_and_no_password() {
        let line =
            ["print", "--workers=2", "--redis=redis://:secret@r:6379", "--import-dir=a", "--import-dir=b"];
        let found = settings(line.map(OsString::from).into_iter()).unwrap();
        let of = |name: &str| {
            found.iter().find(|(flag, ..)| flag == name).map(|(_, value, source)| (&**value, *source))
        };
        assert_eq!(of("--workers"), Some(("2", "flag")));
        assert_eq!(of("--redis"), Some(("(set)", "flag")));
        assert_eq!(of("--import-dir"), Some(("a,b", "flag")));
        assert_eq!(of("--config"), None);
        assert!(of("--listen").is_some_and(|(value, _)| value.ends_with(":8080")));
    }
}
