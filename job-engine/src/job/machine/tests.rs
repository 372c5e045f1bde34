//! Properties of the state machine, over random histories, and the traps that are decided here.

use std::collections::BTreeSet;

use proptest::prelude::*;
use prost::Message as _;
use tidegate_proto::v1::{
    Checkpoint, Completed, Concurrency, Custom, Progress, Released, Stopped, event, report::Body,
};

use super::*;

const NOW: u64 = 1_800_000_000_000;

#[derive(Clone, Debug)]
enum Command {
    Assign,
    Report {
        stale_token: bool,
        repeat: bool,
        body: Body,
    },
    Cancel,
    CancelDue,
    LeaseExpired {
        stale: bool,
    },
    Unassign,
    AttemptDue {
        stale: bool,
    },
    Due,
    Retry,
    /// Time passes, in seconds.
    Wait(u64),
}

fn bodies() -> impl Strategy<Value = Body> {
    prop_oneof![
        4 => Just(Body::Progress(Progress { percent: Some(5.0), ..Progress::default() })),
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
        2 => prop::bool::weighted(0.2).prop_map(|stale| Command::AttemptDue { stale }),
        3 => (1..40u64).prop_map(Command::Wait),
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
    now_ms: u64,
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
            now_ms: NOW,
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
                IndexChange::Enqueue { place, gate } => {
                    assert!(self.members.insert((place.queue, place.member)), "it is in the queue already");
                    if let Some(gate) = gate {
                        self.members.insert((gate.name, place.lane));
                    }
                }
                IndexChange::Dequeue { place } => drop(self.members.remove(&(place.queue, place.member))),
                IndexChange::Leave { gate, lane, .. } => drop(self.members.remove(&(gate, lane))),
            }
        }
        self.record = record;
    }

    fn seconds(&self, of: impl Fn(&JobOptions) -> Option<prost_types::Duration>) -> Option<u64> {
        of(self.record.job.options.as_ref()?).map(|d| d.seconds.unsigned_abs())
    }

    fn token(&self) -> String {
        self.record.lease.as_ref().map(|l| l.token.clone()).unwrap_or_default()
    }

    /// Applies a command as the engine would: committed if it changed something, else without a trace.
    fn apply(&mut self, command: &Command) -> Result<Option<Reported>, Refusal> {
        let rules = self.rules.clone();
        let head = Head { seq: self.record.job.last_seq, epoch: "e".into() };
        if let Command::Wait(seconds) = command {
            self.now_ms += seconds * 1000;
        }
        let mut draft = Draft::of(self.record.clone(), head, &rules, self.now_ms);
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
            Command::AttemptDue { stale } => {
                let attempt = attempt - u32::from(*stale && attempt > 0);
                draft.attempt_due(attempt, 1.0).map(|_| None)
            }
            Command::Wait(_) => Ok(None),
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
        let always = ["jobs", "jobs/default", "jobs/default/me"];
        let mut wanted: BTreeSet<(String, String)> =
            always.map(|index| (index.to_owned(), id.clone())).into();
        let options = self.record.job.options.clone().unwrap_or_default();
        // From its turn in the queue to the end of its attempt, and never else.
        if options.concurrency.is_some()
            && matches!(self.record.state(), JobState::Queued | JobState::Processing)
        {
            wanted.insert(("default/heavy".into(), "default/me".into()));
        }
        match self.record.state() {
            JobState::Queued => drop(wanted.insert(("q/demo".into(), id))),
            JobState::Scheduled => drop(wanted.insert(("scheduled".into(), id))),
            JobState::Processing => {
                wanted.insert(("lease".into(), self.record.lease_member()));
                if self.record.job.cancel_requested.is_some() {
                    wanted.insert(("cancel".into(), id));
                } else if options.timeout.is_some() || options.progress_deadline.is_some() {
                    wanted.insert(("attempt".into(), self.record.lease_member()));
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
    fn any_history_keeps_the_promises(commands in commands(), options in options()) {
        let mut world = World::new(options);
        let mut cancelled = false;
        for command in &commands {
            let before = world.record.state();
            let logged = world.log.len();
            let quiet_since = world.record.lease.as_ref().map_or(0, |l| l.began_ms.max(l.last_report_ms));
            let answer = world.apply(command);
            world.check_indexes();
            // J22, dense and last: numbers have no hole, and nothing follows a terminal event but a retry.
            for (i, event) in world.log.iter().enumerate() {
                prop_assert_eq!(event.seq, i as u64 + 1);
            }
            // J21: nothing of an attempt comes behind the start of the next.
            prop_assert!(world.log.is_sorted_by_key(|event| event.attempt));
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
            // J7: an attempt is ended by its times, and by them alone.
            if let (Command::AttemptDue { .. }, Some(event)) = (command, world.log.get(logged)) {
                let (timeout, silence) = (world.seconds(|o| o.timeout), world.seconds(|o| o.progress_deadline));
                let began = world.record.lease.as_ref().map_or(0, |l| l.began_ms);
                let over = |limit: Option<u64>, since: u64| limit.is_some_and(|s| world.now_ms >= since + s * 1000);
                prop_assert!(over(timeout, began) || over(silence, quiet_since), "too early: {:?}", event);
            }
            // J1: the fence.
            if let Command::Report { stale_token: true, .. } = command {
                prop_assert_eq!(answer, Err(Refusal::LeaseLost));
            }
            prop_assert_eq!(world.record.job.last_seq, world.log.len() as u64);
        }
    }
}

fn options() -> impl Strategy<Value = JobOptions> {
    let seconds = |range| proptest::option::of(range).prop_map(|s: Option<i64>| s.map(second));
    (1u32..4, seconds(1..60i64), seconds(1..60i64), any::<bool>(), seconds(1..9i64)).prop_map(
        |(max_attempts, timeout, progress_deadline, heavy, delay)| JobOptions {
            max_attempts,
            max_stalls: 2,
            backoff: Some(second(1)),
            timeout,
            progress_deadline,
            delay,
            concurrency: heavy.then(|| Concurrency { key: "heavy".into(), limit: 2 }),
            ..JobOptions::default()
        },
    )
}

fn second(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
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

fn reason(event: &Event) -> String {
    match &event.kind {
        Some(event::Kind::State(change)) => change.reason.clone(),
        Some(event::Kind::Log(log)) => log.text.clone(),
        Some(event::Kind::Failed(failed)) => failed.code.clone(),
        other => format!("{other:?}"),
    }
}

#[test]
fn j7_a_silent_attempt_fails_though_its_worker_lives_and_a_report_gives_it_more_time() {
    let limit = Some(second(10));
    let mut world =
        World::new(JobOptions { max_attempts: 2, progress_deadline: limit, ..JobOptions::default() });
    world.apply(&Command::Assign).expect("assigned");
    world.apply(&Command::Wait(9)).expect("time passes");
    world.apply(&report(Body::Log(Log::default()))).expect("stored");
    world.apply(&Command::Wait(9)).expect("time passes");
    let logged = world.log.len();
    world.apply(&Command::AttemptDue { stale: false }).expect("too early");
    assert_eq!(world.log.len(), logged);
    world.apply(&Command::Wait(1)).expect("time passes");
    world.apply(&Command::AttemptDue { stale: true }).expect_err("another attempt's");
    world.apply(&Command::AttemptDue { stale: false }).expect("over");
    assert_eq!(world.record.state(), JobState::Scheduled);
    assert!(reason(&world.log[logged]).contains("no_progress"), "{:?}", world.log[logged]);
    assert_eq!(world.apply(&report(Body::Log(Log::default()))), Err(Refusal::LeaseLost));
}

#[test]
fn a_timeout_ends_the_attempt_whatever_it_reports() {
    let mut world = World::new(JobOptions { timeout: Some(second(10)), ..JobOptions::default() });
    world.apply(&Command::Assign).expect("assigned");
    assert_eq!(world.record.deadline_ms(), Some(NOW + 10_000));
    for _ in 0..10 {
        world.apply(&Command::AttemptDue { stale: false }).expect("too early");
        world.apply(&report(Body::Log(Log::default()))).expect("stored");
        world.apply(&Command::Wait(1)).expect("time passes");
    }
    world.apply(&Command::AttemptDue { stale: false }).expect("over");
    assert_eq!(world.record.state(), JobState::Failed);
    assert_eq!(world.log.last().map(reason).as_deref(), Some("timeout"));
}

#[test]
fn a_time_that_was_set_is_waited_for_and_a_past_one_is_now() {
    let at = |ms| JobOptions { run_at: Some(timestamp(ms)), ..JobOptions::default() };
    let world = World::new(at(NOW + 5000));
    assert_eq!(world.record.job.run_at.map(millis), Some(NOW + 5000));
    assert_eq!(World::new(at(NOW - 5000)).record.state(), JobState::Queued);
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
