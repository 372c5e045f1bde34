//! A worker by hand: every message is sent and awaited explicitly.

use std::{collections::VecDeque, time::Duration};

use tidegate_proto::v1::{
    Assignment, HeldLease, Hello, Leave, Ping, Report, ReportAck, ReportResult, Reports, Welcome,
    WorkRequest, WorkResponse, WorkerKind, report::Body, work_request, work_response::Message,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Status, Streaming};

use crate::At;

/// One stream of a worker.
pub(crate) struct Worker {
    requests: mpsc::Sender<WorkRequest>,
    responses: Streaming<WorkResponse>,
    /// Assignments that came before an answer that was waited for.
    assigned: VecDeque<Assignment>,
    pub(crate) welcome: Welcome,
    pings: AbortOnDropHandle<()>,
}

pub(crate) fn hello(kinds: &[&str]) -> Hello {
    let kinds = kinds.iter().map(|k| WorkerKind { kind: (*k).into(), ..WorkerKind::default() }).collect();
    Hello { name: "by-hand".into(), kinds, capacity: 2, ..Hello::default() }
}

pub(crate) fn held(assignment: &Assignment) -> HeldLease {
    HeldLease { job_id: assignment.job_id.clone(), lease_token: assignment.lease_token.clone() }
}

pub(crate) fn report(lease: &Assignment, number: u64, body: Body) -> Report {
    let (job_id, lease_token) = (lease.job_id.clone(), lease.lease_token.clone());
    Report { job_id, lease_token, number, body: Some(body) }
}

impl Worker {
    pub(crate) async fn connect(engine: &At, kinds: &[&str]) -> Self {
        Self::say_hello(engine, hello(kinds)).await.expect("welcome")
    }

    pub(crate) async fn say_hello(engine: &At, hello: Hello) -> Result<Self, Status> {
        let (requests, stream) = mpsc::channel(64);
        let first = WorkRequest { message: Some(work_request::Message::Hello(hello)) };
        requests.send(first).await.expect("room");
        let mut responses = engine.workers().await.work(ReceiverStream::new(stream)).await?.into_inner();
        match responses.message().await?.and_then(|r| r.message) {
            Some(Message::Welcome(welcome)) => {
                let pings = AbortOnDropHandle::new(tokio::spawn(ping(requests.clone())));
                Ok(Self { requests, responses, assigned: VecDeque::new(), welcome, pings })
            }
            other => panic!("not a welcome: {other:?}"),
        }
    }

    /// The next message that is no pong.
    pub(crate) async fn next(&mut self) -> Result<Message, Status> {
        if let Some(assignment) = self.assigned.pop_front() {
            return Ok(Message::Assignment(assignment));
        }
        self.hear().await
    }

    async fn hear(&mut self) -> Result<Message, Status> {
        let next = async {
            loop {
                match self.responses.message().await?.and_then(|r| r.message) {
                    Some(Message::Pong(_)) => {}
                    Some(message) => return Ok(message),
                    None => return Err(Status::unavailable("the stream ended")),
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), next).await.expect("a message in time")
    }

    pub(crate) async fn assignment(&mut self) -> Assignment {
        match self.next().await.expect("a message") {
            Message::Assignment(assignment) => assignment,
            other => panic!("not an assignment: {other:?}"),
        }
    }

    /// Gives no sign of life by itself from now on.
    pub(crate) fn fall_silent(&self) {
        self.pings.abort();
    }

    /// Wants no more jobs.
    pub(crate) async fn leave(&self) {
        let leave = WorkRequest { message: Some(work_request::Message::Leave(Leave {})) };
        self.requests.send(leave).await.expect("the stream is open");
    }

    pub(crate) async fn send(&self, lease: &Assignment, number: u64, body: Body) {
        let request =
            WorkRequest { message: Some(work_request::Message::Report(report(lease, number, body))) };
        self.requests.send(request).await.expect("the stream is open");
    }

    pub(crate) async fn send_together(&self, reports: Vec<Report>) {
        let request = WorkRequest { message: Some(work_request::Message::Reports(Reports { reports })) };
        self.requests.send(request).await.expect("the stream is open");
    }

    /// The next `n` answers; whether each message is to hold one, or may hold several.
    pub(crate) async fn acks(&mut self, n: usize, batched: bool) -> Vec<ReportAck> {
        let mut acks = Vec::new();
        while acks.len() < n {
            match self.next().await.expect("a message") {
                Message::Ack(ack) if !batched => acks.push(ack),
                Message::Acks(more) if batched && !more.acks.is_empty() => acks.extend(more.acks),
                other => panic!("no answer, or in a form that was not asked for: {other:?}"),
            }
        }
        acks
    }

    /// Sends a report and waits for its answer; of what comes in between, assignments are kept.
    pub(crate) async fn report(&mut self, lease: &Assignment, number: u64, body: Body) -> ReportAck {
        self.send(lease, number, body).await;
        loop {
            match self.hear().await.expect("a message") {
                Message::Ack(ack) if ack.number == number && ack.job_id == lease.job_id => return ack,
                Message::Assignment(assignment) => self.assigned.push_back(assignment),
                _ => {}
            }
        }
    }

    pub(crate) async fn ok(&mut self, lease: &Assignment, number: u64, body: Body) -> u64 {
        let ack = self.report(lease, number, body).await;
        assert_eq!(ack.result(), ReportResult::Ok, "{ack:?}");
        ack.seq
    }
}

async fn ping(requests: mpsc::Sender<WorkRequest>) {
    let ping = WorkRequest { message: Some(work_request::Message::Ping(Ping {})) };
    while requests.send(ping.clone()).await.is_ok() {
        // How often a worker gives a sign of life, not something that is waited for.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
