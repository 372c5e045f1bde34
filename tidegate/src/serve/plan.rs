//! What the three parts are told, checked as a whole before any of them starts.
//!
//! Each part reads its own flags, so that its defaults, its environment twins and its checks stay in one place;
//! this module only decides the values that they must agree on, and collects every error.

use std::{
    collections::HashSet,
    ffi::OsString,
    fs,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    path::PathBuf,
};

use clap::Parser;
use tidegate_auth::Authenticator;
use tidegate_worker::{Status, config::Settings};
use tokio::sync::watch;

use crate::{args::Serve, exit::Failure};

/// The engine's flags as a command line of their own.
#[derive(Parser)]
struct EngineArgs {
    #[command(flatten)]
    config: job_engine::config::Config,
}

/// The checked configuration of every part.
pub(crate) struct Plan {
    pub(super) engine: job_engine::config::Config,
    pub(super) gateway: edge_gateway::Config,
    /// None when no jobs are to be run here.
    pub(super) worker: Option<Settings>,
}

impl Plan {
    /// Checks everything, whether ports are free, too, and makes the directories.
    ///
    /// # Errors
    /// [`Failure::Usage`] with every error there is.
    pub(super) fn check(args: &Serve) -> Result<Self, Failure> {
        Self::made(args, true)
    }

    /// Checks what can be checked without changing anything, and beside a Tidegate that runs.
    ///
    /// # Errors
    /// As [`Plan::check`].
    pub(crate) fn read(args: &Serve) -> Result<Self, Failure> {
        Self::made(args, false)
    }

    fn made(args: &Serve, to_serve: bool) -> Result<Self, Failure> {
        let mut errors = Vec::new();
        let auth = args.config.as_deref().map_or(Ok(None), Authenticator::from_file);
        let auth = auth.map_err(|found| errors.extend(found.0)).unwrap_or_default();
        let open = args.insecure || auth.is_some();
        let grpc = address_of(&mut errors, "--grpc-listen", &args.grpc_listen, open);
        let engine_admin = address_of(&mut errors, "--engine-admin-listen", &args.engine_admin_listen, open);
        let gateway = gateway(&mut errors, args, auth);
        if to_serve {
            directories(&mut errors, args);
        }
        let engine = match (grpc, engine_admin) {
            (Some(_), Some(_)) => {
                parse::<EngineArgs>(&mut errors, engine_flags(args)).map(|args| args.config)
            }
            _ => None,
        };
        // Its own directory is there once it is made.
        let own = if to_serve { import_dirs(args) } else { args.import_dirs.clone() };
        let worker = (args.workers > 0).then(|| worker(&mut errors, args, &own));
        // Looked at even if the gateway has other errors.
        let given = |addr: &str| addr.parse().ok();
        let (public, admin) = (given(&args.listen), given(&args.admin_listen));
        if to_serve {
            in_use(&mut errors, &[("--listen", public), ("--admin-listen", admin)]);
            in_use(&mut errors, &[("--grpc-listen", grpc), ("--engine-admin-listen", engine_admin)]);
        }
        // Parts that read the same file find the same errors.
        let mut told = HashSet::new();
        errors.retain(|error| told.insert(error.clone()));
        match (engine, gateway, worker) {
            (Some(engine), Some(gateway), worker) if errors.is_empty() => {
                Ok(Self { engine, gateway, worker: worker.flatten() })
            }
            _ => Err(Failure::Usage(format!("the configuration has errors:\n  {}", errors.join("\n  ")))),
        }
    }
}

/// The directories below which csv-import may read.
pub(super) fn import_dirs(args: &Serve) -> Vec<PathBuf> {
    if args.import_dirs.is_empty() { vec![args.data_dir.join("import")] } else { args.import_dirs.clone() }
}

/// The address as others must call it: an unspecified one is not an address to connect to.
pub(super) fn reachable(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => (Ipv4Addr::LOCALHOST, v4.port()).into(),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => (Ipv6Addr::LOCALHOST, v6.port()).into(),
        addr => addr,
    }
}

/// The engine's address as a URL.
pub(super) fn url(addr: SocketAddr) -> String {
    format!("http://{}", reachable(addr))
}

fn gateway(
    errors: &mut Vec<String>,
    args: &Serve,
    auth: Option<Authenticator>,
) -> Option<edge_gateway::Config> {
    let mut flags = vec![flag("--listen", &args.listen), flag("--admin-listen", &args.admin_listen)];
    // The real address is known once the engine is bound.
    flags.push("--engine=http://127.0.0.1".into());
    flags.extend((args.insecure || auth.is_some()).then(|| "--insecure".into()));
    flags.extend(args.admin_token_file.iter().map(|file| flag("--admin-token-file", file)));
    flags.extend(args.config.iter().map(|file| flag("--config", file)));
    let mut parsed = parse::<edge_gateway::config::Args>(errors, flags)?;
    parsed.edge = args.edge.clone();
    match parsed.check() {
        Ok(config) => {
            let secret_file = Some(args.data_dir.join("edge.secret"));
            Some(edge_gateway::Config { auth, secret_file, ..config })
        }
        Err(found) => {
            // Its first line is the heading that is ours here.
            errors.extend(found.to_string().lines().skip(1).map(|line| line.trim().to_owned()));
            None
        }
    }
}

fn engine_flags(args: &Serve) -> Vec<OsString> {
    let mut flags = vec![
        flag("--grpc-listen", &args.grpc_listen),
        flag("--engine-admin-listen", &args.engine_admin_listen),
        flag("--data-dir", &args.data_dir),
    ];
    flags.extend(args.redis.as_ref().map(|url| flag("--redis", url)));
    flags.extend(args.admin_token_file.iter().map(|file| flag("--admin-token-file", file)));
    flags
}

fn worker(errors: &mut Vec<String>, args: &Serve, import_dirs: &[PathBuf]) -> Option<Settings> {
    let mut flags = vec![
        "--engine=http://127.0.0.1".into(),
        flag("--capacity", args.workers.to_string()),
        flag("--data-dir", &args.data_dir),
    ];
    // Its admin port, if the environment gives it one, is no more open than the others.
    flags.extend(args.insecure.then(|| "--insecure".into()));
    flags.extend(args.admin_token_file.iter().map(|file| flag("--admin-token-file", file)));
    flags.extend(import_dirs.iter().map(|dir| flag("--import-dir", dir)));
    flags.extend(args.config.iter().map(|file| flag("--config", file)));
    let settings = parse::<tidegate_worker::config::Args>(errors, flags)?.settings();
    let checked = settings.and_then(|settings| {
        // Made only to be checked: the real one is made when the engine's address is known.
        settings.clone().into_worker(watch::Sender::new(Status::Connecting)).map(|_| settings)
    });
    checked.map_err(|found| errors.extend(found.0)).ok()
}

/// Lets a part read its own flags and, for what is not given, its environment.
fn parse<T: Parser>(errors: &mut Vec<String>, flags: Vec<OsString>) -> Option<T> {
    let line = std::iter::once(OsString::from("tidegate")).chain(flags);
    let parsed = T::try_parse_from(line);
    parsed.map_err(|e| errors.push(e.to_string().trim_start_matches("error: ").trim_end().to_owned())).ok()
}

/// `--name=value`, whatever bytes a path has.
fn flag(name: &str, value: impl AsRef<std::ffi::OsStr>) -> OsString {
    let mut flag = OsString::from(name);
    flag.push("=");
    flag.push(value);
    flag
}

/// An address that strangers cannot reach, unless that is wanted.
fn address_of(errors: &mut Vec<String>, flag: &str, value: &str, insecure: bool) -> Option<SocketAddr> {
    match value.parse::<SocketAddr>() {
        Ok(addr) if addr.ip().is_loopback() || insecure => return Some(addr),
        Ok(addr) => errors.push(format!(
            "{flag} {addr} can be reached by others, and there is no authentication: configure it ([auth] in --config), \
             bind to 127.0.0.1, or add --insecure if everybody may see and steer every job"
        )),
        Err(_) => errors.push(format!("{flag} {value:?} is not an address such as 127.0.0.1:8080")),
    }
    None
}

/// A file to try csv-import on: airports of the United States, from Data.gov.
const EXAMPLE: &[u8] = include_bytes!("../../../worker/examples/airports.csv");

/// Makes the directories that are ours, the import directory with an example in it; those that were named must exist,
/// which the worker checks.
fn directories(errors: &mut Vec<String>, args: &Serve) {
    let make = || {
        fs::create_dir_all(&args.data_dir)?;
        let import = args.data_dir.join("import");
        if args.import_dirs.is_empty() && !import.exists() {
            fs::create_dir(&import)?;
            fs::write(import.join("airports.csv"), EXAMPLE)?;
        }
        Ok::<_, std::io::Error>(())
    };
    if let Err(error) = make() {
        errors.push(format!("--data-dir {}: {error}", args.data_dir.display()));
    }
}

/// Binding tells who is in the way; binding all of them first tells it at once, and with the flag's name.
fn in_use(errors: &mut Vec<String>, addresses: &[(&str, Option<SocketAddr>)]) {
    for (flag, addr) in addresses.iter().filter_map(|(flag, addr)| Some((flag, (*addr)?))) {
        if let Err(error) = TcpListener::bind(addr) {
            let hint = if error.kind() == std::io::ErrorKind::AddrInUse {
                format!("another program listens there; choose another port with {flag}")
            } else {
                error.to_string()
            };
            errors.push(format!("{flag} {addr}: {hint}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Cli;

    fn check(flags: &[&str]) -> Result<Plan, String> {
        let dir = tempfile::tempdir().unwrap();
        let data = flag("--data-dir", dir.path().join("data"));
        let fixed = ["--listen=127.0.0.1:0", "--grpc-listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0"];
        let mut line: Vec<OsString> =
            vec!["tidegate".into(), data, "--engine-admin-listen=127.0.0.1:0".into()];
        let given = |fixed: &&&str| !flags.iter().any(|f| f.split('=').next() == fixed.split('=').next());
        line.extend(fixed.iter().filter(given).map(Into::into));
        line.extend(flags.iter().map(Into::into));
        Plan::check(&Cli::try_parse_from(line).unwrap().serve).map_err(|failure| failure.to_string())
    }

    #[test]
    fn the_defaults_make_a_plan_whose_worker_reads_its_own_import_directory() {
        let plan = check(&[]).unwrap();
        assert_eq!(plan.worker.unwrap().kinds.import_dirs[0], plan.engine.log.data_dir.join("import"));
        assert!(check(&["--workers=0"]).unwrap().worker.is_none());
    }

    #[test]
    fn every_error_is_listed_at_once() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = format!("--listen={}", taken.local_addr().unwrap());
        let flags =
            [&*listen, "--grpc-listen=0.0.0.0:1", "--admin-token-file=/nor/that", "--config=/nor/this"];
        let error = check(&flags).err().unwrap();
        for part in [
            "--listen 127.0.0.1",
            "another program listens",
            "--grpc-listen 0.0.0.0:1",
            "/nor/this",
            "/nor/that",
        ] {
            assert!(error.contains(part), "{part} is missing in {error}");
        }
        let error =
            check(&["--listen=0.0.0.0:0", "--admin-listen=nonsense", "--import-dir=/does/not/exist"]).err();
        let error = error.unwrap();
        for part in ["--listen 0.0.0.0:0", "--insecure", "nonsense", "/does/not/exist"] {
            assert!(error.contains(part), "{part} is missing in {error}");
        }
    }
}
