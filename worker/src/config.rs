//! The settings of the `tidegate-worker` binary: flags with environment twins, and one TOML file for lists.
//!
//! Everything that is wrong is reported at once, with the exit code 64.

use std::{
    net::SocketAddr,
    num::NonZeroU32,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Parser;
use serde::{Deserialize, de::IgnoredAny};
use tidegate_proto::bearer::Bearer;
use tidegate_telemetry::admin::AdminToken;
use tokio::sync::watch;

use crate::{
    Status, Worker,
    kinds::{self, KindSettings, exec::ExecConfig},
};

/// The exit code for settings that make no worker (`EX_USAGE`).
pub const EXIT_CONFIG: u8 = 64;

/// What `--help` says below the flags.
const ABOUT_KINDS: &str = r#"The worker offers the kinds `demo` (a simulated job) and `csv-import` (loads a CSV file into SQLite), and one more for every command that the configuration file declares:

    [[exec]]
    kind = "build"
    command = ["make", "-j2", "{target}"]  # {target}: a field of the input
    cwd = "/srv/project"
    timeout_seconds = 600
    retry_exit_codes = [75]

There is never a shell between the declaration and the program.

SIGTERM or Ctrl-C ends the worker: jobs that do not finish within the grace time go back to the engine, and another worker goes on from their last checkpoint."#;

/// A Tidegate worker: takes jobs from an engine and runs them.
#[derive(Clone, Debug, Parser)]
#[command(name = "tidegate-worker", version, after_help = ABOUT_KINDS)]
pub struct Args {
    /// An engine to work for; repeatable, or separated by commas. A name may lead to several engines.
    ///
    /// The worker holds one stream to one of those that are healthy. When that engine dies, falls silent or drains, the
    /// worker takes its jobs along to another one within a second; when an engine joins, some workers move to it.
    /// Names are resolved again every few seconds.
    #[arg(
        long = "engine",
        value_name = "URI",
        env = "TIDEGATE_ENGINE",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:50051"
    )]
    pub engines: Vec<String>,
    /// A name for the engine's logs; the host's name by default.
    #[arg(long, env = "TIDEGATE_NAME")]
    pub name: Option<String>,
    /// How many jobs run at once.
    #[arg(long, env = "TIDEGATE_CAPACITY", default_value = "4")]
    pub capacity: NonZeroU32,
    /// A directory below which csv-import may read; may be repeated. Without one it reads nothing.
    #[arg(long = "import-dir", value_name = "DIR", env = "TIDEGATE_IMPORT_DIR", value_delimiter = ',')]
    pub import_dirs: Vec<PathBuf>,
    /// Where csv-import keeps its databases; made when needed.
    #[arg(long, value_name = "DIR", env = "TIDEGATE_DATA_DIR", default_value = "./tidegate-data")]
    pub data_dir: PathBuf,
    /// A TOML file that declares commands, as shown below.
    #[arg(long = "config", value_name = "FILE", env = "TIDEGATE_CONFIG")]
    pub config: Option<PathBuf>,
    /// A file with the token or API key that the engine asks for; read again when it changes.
    #[arg(long, value_name = "FILE", env = "TIDEGATE_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
    /// Where /metrics, /healthz and /readyz are served, such as 127.0.0.1:9466; nowhere by default.
    ///
    /// Where others can reach it, --admin-token-file or --insecure must be given.
    #[arg(long, value_name = "ADDR", env = "TIDEGATE_WORKER_ADMIN_LISTEN")]
    pub admin_listen: Option<SocketAddr>,
    /// A file with the token that /metrics and /loglevel of the admin port ask for, as `Authorization: Bearer …`; read for
    /// each request. Nobody is asked without it.
    #[arg(long, value_name = "FILE", env = "TIDEGATE_ADMIN_TOKEN_FILE")]
    pub admin_token_file: Option<PathBuf>,
    /// Serve the admin port without a token on an address that others can reach.
    #[arg(long, env = "TIDEGATE_INSECURE")]
    pub insecure: bool,
    /// How many seconds running jobs may go on after SIGTERM, before they are given back to the engine.
    #[arg(long, value_name = "SECONDS", env = "TIDEGATE_GRACE_SECONDS", default_value = "5")]
    pub grace_seconds: u32,
    /// Where logs and traces go.
    #[command(flatten)]
    pub output: tidegate_telemetry::Output,
}

/// What the configuration file may hold.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// The engine's and the gateway's part.
    #[serde(rename = "auth")]
    _auth: Option<IgnoredAny>,
    /// The gateway's part.
    #[serde(rename = "limits")]
    _limits: Option<IgnoredAny>,
    #[serde(default)]
    exec: Vec<ExecConfig>,
}

/// Everything that a worker with the built-in kinds needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The engines' addresses, such as `http://127.0.0.1:50051`; a name may lead to several.
    pub engines: Vec<String>,
    /// The worker's name in the engine's logs.
    pub name: String,
    /// How many jobs run at once.
    pub capacity: NonZeroU32,
    /// How long running jobs may go on after a shutdown began.
    pub grace: Duration,
    /// What the engines are shown.
    pub bearer: Bearer,
    /// Where metrics and health are served, if anywhere.
    pub admin_listen: Option<SocketAddr>,
    /// What operators present there; without it nobody is asked.
    pub admin_token: Option<AdminToken>,
    /// The settings of the kinds.
    pub kinds: KindSettings,
}

/// Everything that is wrong with the settings.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(pub Vec<String>);

impl Args {
    /// The settings, with the configuration file read.
    ///
    /// # Errors
    /// When a file cannot be read or understood, or strangers could change the log level.
    pub fn settings(self) -> Result<Settings, ConfigError> {
        let exec = self.config.as_deref().map_or(Ok(Vec::new()), read_exec);
        let bearer = self.token_file.as_deref().map_or(Ok(Bearer::default()), Bearer::file);
        let bearer = bearer.map_err(|error| error.to_string());
        let admin_token = self.admin_token_file.as_deref().map(AdminToken::file).transpose();
        let admin_token = admin_token.map_err(|error| error.to_string());
        let guarded = self.insecure || self.admin_token_file.is_some();
        let open = self.admin_listen.filter(|addr| !addr.ip().is_loopback() && !guarded).map(|addr| {
            format!(
                "--admin-listen {addr} can be reached by others, and anybody could change what is logged: name a token with \
                 --admin-token-file, bind to 127.0.0.1, or add --insecure if everybody may"
            )
        });
        let (exec, bearer, admin_token) = match (exec, bearer, admin_token) {
            (Ok(exec), Ok(bearer), Ok(admin_token)) if open.is_none() => (exec, bearer, admin_token),
            (exec, bearer, admin_token) => {
                let errors = exec.err().into_iter().chain(bearer.err()).chain(admin_token.err());
                return Err(ConfigError(errors.chain(open).collect()));
            }
        };
        Ok(Settings {
            engines: self.engines,
            name: self.name.or_else(host_name).unwrap_or_else(|| "worker".to_owned()),
            capacity: self.capacity,
            grace: Duration::from_secs(self.grace_seconds.into()),
            bearer,
            admin_listen: self.admin_listen,
            admin_token,
            kinds: KindSettings { import_dirs: self.import_dirs, data_dir: self.data_dir, exec },
        })
    }
}

impl Settings {
    /// The worker that these settings describe.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn into_worker(self, status: watch::Sender<Status>) -> Result<Worker, ConfigError> {
        let mut errors = Vec::new();
        let handlers = kinds::builtin(&self.kinds).unwrap_or_else(|found| {
            errors.extend(found);
            Vec::new()
        });
        let without_handlers = !errors.is_empty();
        let builder = Worker::builder(self.engines)
            .name(self.name)
            .capacity(self.capacity.get())
            .grace(self.grace)
            .bearer(self.bearer);
        match builder.handlers(handlers).status(status).build() {
            Ok(worker) => return Ok(worker),
            // When the kinds are wrong, that none is left is a consequence and no news.
            Err(found) => errors.extend(
                found
                    .into_iter()
                    .filter(|error| !without_handlers || *error != crate::BuildError::NoHandler)
                    .map(|error| error.to_string()),
            ),
        }
        Err(ConfigError(errors))
    }
}

fn read_exec(path: &Path) -> Result<Vec<ExecConfig>, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let file: File = toml::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(file.exec)
}

/// The name that the system gives this machine; nothing depends on it.
fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_errors_are_listed_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("worker.toml");
        std::fs::write(
            &config,
            "[[exec]]\nkind = 'Bad'\ncommand = ['x']\n[[exec]]\nkind = 'k'\ncommand = []\n",
        )
        .unwrap();
        let missing = dir.path().join("missing");
        let args = Args::try_parse_from([
            "tidegate-worker",
            "--engine",
            "nonsense",
            "--import-dir",
            missing.to_str().unwrap(),
            "--config",
            config.to_str().unwrap(),
        ]);
        let error =
            args.unwrap().settings().unwrap().into_worker(watch::Sender::new(Status::Connecting)).err();
        assert_eq!(error.map(|e| e.0.len()), Some(4));
    }

    #[test]
    fn an_admin_port_that_others_reach_needs_a_token_or_a_word() {
        let dir = tempfile::tempdir().unwrap();
        let token = dir.path().join("token");
        std::fs::write(&token, "0123456789abcdef0123456789abcdef").unwrap();
        let token = format!("--admin-token-file={}", token.display());
        let settings = |flags: &[&str]| {
            let line = std::iter::once("tidegate-worker").chain(flags.iter().copied());
            Args::try_parse_from(line).unwrap().settings()
        };
        for listen in ["--admin-listen=0.0.0.0:9466", "--admin-listen=[::]:9466"] {
            let error = settings(&[listen]).unwrap_err();
            assert!(error.0.len() == 1 && error.to_string().contains("--admin-token-file"), "{error}");
            assert!(settings(&[listen, &token]).is_ok());
            assert!(settings(&[listen, "--insecure"]).is_ok());
            let both = settings(&[listen, "--token-file=/does/not/exist"]).unwrap_err();
            assert_eq!(both.0.len(), 2, "{both}");
        }
        assert!(settings(&["--admin-listen=127.0.0.1:9466"]).is_ok());
        assert!(settings(&["--admin-listen=[::1]:9466"]).is_ok());
    }

    #[test]
    fn unknown_keys_of_the_file_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("worker.toml");
        std::fs::write(&config, "[[exec]]\nkind = 'k'\ncommand = ['x']\nshell = true\n").unwrap();
        let args = Args::try_parse_from(["tidegate-worker", "--config", config.to_str().unwrap()]).unwrap();
        assert!(args.settings().unwrap_err().to_string().contains("shell"));
    }
}
