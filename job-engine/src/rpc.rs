//! The gRPC services: thin translations between the contract and the engine.

use std::sync::Arc;

use tidegate_auth::Scope;
use tidegate_proto::v1::{
    CancelJobRequest, CancelJobResponse, DeleteJobRequest, DeleteJobResponse, GetJobRequest, GetJobResponse,
    ListJobsRequest, ListJobsResponse, ListKindsRequest, ListKindsResponse, ReadEventsRequest,
    ReadEventsResponse, RetryJobRequest, RetryJobResponse, SubmitJobRequest, SubmitJobResponse,
    WatchJobRequest, WatchJobResponse, WorkRequest, WorkResponse, job_service_server::JobService,
    worker_service_server::WorkerService,
};
use tidegate_telemetry::trace;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{Instrument as _, field::Empty};

use crate::{
    access::{Access, Answers},
    engine::Engine,
    error::EngineError,
    session, watch,
};

/// The services of an engine; that of schedules is in [`crate::schedule::rpc`].
#[derive(Clone)]
pub struct Services {
    /// What does the work.
    pub engine: Arc<Engine>,
    /// Who may ask for it.
    pub access: Access,
}

#[tonic::async_trait]
impl JobService for Services {
    async fn submit_job(
        &self,
        request: Request<SubmitJobRequest>,
    ) -> Result<Response<SubmitJobResponse>, Status> {
        let span = tracing::info_span!(target: trace::TARGET, "submit", otel.kind = "server", job = Empty);
        let parent = trace::carried(request.metadata()).to_owned();
        let submitted = async {
            let (request, _) = self.access.admit(request, Scope::Submit).await?;
            Ok::<_, Status>(self.engine.submit(request).await?)
        };
        let (job, created) = trace::within(span.clone(), &parent, submitted).await?;
        span.record("job", &*job.job_id);
        Ok(Response::new(SubmitJobResponse { job: Some(job), created }))
    }

    async fn get_job(&self, request: Request<GetJobRequest>) -> Result<Response<GetJobResponse>, Status> {
        let (request, _) = self.access.admit(request, Scope::Read).await?;
        let (record, _) = self.engine.get(request.caller.as_ref(), &request.job_id).await?;
        Ok(Response::new(GetJobResponse { job: Some(record.job) }))
    }

    async fn list_jobs(
        &self,
        request: Request<ListJobsRequest>,
    ) -> Result<Response<ListJobsResponse>, Status> {
        let (request, _) = self.access.admit(request, Scope::Read).await?;
        Ok(Response::new(self.engine.list(&request).await?))
    }

    async fn cancel_job(
        &self,
        request: Request<CancelJobRequest>,
    ) -> Result<Response<CancelJobResponse>, Status> {
        let (request, _) = self.access.admit(request, Scope::Control).await?;
        let job = self.engine.cancel(request.caller.as_ref(), &request.job_id, &request.reason).await?;
        Ok(Response::new(CancelJobResponse { job: Some(job) }))
    }

    async fn retry_job(
        &self,
        request: Request<RetryJobRequest>,
    ) -> Result<Response<RetryJobResponse>, Status> {
        let (request, _) = self.access.admit(request, Scope::Control).await?;
        let job = self.engine.retry(request.caller.as_ref(), &request.job_id).await?;
        Ok(Response::new(RetryJobResponse { job: Some(job) }))
    }

    async fn delete_job(
        &self,
        request: Request<DeleteJobRequest>,
    ) -> Result<Response<DeleteJobResponse>, Status> {
        let (request, _) = self.access.admit(request, Scope::Control).await?;
        self.engine.delete(request.caller.as_ref(), &request.job_id).await?;
        Ok(Response::new(DeleteJobResponse {}))
    }

    type WatchJobStream = Answers<WatchJobResponse>;

    async fn watch_job(
        &self,
        request: Request<WatchJobRequest>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        let span = tracing::info_span!(target: trace::TARGET, "watch", otel.kind = "server");
        let span = trace::child_of(span, trace::carried(request.metadata()));
        let opening = async {
            let (request, admitted) = self.access.admit(request, Scope::Read).await?;
            let stream = watch::open(self.engine.clone(), request).await?;
            Ok(Response::new(admitted.limit(ReceiverStream::new(stream))))
        };
        opening.instrument(span).await
    }

    async fn read_events(
        &self,
        request: Request<ReadEventsRequest>,
    ) -> Result<Response<ReadEventsResponse>, Status> {
        let (request, _) = self.access.admit(request, Scope::Read).await?;
        let limit = match request.limit {
            0 => 256,
            n @ 1..=1000 => n as usize,
            _ => return Err(EngineError::Invalid(vec![("limit", "must be 1 to 1000".into())]).into()),
        };
        self.engine.get(request.caller.as_ref(), &request.job_id).await?;
        let page = self.engine.store.read(&request.job_id, request.after_seq, limit, watch::PAGE_BYTES).await;
        let page = page.map_err(EngineError::from)?.ok_or(EngineError::NotFound)?;
        let events: Result<Vec<_>, _> = page.entries.iter().map(watch::decode).collect();
        Ok(Response::new(ReadEventsResponse {
            events: events.map_err(EngineError::from)?,
            first_seq: page.first_seq,
            last_seq: page.head.seq,
            epoch: page.head.epoch,
        }))
    }

    async fn list_kinds(
        &self,
        request: Request<ListKindsRequest>,
    ) -> Result<Response<ListKindsResponse>, Status> {
        self.access.known(request.metadata()).await?;
        let kinds = self.engine.kinds.list(&*self.engine.store).await.map_err(EngineError::from)?;
        Ok(Response::new(ListKindsResponse { kinds }))
    }
}

#[tonic::async_trait]
impl WorkerService for Services {
    type WorkStream = Answers<WorkResponse>;

    async fn work(
        &self,
        request: Request<Streaming<WorkRequest>>,
    ) -> Result<Response<Self::WorkStream>, Status> {
        let admitted = self.access.admit_own(&request, Scope::Work).await?;
        let stream = session::open(self.engine.clone(), request.into_inner()).await?;
        Ok(Response::new(admitted.limit(ReceiverStream::new(stream))))
    }
}
