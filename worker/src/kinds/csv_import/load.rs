//! The blocking thread of an import: both passes over the file.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    path::PathBuf,
    time::{Instant, UNIX_EPOCH},
};

use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    Update,
    infer::{self, Guess},
    paths,
    records::{Place, Record, Records},
    sqlite::{Claim, Column, Mark, Owner, Source, Store},
};
use crate::{
    JobError, JobResult, Progress,
    kinds::{Pace, seconds},
};

/// A batch ends after so many records, or bytes of the file.
const BATCH_RECORDS: u64 = 2000;
const BATCH_BYTES: u64 = 4 * 1024 * 1024;
/// How many rejects are reported one by one; the rest is in the table of rejects and in the count.
const REPORTED_REJECTS: u64 = 100;
/// How much of a reject is kept, in bytes.
const SAMPLE: usize = 200;
/// What loading a byte costs, when inferring from one costs 1: a guess that makes the bar move evenly.
const LOAD_COST: f64 = 4.0;
/// The steps, as viewers see them.
const STEPS: [&str; 2] = ["infer", "load"];

/// What is to be done.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) file: PathBuf,
    pub(super) dirs: Vec<PathBuf>,
    pub(super) table: String,
    pub(super) database: PathBuf,
    pub(super) owner: Owner,
}

/// Imports the file; returns the job's result.
pub(super) fn run(plan: &Plan, tell: &mpsc::Sender<Update>, stop: &CancellationToken) -> JobResult {
    let (mut file, path) = paths::open(&plan.file, &plan.dirs)?;
    let source = source(&file)?;
    refuse_what_is_no_csv(&mut file)?;
    let mut store = Store::open(&plan.database, &plan.table, plan.owner.clone(), stop.clone())?;
    let mut import = Import { tell, stop, size: source.size.cast_unsigned(), pace: Pace::default() };
    let (columns, mark) = match store.claim()? {
        Claim::Done(mark) => return Ok(super::result(mark.rows, mark.rejected, &plan.table, &plan.database)),
        Claim::Begun { source: before, .. } if before != source => return Err(changed()),
        Claim::Begun { columns, mark, .. } => {
            import.say(Update::Info(format!(
                "Resuming after row {}, at line {}",
                mark.rows, mark.place.line
            )))?;
            (columns, mark)
        }
        Claim::Fresh => {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            import.say(Update::Info(format!("Reading {name}, {} bytes", source.size)))?;
            let (columns, begin) = import.infer(&file)?;
            let list: Vec<_> = columns.iter().map(|(name, kind)| format!("{name} {}", kind.sql())).collect();
            import.say(Update::Info(format!("Columns: {}", list.join(", "))))?;
            let mark = Mark { place: begin, rows: 0, rejected: 0 };
            store.create(&columns, source, mark)?;
            (columns, mark)
        }
    };
    store.prepare(&columns);
    let mark = import.load(&file, &store, columns.len(), mark, source)?;
    if mark.rejected > REPORTED_REJECTS {
        let Plan { table, .. } = plan;
        let text =
            format!("{} records were rejected; all of them are in the table {table}_rejects", mark.rejected);
        import.say(Update::Warn(text))?;
    }
    Ok(super::result(mark.rows, mark.rejected, &plan.table, &plan.database))
}

/// Both passes, and what they have in common.
struct Import<'a> {
    tell: &'a mpsc::Sender<Update>,
    stop: &'a CancellationToken,
    /// The file's size, in bytes.
    size: u64,
    pace: Pace,
}

impl Import<'_> {
    /// The first pass: the columns, and where the first record after the header begins.
    fn infer(&mut self, mut file: &File) -> Result<(Vec<Column>, Place), JobError> {
        file.rewind().map_err(io)?;
        let mut records = Records::new(file, Place::START);
        let names = match records.next().map_err(io)? {
            None => return Err(JobError::fatal("empty_file", "the file has no header line")),
            Some((_, Record::TooLong)) => {
                return Err(JobError::fatal("not_a_csv", "the header line is too long"));
            }
            Some((_, Record::Fields(header))) => match header.texts() {
                Ok(header) => infer::columns(&header),
                Err(_) => return Err(JobError::fatal("not_a_csv", "the header line is not UTF-8 text")),
            },
        };
        let begin = records.place();
        let mut guesses = vec![Guess::default(); names.len()];
        let (begun, mut rows) = (Instant::now(), 0);
        while let Some((_, record)) = records.next().map_err(io)? {
            self.look_up()?;
            // What the second pass will reject has no say.
            if let Record::Fields(fields) = record
                && fields.len() == names.len()
                && let Ok(values) = fields.texts()
            {
                rows += 1;
                for (guess, value) in guesses.iter_mut().zip(values) {
                    guess.see(value);
                }
            }
            if self.pace.is_due() {
                self.progress(1, records.place().offset, 0, rows, begun)?;
            }
        }
        Ok((names.into_iter().zip(guesses.iter().map(Guess::decide)).collect(), begin))
    }

    /// The second pass: batches of rows from `mark` to the end of the file.
    fn load(
        &mut self,
        mut file: &File,
        store: &Store,
        width: usize,
        mut mark: Mark,
        source_before: Source,
    ) -> Result<Mark, JobError> {
        file.seek(SeekFrom::Start(mark.place.offset)).map_err(io)?;
        let mut records = Records::new(file, mark.place);
        let (begun, from) = (Instant::now(), mark.place.offset);
        loop {
            store.begin()?;
            let batch = Batch::fill(self, &mut records, store, width, mark);
            let batch = match batch {
                // The file must still be the one whose types were inferred before its end counts as the end.
                Ok(batch) if batch.at_end && source(file)? != source_before => Err(changed()),
                other => other,
            };
            let batch = batch.inspect_err(|_| store.roll_back())?;
            store.commit(batch.mark, batch.at_end)?;
            mark = batch.mark;
            for warning in batch.warnings {
                self.say(Update::Warn(warning))?;
            }
            if self.pace.is_due() || batch.at_end {
                self.progress(2, mark.place.offset, from, mark.rows, begun)?;
            }
            let Mark { place, rows, rejected } = mark;
            let data =
                json!({"offset": place.offset, "line": place.line, "rows": rows, "rejected": rejected});
            self.say(Update::Checkpoint {
                name: format!("row {rows}"),
                data: data.to_string().into_bytes(),
            })?;
            if batch.at_end {
                return Ok(mark);
            }
        }
    }

    /// Reports how far step `step` is at `offset`, having begun at `from`.
    #[allow(clippy::cast_precision_loss, reason = "shares and rates are shown, not counted with")]
    fn progress(
        &mut self,
        step: u32,
        offset: u64,
        from: u64,
        rows: u64,
        begun: Instant,
    ) -> Result<(), JobError> {
        let (done, size) = (offset as f64, self.size.max(1) as f64);
        let rate = (offset - from) as f64 / begun.elapsed().as_secs_f64().max(0.001);
        let cost = if step == 1 { done } else { size + done * LOAD_COST };
        let left = if step == 1 { size - done + size * LOAD_COST } else { size - done };
        self.say(Update::Progress(Progress {
            percent: Some(100.0 * cost / (size * (1.0 + LOAD_COST))),
            done: Some(offset),
            total: Some(self.size),
            unit: "bytes".to_owned(),
            step: Some(step),
            steps: Some(2),
            step_name: STEPS[if step == 1 { 0 } else { 1 }].to_owned(),
            rate: Some(rate),
            eta: if rate > 0.0 { seconds(left / rate) } else { None },
            message: format!("{rows} rows {}", if step == 1 { "read" } else { "loaded" }),
        }))
    }

    fn say(&self, update: Update) -> Result<(), JobError> {
        // A closed channel means that nobody wants the import any more.
        self.tell.blocking_send(update).map_err(|_| JobError::Cancelled)
    }

    fn look_up(&self) -> Result<(), JobError> {
        if self.stop.is_cancelled() { Err(JobError::Cancelled) } else { Ok(()) }
    }
}

/// What one transaction holds.
struct Batch {
    mark: Mark,
    at_end: bool,
    warnings: Vec<String>,
}

impl Batch {
    /// Reads and writes a batch in the open transaction; commits nothing.
    fn fill(
        import: &Import<'_>,
        records: &mut Records<&File>,
        store: &Store,
        width: usize,
        mut mark: Mark,
    ) -> Result<Self, JobError> {
        let begin = mark.place.offset;
        let (mut warnings, mut count) = (Vec::new(), 0);
        loop {
            import.look_up()?;
            let Some((line, record)) = records.next().map_err(io)? else {
                mark.place = records.place();
                return Ok(Self { mark, at_end: true, warnings });
            };
            let reason = match &record {
                Record::TooLong => Some("longer than 1 MiB or 2,000 fields; an unclosed quote?".to_owned()),
                Record::Fields(fields) if fields.len() != width => {
                    Some(format!("{} fields instead of {width}", fields.len()))
                }
                Record::Fields(fields) => match fields.texts() {
                    Ok(values) if store.row(&values)? => None,
                    Ok(_) => return Err(changed()),
                    Err(field) => Some(format!("field {field} is not UTF-8 text")),
                },
            };
            match reason {
                None => mark.rows += 1,
                Some(reason) => {
                    let sample =
                        if let Record::Fields(f) = &record { f.sample(SAMPLE) } else { String::new() };
                    store.reject(line, &reason, &sample)?;
                    mark.rejected += 1;
                    if mark.rejected <= REPORTED_REJECTS {
                        warnings.push(format!("line {line} rejected: {reason}"));
                    }
                }
            }
            count += 1;
            mark.place = records.place();
            if count >= BATCH_RECORDS || mark.place.offset - begin >= BATCH_BYTES {
                return Ok(Self { mark, at_end: false, warnings });
            }
        }
    }
}

/// The first block tells text from the rest.
fn refuse_what_is_no_csv(file: &mut File) -> Result<(), JobError> {
    let mut block = Vec::new();
    file.take(8192).read_to_end(&mut block).map_err(io)?;
    if block.contains(&0) {
        return Err(JobError::fatal("not_a_csv", "the file is binary: it contains NUL bytes"));
    }
    let content = block.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&block);
    if content.is_empty() {
        return Err(JobError::fatal("empty_file", "the file is empty"));
    }
    Ok(())
}

fn source(file: &File) -> Result<Source, JobError> {
    let meta = file.metadata().map_err(io)?;
    let modified =
        meta.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    Ok(Source {
        size: i64::try_from(meta.len()).unwrap_or(i64::MAX),
        modified_ns: i64::try_from(modified.as_nanos()).unwrap_or(i64::MAX),
    })
}

fn changed() -> JobError {
    JobError::fatal(
        "input_changed",
        "the file was changed during the import; import it again into another table",
    )
}

// By value, as `map_err` hands it over.
#[allow(clippy::needless_pass_by_value)]
fn io(error: std::io::Error) -> JobError {
    JobError::retryable("io", format!("reading the file: {error}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rusqlite::{Connection, types::Value as Sql};

    use super::*;

    /// Imports `text` and returns the job's result.
    fn import(dir: &std::path::Path, text: &[u8]) -> JobResult {
        let dir = dir.canonicalize().unwrap();
        std::fs::write(dir.join("t.csv"), text).unwrap();
        let plan = Plan {
            file: "t.csv".into(),
            dirs: vec![dir.clone()],
            table: "t".into(),
            database: dir.join("t.db"),
            owner: Owner { job_id: "j".into(), attempt: 1, lease: "1-x".into() },
        };
        let (tell, mut heard) = mpsc::channel(8);
        let listener = std::thread::spawn(move || while heard.blocking_recv().is_some() {});
        let result = run(&plan, &tell, &CancellationToken::new());
        drop(tell);
        listener.join().unwrap();
        result
    }

    /// The texts that a stored value may have been: a whole number in a REAL column was written with or without `.0`.
    fn texts(value: &Sql) -> [String; 2] {
        match value {
            Sql::Null => [String::new(), String::new()],
            Sql::Integer(number) => [number.to_string(), number.to_string()],
            Sql::Real(number) => [number.to_string(), format!("{number:?}")],
            Sql::Text(text) => [text.clone(), text.clone()],
            Sql::Blob(_) => panic!("a blob"),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        /// Whatever the values are, SQLite gives back what the file says.
        #[test]
        fn no_value_is_lost_or_changed(
            rows in prop::collection::vec(
                prop::array::uniform3(prop_oneof!["[-+0-9.e ]{0,5}", "-?[1-9][0-9]{0,2}(\\.[0-9])?", "\\PC{0,4}", "0[0-9]{4}"]),
                0..12,
            ),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let mut file = csv::Writer::from_writer(Vec::new());
            for row in std::iter::once(&["a", "b", "c"].map(str::to_owned)).chain(&rows) {
                file.write_record(row).unwrap();
            }
            let result = import(dir.path(), &file.into_inner().unwrap()).unwrap();
            prop_assert_eq!(&result["rows"], &json!(rows.len()));
            let db = Connection::open(dir.path().join("t.db")).unwrap();
            let mut query = db.prepare("SELECT a, b, c FROM t ORDER BY rowid").unwrap();
            let mut stored = query.query([]).unwrap();
            for row in &rows {
                let found = stored.next().unwrap().unwrap();
                for (at, text) in row.iter().enumerate() {
                    let found = texts(&found.get(at).unwrap());
                    prop_assert!(found.contains(text), "{:?} became {:?}", text, found);
                }
            }
            prop_assert!(stored.next().unwrap().is_none());
        }
    }
}
