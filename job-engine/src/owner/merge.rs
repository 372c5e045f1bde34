//! Merges progress reports: those closer together than an interval become one event.
//!
//! Invariants: reports keep their order; the last value always stands before whatever follows it; what waits is bounded,
//! in number and in time. It answers nothing: whoever is merged gets the answer of the report that stands for it.

use std::time::Duration;

use tidegate_proto::v1::{Report, report::Body};
use tokio::time::Instant;

/// How many progress reports may wait, together with those that come.
const HELD: usize = 64;

/// The progress reports of one job.
pub(super) struct Merge {
    /// Zero merges nothing.
    interval: Duration,
    /// Progress reports that wait to be merged with what follows them.
    held: Vec<Report>,
    /// When progress may be committed again.
    next: Instant,
}

impl Merge {
    pub(super) fn new(interval: Duration) -> Self {
        Self { interval, held: Vec::new(), next: Instant::now() }
    }

    /// What is to be committed now that `batch` has come; `flush` also takes the progress that would rather wait.
    pub(super) fn take(&mut self, batch: Vec<Report>, flush: bool) -> Vec<Report> {
        let mut reports = std::mem::take(&mut self.held);
        reports.extend(batch);
        let now = Instant::now();
        if !self.interval.is_zero() && !flush && now < self.next && reports.len() < HELD {
            let waits = reports.iter().rev().take_while(|report| is_progress(report)).count();
            self.held = reports.split_off(reports.len() - waits);
        }
        if reports.last().is_some_and(is_progress) {
            self.next = now + self.interval;
        }
        reports
    }

    /// Until what waits is due; for ever if nothing does.
    pub(super) async fn due(&self) {
        if self.held.is_empty() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep_until(self.next).await;
    }

    /// The reports in runs that become one event each: that of the last report, which stands for all of its run; and
    /// how many the run has.
    pub(super) fn runs<'a>(&self, reports: &'a [Report]) -> impl Iterator<Item = (&'a Report, usize)> {
        let merges = !self.interval.is_zero();
        let runs = reports.chunk_by(move |a, b| merges && is_progress(a) && is_progress(b));
        runs.filter_map(|run| Some((run.last()?, run.len())))
    }
}

fn is_progress(report: &Report) -> bool {
    matches!(report.body, Some(Body::Progress(_)))
}

#[cfg(test)]
mod tests {
    use tidegate_proto::v1::{Log, Progress};

    use super::*;

    fn report(number: u64, body: Body) -> Report {
        Report { number, body: Some(body), ..Report::default() }
    }

    fn progress(number: u64) -> Report {
        report(number, Body::Progress(Progress::default()))
    }

    fn log(number: u64) -> Report {
        report(number, Body::Log(Log::default()))
    }

    fn numbers(reports: &[Report]) -> Vec<u64> {
        reports.iter().map(|report| report.number).collect()
    }

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn progress_waits_for_its_interval_and_goes_before_what_follows_it() {
        let mut merge = Merge::new(HOUR);
        assert_eq!(numbers(&merge.take(vec![progress(1)], false)), [1], "the first one waits for nothing");
        assert!(merge.take(vec![progress(2)], false).is_empty());
        assert!(merge.take(vec![progress(3)], false).is_empty());
        assert_eq!(numbers(&merge.take(vec![log(4), progress(5)], false)), [2, 3, 4]);
        assert_eq!(numbers(&merge.take(Vec::new(), true)), [5]);
        assert!(merge.take(Vec::new(), true).is_empty());
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut merge = Merge::new(HOUR);
        merge.take(vec![progress(0)], false);
        let taken: Vec<_> = (1..=200).map(|n| merge.take(vec![progress(n)], false).len()).collect();
        assert!(taken.iter().all(|count| *count == 0 || *count == HELD), "{taken:?}");
        assert_eq!(taken.iter().sum::<usize>(), 3 * HELD);
    }

    #[test]
    fn only_neighbours_become_one() {
        let reports = [progress(1), progress(2), log(3), log(4), progress(5)];
        let runs = |merge: &Merge| -> Vec<_> {
            merge.runs(&reports).map(|(last, count)| (last.number, count)).collect()
        };
        assert_eq!(runs(&Merge::new(HOUR)), [(2, 2), (3, 1), (4, 1), (5, 1)]);
        assert_eq!(runs(&Merge::new(Duration::ZERO)), [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1)]);
    }

    #[tokio::test]
    async fn nothing_is_due_while_nothing_waits() {
        let mut merge = Merge::new(Duration::from_millis(1));
        merge.take(vec![progress(1)], false);
        assert!(tokio::time::timeout(Duration::from_millis(20), merge.due()).await.is_err());
        merge.interval = HOUR;
        merge.next = Instant::now() + Duration::from_millis(1);
        assert!(merge.take(vec![progress(2)], false).is_empty());
        tokio::time::timeout(Duration::from_secs(30), merge.due()).await.unwrap();
    }
}
