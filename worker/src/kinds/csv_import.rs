//! `csv-import`: loads a CSV file into a table of a SQLite database, losing nothing and doubling nothing.
//!
//! Two passes over the file, both streamed: the first (`infer`) finds the narrowest column types that keep every value
//! as it is written, the second (`load`) writes batches of rows. A batch is one SQLite transaction *together with its
//! position in the file*, so a killed import goes on exactly where its rows end; the engine's checkpoint only tells
//! viewers. Each batch also checks the attempt that owns the import (`sqlite`), so a worker that was paused past its
//! lease cannot write beside its successor.
//!
//! Memory is bounded by one record of at most 1 MiB and one batch of SQLite's page cache. Records that are ragged, not
//! UTF-8 or too long are rejects: counted, reported by line number, and kept in `<table>_rejects`.
//!
//! The file is read only below the allowed directories (`paths`). Blocking work runs on a blocking thread, which speaks
//! through a bounded channel and looks at its stop token between records.

mod infer;
mod load;
mod paths;
mod records;
mod sqlite;

use std::path::{Path, PathBuf};

use futures_util::{FutureExt as _, future::BoxFuture};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::{JobContext, JobError, JobHandler, JobResult, LogLevel, Offer, Progress};

/// How many messages of the blocking thread may wait. Small: a stuck engine soon pauses the import.
const UPDATES: usize = 8;

/// The handler of `csv-import`.
#[derive(Clone, Debug)]
pub struct CsvImport {
    dirs: Vec<PathBuf>,
    data_dir: PathBuf,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    path: PathBuf,
    table: Option<String>,
    database: Option<String>,
}

/// What the blocking thread has to say.
#[derive(Debug)]
enum Update {
    Progress(Progress),
    Warn(String),
    Info(String),
    /// A batch was committed.
    Checkpoint {
        name: String,
        data: Vec<u8>,
    },
}

impl CsvImport {
    /// A handler that reads below `import_dirs` and writes below `data_dir`.
    ///
    /// # Errors
    /// One sentence for each import directory that is none.
    pub fn new(import_dirs: &[PathBuf], data_dir: PathBuf) -> Result<Self, Vec<String>> {
        let (mut dirs, mut errors) = (Vec::new(), Vec::new());
        for dir in import_dirs {
            match dir.canonicalize() {
                Ok(dir) if dir.is_dir() => dirs.push(dir),
                Ok(dir) => errors.push(format!("the import directory {} is no directory", dir.display())),
                Err(error) => errors.push(format!("the import directory {}: {error}", dir.display())),
            }
        }
        if errors.is_empty() { Ok(Self { dirs, data_dir }) } else { Err(errors) }
    }

    async fn import(&self, job: JobContext) -> JobResult {
        let input: Input = job.input()?;
        let plan = load::Plan {
            table: table_name(&input)?,
            database: database_path(&self.data_dir, input.database.as_deref())?,
            file: input.path.clone(),
            dirs: self.dirs.clone(),
            owner: sqlite::Owner {
                job_id: job.job_id().to_owned(),
                attempt: job.attempt(),
                lease: job.lease_token().to_owned(),
            },
        };
        // Dropped with this future: however the job's task ends, the blocking thread stops at its next record.
        let stop = job.stop_token();
        let stop_now = stop.clone();
        let _stop_on_drop = stop.clone().drop_guard();
        let (tell, mut updates) = mpsc::channel(UPDATES);
        let thread = tokio::task::spawn_blocking(move || load::run(&plan, &tell, &stop));
        let mut lost = None;
        while let Some(update) = tokio::select! {
            biased;
            () = job.cancelled() => None,
            update = updates.recv() => update,
        } {
            let told = tokio::select! {
                () = job.cancelled() => break,
                told = forward(&job, update) => told,
            };
            if let Err(error) = told {
                lost = Some(error);
                break;
            }
        }
        // Closed, the channel stops the thread; the job has ended only when the thread writes no more.
        drop(updates);
        if let Some(error) = lost {
            stop_now.cancel();
            let _ = thread.await;
            return Err(error);
        }
        match thread.await {
            Ok(result) => result,
            // Let the panic fail the job as any other does.
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(JobError::Cancelled),
            },
        }
    }
}

impl JobHandler for CsvImport {
    fn offer(&self) -> Offer {
        Offer {
            kind: "csv-import".to_owned(),
            description: "Loads a CSV file into a SQLite table, with types inferred without losing data."
                .to_owned(),
            input_schema: json!({
                "type": "object",
                "additionalProperties": false,
                "required": ["path"],
                "properties": {
                    "path": {"type": "string", "description": "The file, below a directory that --import-dir allows."},
                    "table": {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]{0,62}$",
                        "description": "The table to make; by default named after the file."},
                    "database": {"type": "string", "pattern": "^[A-Za-z0-9_-][A-Za-z0-9._-]*\\.(db|sqlite|sqlite3)$", "default": "imports.db",
                        "description": "The database's file name, below the data directory."},
                },
            }),
            example: json!({"path": "airports.csv"}),
        }
    }

    fn run(&self, job: JobContext) -> BoxFuture<'_, JobResult> {
        self.import(job).boxed()
    }
}

async fn forward(job: &JobContext, update: Update) -> Result<(), JobError> {
    match update {
        Update::Progress(progress) => job.progress(progress).await,
        Update::Warn(text) => job.log(LogLevel::Warn, "csv-import", text).await,
        Update::Info(text) => job.log(LogLevel::Info, "csv-import", text).await,
        Update::Checkpoint { name, data } => job.checkpoint(&name, data).await?,
    }
    Ok(())
}

/// The table to make.
fn table_name(input: &Input) -> Result<String, JobError> {
    let name = match &input.table {
        Some(name) => name.clone(),
        None => {
            let stem = input.path.file_stem().unwrap_or_default().to_string_lossy();
            // Of two characters or more, whatever the file is called.
            let name = infer::identifier(&stem, "import");
            if is_reserved(&name) { format!("t_{name}") } else { name }
        }
    };
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    let begins = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    if name.len() > 63 || !plain || !begins {
        let rule = "letters, digits and '_', not beginning with a digit, at most 63";
        return Err(JobError::input_invalid(format!("table: {name:?} cannot name a table: {rule}")));
    }
    if is_reserved(&name) {
        return Err(JobError::input_invalid(format!("table: the name {name:?} is reserved")));
    }
    Ok(name)
}

/// Names that SQLite and this importer keep for themselves.
fn is_reserved(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.starts_with("sqlite_") || name.starts_with("tidegate_") || name.ends_with("_rejects")
}

/// The database's file; a plain name below the data directory.
fn database_path(data_dir: &Path, name: Option<&str>) -> Result<PathBuf, JobError> {
    let name = name.unwrap_or("imports.db");
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    // Whatever else lives in the data directory, SQLite's own side files among it, must not be opened as a database.
    let database = [".db", ".sqlite", ".sqlite3"].iter().any(|end| name.ends_with(end));
    if name.len() > 63 || name.starts_with('.') || !plain || !database {
        let rule = "letters, digits, '.', '_' and '-', ending in .db, .sqlite or .sqlite3, at most 63";
        return Err(JobError::input_invalid(format!("database: {name:?} is no such name: {rule}")));
    }
    Ok(data_dir.join(name))
}

/// The job's result.
fn result(rows: u64, rejected: u64, table: &str, database: &Path) -> Value {
    let database = database.file_name().unwrap_or_default().to_string_lossy();
    json!({"rows": rows, "rejected": rejected, "table": table, "database": database})
}
