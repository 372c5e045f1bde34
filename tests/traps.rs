//! docs/traps.md tells the truth: every trap has its row, and every test that a row names exists where it says.
//!
//! Does not: run those tests; whether they test what the row says is for people to judge.

use std::{fs, path::Path};

/// The tests that a row names, as [`name`](path), seen from docs/.
fn named(row: &str) -> impl Iterator<Item = (&str, &str)> {
    row.split("[`").skip(1).filter_map(|link| {
        let (name, rest) = link.split_once("`](")?;
        Some((name, rest.split_once(')')?.0))
    })
}

fn defines(source: &str, name: &str) -> bool {
    // Rust, Python, JavaScript.
    [format!("fn {name}("), format!("def {name}("), format!("\"{name}"), format!("'{name}")]
        .iter()
        .any(|definition| source.contains(definition))
}

#[test]
fn every_trap_has_its_row_and_every_named_test_exists() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let page = fs::read_to_string(docs.join("traps.md")).expect("docs/traps.md");
    let mut wrong = Vec::new();
    for (letter, count) in [("J", 40), ("E", 60)] {
        let rows: Vec<_> = page.lines().filter(|line| line.starts_with(&format!("| {letter}"))).collect();
        assert_eq!(rows.len(), count, "rows of {letter}");
        for (number, row) in (1..).zip(rows) {
            let trap = format!("{letter}{number}");
            if !row.starts_with(&format!("| {trap} |")) {
                wrong.push(format!("expected {trap}, found {row}"));
            }
            if named(row).next().is_none() && !row.contains("cannot occur") {
                wrong.push(format!("{trap} has no test, and does not say why it cannot occur"));
            }
            for (name, path) in named(row) {
                let source = fs::read_to_string(docs.join(path)).unwrap_or_default();
                if !defines(&source, name) {
                    wrong.push(format!("{trap}: {path} has no {name}"));
                }
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}
