//! `exec`: runs commands that the configuration declares, each as a kind of its own. There is never a shell.
//!
//! A declared command is a list of arguments. `{name}` stands for the input's field `name` as one whole argument,
//! `{name?}` for one that may be absent; a value that begins with `-` is refused unless `allow_dashes` is set, so
//! that input cannot become an option. Everything else in the input is refused.
//!
//! Lines of output become `log` events; lines on standard output that begin with `::` become other events (`lines`).
//! The command runs in a process group of its own that never outlives the job (`process`).

mod lines;
mod process;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use futures_util::{FutureExt as _, future::BoxFuture};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tidegate_proto::limits;

use crate::{JobContext, JobError, JobHandler, JobResult, Offer};

/// A declared command: one `[[exec]]` table of the configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecConfig {
    /// The kind's name.
    pub kind: String,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Where it runs; the worker's own directory by default.
    pub cwd: Option<PathBuf>,
    /// Variables of its environment, beside PATH, HOME and LANG, the only ones that are inherited.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// What it does, in one sentence.
    #[serde(default)]
    pub description: String,
    /// After how many seconds it is stopped and the job fails; no limit by default.
    pub timeout_seconds: Option<f64>,
    /// How many seconds it has between SIGTERM and SIGKILL.
    #[serde(default = "default_kill_after")]
    pub kill_after_seconds: f64,
    /// The exit codes after which another attempt may succeed.
    #[serde(default)]
    pub retry_exit_codes: Vec<i32>,
    /// Whether values of the input may begin with `-`.
    #[serde(default)]
    pub allow_dashes: bool,
    /// How many log lines a second are kept, from 1; ten times as many may come at once.
    #[serde(default = "default_lines")]
    pub lines_per_second: u32,
}

fn default_kill_after() -> f64 {
    5.0
}

fn default_lines() -> u32 {
    200
}

/// The largest input that fits into a variable of the environment; Linux takes 128 KiB with the name.
const MAX_ENV: usize = 120 * 1024;

/// The handler of one declared command.
#[derive(Clone, Debug)]
pub struct Exec {
    config: ExecConfig,
    command: Vec<Part>,
}

/// An argument, or where one comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(String),
    Field { name: String, optional: bool },
}

impl Exec {
    /// A handler for the declared command.
    ///
    /// # Errors
    /// One sentence for everything that is wrong with the declaration.
    pub fn new(config: ExecConfig) -> Result<Self, Vec<String>> {
        let kind = &config.kind;
        let mut errors = Vec::new();
        if !limits::is_name(kind) {
            errors.push(format!("exec: {kind:?} cannot name a kind"));
        }
        let command: Vec<_> = config.command.iter().map(|argument| part(argument)).collect();
        if !matches!(command.first(), Some(Part::Literal(program)) if !program.is_empty()) {
            errors.push(format!(
                "exec {kind}: the command must begin with a program that the input cannot choose"
            ));
        }
        if config.command.iter().any(|argument| argument.contains('\0')) {
            errors.push(format!("exec {kind}: an argument contains a NUL byte"));
        }
        if !config.timeout_seconds.is_none_or(is_time) || !is_time(config.kill_after_seconds) {
            errors.push(format!("exec {kind}: times lie between 0 and 31536000 seconds"));
        }
        if config.lines_per_second == 0 {
            errors.push(format!("exec {kind}: lines_per_second is at least 1"));
        }
        for name in config.env.keys() {
            if name.is_empty() || name.contains(['=', '\0']) || name.starts_with("TIDEGATE_") {
                errors.push(format!("exec {kind}: {name:?} cannot name a variable"));
            }
        }
        if errors.is_empty() { Ok(Self { config, command }) } else { Err(errors) }
    }

    /// The arguments for an input.
    fn arguments(&self, input: &Map<String, Value>) -> Result<Vec<String>, JobError> {
        let known = |name: &String| self.fields().any(|(field, _)| field == name);
        if let Some(unknown) = input.keys().find(|name| !known(name)) {
            return Err(JobError::input_invalid(format!("unknown field {unknown:?}")));
        }
        let mut arguments = Vec::with_capacity(self.command.len());
        for part in &self.command {
            match part {
                Part::Literal(text) => arguments.push(text.clone()),
                Part::Field { name, optional } => match input.get(name) {
                    Some(value) => arguments.push(self.argument(name, value)?),
                    None if *optional => {}
                    None => return Err(JobError::input_invalid(format!("missing field {name:?}"))),
                },
            }
        }
        Ok(arguments)
    }

    fn argument(&self, name: &str, value: &Value) -> Result<String, JobError> {
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Number(_) | Value::Bool(_) => value.to_string(),
            Value::Null | Value::Array(_) | Value::Object(_) => {
                return Err(JobError::input_invalid(format!(
                    "{name} must be a string, a number or a boolean"
                )));
            }
        };
        if text.contains('\0') {
            return Err(JobError::input_invalid(format!("{name} contains a NUL character")));
        }
        if text.starts_with('-') && !self.config.allow_dashes {
            return Err(JobError::input_invalid(format!("{name} must not begin with '-'")));
        }
        Ok(text)
    }

    fn fields(&self) -> impl Iterator<Item = (&String, bool)> {
        self.command.iter().filter_map(|part| match part {
            Part::Field { name, optional } => Some((name, *optional)),
            Part::Literal(_) => None,
        })
    }

    async fn execute(&self, job: JobContext) -> JobResult {
        let arguments = self.arguments(&job.input()?)?;
        if job.input_json().len() > MAX_ENV {
            return Err(JobError::input_invalid(format!(
                "the input of a command has at most {MAX_ENV} bytes"
            )));
        }
        process::run(&self.config, &arguments, &job).await
    }
}

impl JobHandler for Exec {
    fn offer(&self) -> Offer {
        let mut properties = Map::new();
        let mut example = Map::new();
        for (name, _) in self.fields() {
            properties.insert(name.clone(), json!({"type": ["string", "number", "boolean"]}));
            example.insert(name.clone(), json!("value"));
        }
        let required: Vec<_> =
            self.fields().filter(|(_, optional)| !optional).map(|(name, _)| name).collect();
        let description = &self.config.description;
        Offer {
            kind: self.config.kind.clone(),
            description: if description.is_empty() {
                format!("Runs {}.", self.config.command.first().map_or("", String::as_str))
            } else {
                description.clone()
            },
            input_schema: json!({
                "type": "object",
                "additionalProperties": false,
                "properties": properties,
                "required": required,
            }),
            example: Value::Object(example),
        }
    }

    fn run(&self, job: JobContext) -> BoxFuture<'_, JobResult> {
        self.execute(job).boxed()
    }
}

fn part(argument: &str) -> Part {
    let inner = argument.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
    let (name, optional) = match inner {
        Some(inner) => inner.strip_suffix('?').map_or((inner, false), |name| (name, true)),
        None => return Part::Literal(argument.to_owned()),
    };
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    if name.is_empty() || !name.bytes().all(plain) {
        return Part::Literal(argument.to_owned());
    }
    Part::Field { name: name.to_owned(), optional }
}

fn is_time(seconds: f64) -> bool {
    (0.0..=31_536_000.0).contains(&seconds)
}

impl ExecConfig {
    fn kill_after(&self) -> Duration {
        Duration::from_secs_f64(self.kill_after_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exec(toml: &str) -> Exec {
        Exec::new(toml::from_str(toml).unwrap()).unwrap()
    }

    fn arguments(exec: &Exec, input: Value) -> Result<Vec<String>, JobError> {
        exec.arguments(&serde_json::from_value(input).unwrap())
    }

    #[test]
    fn input_becomes_whole_arguments_and_nothing_else() {
        let exec = exec("kind = 'k'\ncommand = ['prog', '--to={x}', '{a}', '{b?}', '{}']");
        let ok = |input| arguments(&exec, input).unwrap();
        assert_eq!(ok(json!({"a": "x; rm -rf / $(id)"})), ["prog", "--to={x}", "x; rm -rf / $(id)", "{}"]);
        assert_eq!(ok(json!({"a": 1.5, "b": true})), ["prog", "--to={x}", "1.5", "true", "{}"]);
        for (input, word) in [
            (json!({}), "\"a\""),
            (json!({"a": "-o"}), "a must not begin"),
            (json!({"a": -1}), "a must not begin"),
            (json!({"a": "x", "c": 1}), "\"c\""),
            (json!({"a": ["x"]}), "a must be"),
            (json!({"a": "x\0y"}), "NUL"),
        ] {
            match arguments(&exec, input.clone()) {
                Err(JobError::Failed { code, message, retryable: false }) => {
                    assert_eq!(code, "input_invalid");
                    assert!(message.contains(word), "{message}");
                }
                other => panic!("{input}: {other:?}"),
            }
        }
    }

    #[test]
    fn all_errors_of_a_declaration_are_listed() {
        let config =
            "kind = 'K'\ncommand = ['{x}']\ntimeout_seconds = -1.0\nlines_per_second = 0\nenv = {'A=' = '1'}";
        assert_eq!(Exec::new(toml::from_str(config).unwrap()).unwrap_err().len(), 5);
        assert!(toml::from_str::<ExecConfig>("kind = 'k'\ncommand = ['x']\nshell = true").is_err());
    }
}
