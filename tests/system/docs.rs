//! What the documents say of the command line is what the binaries say: docs/command-line.md is their `--help`, and no
//! document names a flag or a variable of the environment that does not exist.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::support::binary;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The help of a command, as wide as a page.
fn help(program: &str, subcommands: &[String]) -> String {
    let mut command = Command::new(binary(program));
    // Neither the terminal nor the environment of who runs the tests shows in it.
    command.args(subcommands).arg("--help").env_clear().env("COLUMNS", "100").stdin(Stdio::null());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{program} {subcommands:?} --help: {output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().flat_map(|line| [line.trim_end(), "\n"]).collect()
}

/// The names in a help's list of commands.
fn subcommands(help: &str) -> Vec<String> {
    let list =
        help.split("commands:\n").nth(1).or_else(|| help.split("Commands:\n").nth(1)).unwrap_or_default();
    let lines = list.lines().take_while(|line| line.starts_with("  "));
    let names =
        lines.filter(|line| !line.starts_with("   ")).filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

/// Adds the help of a command, and of all below it.
fn collect(program: &str, path: &[String], found: &mut Vec<(String, String)>) {
    let text = help(program, path);
    let below = subcommands(&text);
    found.push(([&[program.to_owned()], path].concat().join(" "), text));
    for name in below {
        collect(program, &[path, &[name]].concat(), found);
    }
}

/// Every help there is, by its command.
fn all() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for program in ["tidegate", "edge-gateway", "job-engine", "tidegate-worker"] {
        collect(program, &[], &mut found);
    }
    assert!(found.iter().any(|(command, _)| command == "tidegate submit"), "no commands were found");
    found
}

/// The project's documents for users.
fn documents() -> Vec<PathBuf> {
    let markdown = |directory: &Path| -> Vec<PathBuf> {
        let files = fs::read_dir(directory).unwrap().map(|file| file.unwrap().path());
        files.filter(|path| path.extension().is_some_and(|e| e == "md")).collect()
    };
    [root(), root().join("docs"), root().join("docs/problems")].iter().flat_map(|d| markdown(d)).collect()
}

#[test]
fn the_page_of_the_command_line_is_what_the_binaries_say() {
    let mut page = String::from(
        "# The command line\n\nWhat each program says to `--help`. Flags win over the environment; a test keeps this page true.\n",
    );
    for (command, text) in all() {
        page += &format!("\n## {command}\n\n```text\n{}\n```\n", text.trim_end());
    }
    let path = root().join("docs/command-line.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &page).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    let differ = kept.lines().zip(page.lines()).find(|(kept, now)| kept != now);
    assert!(
        kept == page,
        "docs/command-line.md is not up to date, first at {differ:?}: UPDATE_DOCS=1 cargo test --test system docs"
    );
}

#[test]
fn documents_name_no_flag_and_no_variable_that_does_not_exist() {
    let helps: String = all().into_iter().map(|(_, text)| text).collect();
    let known = |start: &str| -> BTreeSet<String> { words(&helps, start) };
    let (flags, variables) = (known("--"), known("TIDEGATE_"));
    assert!(flags.contains("--redis") && variables.contains("TIDEGATE_REDIS"), "{flags:?} {variables:?}");
    // Of other programs, of the tests, and of what `exec` gives to its commands.
    let others = ["--release", "--help", "--locked", "--bench", "--no-run"];
    let source: String = sources();
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for flag in words_in_code(&text, "--").difference(&flags) {
            assert!(others.contains(&flag.as_str()), "{}: there is no flag {flag}", document.display());
        }
        for variable in words(&text, "TIDEGATE_").difference(&variables) {
            // Variables that no flag twins: the source has to read or set them.
            let quoted = [format!("\"{variable}\""), format!("'{variable}'"), format!("env.{variable}")];
            // A name that ends in the middle stands for all that begin like it.
            let group = variable.ends_with('_') && variables.iter().any(|known| known.starts_with(variable));
            let exists = group || quoted.iter().any(|text| source.contains(text));
            assert!(exists, "{}: there is no variable {variable}", document.display());
        }
    }
}

/// The words of a text that begin like this.
fn words(text: &str, start: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let words =
        text.split(|c: char| !is_part(c)).filter(|word| word.starts_with(start) && word.len() >= start.len());
    words
        .filter(|word| !word.trim_matches('-').is_empty())
        .map(|word| word.trim_end_matches('-').to_owned())
        .collect()
}

/// The same in `inline code` that is nothing else, which is how documents speak of our flags.
fn words_in_code(text: &str, start: &str) -> BTreeSet<String> {
    let code = text.split("```").step_by(2).flat_map(|prose| prose.split('`').skip(1).step_by(2));
    code.filter(|code| code.starts_with(start))
        .filter_map(|code| words(code, start).into_iter().next())
        .collect()
}

/// The sources that read the environment.
fn sources() -> String {
    let mut text = String::new();
    let mut waiting = vec![root()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
            let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let is_source = [".rs", ".py", ".js", ".mjs", ".go"].iter().any(|end| name.ends_with(end));
            if entry.is_dir() && !name.starts_with('.') && name != "target" && name != "node_modules" {
                waiting.push(entry);
            } else if is_source {
                text += &fs::read_to_string(entry).unwrap_or_default();
            }
        }
    }
    text
}
