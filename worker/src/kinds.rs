//! The built-in kinds of job.
//!
//! `demo` and `csv-import` are always offered; every `[[exec]]` table of the configuration adds a kind of its own.

pub mod csv_import;
pub mod demo;
pub mod exec;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tidegate_proto::v1;

use crate::JobHandler;

/// What the built-in kinds need to know.
#[derive(Clone, Debug, Default)]
pub struct KindSettings {
    /// The directories below which `csv-import` may read; none means that every path is refused.
    pub import_dirs: Vec<PathBuf>,
    /// The directory that holds the databases of `csv-import`; made when needed.
    pub data_dir: PathBuf,
    /// The commands that may be run, each under a kind of its own.
    pub exec: Vec<exec::ExecConfig>,
}

/// The handlers of the built-in kinds.
///
/// # Errors
/// Everything that is wrong with the settings, each in one sentence.
pub fn builtin(settings: &KindSettings) -> Result<Vec<Arc<dyn JobHandler>>, Vec<String>> {
    let mut errors = Vec::new();
    let mut handlers: Vec<Arc<dyn JobHandler>> = vec![Arc::new(demo::Demo)];
    match csv_import::CsvImport::new(&settings.import_dirs, settings.data_dir.clone()) {
        Ok(handler) => handlers.push(Arc::new(handler)),
        Err(found) => errors.extend(found),
    }
    for config in &settings.exec {
        match exec::Exec::new(config.clone()) {
            Ok(handler) => handlers.push(Arc::new(handler)),
            Err(found) => errors.extend(found),
        }
    }
    if errors.is_empty() { Ok(handlers) } else { Err(errors) }
}

/// The least time between two progress reports of one job: more are not seen.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// Lets a progress report pass every [`PROGRESS_EVERY`].
#[derive(Debug, Default)]
struct Pace {
    last: Option<Instant>,
}

impl Pace {
    fn is_due(&mut self) -> bool {
        let due = self.last.is_none_or(|last| last.elapsed() >= PROGRESS_EVERY);
        if due {
            self.last = Some(Instant::now());
        }
        due
    }
}

/// A time in seconds as the contract's duration; none for what is no time.
#[allow(clippy::cast_possible_truncation, reason = "checked to lie within a year")]
fn seconds(seconds: f64) -> Option<prost_types::Duration> {
    let plausible = (0.0..=31_536_000.0).contains(&seconds);
    plausible
        .then(|| prost_types::Duration { seconds: seconds as i64, nanos: (seconds.fract() * 1e9) as i32 })
}

/// Progress that is nothing but a message and a share.
fn share(percent: Option<f64>, message: String) -> v1::Progress {
    v1::Progress { percent, message, ..Default::default() }
}
