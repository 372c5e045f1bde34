//! The scripted engine's answers: what it says of its logs, with the faults that the test has chosen.
//!
//! It decides nothing: whatever it answers was set in [`super::ScriptedEngine`].

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
};

use futures_util::{Stream, stream};
use tidegate_proto::{
    cursor::Cursor,
    v1::{self, job_service_server::JobService, watch_job_response::Message, *},
};
use tokio::sync::watch;
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{JOB, Log, Shared};

/// The server side.
pub(super) struct Service(pub(super) Arc<Shared>);

fn refusal(code: Code, reason: &str) -> Status {
    let details = ErrorDetails::with_error_info(reason, "tidegate", HashMap::new());
    Status::with_error_details(code, reason.to_lowercase(), details)
}

impl Service {
    fn job<T>(&self, id: &str, look: impl FnOnce(&Log) -> T) -> Result<T, Status> {
        if let Some(code) = self.0.faults.lock().refuse {
            return Err(Status::new(code, "scripted"));
        }
        let jobs = self.0.jobs.lock();
        jobs.get(id).map(look).ok_or_else(|| refusal(Code::NotFound, "JOB_NOT_FOUND"))
    }

    fn owned(&self, id: &str, caller: Option<&Caller>) -> Result<Job, Status> {
        let job = self.job(id, |log| log.job(id))?;
        match caller {
            Some(caller)
                if caller.tenant != job.tenant || !(caller.whole_tenant || caller.subject == job.owner) =>
            {
                Err(refusal(Code::NotFound, "JOB_NOT_FOUND"))
            }
            _ => Ok(job),
        }
    }
}

/// One followed log.
struct Follower {
    shared: Arc<Shared>,
    id: String,
    opened: Option<WatchOpened>,
    gap: Option<Gap>,
    epoch: String,
    position: u64,
    changed: watch::Receiver<u64>,
    breaks: usize,
    done: bool,
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ =
            self.shared.counts.open.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
    }
}

impl Follower {
    async fn next(&mut self) -> Option<Result<WatchJobResponse, Status>> {
        let message = |message| Some(Ok(WatchJobResponse { message: Some(message) }));
        if self.done {
            return None;
        }
        if let Some(opened) = self.opened.take() {
            return message(Message::Opened(opened));
        }
        if let Some(gap) = self.gap.take() {
            return message(Message::Gap(gap));
        }
        loop {
            self.changed.borrow_and_update();
            if self.shared.breaks.load(Ordering::SeqCst) != self.breaks {
                self.done = true;
                return Some(Err(Status::unavailable("scripted break")));
            }
            {
                let jobs = self.shared.jobs.lock();
                let Some(log) = jobs.get(&self.id) else {
                    self.done = true;
                    return Some(Err(refusal(Code::NotFound, "JOB_NOT_FOUND")));
                };
                if log.epoch != self.epoch {
                    self.epoch.clone_from(&log.epoch);
                    self.position = log.first() - 1;
                    return message(Message::Gap(Gap {
                        from_seq: 1,
                        to_seq: self.position,
                        reason: "lost".into(),
                        snapshot: Some(log.job(&self.id)),
                    }));
                }
                if let Some((seq, event)) = log.events.range(self.position + 1..).next() {
                    self.position = *seq;
                    let mut faults = self.shared.faults.lock();
                    if faults.lose == Some(*seq) {
                        faults.lose = None;
                        continue;
                    }
                    return message(Message::Event(event.clone()));
                }
                if log.state.is_terminal() && self.position == log.last {
                    return None;
                }
            }
            if self.changed.changed().await.is_err() {
                return None;
            }
        }
    }
}

#[tonic::async_trait]
impl JobService for Service {
    type WatchJobStream = Pin<Box<dyn Stream<Item = Result<WatchJobResponse, Status>> + Send>>;

    async fn watch_job(
        &self,
        request: Request<WatchJobRequest>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        let request = request.into_inner();
        let (job, first) = self.job(&request.job_id, |log| (log.job(&request.job_id), log.first()))?;
        self.0.counts.watches.fetch_add(1, Ordering::SeqCst);
        self.0.counts.open.fetch_add(1, Ordering::SeqCst);
        let oldest = first - 1;
        let mut gap = None;
        let (outcome, position) = if request.cursor.is_empty() {
            let tail = if request.tail > 0 { job.last_seq.saturating_sub(request.tail.into()) } else { 0 };
            (CursorOutcome::Fresh, oldest.max(tail))
        } else {
            let cursor: Cursor =
                request.cursor.parse().map_err(|_| refusal(Code::InvalidArgument, "MALFORMED_CURSOR"))?;
            if cursor.epoch != job.epoch || cursor.seq > job.last_seq {
                (CursorOutcome::Reset, oldest)
            } else if cursor.seq < oldest {
                let snapshot = Some(job.clone());
                gap = Some(Gap {
                    from_seq: cursor.seq + 1,
                    to_seq: oldest,
                    reason: "trimmed".into(),
                    snapshot,
                });
                (CursorOutcome::Trimmed, cursor.seq)
            } else {
                (CursorOutcome::Exact, cursor.seq)
            }
        };
        let follower = Follower {
            shared: Arc::clone(&self.0),
            id: request.job_id,
            epoch: job.epoch.clone(),
            opened: Some(WatchOpened {
                cursor: Cursor::new(position, job.epoch.as_str()).to_string(),
                job: Some(job),
                outcome: outcome.into(),
            }),
            gap,
            position,
            changed: self.0.changed.subscribe(),
            breaks: self.0.breaks.load(Ordering::SeqCst),
            done: false,
        };
        let stream = stream::unfold(follower, |mut follower| async {
            let next = follower.next().await?;
            Some((next, follower))
        });
        Ok(Response::new(Box::pin(stream)))
    }

    async fn read_events(
        &self,
        request: Request<ReadEventsRequest>,
    ) -> Result<Response<ReadEventsResponse>, Status> {
        let request = request.into_inner();
        self.0.counts.reads.fetch_add(1, Ordering::SeqCst);
        let mut changed = self.0.changed.subscribe();
        while self.0.faults.lock().stall_reads {
            let _ = changed.changed().await;
        }
        let limit = if request.limit == 0 { 256 } else { request.limit as usize };
        let page = self.job(&request.job_id, |log| {
            let mut bytes = 0;
            let fits = |event: &v1::Event| {
                let before = bytes;
                bytes += prost::Message::encoded_len(event);
                before == 0 || bytes <= 256 * 1024
            };
            let events =
                log.events.range(request.after_seq + 1..).take(limit).map(|(_, event)| event.clone());
            ReadEventsResponse {
                events: events.take_while(fits).collect(),
                first_seq: log.first(),
                last_seq: log.last,
                epoch: log.epoch.clone(),
            }
        })?;
        Ok(Response::new(page))
    }

    async fn get_job(&self, request: Request<GetJobRequest>) -> Result<Response<GetJobResponse>, Status> {
        let request = request.into_inner();
        self.0.counts.looks.fetch_add(1, Ordering::SeqCst);
        let job = self.owned(&request.job_id, request.caller.as_ref())?;
        Ok(Response::new(GetJobResponse { job: Some(job) }))
    }

    async fn submit_job(
        &self,
        request: Request<SubmitJobRequest>,
    ) -> Result<Response<SubmitJobResponse>, Status> {
        let request = request.into_inner();
        self.0.counts.submits.fetch_add(1, Ordering::SeqCst);
        match request.kind.as_str() {
            "demo" => {}
            // As a proxy says when the engine behind it died, before or after it did something.
            "half-done" => return Err(Status::unavailable("upstream connect error")),
            "broken-store" => return Err(refusal(Code::Unavailable, "STORE_UNAVAILABLE")),
            "conflict" => return Err(refusal(Code::AlreadyExists, "IDEMPOTENCY_CONFLICT")),
            _ => {
                let known = HashMap::from([("known".to_owned(), "csv-import,demo".to_owned())]);
                let details = ErrorDetails::with_error_info("UNKNOWN_KIND", "tidegate", known);
                return Err(Status::with_error_details(
                    Code::InvalidArgument,
                    "no worker offers it",
                    details,
                ));
            }
        }
        let job = Job {
            input_json: request.input_json,
            options: request.options,
            ..self.job(JOB, |log| log.job(JOB))?
        };
        Ok(Response::new(SubmitJobResponse { job: Some(job), created: request.idempotency_key.is_empty() }))
    }

    async fn list_jobs(
        &self,
        request: Request<ListJobsRequest>,
    ) -> Result<Response<ListJobsResponse>, Status> {
        let request = request.into_inner();
        let job = self.owned(JOB, request.caller.as_ref());
        let wanted = |job: &Job| request.states.is_empty() || request.states.contains(&job.state);
        let jobs = job.ok().filter(wanted).into_iter().collect();
        Ok(Response::new(ListJobsResponse { jobs, next_page_token: "more".into() }))
    }

    async fn cancel_job(
        &self,
        request: Request<CancelJobRequest>,
    ) -> Result<Response<CancelJobResponse>, Status> {
        let request = request.into_inner();
        let mut job = self.owned(&request.job_id, request.caller.as_ref())?;
        job.cancel_requested =
            Some(CancelRequested { by: job.owner.clone(), reason: request.reason, deadline: None });
        Ok(Response::new(CancelJobResponse { job: Some(job) }))
    }

    async fn retry_job(
        &self,
        request: Request<RetryJobRequest>,
    ) -> Result<Response<RetryJobResponse>, Status> {
        let request = request.into_inner();
        self.owned(&request.job_id, request.caller.as_ref())?;
        Err(refusal(Code::FailedPrecondition, "STATE_FORBIDS"))
    }

    async fn delete_job(
        &self,
        request: Request<DeleteJobRequest>,
    ) -> Result<Response<DeleteJobResponse>, Status> {
        let request = request.into_inner();
        self.owned(&request.job_id, request.caller.as_ref())?;
        Ok(Response::new(DeleteJobResponse {}))
    }

    async fn list_kinds(&self, _: Request<ListKindsRequest>) -> Result<Response<ListKindsResponse>, Status> {
        if let Some(code) = self.0.faults.lock().refuse {
            return Err(Status::new(code, "scripted"));
        }
        let kind = KindOffer {
            kind: "demo".into(),
            description: "Pretends.".into(),
            input_schema_json: "{\"type\":\"object\"}".into(),
            example_json: String::new(),
            live: true,
        };
        Ok(Response::new(ListKindsResponse { kinds: vec![kind] }))
    }
}
