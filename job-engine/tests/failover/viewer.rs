//! A viewer that follows one job to its end, over whatever breaks, and checks what it is shown.

use tidegate_proto::v1::{
    JobState, WatchJobRequest, event::Kind, job_service_client::JobServiceClient, watch_job_response::Message,
};
use tokio::time::Instant;
use tonic::{Code, transport::Channel};

use crate::{PATIENCE, Running};

/// What one viewer saw.
pub(crate) struct Seen {
    /// The log lines since the last announced loss, or since the beginning.
    pub(crate) texts: Vec<String>,
    /// The reasons of the gaps that it was told of.
    pub(crate) gaps: Vec<String>,
}

/// Follows a job. Whatever is shown out of order, twice or not at all without being announced is an error.
pub(crate) async fn follow(mut jobs: JobServiceClient<Channel>, job_id: String) -> Seen {
    let mut seen = Seen { texts: Vec::new(), gaps: Vec::new() };
    let (mut last, mut epoch, mut ended) = (0, String::new(), false);
    let mut broken: Option<Instant> = None;
    while !ended {
        if let Some(since) = broken {
            assert!(since.elapsed() < PATIENCE, "{job_id} cannot be followed");
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        let cursor = if last == 0 { String::new() } else { format!("{last}-{epoch}") };
        let request = WatchJobRequest { job_id: job_id.clone(), cursor, ..WatchJobRequest::default() };
        let mut stream = match jobs.watch_job(request).await {
            Ok(stream) => stream.into_inner(),
            Err(status) => {
                assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                broken.get_or_insert_with(Instant::now);
                continue;
            }
        };
        loop {
            match stream.message().await {
                Ok(Some(message)) => match message.message {
                    Some(Message::Opened(opened)) => epoch = opened.job.expect("the job").epoch,
                    Some(Message::Event(event)) => {
                        broken = None;
                        assert_eq!(event.seq, last + 1, "a hole in {job_id}, unannounced");
                        assert!(!ended, "{job_id} goes on after its end");
                        last = event.seq;
                        ended = event.is_terminal();
                        if let Some(Kind::Log(log)) = event.kind {
                            seen.texts.push(log.text);
                        }
                    }
                    Some(Message::Gap(gap)) => {
                        last = gap.to_seq;
                        if gap.reason != "trimmed" {
                            seen.texts.clear();
                            let job = gap.snapshot.expect("a loss comes with the job as it is");
                            assert_ne!(job.state(), JobState::Unspecified);
                            epoch = job.epoch;
                        }
                        seen.gaps.push(gap.reason);
                    }
                    _ => {}
                },
                Ok(None) => break,
                Err(status) => {
                    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                    broken.get_or_insert_with(Instant::now);
                    break;
                }
            }
        }
    }
    seen
}

/// A client on a connection of its own for every fifty viewers: one connection carries so many streams only.
pub(crate) async fn clients(engine: &Running, viewers: usize) -> Vec<JobServiceClient<Channel>> {
    let mut clients = Vec::new();
    for _ in 0..viewers.div_ceil(50) {
        clients.push(engine.jobs().await);
    }
    clients
}
