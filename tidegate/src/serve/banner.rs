//! What is printed once everything is ready: where to look, where things are, and what to try.

use std::{
    fmt::Write as _,
    fs, io,
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use super::plan;
use crate::args::{DEFAULT_SERVER, Serve};

/// Prints the banner.
pub(super) fn print(args: &Serve, http: SocketAddr, grpc: SocketAddr) -> io::Result<()> {
    let program = std::env::args().next().unwrap_or_else(|| "tidegate".to_owned());
    let text = banner(args, &program, http, grpc);
    let mut out = io::stdout();
    out.write_all(text.as_bytes())?;
    out.flush()
}

fn banner(args: &Serve, program: &str, http: SocketAddr, grpc: SocketAddr) -> String {
    let console = plan::url(http);
    let data = args.data_dir.display();
    // The URL of a Redis may carry a password.
    let log = if args.redis.is_some() { "in Redis".to_owned() } else { format!("{data}/log") };
    let dirs = plan::import_dirs(args);
    let allowed: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    let server = if console == DEFAULT_SERVER { String::new() } else { format!(" --server {console}") };
    let mut text = format!(
        "\nTidegate is ready.\n\n\
         \x20 Console   {console}\n\
         \x20 gRPC      {}\n\
         \x20 Event log {log}\n\
         \x20 Results   {data}\n\
         \x20 Imports   csv-import may read below {}; allow more with --import-dir DIR\n\n\
         Try:\n",
        plan::reachable(grpc),
        allowed.join(", "),
    );
    let file = dirs.iter().find_map(|dir| first_csv(dir)).unwrap_or_else(|| PathBuf::from("FILE.csv"));
    let commands = [
        r#"submit demo '{"steps": 5, "seconds": 10}' --watch"#.to_owned(),
        format!(r#"submit csv-import '{{"path": "{}"}}' --watch"#, file.display()),
        "jobs".to_owned(),
    ];
    for command in commands {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {program} {command}{server}");
    }
    text.push_str("\nCtrl-C stops it; what was stored is there again at the next start.\n");
    text
}

/// The first CSV file of a directory, by name.
fn first_csv(dir: &Path) -> Option<PathBuf> {
    // A few names will do; the directory may hold millions.
    let names =
        fs::read_dir(dir).ok()?.take(1_000).filter_map(|entry| Some(PathBuf::from(entry.ok()?.file_name())));
    names.filter(|name| name.extension().is_some_and(|e| e.eq_ignore_ascii_case("csv"))).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Cli;
    use clap::Parser as _;

    #[test]
    fn the_banner_names_addresses_places_and_commands_but_no_password() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("zip.csv"), "").unwrap();
        let import = format!("--import-dir={}", dir.path().display());
        let cli = Cli::try_parse_from(["tidegate", &import, "--redis=redis://u:secret@h"]).unwrap();
        let text =
            banner(&cli.serve, "./tidegate", ([0, 0, 0, 0], 81).into(), ([127, 0, 0, 1], 50051).into());
        for part in [
            "Console   http://127.0.0.1:81\n",
            "gRPC      127.0.0.1:50051\n",
            "in Redis",
            &dir.path().display().to_string(),
            "./tidegate submit csv-import '{\"path\": \"zip.csv\"}' --watch --server http://127.0.0.1:81\n",
        ] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
        assert!(!text.contains("secret"), "{text}");
    }
}
