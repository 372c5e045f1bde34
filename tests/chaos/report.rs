//! The figures of a run.

use std::{collections::BTreeMap, fmt, time::Duration};

use crate::faults::Fault;

#[derive(Default)]
pub struct Report {
    faults: BTreeMap<&'static str, usize>,
    recoveries: BTreeMap<&'static str, Vec<Duration>>,
    pub jobs: usize,
    pub attempts: usize,
    pub cancelled: usize,
    pub stored: usize,
    pub events: usize,
    pub gaps: usize,
    pub reconnects: usize,
    pub acknowledged: usize,
}

impl Report {
    pub fn note(&mut self, fault: &Fault) {
        *self.faults.entry(fault.name()).or_default() += 1;
    }

    /// `took` passed from the fault until every job that was under way had shown its next event.
    pub fn recovered(&mut self, fault: Fault, took: Duration) {
        self.recoveries.entry(fault.name()).or_default().push(took);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| fault | times | recovery p50 | p99 |\n| --- | ---: | ---: | ---: |")?;
        for (name, times) in &self.faults {
            let mut took = self.recoveries.get(name).cloned().unwrap_or_default();
            took.sort_unstable();
            let at = |share: usize| {
                took.get(took.len().saturating_sub(1) * share / 100).copied().unwrap_or_default()
            };
            writeln!(
                f,
                "| {name} | {times} | {:.2} s | {:.2} s |",
                at(50).as_secs_f64(),
                at(99).as_secs_f64()
            )?;
        }
        let all: usize = self.faults.values().sum();
        writeln!(
            f,
            "{all} faults; {} jobs in {} attempts, {} of them cancelled; {} events stored, {} shown to viewers over {} \
             reconnects, {} gaps announced; {} acknowledged checkpoints, all stored; nothing lost",
            self.jobs,
            self.attempts,
            self.cancelled,
            self.stored,
            self.events,
            self.reconnects,
            self.gaps,
            self.acknowledged
        )
    }
}
