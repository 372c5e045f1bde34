//! The child that plays the engine: told `<events> <rate>` (0: flat out), it sends as many log events.

use std::{
    io::Write as _,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::SystemTime,
};

use futures_util::Stream;
use parking_lot::Mutex;
use tidegate_proto::v1::{
    job_service_server::{JobService, JobServiceServer},
    watch_job_response::Message,
    *,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::Pace;

type Sender = mpsc::Sender<Result<WatchJobResponse, Status>>;

/// What the service and the command loop share.
#[derive(Clone, Default)]
struct Script {
    /// The one upstream; a later one takes its place.
    upstream: Arc<Mutex<Option<Sender>>>,
    last: Arc<AtomicU64>,
}

impl Script {
    /// The job as it is now.
    fn job(&self, job_id: String) -> Job {
        let last = self.last.load(Ordering::SeqCst);
        Job {
            job_id,
            tenant: "default".into(),
            owner: "anonymous".into(),
            state: JobState::Processing.into(),
            last_seq: last,
            first_seq: last + 1,
            epoch: "bench".into(),
            ..Job::default()
        }
    }
}

/// Nanoseconds since the epoch, the same in all processes.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    since.as_nanos().try_into().unwrap()
}

/// The text of an event: its time, and as much as a log line has.
pub(crate) fn line() -> String {
    format!("at {} imported 1250 of 42049 rows, 3 rejected; now at byte 122880", now())
}

pub(crate) fn run() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let script = Script::default();
    let service = JobServiceServer::new(script.clone());
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    println!("{}", listener.local_addr().unwrap());
    std::io::stdout().flush().unwrap();
    runtime.spawn(async {
        let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
        tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
    });
    for command in std::io::stdin().lines().map(Result::unwrap) {
        let (events, rate) = command.split_once(' ').unwrap();
        let rate: u32 = rate.parse().unwrap();
        let mut pace = Pace::new((rate > 0).then_some(rate));
        for _ in 0..events.parse().unwrap() {
            pace.wait();
            let text = line();
            let seq = script.last.fetch_add(1, Ordering::SeqCst) + 1;
            let kind = event::Kind::Log(Log { level: LogLevel::Info.into(), text, source: String::new() });
            let event = Event { seq, time: None, attempt: 1, kind: Some(kind) };
            let message = WatchJobResponse { message: Some(Message::Event(event)) };
            let upstream = script.upstream.lock().clone().expect("a gateway watches");
            upstream.blocking_send(Ok(message)).unwrap();
        }
    }
    thread::park();
}

#[tonic::async_trait]
impl JobService for Script {
    type WatchJobStream = Pin<Box<dyn Stream<Item = Result<WatchJobResponse, Status>> + Send>>;

    async fn watch_job(
        &self,
        request: Request<WatchJobRequest>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        let (sender, receiver) = mpsc::channel(1024);
        let job = self.job(request.into_inner().job_id);
        let last = job.last_seq;
        let opened = WatchOpened {
            job: Some(job),
            outcome: CursorOutcome::Fresh.into(),
            cursor: format!("{last}-bench"),
        };
        let message = WatchJobResponse { message: Some(Message::Opened(opened)) };
        sender.send(Ok(message)).await.map_err(|_| Status::internal("gone"))?;
        *self.upstream.lock() = Some(sender);
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    /// Viewers may fall behind when events come flat out; what they missed is made up again.
    async fn read_events(
        &self,
        request: Request<ReadEventsRequest>,
    ) -> Result<Response<ReadEventsResponse>, Status> {
        let request = request.into_inner();
        let last = self.last.load(Ordering::SeqCst);
        let to = last.min(request.after_seq + u64::from(request.limit.clamp(1, 256)));
        let event = |seq| {
            let kind =
                event::Kind::Log(Log { level: LogLevel::Info.into(), text: line(), source: String::new() });
            Event { seq, time: None, attempt: 1, kind: Some(kind) }
        };
        let events = (request.after_seq + 1..=to).map(event).collect();
        Ok(Response::new(ReadEventsResponse { events, first_seq: 1, last_seq: last, epoch: "bench".into() }))
    }

    async fn get_job(&self, request: Request<GetJobRequest>) -> Result<Response<GetJobResponse>, Status> {
        let job = self.job(request.into_inner().job_id);
        Ok(Response::new(GetJobResponse { job: Some(job) }))
    }

    async fn submit_job(&self, _: Request<SubmitJobRequest>) -> Result<Response<SubmitJobResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_jobs(&self, _: Request<ListJobsRequest>) -> Result<Response<ListJobsResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn cancel_job(&self, _: Request<CancelJobRequest>) -> Result<Response<CancelJobResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn retry_job(&self, _: Request<RetryJobRequest>) -> Result<Response<RetryJobResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn delete_job(&self, _: Request<DeleteJobRequest>) -> Result<Response<DeleteJobResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_kinds(&self, _: Request<ListKindsRequest>) -> Result<Response<ListKindsResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}
