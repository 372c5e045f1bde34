//! A job whose log has lost its end, or all of it, goes on from what an engine still has in memory.
//!
//! The log goes on under another epoch, so that no cursor into what was lost is taken for one into what follows, and
//! begins with a line that says so. Whose view of the job wins is decided here: the memory's, as long as the stored
//! job may be an earlier state of it; else the stored one's, because somebody has gone on from there.

use std::time::Duration;

use tidegate_proto::v1::{JobState, LogLevel};

use super::{Draft, Rules, millis};
use crate::{
    job::{JobRecord, index, log_ring::LogRing},
    store::{Expect, Head, IndexChange},
};

impl<'r> Draft<'r> {
    /// The job `memory`, which a worker holds, after a loss. `stored`: what is left of it, if anything is. `epoch`: a fresh one.
    pub fn after_loss(
        memory: JobRecord,
        stored: Option<(JobRecord, Head)>,
        epoch: String,
        rules: &'r Rules,
        now_ms: u64,
    ) -> Self {
        let now_ms = now_ms.max(memory.job.updated_at.map_or(0, millis));
        let (events, index) = (Vec::new(), Vec::new());
        let known = memory.job.last_seq;
        let (mut record, expect, stale, text) = match stored {
            None => {
                let mut record = memory;
                (record.job.last_seq, record.job.first_seq, record.ring) = (0, 1, LogRing::default());
                let text =
                    format!("the log of this job was lost, {known} events; the job goes on without them");
                let fixed = record.job.input_json.clone().into();
                (record, Expect::Absent { epoch: epoch.clone(), fixed }, None, text)
            }
            Some((stored, head)) => {
                let text = match known.saturating_sub(head.seq) {
                    0 => "the end of this job's log was lost, and others took its place".to_owned(),
                    n => format!(
                        "the last {n} events of this job's log were lost; the job goes on without them"
                    ),
                };
                let expect = Expect::Lost { at: head, epoch: epoch.clone() };
                if continues(&memory, &stored) {
                    let mut record = memory;
                    record.job.last_seq = stored.job.last_seq;
                    record.job.first_seq = stored.job.first_seq;
                    record.ring = stored.ring.clone();
                    (record, expect, Some(stored), text)
                } else {
                    (stored, expect, None, text)
                }
            }
        };
        record.job.epoch = epoch;
        let restored = matches!(expect, Expect::Absent { .. });
        let first_seq = record.job.first_seq;
        let mut draft = Draft { record, rules, now_ms, expect, first_seq, events, index };
        if restored {
            draft.list();
        }
        if let Some(stale) = &stale {
            draft.leave(stale);
        }
        if restored || stale.is_some() {
            draft.be_leased();
        }
        draft.note(LogLevel::Warn, text);
        let seq = draft.record.job.last_seq;
        if let Some(lease) = &mut draft.record.lease {
            // The event that the last report became has another number now, or none.
            lease.last_report_seq = lease.last_report_seq.min(seq);
        }
        draft
    }

    /// Takes the job out of where its stored state has it.
    fn leave(&mut self, stored: &JobRecord) {
        let id = stored.job.job_id.clone();
        match stored.state() {
            JobState::Queued => {
                self.index.push(IndexChange::Dequeue { place: self.place() });
                // Nothing that waits may be let in now. So the key's limit is exceeded by jobs that go on from memory.
                self.leave_gate();
            }
            JobState::Scheduled => self.remove(index::SCHEDULED, id),
            _ => {
                self.remove(index::LEASES, stored.lease_member());
                if self.time_left().is_some() {
                    self.remove(index::ATTEMPTS, stored.lease_member());
                }
            }
        }
    }

    /// Puts the job where the sweeper looks for jobs that a worker holds.
    fn be_leased(&mut self) {
        self.put(index::LEASES, self.record.lease_member(), self.rules.lease);
        if let Some(request) = &self.record.job.cancel_requested {
            let due = request.deadline.map_or(0, millis).saturating_sub(self.now_ms);
            self.put(index::CANCELS, self.record.job.job_id.clone(), Duration::from_millis(due));
        } else if let Some((left, _)) = self.time_left() {
            self.put(index::ATTEMPTS, self.record.lease_member(), left);
        }
    }
}

/// Whether `stored` may be an earlier state of `memory`, as far as leases tell.
fn continues(memory: &JobRecord, stored: &JobRecord) -> bool {
    let token = |record: &JobRecord| record.lease.as_ref().map(|lease| lease.token.clone());
    let same_lease = token(memory) == token(stored)
        && stored.lease.as_ref().is_none_or(|lease| !lease.ended || memory.lease == stored.lease);
    !stored.state().is_terminal() && (same_lease || stored.job.attempt < memory.job.attempt)
}

#[cfg(test)]
mod tests {
    use tidegate_proto::v1::{JobOptions, Log, report::Body};

    use super::*;
    use crate::job::machine::NewJob;

    fn rules() -> Rules {
        Rules::default()
    }

    fn submitted(rules: &Rules) -> JobRecord {
        let new = NewJob {
            job_id: "id".into(),
            epoch: "old".into(),
            kind: "demo".into(),
            tenant: "default".into(),
            owner: "me".into(),
            input_json: "{}".into(),
            options: JobOptions::default(),
        };
        Draft::submit(new, rules, 1).record
    }

    fn at(record: &JobRecord) -> Head {
        Head { seq: record.job.last_seq, epoch: "old".into() }
    }

    fn then(record: &JobRecord, rules: &Rules, command: impl FnOnce(&mut Draft<'_>)) -> JobRecord {
        let mut draft = Draft::of(record.clone(), at(record), rules, 2);
        command(&mut draft);
        draft.record
    }

    fn assigned(record: &JobRecord, rules: &Rules, nonce: &str) -> JobRecord {
        then(record, rules, |d| d.assign("worker", nonce).expect("queued"))
    }

    fn said(record: &JobRecord, rules: &Rules) -> JobRecord {
        let token = record.lease.as_ref().expect("a lease").token.clone();
        let n = record.lease.as_ref().expect("a lease").last_report + 1;
        let body = Body::Log(Log { text: "x".into(), ..Log::default() });
        then(record, rules, |d| drop(d.report(&token, n, &body, 1.0).expect("a report")))
    }

    #[test]
    fn j23_memory_goes_on_behind_a_log_that_lost_its_end() {
        let rules = rules();
        let queued = submitted(&rules);
        let running = assigned(&queued, &rules, "n");
        let memory = said(&said(&running, &rules), &rules);
        for stored in [&queued, &running] {
            let left = Some((stored.clone(), at(stored)));
            let draft = Draft::after_loss(memory.clone(), left, "new".into(), &rules, 3);
            let commit = draft.commit();
            assert_eq!(commit.expect, Expect::Lost { at: at(stored), epoch: "new".into() });
            let job = &draft.record.job;
            assert_eq!((job.last_seq, job.epoch.as_str()), (stored.job.last_seq + 1, "new"));
            assert_eq!(draft.record.lease.as_ref().map(|l| l.last_report), Some(2));
            assert_eq!(draft.record.state(), JobState::Processing);
            let leased =
                |c: &IndexChange| matches!(c, IndexChange::Put { index, .. } if index == index::LEASES);
            assert!(commit.index.iter().any(leased), "{:?}", commit.index);
        }
        let left = Some((queued.clone(), at(&queued)));
        let commit = Draft::after_loss(memory, left, "new".into(), &rules, 3).commit();
        let gone = |c: &IndexChange| matches!(c, IndexChange::Dequeue { place } if place.queue == index::queue("demo"));
        assert!(commit.index.iter().any(gone), "it is not queued any more: {:?}", commit.index);
    }

    #[test]
    fn j23_who_was_granted_the_attempt_meanwhile_keeps_it() {
        let rules = rules();
        let queued = submitted(&rules);
        let memory = said(&assigned(&queued, &rules, "mine"), &rules);
        let stored = assigned(&queued, &rules, "theirs");
        let cancelled = then(&queued, &rules, |d| d.cancel("me", "").expect("queued"));
        for stored in [stored, cancelled] {
            let left = Some((stored.clone(), at(&stored)));
            let draft = Draft::after_loss(memory.clone(), left, "new".into(), &rules, 3);
            assert_eq!(draft.record.lease, stored.lease);
            assert_eq!(draft.record.state(), stored.state());
            assert_eq!(draft.record.job.epoch, "new", "nobody takes their events for mine");
            assert_eq!(draft.commit().index, []);
        }
    }

    #[test]
    fn j24_a_job_that_is_gone_is_made_again() {
        let rules = rules();
        let memory = said(&assigned(&submitted(&rules), &rules, "n"), &rules);
        let mut timed = memory.clone();
        let options = timed.job.options.get_or_insert_default();
        options.timeout = Some(prost_types::Duration { seconds: 60, nanos: 0 });
        let commit = Draft::after_loss(timed, None, "new".into(), &rules, 3).commit();
        let ends = |c: &IndexChange| matches!(c, IndexChange::Put { index, .. } if index == index::ATTEMPTS);
        assert!(commit.index.iter().any(ends), "its timeout still ends it: {:?}", commit.index);
        let draft = Draft::after_loss(memory, None, "new".into(), &rules, 3);
        let commit = draft.commit();
        assert_eq!(commit.expect, Expect::Absent { epoch: "new".into(), fixed: "{}".into() });
        assert_eq!((draft.record.job.last_seq, draft.record.job.first_seq, commit.events.len()), (1, 1, 1));
        assert_eq!(commit.index.len(), 4, "{:?}", commit.index);
    }
}
