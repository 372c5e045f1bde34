//! Makes what a worker reports fit to be stored: shortens long texts, refuses what breaks a rule.
//!
//! It happens once, before a report waits for its owner, so that queues are bounded by bytes and the state machine may
//! trust what it is given. It depends on the report alone: the same report is refused again whenever it is sent again.

use prost::Message as _;
use tidegate_proto::{
    limits::{self, MAX_LOG_BYTES, MAX_NAME_BYTES, MAX_TEXT_BYTES, cut},
    v1::{Checkpoint, Progress, Report, report::Body},
};

use crate::{
    job::machine::{Refusal, Rules},
    json::check_json,
};

/// What a report has besides its payload, at most: an id, a token, a few short texts.
const FRAME: usize = 8 * 1024;

/// Shortens and checks a report, and says how many bytes it has; the error says which rule it breaks.
pub fn tame(report: &mut Report, rules: &Rules) -> Result<usize, Refusal> {
    if report.number == 0 {
        return Err(Refusal::Rejected("reports are numbered from 1".into()));
    }
    let Some(body) = &mut report.body else {
        return Err(Refusal::Rejected("a report needs a body".into()));
    };
    shorten(body);
    check(body, rules)?;
    match report.encoded_len() {
        len if len > largest(report.body.as_ref(), rules) + FRAME => {
            Err(Refusal::Rejected(format!("the report has {len} bytes, which is too large")))
        }
        len => Ok(len),
    }
}

fn shorten(body: &mut Body) {
    let shorten = |text: &mut String, max: usize| *text = cut(std::mem::take(text), max);
    match body {
        Body::Log(log) => {
            shorten(&mut log.text, MAX_LOG_BYTES);
            shorten(&mut log.source, MAX_NAME_BYTES);
        }
        Body::Progress(progress) => {
            for text in [&mut progress.message, &mut progress.step_name, &mut progress.unit] {
                shorten(text, MAX_TEXT_BYTES);
            }
            range(progress);
        }
        Body::Fail(failed) => {
            shorten(&mut failed.message, MAX_LOG_BYTES);
            shorten(&mut failed.code, MAX_NAME_BYTES);
        }
        Body::Checkpoint(checkpoint) => shorten(&mut checkpoint.name, MAX_TEXT_BYTES),
        Body::Released(released) => shorten(&mut released.reason, MAX_TEXT_BYTES),
        Body::Custom(_) | Body::Complete(_) | Body::Stopped(_) => {}
    }
}

/// Leaves out what is no number, and what cannot be.
fn range(progress: &mut Progress) {
    let finite = |x: f64| Some(x).filter(|x| x.is_finite());
    progress.percent = progress.percent.and_then(finite).map(|p| p.clamp(0.0, 100.0));
    progress.rate = progress.rate.and_then(finite).map(|r| r.max(0.0));
    progress.eta = progress.eta.filter(|eta| eta.seconds >= 0 && eta.nanos >= 0);
}

fn check(body: &Body, rules: &Rules) -> Result<(), Refusal> {
    match body {
        Body::Checkpoint(Checkpoint { data, .. }) => size("checkpoint", data.len(), rules.max_checkpoint),
        Body::Custom(custom) => {
            if !limits::is_custom_event_name(&custom.name) {
                let name = cut(custom.name.clone(), MAX_NAME_BYTES);
                return Err(Refusal::Rejected(format!("{name:?} cannot name a custom event")));
            }
            json("custom event", &custom.json, rules.max_custom)
        }
        Body::Complete(done) if done.result_json.is_empty() => Ok(()),
        Body::Complete(done) => json("result", &done.result_json, rules.max_result),
        Body::Log(_) | Body::Progress(_) | Body::Fail(_) | Body::Stopped(_) | Body::Released(_) => Ok(()),
    }
}

fn json(what: &str, text: &str, max: usize) -> Result<(), Refusal> {
    size(what, text.len(), max)?;
    check_json(text).map_err(|wrong| Refusal::Rejected(format!("the {what} {wrong}")))
}

fn size(what: &str, len: usize, max: usize) -> Result<(), Refusal> {
    if len > max {
        return Err(Refusal::Rejected(format!("a {what} has at most {max} bytes, this one has {len}")));
    }
    Ok(())
}

/// The largest payload of such a report.
fn largest(body: Option<&Body>, rules: &Rules) -> usize {
    match body {
        Some(Body::Checkpoint(_)) => rules.max_checkpoint,
        Some(Body::Custom(_)) => rules.max_custom,
        Some(Body::Complete(_)) => rules.max_result,
        _ => MAX_LOG_BYTES,
    }
}

#[cfg(test)]
mod tests {
    use tidegate_proto::v1::{Completed, Custom, Log};

    use super::*;

    fn report(body: Body) -> Report {
        Report { number: 1, body: Some(body), ..Report::default() }
    }

    #[test]
    fn j37_long_texts_are_cut_and_what_breaks_a_rule_is_refused() {
        let mut long = report(Body::Log(Log { text: "x".repeat(4 << 20), ..Log::default() }));
        let size = tame(&mut long, &Rules::default());
        assert_eq!(size, Ok(long.encoded_len()));
        assert!(long.encoded_len() < MAX_LOG_BYTES + FRAME);

        let large = |len: usize| Checkpoint { data: vec![0; len].into(), ..Checkpoint::default() };
        let custom = |name: &str, json: &str| Custom { name: name.into(), json: json.into() };
        for (body, word) in [
            (Body::Checkpoint(large(1 << 20)), "65536"),
            (Body::Custom(custom("chart", "{")), "JSON"),
            (Body::Custom(custom("error", "{}")), "error"),
            (Body::Custom(custom("chart", &format!("\"{}\"", "x".repeat(70_000)))), "65536"),
            (Body::Complete(Completed { result_json: "nope".into() }), "JSON"),
        ] {
            let refused = tame(&mut report(body), &Rules::default());
            assert!(matches!(&refused, Err(Refusal::Rejected(what)) if what.contains(word)), "{refused:?}");
        }
        let body = Body::Complete(Completed { result_json: String::new() });
        assert!(tame(&mut report(body.clone()), &Rules::default()).is_ok());
        for bad in [Report { number: 0, ..report(body) }, Report { number: 1, ..Report::default() }] {
            assert!(tame(&mut bad.clone(), &Rules::default()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn e57_numbers_that_are_none_are_left_out() {
        let odd = Progress { percent: Some(f64::NAN), rate: Some(-1.0), ..Progress::default() };
        let mut odd = report(Body::Progress(odd));
        tame(&mut odd, &Rules::default()).expect("only shortened");
        let Some(Body::Progress(odd)) = odd.body else { panic!("another body") };
        assert_eq!((odd.percent, odd.rate), (None, Some(0.0)));
    }
}
