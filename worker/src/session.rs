//! The worker's side of `worker_service.proto`, as a pure state machine.
//!
//! A session holds the leases and, for each, the reports that the engine has not answered. Its invariants:
//! - reports of one lease are sent in order, numbered 1, 2, 3 … with no hole, and a number never changes its meaning;
//! - a report is kept until it is answered, and sent again on the next stream unless the engine has stored it;
//! - nothing is sent for a lease that is lost, and nothing after the report that ended the job.
//!
//! It does no I/O, has no clock and starts nothing: what is to be done comes back as [`Effect`]s. `T` is whatever the
//! caller wants back with the answer. How much may be queued is the caller's to bound.

use std::collections::{HashMap, VecDeque};

use prost::Message as _;
use tidegate_proto::v1::{self, ReportResult, report::Body};

use crate::context::Answer;

/// How many bytes of reports leave together, about: far below the largest message, which is 4 MiB.
const BATCH_BYTES: usize = 256 * 1024;

/// What the caller has to do.
#[derive(Debug, PartialEq)]
pub(crate) enum Effect<T> {
    /// A report was answered, or never will be.
    Answered { tag: T, answer: Answer },
    /// Tell the job to stop.
    Cancel { job_id: String, request: v1::CancelRequested },
    /// Abort the job; it belongs to somebody else.
    Lost { job_id: String, reason: String },
    /// The engine knows that the job has ended: the lease is gone.
    Ended { job_id: String },
}

/// The leases and their unanswered reports.
#[derive(Debug)]
pub(crate) struct Session<T> {
    leases: HashMap<String, Lease<T>>,
    /// The jobs that have something to send, each once, served in turn.
    ready: VecDeque<String>,
    /// Whether a stream is up.
    online: bool,
    /// Whether progress that was not sent yet gives way to newer progress.
    coalesce: bool,
}

#[derive(Debug)]
struct Lease<T> {
    token: String,
    /// The number that the next report takes when it is first sent.
    next: u64,
    /// Unanswered reports, oldest first.
    queue: VecDeque<Entry<T>>,
    /// How many entries at the front of `queue` were sent on the present stream.
    sent: usize,
    /// Whether the report that ends the job is queued: nothing may follow.
    ending: bool,
    /// Whether the job is in `ready`.
    is_ready: bool,
}

#[derive(Debug)]
struct Entry<T> {
    /// 0 until the report is first sent; then it may not be changed or dropped.
    number: u64,
    body: Body,
    /// None for a report that the session itself made.
    tag: Option<T>,
}

impl<T> Session<T> {
    /// A session without leases, offline. Without `coalesce` every progress report is sent.
    pub(crate) fn new(coalesce: bool) -> Self {
        Self { leases: HashMap::new(), ready: VecDeque::new(), online: false, coalesce }
    }

    /// Takes a lease, unless it is held already. One on the same job with another token is lost by that.
    pub(crate) fn assign(&mut self, job_id: &str, token: &str) -> Option<Vec<Effect<T>>> {
        let effects = match self.leases.get(job_id) {
            Some(lease) if lease.token == token => return None,
            Some(_) => self.drop_lease(job_id, "the job was assigned anew"),
            None => Vec::new(),
        };
        let lease = Lease {
            token: token.to_owned(),
            next: 1,
            queue: VecDeque::new(),
            sent: 0,
            ending: false,
            is_ready: false,
        };
        self.leases.insert(job_id.to_owned(), lease);
        Some(effects)
    }

    /// Queues a report.
    ///
    /// Returns the tag of a progress report that this one supersedes, or gives the own tag back as the error when the
    /// lease is gone or the job has already ended.
    pub(crate) fn push(
        &mut self,
        job_id: &str,
        token: &str,
        body: Body,
        tag: Option<T>,
    ) -> Result<Option<T>, Option<T>> {
        let Some(lease) = self.leases.get_mut(job_id).filter(|l| l.token == token && !l.ending) else {
            return Err(tag);
        };
        let mut superseded = None;
        if self.coalesce && matches!(body, Body::Progress(_)) {
            // Only log lines may be overtaken: a checkpoint must not be stored before the progress that led to it.
            let unsent = lease.queue.iter().enumerate().rev().take_while(|(_, e)| e.number == 0);
            let mut before = unsent.skip_while(|(_, e)| matches!(e.body, Body::Log(_)));
            if let Some((at, Entry { body: Body::Progress(_), .. })) = before.next() {
                superseded = lease.queue.remove(at).and_then(|e| e.tag);
            }
        }
        lease.ending = is_ending(&body);
        lease.queue.push_back(Entry { number: 0, body, tag });
        self.mark_ready(job_id);
        Ok(superseded)
    }

    /// Whether [`Session::next_reports`] has something to give.
    pub(crate) fn has_unsent(&self) -> bool {
        self.online && !self.ready.is_empty()
    }

    /// The next reports to send together: at most `most`, no more after the one that makes them [`BATCH_BYTES`]. Jobs take
    /// turns, and one whose turn it is gives all it has.
    pub(crate) fn next_reports(&mut self, most: usize) -> Vec<v1::Report> {
        let (mut reports, mut bytes) = (Vec::new(), 0);
        while self.online && reports.len() < most && bytes < BATCH_BYTES {
            let Some(job_id) = self.ready.pop_front() else { break };
            let Some(lease) = self.leases.get_mut(&job_id) else { continue };
            lease.is_ready = false;
            while reports.len() < most && bytes < BATCH_BYTES {
                let Some(entry) = lease.queue.get_mut(lease.sent) else { break };
                if entry.number == 0 {
                    entry.number = lease.next;
                    lease.next += 1;
                }
                lease.sent += 1;
                let report = v1::Report {
                    job_id: job_id.clone(),
                    lease_token: lease.token.clone(),
                    number: entry.number,
                    body: Some(entry.body.clone()),
                };
                bytes += report.encoded_len();
                reports.push(report);
            }
            self.mark_ready(&job_id);
        }
        reports
    }

    /// The leases to name in a Hello.
    pub(crate) fn held(&self) -> Vec<v1::HeldLease> {
        let held = |(job_id, lease): (&String, &Lease<T>)| v1::HeldLease {
            job_id: job_id.clone(),
            lease_token: lease.token.clone(),
        };
        self.leases.iter().map(held).collect()
    }

    /// Whether no lease is held, so that every ended job is known to the engine to have ended.
    pub(crate) fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    #[cfg(test)]
    fn next_report(&mut self) -> Option<v1::Report> {
        self.next_reports(1).pop()
    }

    /// Whether the lease on `job_id` still waits for the job to end.
    #[cfg(test)]
    fn queued(&self, job_id: &str) -> usize {
        self.leases.get(job_id).map_or(0, |l| l.queue.len())
    }

    /// The stream broke: everything unanswered will be sent again.
    pub(crate) fn disconnected(&mut self) {
        self.online = false;
        self.ready.clear();
        for lease in self.leases.values_mut() {
            lease.sent = 0;
            lease.is_ready = false;
        }
    }

    /// A new stream is up, and the engine has answered the Hello that named [`Session::held`].
    pub(crate) fn welcomed(
        &mut self,
        resumed: Vec<v1::ResumedLease>,
        lost: &[v1::LeaseLost],
    ) -> Vec<Effect<T>> {
        let mut effects = Vec::new();
        self.online = true;
        for gone in lost {
            effects.extend(self.lost(gone));
        }
        // A lease of which the engine says nothing is unknown to it.
        let forgotten: Vec<_> =
            self.leases.keys().filter(|id| !resumed.iter().any(|r| r.job_id == **id)).cloned().collect();
        for job_id in forgotten {
            effects.extend(self.drop_lease(&job_id, "the engine does not know the lease"));
        }
        for resumed in resumed {
            let Some(lease) = self.leases.get_mut(&resumed.job_id) else { continue };
            lease.sent = 0;
            let mut ended = false;
            let stored = |e: &Entry<T>| e.number != 0 && e.number <= resumed.last_report;
            while lease.queue.front().is_some_and(stored) {
                let Some(entry) = lease.queue.pop_front() else { break };
                ended |= is_ending(&entry.body);
                effects.extend(entry.tag.map(|tag| Effect::Answered { tag, answer: Answer::Stored }));
            }
            if ended {
                self.leases.remove(&resumed.job_id);
                effects.push(Effect::Ended { job_id: resumed.job_id });
                continue;
            }
            if let Some(request) = resumed.cancel_requested {
                effects.push(Effect::Cancel { job_id: resumed.job_id.clone(), request });
            }
            self.mark_ready(&resumed.job_id);
        }
        effects
    }

    /// The engine answered a report.
    pub(crate) fn acked(&mut self, ack: v1::ReportAck) -> Vec<Effect<T>> {
        let v1::ReportAck { job_id, number, result, seq, deadline, message, lease_token } = ack;
        let Some(lease) = self.leases.get_mut(&job_id).filter(|l| l.token == lease_token) else {
            return Vec::new();
        };
        let result = ReportResult::try_from(result).unwrap_or(ReportResult::Unspecified);
        if result == ReportResult::LeaseLost {
            return self.drop_lease(&job_id, "a later attempt has taken over");
        }
        let Some(at) = lease.queue.iter().take(lease.sent).position(|e| e.number == number) else {
            return Vec::new();
        };
        let Some(entry) = lease.queue.remove(at) else { return Vec::new() };
        lease.sent -= 1;
        let ending = is_ending(&entry.body);
        let mut effects = Vec::new();
        let (answer, successor) = match result {
            ReportResult::Rejected => {
                let fail = v1::Failed {
                    code: "result_too_large".into(),
                    message: message.clone(),
                    retryable: false,
                };
                let successor = matches!(entry.body, Body::Complete(_)).then_some(Body::Fail(fail));
                (Answer::Rejected(message), successor)
            }
            ReportResult::Cancelled => {
                let request = v1::CancelRequested { deadline, ..Default::default() };
                effects.push(Effect::Cancel { job_id: job_id.clone(), request });
                // The order to stop does not say that the report itself is lost: its event number does.
                let obeyed = seq != 0 || matches!(entry.body, Body::Stopped(_));
                let successor = (ending && !obeyed).then_some(Body::Stopped(v1::Stopped {}));
                (if seq == 0 { Answer::Gone } else { Answer::Stored }, successor)
            }
            // An answer that a newer engine may have: the report was answered, and nothing speaks against it.
            ReportResult::Ok | ReportResult::Unspecified | ReportResult::LeaseLost => (Answer::Stored, None),
        };
        effects.extend(entry.tag.map(|tag| Effect::Answered { tag, answer }));
        match successor {
            Some(body) => {
                lease.queue.push_back(Entry { number: 0, body, tag: None });
                self.mark_ready(&job_id);
            }
            None if ending => {
                self.leases.remove(&job_id);
                effects.push(Effect::Ended { job_id });
            }
            None => {}
        }
        effects
    }

    /// The engine wants a job called off.
    pub(crate) fn cancel(&self, order: v1::CancelOrder) -> Vec<Effect<T>> {
        let held = self.leases.get(&order.job_id).is_some_and(|l| l.token == order.lease_token);
        let request = order.request.unwrap_or_default();
        if held { vec![Effect::Cancel { job_id: order.job_id, request }] } else { Vec::new() }
    }

    /// The engine took a lease away.
    pub(crate) fn lost(&mut self, lost: &v1::LeaseLost) -> Vec<Effect<T>> {
        let held = self.leases.get(&lost.job_id).is_some_and(|l| l.token == lost.lease_token);
        if held { self.drop_lease(&lost.job_id, &lost.reason) } else { Vec::new() }
    }

    fn drop_lease(&mut self, job_id: &str, reason: &str) -> Vec<Effect<T>> {
        let Some(lease) = self.leases.remove(job_id) else { return Vec::new() };
        self.ready.retain(|id| id != job_id);
        let gone = |tag| Effect::Answered { tag, answer: Answer::Gone };
        let mut effects: Vec<_> = lease.queue.into_iter().filter_map(|e| e.tag).map(gone).collect();
        effects.push(Effect::Lost { job_id: job_id.to_owned(), reason: reason.to_owned() });
        effects
    }

    fn mark_ready(&mut self, job_id: &str) {
        let Some(lease) = self.leases.get_mut(job_id) else { return };
        if self.online && !lease.is_ready && lease.sent < lease.queue.len() {
            lease.is_ready = true;
            self.ready.push_back(job_id.to_owned());
        }
    }
}

/// Whether a report ends its job and frees the slot.
fn is_ending(body: &Body) -> bool {
    matches!(body, Body::Complete(_) | Body::Fail(_) | Body::Stopped(_) | Body::Released(_))
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
