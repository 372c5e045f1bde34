//! The session against a model of an engine that loses connections at any point.

use proptest::prelude::*;
use tidegate_proto::v1::{self, ReportResult, report::Body};

use super::{Effect, Session};
use crate::context::Answer;

fn log(text: &str) -> Body {
    Body::Log(v1::Log { text: text.into(), ..Default::default() })
}

fn progress(done: u64) -> Body {
    Body::Progress(v1::Progress { done: Some(done), ..Default::default() })
}

fn complete() -> Body {
    Body::Complete(v1::Completed { result_json: "1".into() })
}

fn ack(number: u64, result: ReportResult, seq: u64) -> v1::ReportAck {
    v1::ReportAck {
        job_id: "j".into(),
        lease_token: "t".into(),
        number,
        result: result.into(),
        seq,
        ..Default::default()
    }
}

/// A session that holds the job `j` under the token `t`, online.
fn session() -> Session<u32> {
    let mut session = Session::new(true);
    session.welcomed(Vec::new(), &[]);
    assert_eq!(session.assign("j", "t"), Some(Vec::new()));
    assert_eq!(session.assign("j", "t"), None);
    session
}

fn resumed(last_report: u64) -> Vec<v1::ResumedLease> {
    vec![v1::ResumedLease { job_id: "j".into(), last_report, cancel_requested: None }]
}

#[test]
fn j4_unanswered_reports_are_sent_again_under_their_numbers() {
    let mut s = session();
    for (tag, text) in (1..).zip(["a", "b", "c"]) {
        assert_eq!(s.push("j", "t", log(text), Some(tag)), Ok(None));
    }
    assert_eq!(s.next_report().map(|r| r.number), Some(1));
    assert_eq!(s.next_report().map(|r| r.number), Some(2));
    s.disconnected();
    assert_eq!(s.next_report(), None);
    assert_eq!(s.held().len(), 1);
    let effects = s.welcomed(resumed(1), &[]);
    assert_eq!(effects, [Effect::Answered { tag: 1, answer: Answer::Stored }]);
    let again: Vec<_> = std::iter::from_fn(|| s.next_report()).map(|r| (r.number, r.body)).collect();
    assert_eq!(again, [(2, Some(log("b"))), (3, Some(log("c")))]);
}

#[test]
fn progress_not_yet_sent_is_superseded_but_never_across_a_checkpoint() {
    let mut s = session();
    assert_eq!(s.push("j", "t", progress(1), Some(1)), Ok(None));
    assert_eq!(s.push("j", "t", log("x"), Some(2)), Ok(None));
    assert_eq!(s.push("j", "t", progress(2), Some(3)), Ok(Some(1)));
    assert_eq!(s.push("j", "t", Body::Checkpoint(v1::Checkpoint::default()), Some(4)), Ok(None));
    assert_eq!(s.push("j", "t", progress(3), Some(5)), Ok(None));
    let sent: Vec<_> = std::iter::from_fn(|| s.next_report()).collect();
    assert_eq!(sent.iter().map(|r| r.number).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert_eq!(sent[1].body, Some(progress(2)));
    // Sent means fixed: the next one queues behind it.
    assert_eq!(s.push("j", "t", progress(4), Some(6)), Ok(None));
}

#[test]
fn without_coalescing_every_progress_report_is_sent() {
    let mut s = Session::new(false);
    s.welcomed(Vec::new(), &[]);
    s.assign("j", "t");
    for done in 1..=5 {
        assert_eq!(s.push("j", "t", progress(done), Some(done)), Ok(None));
    }
    assert_eq!(std::iter::from_fn(|| s.next_report()).count(), 5);
}

#[test]
fn j1_a_lost_lease_sends_nothing_more() {
    let mut s = session();
    assert_eq!(s.push("j", "t", log("a"), Some(1)), Ok(None));
    assert_eq!(s.push("j", "t", log("b"), Some(2)), Ok(None));
    s.next_report();
    let effects = s.acked(ack(1, ReportResult::LeaseLost, 0));
    assert_eq!(effects.len(), 3, "{effects:?}");
    assert!(matches!(effects[2], Effect::Lost { .. }));
    assert_eq!(s.next_report(), None);
    assert!(s.is_empty());
    assert_eq!(s.push("j", "t", log("c"), Some(3)), Err(Some(3)));
}

#[test]
fn a_lease_of_which_welcome_says_nothing_is_lost() {
    let mut s = session();
    s.disconnected();
    let effects = s.welcomed(Vec::new(), &[]);
    assert!(matches!(&effects[..], [Effect::Lost { .. }]), "{effects:?}");
}

#[test]
fn answers_to_another_lease_are_ignored() {
    let mut s = session();
    s.push("j", "t", log("a"), Some(1)).unwrap();
    s.next_report();
    let stale = v1::ReportAck { lease_token: "old".into(), ..ack(1, ReportResult::LeaseLost, 0) };
    assert_eq!(s.acked(stale), Vec::new());
    let lost = v1::LeaseLost { job_id: "j".into(), lease_token: "old".into(), reason: String::new() };
    assert_eq!(s.lost(&lost), Vec::new());
    let order = v1::CancelOrder { job_id: "j".into(), request: None, lease_token: "old".into() };
    assert_eq!(s.cancel(order), Vec::new());
}

#[test]
fn j10_complete_that_races_a_cancel_is_followed_by_stopped() {
    let mut s = session();
    s.push("j", "t", complete(), None).unwrap();
    s.next_report();
    let effects = s.acked(ack(1, ReportResult::Cancelled, 0));
    assert!(matches!(&effects[..], [Effect::Cancel { .. }]), "{effects:?}");
    assert!(matches!(s.next_report().and_then(|r| r.body), Some(Body::Stopped(_))));
    // Stored although the order to stop came with it: it was stored, so that is the end.
    let effects = s.acked(ack(2, ReportResult::Cancelled, 9));
    assert!(matches!(&effects[..], [Effect::Cancel { .. }, Effect::Ended { .. }]), "{effects:?}");
}

#[test]
fn j37_a_rejected_result_fails_the_job() {
    let mut s = session();
    s.push("j", "t", complete(), None).unwrap();
    assert_eq!(s.push("j", "t", log("late"), Some(1)), Err(Some(1)), "nothing follows the end");
    s.next_report();
    assert_eq!(s.acked(ack(1, ReportResult::Rejected, 0)), Vec::new());
    let report = s.next_report().unwrap();
    assert_eq!(report.number, 2);
    assert!(matches!(report.body, Some(Body::Fail(f)) if f.code == "result_too_large"));
    assert_eq!(s.acked(ack(2, ReportResult::Ok, 5)), [Effect::Ended { job_id: "j".into() }]);
    assert!(s.is_empty());
}

#[test]
fn a_new_assignment_of_the_same_job_ends_the_old_lease() {
    let mut s = session();
    s.push("j", "t", log("old"), Some(1)).unwrap();
    let effects = s.assign("j", "t2").unwrap();
    assert!(matches!(&effects[..], [Effect::Answered { tag: 1, answer: Answer::Gone }, Effect::Lost { .. }]));
    s.push("j", "t2", log("new"), Some(2)).unwrap();
    let report = s.next_report().unwrap();
    assert_eq!((report.number, report.lease_token.as_str()), (1, "t2"));
}

#[test]
fn jobs_take_turns() {
    let mut s = session();
    s.assign("k", "u");
    for _ in 0..2 {
        s.push("j", "t", log("j"), None).unwrap();
        s.push("k", "u", log("k"), None).unwrap();
    }
    let order: Vec<_> = std::iter::from_fn(|| s.next_report()).map(|r| r.job_id).collect();
    assert_eq!(order, ["j", "k", "j", "k"]);
}

#[test]
fn reports_that_leave_together_are_bounded_and_keep_their_order() {
    let mut s = session();
    s.assign("k", "u");
    for i in 0..3 {
        s.push("j", "t", log(&i.to_string()), None).unwrap();
        s.push("k", "u", log(&i.to_string()), None).unwrap();
    }
    let numbers =
        |reports: Vec<v1::Report>| -> Vec<_> { reports.into_iter().map(|r| (r.job_id, r.number)).collect() };
    let one = |job: &str, number| (job.to_owned(), number);
    assert_eq!(numbers(s.next_reports(2)), [one("j", 1), one("j", 2)]);
    assert_eq!(numbers(s.next_reports(9)), [one("k", 1), one("k", 2), one("k", 3), one("j", 3)]);
    assert_eq!(s.next_reports(9), []);
    for _ in 0..50 {
        s.push("k", "u", log(&"x".repeat(16 * 1024)), None).unwrap();
    }
    assert_eq!(s.next_reports(256).len(), 16);
}

#[derive(Clone, Debug)]
enum Step {
    Push(bool),
    /// The worker sends up to so many reports.
    Send(u8),
    /// The engine stores up to so many of those sent.
    Store(u8),
    /// The worker hears up to so many answers.
    Hear(u8),
    Cut,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => any::<bool>().prop_map(Step::Push),
        3 => (0u8..6).prop_map(Step::Send),
        3 => (0u8..6).prop_map(Step::Store),
        3 => (0u8..6).prop_map(Step::Hear),
        1 => Just(Step::Cut),
    ]
}

proptest! {
    /// Whatever is cut when, the engine stores every log line once and in order, and the newest progress.
    #[test]
    fn j5_a_broken_stream_loses_and_doubles_nothing(steps in prop::collection::vec(step(), 1..120)) {
        let mut s = session();
        let (mut wire, mut answers) = (Vec::<v1::Report>::new(), Vec::new());
        let (mut stored, mut last) = (Vec::new(), 0u64);
        let (mut logs, mut newest, mut tags, mut open) = (Vec::new(), None, 0u32, 0usize);
        let store = |report: &v1::Report, stored: &mut Vec<Body>, last: &mut u64| {
            // An engine takes the next number, and answers one that it has already stored again.
            assert!(report.number <= *last + 1, "a hole: {} after {last}", report.number);
            if report.number == *last + 1 {
                *last += 1;
                stored.push(report.body.clone().unwrap());
            }
        };
        let finish = vec![Step::Cut, Step::Send(255), Step::Store(255), Step::Hear(255)];
        for step in steps.into_iter().chain(finish) {
            match step {
                Step::Push(is_progress) => {
                    tags += 1;
                    let body = if is_progress { progress(tags.into()) } else { log(&tags.to_string()) };
                    if is_progress { newest = Some(body.clone()) } else { logs.push(body.clone()) }
                    open += 1;
                    if s.push("j", "t", body, Some(tags)).unwrap().is_some() { open -= 1 }
                }
                Step::Send(n) => wire.extend(s.next_reports(n.into())),
                Step::Store(n) => {
                    for report in wire.drain(..wire.len().min(n.into())) {
                        store(&report, &mut stored, &mut last);
                        answers.push(ack(report.number, ReportResult::Ok, report.number));
                    }
                }
                Step::Hear(n) => {
                    for ack in answers.drain(..answers.len().min(n.into())) {
                        open -= s.acked(ack).len();
                    }
                }
                Step::Cut => {
                    // What was under way may still arrive, or not; the answers are lost.
                    let arrives = wire.len() / 2;
                    for report in wire.drain(..).take(arrives) { store(&report, &mut stored, &mut last) }
                    answers.clear();
                    s.disconnected();
                    open -= s.welcomed(resumed(last), &[]).len();
                }
            }
        }
        prop_assert_eq!(open, 0, "every report was answered");
        prop_assert_eq!(s.queued("j"), 0);
        let (stored_progress, stored_logs): (Vec<_>, Vec<_>) =
            stored.into_iter().partition(|b| matches!(b, Body::Progress(_)));
        prop_assert_eq!(stored_logs, logs);
        prop_assert_eq!(stored_progress.last(), newest.as_ref());
    }
}
