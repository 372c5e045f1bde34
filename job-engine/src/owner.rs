//! The task that owns one leased job: it turns a worker's reports into commits.
//!
//! It keeps the job in memory, so a report costs one round trip to the store, and it commits everything that piled up
//! meanwhile at once. When somebody else changed the job (a cancellation from another engine, the sweeper), the commit
//! conflicts, and the same reports are tried on what is there now: the state machine decides, not the order of arrival.
//!
//! Invariant: a report is answered only after its commit, and after that survives what the engine is set up to survive.
//! While the store is away reports wait, unanswered. When the store has lost events of the job, the owner's memory of it
//! goes on ([`Draft::after_loss`]), under a fresh epoch, unless somebody else has been given the job meanwhile.
//! Which progress reports become one event is said in [`merge`].

mod merge;

use std::{sync::Arc, time::Duration};

use tidegate_proto::v1::{
    CancelOrder, LeaseLost, Report, ReportAck, ReportAcks, ReportResult, WorkResponse, work_response::Message,
};
use tidegate_telemetry::trace;
use tokio::sync::mpsc;
use tracing::{Instrument as _, Span};

use self::merge::Merge;
use crate::{
    engine::{Engine, new_epoch},
    follow::Follow,
    job::{
        JobRecord,
        machine::{Draft, Refusal, Reported},
    },
    metrics::Metrics,
    registry::Slot,
    session::Assigned,
    store::{CommitOutcome, Head, Snapshot, StoreError},
};

/// A commit takes no more letters when it has this many reports.
const BATCH: usize = 128;
/// How many letters may wait for their owner.
const MAILBOX: usize = 64;

/// A leased job in the hands of this engine.
pub struct Owner {
    engine: Arc<Engine>,
    /// Without its input.
    record: JobRecord,
    /// The job's input, in case it has to be stored again.
    input: String,
    head: Head,
    /// Of the store, when the job was last known to be there.
    generation: u64,
    token: String,
    follow: Follow,
    outbox: mpsc::Sender<WorkResponse>,
    /// Frees the worker's slot with the owner.
    _slot: Slot,
    told_cancel: bool,
    merge: Merge,
}

/// How reports reach an owner: those that came together, in their order, at least one.
pub type Mailbox = mpsc::Sender<Vec<Report>>;

/// Why an owner ends.
enum End {
    /// The lease ended by the worker's own report.
    Done,
    /// The lease is somebody else's.
    Lost(&'static str),
    /// The session is gone; the lease lives on.
    SessionGone,
}

impl Owner {
    /// Starts the owner of a job that a worker of this engine holds. `follow` began before the job was loaded, so that
    /// nothing that happened since goes unheard.
    pub fn spawn(
        engine: Arc<Engine>,
        (mut record, head, slot, follow): Assigned,
        outbox: mpsc::Sender<WorkResponse>,
    ) -> Mailbox {
        let (mailbox, letters) = mpsc::channel(MAILBOX);
        // Without it the record is small, whatever is done with it.
        let input = std::mem::take(&mut record.job.input_json);
        let token = record.lease.as_ref().map(|l| l.token.clone()).unwrap_or_default();
        let owner = Owner {
            generation: engine.store.generation(),
            merge: Merge::new(engine.progress_interval),
            engine,
            input,
            head,
            token,
            follow,
            outbox,
            _slot: slot,
            // Whoever attaches an owner tells the worker of a cancellation that is already known.
            told_cancel: record.job.cancel_requested.is_some(),
            record,
        };
        owner.engine.tasks.clone().spawn(owner.run(letters));
        mailbox
    }

    async fn run(mut self, mut letters: mpsc::Receiver<Vec<Report>>) {
        let end = loop {
            let after = self.head.seq;
            let turn = tokio::select! {
                letter = letters.recv() => match letter {
                    Some(mut reports) => {
                        while reports.len() < BATCH && let Ok(letter) = letters.try_recv() {
                            reports.extend(letter);
                        }
                        self.take(reports, false).await
                    }
                    None => self.take(Vec::new(), true).await.and(Err(End::SessionGone)),
                },
                () = self.follow.changed(after) => self.look().await,
                () = self.merge.due() => self.take(Vec::new(), true).await,
            };
            if let Err(end) = turn {
                break end;
            }
        };
        if let End::Lost(reason) = end {
            let job_id = self.record.job.job_id.clone();
            let lost = LeaseLost { job_id, lease_token: self.token.clone(), reason: reason.into() };
            self.say(Message::LeaseLost(lost)).await;
        }
        // Whatever else the worker has sent came too late. The session notices that the mailbox is closed.
        letters.close();
        while let Some(reports) = letters.recv().await {
            self.answer(reports.into_iter().map(|report| (report, Err(Refusal::LeaseLost)))).await;
        }
    }

    /// Takes reports in; `flush` also takes the progress that would rather wait.
    async fn take(&mut self, batch: Vec<Report>, flush: bool) -> Result<(), End> {
        let reports = self.merge.take(batch, flush);
        if reports.is_empty() { Ok(()) } else { self.settle(reports).await }
    }

    /// Commits reports and answers them.
    async fn settle(&mut self, reports: Vec<Report>) -> Result<(), End> {
        let engine = self.engine.clone();
        let jitter = rand::random_range(0.5..=1.0);
        let answers = loop {
            let mut draft =
                Draft::of(self.record.clone(), self.head.clone(), &engine.rules, engine.store.now_ms());
            let mut answers: Vec<Result<Reported, Refusal>> = Vec::with_capacity(reports.len());
            for (report, count) in self.merge.runs(&reports) {
                let answer = match &report.body {
                    Some(body) => draft.report(&report.lease_token, report.number, body, jitter),
                    None => Err(Refusal::Rejected("a report needs a body".into())),
                };
                answers.extend(std::iter::repeat_n(answer, count));
            }
            if draft.is_empty() {
                break answers;
            }
            // Only what ends the attempt: a span for every report would cost more than it tells.
            let span = match draft.record.lease.as_ref().is_some_and(|lease| lease.ended) {
                true => tracing::info_span!(target: trace::TARGET, "conclude", job = draft.record.job.job_id),
                false => Span::none(),
            };
            let span = trace::child_of(span, &draft.record.traceparent);
            match engine.store.commit(draft.commit()).instrument(span).await {
                Ok(CommitOutcome::Committed(head)) => {
                    self.record = draft.record;
                    self.head = head;
                    break answers;
                }
                Ok(CommitOutcome::Conflict(now)) => self.accept(now).await?,
                Err(error) => self.wait_for_store(&error).await?,
            }
        };
        if answers.iter().any(Result::is_ok) {
            self.confirm().await?;
        }
        let by_report = answers.iter().any(Result::is_ok);
        self.answer(reports.into_iter().zip(answers)).await;
        self.judge(by_report).await
    }

    /// Reads the job again, because somebody else may have changed it.
    async fn look(&mut self) -> Result<(), End> {
        match self.engine.store.load(vec![self.record.job.job_id.clone()]).await {
            Ok(mut found) => match found.pop().flatten() {
                Some(now) if now.head == self.head => Ok(()),
                now => {
                    self.accept(now).await?;
                    self.judge(false).await
                }
            },
            Err(error) => {
                tracing::debug!(%error, "cannot look at a leased job");
                Ok(())
            }
        }
    }

    /// Takes over the job as it is stored now, unless what is stored can only be explained by a loss: then the memory
    /// of the job is stored.
    async fn accept(&mut self, mut now: Option<Snapshot>) -> Result<(), End> {
        let engine = self.engine.clone();
        loop {
            let generation = engine.store.generation();
            let stored = match now {
                None if generation == self.generation => return Err(End::Lost("the job is gone")),
                None => None,
                Some(now) => {
                    let mut record =
                        JobRecord::decode_snapshot(&now).map_err(|_| End::Lost("the job is damaged"))?;
                    record.job.input_json = String::new();
                    if !self.is_behind(&record, &now.head) {
                        (self.record, self.head, self.generation) = (record, now.head, generation);
                        return Ok(());
                    }
                    Some((record, now.head))
                }
            };
            let mut memory = self.record.clone();
            if stored.is_none() {
                memory.job.input_json.clone_from(&self.input);
            }
            let mut draft =
                Draft::after_loss(memory, stored, new_epoch(), &engine.rules, engine.store.now_ms());
            now = loop {
                match engine.store.commit(draft.commit()).await {
                    Ok(CommitOutcome::Committed(head)) => {
                        draft.record.job.input_json = String::new();
                        tracing::error!(
                            job_id = draft.record.job.job_id,
                            "the event log has lost events of a job"
                        );
                        (self.record, self.head, self.generation) = (draft.record, head, generation);
                        return Ok(());
                    }
                    Ok(CommitOutcome::Conflict(now)) => break now,
                    Err(error) => self.wait_for_store(&error).await?,
                }
            };
        }
    }

    /// Whether the stored job, of the same log, is not one that came after the one in memory: its head went back, or
    /// the same attempt was granted twice.
    fn is_behind(&self, stored: &JobRecord, head: &Head) -> bool {
        let token = |record: &JobRecord| record.lease.as_ref().map(|lease| lease.token.clone());
        let twice = stored.job.attempt == self.record.job.attempt && token(stored) != token(&self.record);
        head.epoch == self.head.epoch && (head.seq < self.head.seq || twice)
    }

    /// Waits until what is committed may be promised.
    async fn confirm(&mut self) -> Result<(), End> {
        let engine = self.engine.clone();
        while let Err(error) = engine.store.confirm(&self.record.job.job_id, &self.head).await {
            self.wait_for_store(&error).await?;
            self.look().await?;
        }
        Ok(())
    }

    /// Draws the consequences of the job's state for its worker; `by_report`: its own reports led to that state.
    async fn judge(&mut self, by_report: bool) -> Result<(), End> {
        let lease = self.record.lease.as_ref().filter(|l| l.token == self.token);
        match lease {
            Some(lease) if !lease.ended => {}
            Some(_) if by_report => return Err(End::Done),
            Some(_) => return Err(End::Lost("the lease ended")),
            None => return Err(End::Lost("another attempt took over")),
        }
        if let Some(request) = self.record.job.cancel_requested.clone().filter(|_| !self.told_cancel) {
            self.told_cancel = true;
            let job_id = self.record.job.job_id.clone();
            self.say(Message::Cancel(CancelOrder {
                job_id,
                request: Some(request),
                lease_token: self.token.clone(),
            }))
            .await;
        }
        Ok(())
    }

    /// Pauses while the store is away; gives up when the session does.
    async fn wait_for_store(&self, error: &StoreError) -> Result<(), End> {
        tracing::warn!(job_id = self.record.job.job_id, %error, "reports wait for the event log");
        tokio::select! {
            () = self.outbox.closed() => Err(End::SessionGone),
            () = tokio::time::sleep(Duration::from_millis(rand::random_range(200..800))) => Ok(()),
        }
    }

    async fn answer(&self, answers: impl Iterator<Item = (Report, Result<Reported, Refusal>)>) {
        let acks = answers.map(|(report, answer)| ack(&self.engine.metrics, report, answer)).collect();
        self.say(Message::Acks(ReportAcks { acks })).await;
    }

    async fn say(&self, message: Message) {
        // A session that is gone needs no answers: its worker asks again on the next one.
        let _ = self.outbox.send(WorkResponse { message: Some(message) }).await;
    }
}

/// The answer to a report, counted.
pub fn ack(metrics: &Metrics, report: Report, answer: Result<Reported, Refusal>) -> ReportAck {
    let Report { job_id, lease_token, number, .. } = report;
    let mut ack = ReportAck { job_id, lease_token, number, ..ReportAck::default() };
    let result = match answer {
        Ok(Reported::Stored(seq)) => {
            ack.seq = seq;
            ReportResult::Ok
        }
        Ok(Reported::Cancelled(seq, request)) => {
            (ack.seq, ack.deadline) = (seq, request.deadline);
            ReportResult::Cancelled
        }
        Err(Refusal::LeaseLost | Refusal::State(_)) => ReportResult::LeaseLost,
        Err(Refusal::Rejected(what)) => {
            ack.message = what;
            ReportResult::Rejected
        }
    };
    ack.set_result(result);
    metrics.reported(result);
    ack
}
