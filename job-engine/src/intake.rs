//! Shortens or refuses what a worker reports before it waits in a queue, so that queues are bounded by bytes, too.
//!
//! The state machine has the same limits; here they are applied early, to a message of up to 4 MiB.

use prost::Message as _;
use tidegate_proto::{
    limits::{MAX_LOG_BYTES, MAX_NAME_BYTES, MAX_TEXT_BYTES, cut},
    v1::{Report, report::Body},
};

use crate::job::machine::{Refusal, Rules};

/// What a report has besides its payload, at most: an id, a token, a few short texts.
const FRAME: usize = 8 * 1024;

/// Cuts long texts, and refuses what is too large even so.
pub fn tame(report: &mut Report, rules: &Rules) -> Result<(), Refusal> {
    let shorten = |text: &mut String, max: usize| *text = cut(std::mem::take(text), max);
    match &mut report.body {
        Some(Body::Log(log)) => {
            shorten(&mut log.text, MAX_LOG_BYTES);
            shorten(&mut log.source, MAX_NAME_BYTES);
        }
        Some(Body::Progress(progress)) => {
            for text in [&mut progress.message, &mut progress.step_name, &mut progress.unit] {
                shorten(text, MAX_TEXT_BYTES);
            }
        }
        Some(Body::Fail(failed)) => {
            shorten(&mut failed.message, MAX_LOG_BYTES);
            shorten(&mut failed.code, MAX_NAME_BYTES);
        }
        Some(Body::Checkpoint(checkpoint)) => shorten(&mut checkpoint.name, MAX_TEXT_BYTES),
        Some(Body::Released(released)) => shorten(&mut released.reason, MAX_TEXT_BYTES),
        _ => {}
    }
    let max = match &report.body {
        Some(Body::Checkpoint(_)) => rules.max_checkpoint,
        Some(Body::Custom(_)) => rules.max_custom,
        Some(Body::Complete(_)) => rules.max_result,
        _ => MAX_LOG_BYTES,
    };
    match report.encoded_len() {
        len if len > max + FRAME => {
            Err(Refusal::Rejected(format!("the report has {len} bytes; at most {max} are taken")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use tidegate_proto::v1::{Checkpoint, Log};

    use super::*;

    #[test]
    fn j37_long_texts_are_cut_and_large_payloads_refused() {
        let long = Body::Log(Log { text: "x".repeat(4 << 20), ..Log::default() });
        let mut report = Report { body: Some(long), ..Report::default() };
        assert_eq!(tame(&mut report, &Rules::default()), Ok(()));
        assert!(report.encoded_len() < MAX_LOG_BYTES + FRAME);

        let large = Body::Checkpoint(Checkpoint { data: vec![0; 1 << 20].into(), ..Checkpoint::default() });
        let mut report = Report { body: Some(large), ..Report::default() };
        assert!(
            matches!(tame(&mut report, &Rules::default()), Err(Refusal::Rejected(what)) if what.contains("65536"))
        );
    }
}
