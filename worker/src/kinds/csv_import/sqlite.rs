//! The database side of an import: rows, rejects, and the one row of `tidegate_import` that says how far they go.
//!
//! Invariant: every transaction that writes rows also moves the import's row, and only if that row still names this
//! attempt and lease. So rows and position never disagree, whatever is killed when, and of two workers that hold the
//! same job only the later one writes.

use std::{fs, path::Path, time::Duration};

use rusqlite::{
    Connection, ErrorCode, OptionalExtension as _, params, params_from_iter, types::ToSqlOutput,
    types::ValueRef,
};
use tokio_util::sync::CancellationToken;

use super::{
    infer::{self, Type},
    records::Place,
};
use crate::JobError;

/// How long another writer may hold the database before the attempt fails; it may be a worker that was paused.
const PATIENCE: Duration = Duration::from_secs(600);
/// How often the stop token is looked at while waiting for another writer.
const LOOK: Duration = Duration::from_millis(250);

/// On whose behalf rows are written.
#[derive(Clone, Debug)]
pub(super) struct Owner {
    pub(super) job_id: String,
    pub(super) attempt: u32,
    pub(super) lease: String,
}

/// Which bytes are imported: another size or time means that the file was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) size: i64,
    pub(super) modified_ns: i64,
}

/// How far an import has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) place: Place,
    pub(super) rows: u64,
    pub(super) rejected: u64,
}

/// A column of the table.
pub(super) type Column = (String, Type);

/// What was found when the import was claimed.
#[derive(Debug, PartialEq)]
pub(super) enum Claim {
    /// Nothing has been written yet.
    Fresh,
    /// An earlier attempt wrote up to the mark.
    Begun { source: Source, columns: Vec<Column>, mark: Mark },
    /// An earlier attempt wrote everything.
    Done(Mark),
}

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    #[error("a later attempt has taken over the import")]
    Fenced,
    #[error("stopped")]
    Stopped,
    #[error("the table {0} exists already")]
    TableExists(String),
    #[error("the database: {0}")]
    Sqlite(#[from] rusqlite::Error),
    #[error("the database: {0}")]
    Io(#[from] std::io::Error),
    #[error("the database's record of this import is damaged: {0}")]
    Damaged(String),
}

impl From<StoreError> for JobError {
    fn from(error: StoreError) -> Self {
        let text = error.to_string();
        match error {
            StoreError::Fenced | StoreError::Stopped => Self::Cancelled,
            StoreError::TableExists(_) => Self::fatal("table_exists", text),
            StoreError::Damaged(_) => Self::fatal("database_damaged", text),
            StoreError::Io(_) => Self::retryable("database_error", text),
            StoreError::Sqlite(error) => match error.sqlite_error_code() {
                Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                    Self::retryable("database_busy", text)
                }
                Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
                    Self::fatal("database_damaged", text)
                }
                Some(ErrorCode::DiskFull) => Self::retryable("disk_full", text),
                _ => Self::retryable("database_error", text),
            },
        }
    }
}

/// The database, on behalf of one attempt at one import.
pub(super) struct Store {
    db: Connection,
    owner: Owner,
    table: String,
    stop: CancellationToken,
    insert: String,
    types: Vec<Type>,
}

impl Store {
    pub(super) fn open(
        path: &Path,
        table: &str,
        owner: Owner,
        stop: CancellationToken,
    ) -> Result<Self, StoreError> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let db = Connection::open(path)?;
        db.busy_timeout(LOOK)?;
        let store =
            Self { db, owner, table: table.to_owned(), stop, insert: String::new(), types: Vec::new() };
        store.patiently(|db| {
            db.pragma_update(None, "journal_mode", "wal")?;
            // A batch that was acknowledged survives a power cut too.
            db.pragma_update(None, "synchronous", "full")?;
            db.execute_batch(
                "CREATE TABLE IF NOT EXISTS tidegate_import (
                    job_id TEXT PRIMARY KEY, attempt INTEGER NOT NULL, lease TEXT NOT NULL,
                    table_name TEXT NOT NULL, state TEXT NOT NULL CHECK (state IN ('infer', 'load', 'done')),
                    columns TEXT, size INTEGER, modified_ns INTEGER,
                    offset INTEGER, line INTEGER, rows INTEGER, rejected INTEGER
                ) STRICT",
            )
        })?;
        Ok(store)
    }

    /// Makes this attempt the import's only writer, and tells how far it has come.
    pub(super) fn claim(&mut self) -> Result<Claim, StoreError> {
        self.begin()?;
        let result = self.claim_in_transaction();
        self.end(result)
    }

    fn claim_in_transaction(&self) -> Result<Claim, StoreError> {
        let Owner { job_id, attempt, lease } = &self.owner;
        let found = self.db.query_row(
            "SELECT attempt, state, columns, size, modified_ns, offset, line, rows, rejected
             FROM tidegate_import WHERE job_id = ?1",
            [job_id],
            |row| {
                let number = |at| row.get::<_, Option<i64>>(at).map(|n| n.unwrap_or(0).cast_unsigned());
                let mark = Mark {
                    place: Place { offset: number(5)?, line: number(6)? },
                    rows: number(7)?,
                    rejected: number(8)?,
                };
                let source = Source {
                    size: row.get::<_, Option<i64>>(3)?.unwrap_or(0),
                    modified_ns: row.get::<_, Option<i64>>(4)?.unwrap_or(0),
                };
                Ok((
                    row.get::<_, u32>(0)?,
                    row.get::<_, String>(1)?,
                    row.get::<_, Option<String>>(2)?,
                    source,
                    mark,
                ))
            },
        );
        let Some((last_attempt, state, columns, source, mark)) = found.optional()? else {
            self.refuse_taken_table()?;
            self.db.execute(
                "INSERT INTO tidegate_import (job_id, attempt, lease, table_name, state) VALUES (?1, ?2, ?3, ?4, 'infer')",
                params![job_id, attempt, lease, self.table],
            )?;
            return Ok(Claim::Fresh);
        };
        if last_attempt > *attempt {
            return Err(StoreError::Fenced);
        }
        self.db.execute(
            "UPDATE tidegate_import SET attempt = ?2, lease = ?3 WHERE job_id = ?1",
            params![job_id, attempt, lease],
        )?;
        match state.as_str() {
            "infer" => Ok(Claim::Fresh),
            "done" => Ok(Claim::Done(mark)),
            _ => {
                let columns = serde_json::from_str(&columns.unwrap_or_default())
                    .map_err(|error| StoreError::Damaged(error.to_string()))?;
                Ok(Claim::Begun { source, columns, mark })
            }
        }
    }

    /// Makes the table; the load begins at `mark`.
    pub(super) fn create(
        &mut self,
        columns: &[Column],
        source: Source,
        mark: Mark,
    ) -> Result<(), StoreError> {
        self.begin()?;
        let result = (|| {
            self.refuse_taken_table()?;
            let list: Vec<_> =
                columns.iter().map(|(name, kind)| format!("\"{name}\" {}", kind.sql())).collect();
            self.db.execute_batch(&format!("CREATE TABLE \"{}\" ({})", self.table, list.join(", ")))?;
            let columns =
                serde_json::to_string(columns).map_err(|error| StoreError::Damaged(error.to_string()))?;
            let Owner { job_id, attempt, lease } = &self.owner;
            let moved = self.db.execute(
                "UPDATE tidegate_import SET state = 'load', columns = ?4, size = ?5, modified_ns = ?6
                 WHERE job_id = ?1 AND attempt = ?2 AND lease = ?3",
                params![job_id, attempt, lease, columns, source.size, source.modified_ns],
            )?;
            if moved == 1 { self.mark(mark, false) } else { Err(StoreError::Fenced) }
        })();
        self.end(result)
    }

    /// Says what the rows look like; to be called before [`Store::row`].
    pub(super) fn prepare(&mut self, columns: &[Column]) {
        let places: Vec<_> = (1..=columns.len()).map(|at| format!("?{at}")).collect();
        self.insert = format!("INSERT INTO \"{}\" VALUES ({})", self.table, places.join(", "));
        self.types = columns.iter().map(|(_, kind)| *kind).collect();
    }

    /// Begins a batch, waiting for other writers.
    pub(super) fn begin(&self) -> Result<(), StoreError> {
        self.patiently(|db| db.execute_batch("BEGIN IMMEDIATE"))
    }

    /// Adds a row to the batch; false when a value does not fit its column's type, so that the file has changed.
    pub(super) fn row(&self, values: &[&str]) -> Result<bool, StoreError> {
        let mut row = Vec::with_capacity(values.len());
        for (text, kind) in values.iter().zip(&self.types) {
            row.push(ToSqlOutput::Borrowed(match kind {
                _ if text.is_empty() => ValueRef::Null,
                Type::Text => ValueRef::Text(text.as_bytes()),
                Type::Integer => match infer::integer(text) {
                    Some(number) => ValueRef::Integer(number),
                    None => return Ok(false),
                },
                Type::Real => match infer::real(text) {
                    Some(number) => ValueRef::Real(number),
                    None => return Ok(false),
                },
            }));
        }
        self.db.prepare_cached(&self.insert)?.execute(params_from_iter(row))?;
        Ok(true)
    }

    /// Adds a reject to the batch.
    pub(super) fn reject(&self, line: u64, reason: &str, sample: &str) -> Result<(), StoreError> {
        let table = &self.table;
        self.db.execute_batch(&format!(
            "CREATE TABLE IF NOT EXISTS \"{table}_rejects\" (line INTEGER NOT NULL, reason TEXT NOT NULL, sample TEXT NOT NULL)"
        ))?;
        let insert = format!("INSERT INTO \"{table}_rejects\" VALUES (?1, ?2, ?3)");
        self.db.prepare_cached(&insert)?.execute(params![line.cast_signed(), reason, sample])?;
        Ok(())
    }

    /// Commits the batch together with its mark, unless a later attempt has taken over.
    pub(super) fn commit(&self, mark: Mark, done: bool) -> Result<(), StoreError> {
        let result = self.mark(mark, done);
        self.end(result)
    }

    /// Drops the batch.
    pub(super) fn roll_back(&self) {
        // It fails only when there is no transaction any more, which is what is wanted.
        let _ = self.db.execute_batch("ROLLBACK");
    }

    fn mark(&self, mark: Mark, done: bool) -> Result<(), StoreError> {
        let Owner { job_id, attempt, lease } = &self.owner;
        let Mark { place, rows, rejected } = mark;
        let moved = self
            .db
            .prepare_cached(
                "UPDATE tidegate_import SET state = ?4, offset = ?5, line = ?6, rows = ?7, rejected = ?8
             WHERE job_id = ?1 AND attempt = ?2 AND lease = ?3",
            )?
            .execute(params![
                job_id,
                attempt,
                lease,
                if done { "done" } else { "load" },
                place.offset.cast_signed(),
                place.line.cast_signed(),
                rows.cast_signed(),
                rejected.cast_signed()
            ])?;
        if moved == 1 { Ok(()) } else { Err(StoreError::Fenced) }
    }

    fn refuse_taken_table(&self) -> Result<(), StoreError> {
        let rejects = format!("{}_rejects", self.table);
        let taken = "SELECT name FROM sqlite_schema WHERE name COLLATE NOCASE IN (?1, ?2)";
        let found: Option<String> =
            self.db.query_row(taken, params![self.table, rejects], |row| row.get(0)).optional()?;
        found.map_or(Ok(()), |name| Err(StoreError::TableExists(name)))
    }

    /// Ends the transaction: commits what went well, drops the rest.
    fn end<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        let result = result.and_then(|value| {
            self.patiently(|db| db.execute_batch("COMMIT"))?;
            Ok(value)
        });
        if result.is_err() {
            self.roll_back();
        }
        result
    }

    /// Tries again while another writer holds the database, until the stop token says otherwise.
    fn patiently(
        &self,
        mut attempt: impl FnMut(&Connection) -> rusqlite::Result<()>,
    ) -> Result<(), StoreError> {
        let begun = std::time::Instant::now();
        loop {
            match attempt(&self.db) {
                Err(error)
                    if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
                        && begun.elapsed() < PATIENCE =>
                {
                    if self.stop.is_cancelled() {
                        return Err(StoreError::Stopped);
                    }
                    // Switching to WAL reports a busy database without waiting.
                    std::thread::sleep(Duration::from_millis(10));
                }
                result => return Ok(result?),
            }
        }
    }
}

#[cfg(test)]
mod tests;
