//! An engine that does what a test says, message by message.

use std::{net::SocketAddr, time::Duration};

use tidegate_proto::v1::{
    self, ReportResult,
    report::Body,
    work_request::Message as Request,
    work_response::Message,
    worker_service_server::{WorkerService, WorkerServiceServer},
};
use tokio::{net::TcpListener, sync::mpsc, time::timeout};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Response, Status, Streaming};

use crate::PATIENCE;

/// The engine; dropping it does not stop it.
pub(crate) struct Engine {
    address: SocketAddr,
    streams: mpsc::Receiver<Stream>,
}

/// A worker's stream.
pub(crate) struct Stream {
    pub(crate) hello: v1::Hello,
    requests: Streaming<v1::WorkRequest>,
    answers: mpsc::Sender<Result<v1::WorkResponse, Status>>,
    /// Whether pings are answered.
    pub(crate) pong: bool,
    pub(crate) pings: usize,
    /// Whether the worker wants no more jobs.
    pub(crate) left: bool,
}

struct Service(mpsc::Sender<Stream>);

#[tonic::async_trait]
impl WorkerService for Service {
    type WorkStream = ReceiverStream<Result<v1::WorkResponse, Status>>;

    async fn work(
        &self,
        request: tonic::Request<Streaming<v1::WorkRequest>>,
    ) -> Result<Response<Self::WorkStream>, Status> {
        let mut requests = request.into_inner();
        let Some(v1::WorkRequest { message: Some(Request::Hello(hello)) }) = requests.message().await? else {
            return Err(Status::invalid_argument("the first message was no hello"));
        };
        let (answers, stream) = mpsc::channel(1024);
        let opened = Stream { hello, requests, answers, pong: true, pings: 0, left: false };
        self.0.send(opened).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

impl Engine {
    pub(crate) async fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap()).await
    }

    /// An engine at a certain address, which must be free.
    pub(crate) async fn start_at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (opened, streams) = mpsc::channel(16);
        let server =
            tonic::transport::Server::builder().add_service(WorkerServiceServer::new(Service(opened)));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { address, streams }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn uri(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The next stream, not yet welcomed.
    pub(crate) async fn accept(&mut self) -> Stream {
        timeout(PATIENCE, self.streams.recv()).await.expect("no worker came").unwrap()
    }

    /// The next stream, welcomed without leases.
    pub(crate) async fn welcome(&mut self) -> Stream {
        let stream = self.accept().await;
        stream.say(Message::Welcome(welcome())).await;
        stream
    }
}

/// A welcome with room for everything, and a slow ping.
pub(crate) fn welcome() -> v1::Welcome {
    v1::Welcome {
        lease: prost_types::Duration::try_from(Duration::from_secs(60)).ok(),
        ping_interval: prost_types::Duration::try_from(Duration::from_secs(20)).ok(),
        max_checkpoint_bytes: 64 * 1024,
        max_custom_bytes: 64 * 1024,
        max_result_bytes: 256 * 1024,
        ..Default::default()
    }
}

/// A welcome after which the worker pings often.
pub(crate) fn fast_ping() -> v1::Welcome {
    v1::Welcome {
        ping_interval: prost_types::Duration::try_from(Duration::from_millis(200)).ok(),
        ..welcome()
    }
}

pub(crate) fn job(job_id: &str, kind: &str, input: &serde_json::Value) -> v1::Assignment {
    v1::Assignment {
        job_id: job_id.into(),
        kind: kind.into(),
        attempt: 1,
        lease_token: format!("1-{job_id}"),
        input_json: input.to_string(),
        ..Default::default()
    }
}

pub(crate) fn is_end(body: &Body) -> bool {
    matches!(body, Body::Complete(_) | Body::Fail(_) | Body::Stopped(_) | Body::Released(_))
}

impl Stream {
    pub(crate) async fn say(&self, message: Message) {
        let _ = self.answers.send(Ok(v1::WorkResponse { message: Some(message) })).await;
    }

    pub(crate) async fn assign(&self, job: &v1::Assignment) {
        self.say(Message::Assignment(job.clone())).await;
    }

    pub(crate) async fn cancel(&self, job: &v1::Assignment, deadline: Duration) {
        let request = v1::CancelRequested {
            by: "alice".into(),
            reason: "enough".into(),
            deadline: Some((std::time::SystemTime::now() + deadline).into()),
        };
        let (job_id, lease_token) = (job.job_id.clone(), job.lease_token.clone());
        self.say(Message::Cancel(v1::CancelOrder { job_id, request: Some(request), lease_token })).await;
    }

    /// The next report; none when the worker closes the stream.
    pub(crate) async fn next(&mut self) -> Option<v1::Report> {
        loop {
            let request = timeout(PATIENCE, self.requests.message()).await.expect("the worker says nothing");
            match request.ok()??.message {
                Some(Request::Report(report)) => return Some(report),
                Some(Request::Ping(_)) => {
                    self.pings += 1;
                    if self.pong {
                        self.say(Message::Pong(v1::Pong {})).await;
                    }
                }
                Some(Request::Leave(_)) => {
                    assert!(!self.left, "a worker leaves once");
                    self.left = true;
                }
                other => panic!("not expected: {other:?}"),
            }
        }
    }

    /// The next report.
    pub(crate) async fn report(&mut self) -> v1::Report {
        self.next().await.expect("the worker closed the stream")
    }

    /// Every report that comes until the worker has pinged twice, that is, before it has no more to say.
    pub(crate) async fn reports_until_quiet(&mut self) -> Vec<v1::Report> {
        let (mut reports, until) = (Vec::new(), self.pings + 2);
        while self.pings < until {
            let request = timeout(PATIENCE, self.requests.message()).await.expect("the worker says nothing");
            match request.unwrap().unwrap().message {
                Some(Request::Report(report)) => reports.push(report),
                Some(Request::Leave(_)) => self.left = true,
                _ => {
                    self.pings += 1;
                    self.say(Message::Pong(v1::Pong {})).await;
                }
            }
        }
        reports
    }

    pub(crate) async fn answer(&self, report: &v1::Report, result: ReportResult) {
        let ack = v1::ReportAck {
            job_id: report.job_id.clone(),
            number: report.number,
            lease_token: report.lease_token.clone(),
            result: result.into(),
            seq: if result == ReportResult::Ok { report.number } else { 0 },
            message: if result == ReportResult::Rejected { "not like this".into() } else { String::new() },
            ..Default::default()
        };
        self.say(Message::Ack(ack)).await;
    }

    /// Stores everything that is reported, up to and including the end of the job.
    pub(crate) async fn until_end(&mut self) -> Vec<Body> {
        let mut bodies = Vec::new();
        loop {
            let report = self.report().await;
            self.answer(&report, ReportResult::Ok).await;
            let body = report.body.unwrap();
            let end = is_end(&body);
            bodies.push(body);
            if end {
                return bodies;
            }
        }
    }

    /// Runs a job to its end; returns what it reported before, and the end.
    pub(crate) async fn play(&mut self, job: &v1::Assignment) -> (Vec<Body>, Body) {
        self.assign(job).await;
        let mut bodies = self.until_end().await;
        let end = bodies.pop().unwrap();
        (bodies, end)
    }
}

/// The log lines among reports: level, source, text.
pub(crate) fn logs(bodies: &[Body]) -> Vec<(v1::LogLevel, &str, &str)> {
    let mut lines = Vec::new();
    for body in bodies {
        if let Body::Log(log) = body {
            lines.push((log.level(), log.source.as_str(), log.text.as_str()));
        }
    }
    lines
}

/// The code of a final failure.
pub(crate) fn code(end: &Body) -> &str {
    match end {
        Body::Fail(failed) => &failed.code,
        other => panic!("no failure: {other:?}"),
    }
}

/// The result of a completed job.
pub(crate) fn result(end: &Body) -> serde_json::Value {
    match end {
        Body::Complete(done) => serde_json::from_str(&done.result_json).unwrap(),
        other => panic!("not completed: {other:?}"),
    }
}
