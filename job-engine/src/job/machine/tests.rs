//! Properties of the state machine, over random histories, and the traps that are decided here.

use std::collections::BTreeSet;

use proptest::prelude::*;
use prost::Message as _;
use tidegate_proto::v1::{Checkpoint, Completed, Custom, Progress, Released, Stopped, event, report::Body};

use super::*;

const NOW: u64 = 1_800_000_000_000;

#[derive(Clone, Debug)]
enum Command {
    Assign,
    Report { stale_token: bool, repeat: bool, body: Body },
    Cancel,
    CancelDue,
    LeaseExpired { stale: bool },
    Unassign,
    Due,
    Retry,
}

fn bodies() -> impl Strategy<Value = Body> {
    prop_oneof![
        4 => Just(Body::Progress(Progress { percent: Some(f64::NAN), ..Progress::default() })),
        4 => Just(Body::Log(Log { text: "line".into(), ..Log::default() })),
        2 => Just(Body::Checkpoint(Checkpoint { data: Bytes::from_static(b"here"), ..Checkpoint::default() })),
        1 => Just(Body::Custom(Custom { name: "chart".into(), json: "{}".into() })),
        1 => Just(Body::Complete(Completed::default())),
        2 => any::<bool>().prop_map(|retryable| Body::Fail(Failed { retryable, ..Failed::default() })),
        1 => Just(Body::Stopped(Stopped {})),
        1 => Just(Body::Released(Released::default())),
    ]
}

fn commands() -> impl Strategy<Value = Vec<Command>> {
    let command = prop_oneof![
        6 => Just(Command::Assign),
        10 => (prop::bool::weighted(0.1), prop::bool::weighted(0.1), bodies())
            .prop_map(|(stale_token, repeat, body)| Command::Report { stale_token, repeat, body }),
        1 => Just(Command::Cancel),
        1 => Just(Command::CancelDue),
        2 => prop::bool::weighted(0.3).prop_map(|stale| Command::LeaseExpired { stale }),
        1 => Just(Command::Unassign),
        2 => Just(Command::Due),
        1 => Just(Command::Retry),
    ];
    prop::collection::vec(command, 1..80)
}

/// A job with the log and the indexes that a store would hold for it.
struct World {
    rules: Rules,
    record: JobRecord,
    log: Vec<Event>,
    members: BTreeSet<(String, String)>,
    reports: u64,
}

impl World {
    fn new(options: JobOptions) -> Self {
        let rules = Rules::default();
        let new = NewJob {
            job_id: "job".into(),
            epoch: "e".into(),
            kind: "demo".into(),
            tenant: "default".into(),
            owner: "me".into(),
            input_json: "{}".into(),
            options,
        };
        let draft = Draft::submit(new, &rules, NOW);
        let mut world = World {
            record: draft.record.clone(),
            log: Vec::new(),
            members: BTreeSet::new(),
            reports: 0,
            rules: rules.clone(),
        };
        world.commit(&draft.commit(), draft.record.clone());
        world
    }

    fn commit(&mut self, commit: &Commit, record: JobRecord) {
        self.log.extend(commit.events.iter().map(|e| Event::decode(e.clone()).expect("an event")));
        for change in &commit.index {
            match change.clone() {
                IndexChange::Put { index, member, .. } => drop(self.members.insert((index, member))),
                IndexChange::Remove { index, member } => drop(self.members.remove(&(index, member))),
                IndexChange::Enqueue { place, .. } => drop(self.members.insert((place.queue, place.member))),
                IndexChange::Dequeue { place } => drop(self.members.remove(&(place.queue, place.member))),
                IndexChange::Leave { .. } => {}
            }
        }
        self.record = record;
    }

    fn token(&self) -> String {
        self.record.lease.as_ref().map(|l| l.token.clone()).unwrap_or_default()
    }

    /// Applies a command as the engine would: committed if it changed something, else without a trace.
    fn apply(&mut self, command: &Command) -> Result<Option<Reported>, Refusal> {
        let rules = self.rules.clone();
        let head = Head { seq: self.record.job.last_seq, epoch: "e".into() };
        let mut draft = Draft::of(self.record.clone(), head, &rules, NOW);
        let (attempt, token) = (self.record.job.attempt, self.token());
        let answer = match command {
            Command::Assign => draft.assign("worker", &format!("nonce{}", self.log.len())).map(|()| None),
            Command::Report { stale_token, repeat, body } => {
                let token = if *stale_token { "0-old".to_owned() } else { token };
                let number = if *repeat { self.reports } else { self.reports + 1 };
                self.reports = self.reports.max(number);
                draft.report(&token, number, body, 1.0).map(Some)
            }
            Command::Cancel => draft.cancel("me", "enough").map(|()| None),
            Command::CancelDue => draft.cancel_due().map(|()| None),
            Command::LeaseExpired { stale } => {
                draft.lease_expired(attempt - u32::from(*stale && attempt > 0)).map(|()| None)
            }
            Command::Unassign => draft.unassign(&token).map(|()| None),
            Command::Due => draft.due().map(|()| None),
            Command::Retry => draft.retry("me").map(|()| None),
        };
        if answer.is_err() {
            assert!(draft.is_empty(), "a refusal changed something: {command:?}");
        }
        if matches!(command, Command::Assign) && answer.is_ok() {
            self.reports = 0;
        }
        if !draft.is_empty() {
            let (commit, record) = (draft.commit(), draft.record.clone());
            self.commit(&commit, record);
        }
        answer
    }

    fn check_indexes(&self) {
        let id = "job".to_owned();
        let mut wanted: BTreeSet<(String, String)> =
            [("jobs".to_owned(), id.clone()), ("jobs/default/me".to_owned(), id.clone())].into();
        match self.record.state() {
            JobState::Queued => drop(wanted.insert(("q/demo".into(), id))),
            JobState::Scheduled => drop(wanted.insert(("scheduled".into(), id))),
            JobState::Processing => {
                wanted.insert(("lease".into(), self.record.lease_member()));
                if self.record.job.cancel_requested.is_some() {
                    wanted.insert(("cancel".into(), id));
                }
            }
            _ => drop(wanted.insert(("expire".into(), id))),
        }
        assert_eq!(self.members, wanted, "in state {:?}", self.record.state());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn any_history_keeps_the_promises(commands in commands(), max_attempts in 1u32..4) {
        let backoff = prost_types::Duration { seconds: 1, nanos: 0 };
        let mut world = World::new(JobOptions { max_attempts, max_stalls: 2, backoff: Some(backoff), ..JobOptions::default() });
        let mut cancelled = false;
        for command in &commands {
            let before = world.record.state();
            let logged = world.log.len();
            let answer = world.apply(command);
            world.check_indexes();
            // J22, dense and last: numbers have no hole, and nothing follows a terminal event but a retry.
            for (i, event) in world.log.iter().enumerate() {
                prop_assert_eq!(event.seq, i as u64 + 1);
            }
            if before.is_terminal() && world.log.len() > logged {
                prop_assert!(matches!(command, Command::Retry), "{:?} after the end", command);
            }
            // J10: cancelled stays cancelled.
            if cancelled && !matches!(command, Command::Retry) {
                for event in &world.log[logged..] {
                    let quiet = matches!(event.kind, Some(event::Kind::Log(_) | event::Kind::Cancelled(_)));
                    prop_assert!(quiet, "after a cancellation: {:?}", event);
                }
            }
            cancelled = match command {
                Command::Cancel if answer.is_ok() => true,
                Command::Retry if answer.is_ok() => false,
                _ => cancelled,
            };
            // J1: the fence.
            if let Command::Report { stale_token: true, .. } = command {
                prop_assert_eq!(answer, Err(Refusal::LeaseLost));
            }
            prop_assert_eq!(world.record.job.last_seq, world.log.len() as u64);
        }
    }
}

fn processing() -> World {
    let mut world = World::new(JobOptions { max_attempts: 3, max_stalls: 1, ..JobOptions::default() });
    world.apply(&Command::Assign).expect("assigned");
    world
}

fn report(body: Body) -> Command {
    Command::Report { stale_token: false, repeat: false, body }
}

#[test]
fn j4_a_repeated_report_is_stored_once_under_the_same_seq() {
    let mut world = processing();
    let line = Body::Log(Log { text: "once".into(), ..Log::default() });
    let first = world.apply(&report(line.clone())).expect("stored");
    let again =
        world.apply(&Command::Report { stale_token: false, repeat: true, body: line }).expect("recognised");
    assert_eq!(first, again);
    assert_eq!(world.log.len(), 3);
}

#[test]
fn j9_a_job_that_kills_its_workers_fails_with_its_reason() {
    let mut world = processing();
    world.apply(&Command::LeaseExpired { stale: false }).expect("queued again");
    assert_eq!(world.record.state(), JobState::Queued);
    world.apply(&Command::Assign).expect("assigned");
    world.apply(&Command::LeaseExpired { stale: false }).expect("given up");
    let Some(event::Kind::Failed(failed)) = &world.log[world.log.len() - 1].kind else {
        panic!("not failed")
    };
    assert_eq!(failed.code, "stalled");
}

#[test]
fn j10_a_completion_that_races_a_cancellation_loses() {
    let mut world = processing();
    world.apply(&Command::Cancel).expect("asked");
    world.apply(&report(Body::Complete(Completed::default()))).expect("answered");
    assert_eq!(world.record.state(), JobState::Cancelled);
}

#[test]
fn j34_a_retry_keeps_the_log_and_its_numbers() {
    let mut world = processing();
    world.apply(&report(Body::Fail(Failed::default()))).expect("failed");
    let before = world.log.len();
    world.apply(&Command::Retry).expect("queued");
    world.apply(&Command::Assign).expect("assigned");
    assert_eq!(world.log.len(), before + 2);
    assert_eq!((world.record.job.attempt, world.record.failures), (2, 0));
}

#[test]
fn j37_what_is_too_large_or_no_json_is_rejected_without_a_trace() {
    let mut world = processing();
    let large = Bytes::from(vec![0; limits::MAX_CHECKPOINT_BYTES + 1]);
    for body in [
        Body::Checkpoint(Checkpoint { data: large, ..Checkpoint::default() }),
        Body::Custom(Custom { name: "chart".into(), json: "{".into() }),
        Body::Custom(Custom { name: "error".into(), json: "{}".into() }),
        Body::Complete(Completed { result_json: "nope".into() }),
    ] {
        assert!(matches!(world.apply(&report(body)), Err(Refusal::Rejected(_))));
    }
    assert_eq!(world.log.len(), 2);
}

#[test]
fn retryable_failures_back_off_and_then_end() {
    let backoff = Some(prost_types::Duration { seconds: 2, nanos: 0 });
    let mut world =
        World::new(JobOptions { max_attempts: 3, backoff, max_backoff: backoff, ..JobOptions::default() });
    for attempt in 1..=3 {
        world.apply(&Command::Assign).expect("assigned");
        world.apply(&report(Body::Fail(Failed { retryable: true, ..Failed::default() }))).expect("failed");
        if attempt < 3 {
            assert_eq!(world.record.state(), JobState::Scheduled);
            assert_eq!(world.record.job.run_at.map(millis), Some(NOW + 2000));
            world.apply(&Command::Due).expect("due");
        }
    }
    assert_eq!(world.record.state(), JobState::Failed);
}
