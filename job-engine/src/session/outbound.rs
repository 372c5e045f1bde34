//! The way of answers from a session and the owners of its jobs to the worker.
//!
//! Invariant: nothing overtakes anything. Answers to reports that wait together leave together, if the worker understands
//! that; it decides nothing.

use tidegate_proto::v1::{WorkResponse, work_response::Message};
use tokio::sync::mpsc;
use tonic::Status;

use super::{BATCH, OUTBOX, say};

/// The way of answers from the session and its owners to the worker.
pub(super) struct Outbound {
    pub(super) out: mpsc::Receiver<WorkResponse>,
    pub(super) answers: mpsc::Sender<Result<WorkResponse, Status>>,
    /// Whether the worker understands answers to several reports in one message.
    pub(super) batched: bool,
}

impl Outbound {
    /// Carries answers to the worker until nobody has any more, or nobody hears them: the worker is gone, or may not stay.
    pub(super) async fn forward(mut self) {
        let mut waiting = Vec::with_capacity(OUTBOX);
        loop {
            tokio::select! {
                biased;
                () = self.answers.closed() => return,
                n = self.out.recv_many(&mut waiting, OUTBOX) => if n == 0 { return },
            }
            for message in pack(waiting.drain(..), self.batched) {
                if self.answers.send(Ok(message)).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Puts answers to reports that follow each other into one message; or, unless `batched`, each into one of its own.
fn pack(messages: impl Iterator<Item = WorkResponse>, batched: bool) -> Vec<WorkResponse> {
    let mut packed: Vec<WorkResponse> = Vec::new();
    for message in messages {
        match message.message {
            Some(Message::Acks(more)) if !batched => {
                packed.extend(more.acks.into_iter().map(|ack| say(Message::Ack(ack))));
            }
            Some(Message::Acks(more)) => match packed.last_mut() {
                Some(WorkResponse { message: Some(Message::Acks(last)) })
                    if last.acks.len() + more.acks.len() <= BATCH =>
                {
                    last.acks.extend(more.acks);
                }
                _ => packed.push(say(Message::Acks(more))),
            },
            other => packed.push(WorkResponse { message: other }),
        }
    }
    packed
}

#[cfg(test)]
mod tests {
    use tidegate_proto::v1::{LeaseLost, ReportAck, ReportAcks};

    use super::*;

    fn acks(numbers: std::ops::Range<u64>) -> WorkResponse {
        let acks = numbers.map(|number| ReportAck { number, ..ReportAck::default() }).collect();
        say(Message::Acks(ReportAcks { acks }))
    }

    fn shape(messages: Vec<WorkResponse>) -> Vec<String> {
        let shape = |message| match message {
            Some(Message::Acks(acks)) => format!("{} answers", acks.acks.len()),
            Some(Message::Ack(ack)) => format!("answer {}", ack.number),
            Some(Message::LeaseLost(_)) => "lost".into(),
            other => panic!("{other:?}"),
        };
        messages.into_iter().map(|m| shape(m.message)).collect()
    }

    #[test]
    fn j4_answers_leave_together_and_overtake_nothing() {
        let messages = || [acks(0..2), acks(2..3), say(Message::LeaseLost(LeaseLost::default())), acks(3..4)];
        assert_eq!(shape(pack(messages().into_iter(), true)), ["3 answers", "lost", "1 answers"]);
        assert_eq!(
            shape(pack(messages().into_iter(), false)),
            ["answer 0", "answer 1", "answer 2", "lost", "answer 3"]
        );
        let many = (0..5).map(|_| acks(0..100));
        assert_eq!(shape(pack(many, true)), ["200 answers", "200 answers", "100 answers"]);
    }
}
