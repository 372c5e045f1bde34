//! Histories of schedules, without a store.

use proptest::prelude::*;
use tidegate_proto::v1::{Concurrency, JobOptions};

use super::*;

/// 2027-01-01T00:00:00Z.
const BASE_MS: u64 = 1_798_761_600_000;
const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;
/// How close instants may be in these tests.
const LEAST: Duration = Duration::from_secs(1);

fn me() -> Caller {
    Caller { tenant: "default".into(), subject: "me".into(), whole_tenant: false }
}

fn wanted(cron: &str) -> Schedule {
    Schedule { name: "nightly".into(), kind: "demo".into(), cron: cron.into(), ..Schedule::default() }
}

fn put(old: Option<&Record>, wanted: Schedule, now_ms: u64) -> (Option<Record>, Timetable) {
    let (schedule, timetable) = check(wanted, &me(), LEAST).expect("a good schedule");
    (Record::put(old, schedule, &timetable, now_ms), timetable)
}

fn fields(wanted: Schedule) -> Vec<&'static str> {
    match check(wanted, &me(), LEAST) {
        Err(EngineError::Invalid(wrong)) => wrong.into_iter().map(|(field, _)| field).collect(),
        other => panic!("accepted: {other:?}"),
    }
}

#[test]
fn every_wrong_field_is_named_at_once() {
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let wrong = Schedule {
        name: "Nope!".into(),
        kind: "Nope!".into(),
        input_json: "{".into(),
        cron: "60 * * * *".into(),
        time_zone: "UTC".into(),
        overlap: 7,
        catch_up: seconds(59),
        options: Some(JobOptions {
            delay: seconds(1),
            run_at: Some(timestamp(BASE_MS)),
            priority: 101,
            ..JobOptions::default()
        }),
        ..Schedule::default()
    };
    let mut found = fields(wrong);
    found.sort_unstable();
    found.dedup();
    assert_eq!(
        found,
        [
            "catch_up",
            "cron",
            "input_json",
            "kind",
            "name",
            "options.delay",
            "options.priority",
            "options.run_at",
            "overlap"
        ]
    );
    let large = format!("\"{}\"", "x".repeat(MAX_SCHEDULE_INPUT_BYTES));
    assert_eq!(fields(Schedule { input_json: large, ..wanted("@daily") }), ["input_json"]);
    assert_eq!(fields(Schedule { catch_up: seconds(86_401), ..wanted("@daily") }), ["catch_up"]);
    assert_eq!(fields(Schedule { time_zone: "Mars".into(), ..wanted("@daily") }), ["time_zone"]);
    assert_eq!(fields(wanted("0 0 31 2 *")), ["cron"]);
    let close = check(wanted("0,59 * * * * *"), &me(), Duration::from_secs(2));
    assert!(
        matches!(&close, Err(EngineError::Invalid(wrong)) if wrong.len() == 1 && wrong[0].0 == "cron"),
        "{close:?}"
    );
    assert!(check(wanted("* * * * *"), &me(), Duration::from_secs(60)).is_ok());
}

#[test]
fn what_passed_unseen_is_made_up_for_once_and_not_too_late() {
    // Each line: expression, when it is looked at after its first instant, and which instant fires.
    for (cron, late, fires) in [
        ("0 1 * * *", 0, Some(HOUR)),
        ("0 1 * * *", 59 * MINUTE, Some(HOUR)),
        ("0 1 * * *", 60 * MINUTE, Some(HOUR)),
        ("0 1 * * *", 60 * MINUTE + 1, None),
        ("0 1 * * *", 30 * HOUR, None),
        ("0 1 * * *", 24 * HOUR + MINUTE, Some(25 * HOUR)),
        ("* * * * *", 0, Some(MINUTE)),
        ("* * * * *", 10 * HOUR + 1234, Some(10 * HOUR + MINUTE)),
        ("* * * * * *", 1000 * HOUR, Some(1000 * HOUR + 1000)),
    ] {
        let (record, timetable) = put(None, wanted(cron), BASE_MS);
        let mut record = record.expect("new");
        let first = record.next_ms().expect("an instant");
        let now = first + late;
        let passed = record.pass(&timetable, now, false);
        let expected = if fires.is_some() { Passed::Fires } else { Passed::Missed };
        assert_eq!(passed, expected, "{cron} {late}");
        assert_eq!(record.in_hand.as_ref().map(|f| f.at_ms - BASE_MS), fires, "{cron} {late}");
        assert!(record.next_ms() > Some(now), "{cron} {late}");
        assert_eq!(record.schedule.missed, u64::from(fires.is_none()), "{cron} {late}");
    }
}

#[test]
fn a_firing_that_was_left_in_hand_is_given_up_when_it_is_too_late_or_the_next_has_come() {
    let begun = |cron| {
        let (record, timetable) = put(None, wanted(cron), BASE_MS);
        let mut record = record.expect("new");
        let at = record.next_ms().expect("an instant");
        assert_eq!(record.pass(&timetable, at, false), Passed::Fires);
        (record, at)
    };
    let (daily, at) = begun("@daily");
    assert_eq!(daily.stale(at + HOUR), None);
    assert_eq!(daily.stale(at + HOUR + 1), Some(Outcome::Missed));
    let (minutely, at) = begun("* * * * *");
    assert_eq!(minutely.stale(at + MINUTE - 1), None);
    assert_eq!(minutely.stale(at + MINUTE), Some(Outcome::Superseded));
}

#[test]
fn the_same_twice_changes_nothing_and_an_instant_that_has_come_outlives_a_put() {
    let (first, _) = put(None, wanted("0 1 * * *"), BASE_MS);
    let first = first.expect("new");
    let late = BASE_MS + 90 * MINUTE;
    assert_eq!(put(Some(&first), wanted("0 1 * * *"), late).0, None);
    let input = Schedule { input_json: "[1]".into(), ..wanted("0 1 * * *") };
    let (second, timetable) = put(Some(&first), input, late);
    let mut second = second.expect("another input");
    assert_eq!((second.next_ms(), second.schedule.updated_at), (first.next_ms(), Some(timestamp(late))));
    assert_eq!(second.schedule.created_at, first.schedule.created_at);
    assert_eq!(second.pass(&timetable, late, false), Passed::Fires);
    second.put_down(Outcome::Fired);
    // Another expression, another zone and the end of a pause begin anew.
    for changed in [
        wanted("0 * * * *"),
        Schedule { time_zone: "Europe/Berlin".into(), ..wanted("0 1 * * *") },
        Schedule { paused: true, ..wanted("0 1 * * *") },
    ] {
        let (third, _) = put(Some(&first), changed.clone(), late);
        let third = third.expect("changed");
        assert_eq!(third.next_ms().is_none(), changed.paused);
        assert!(third.next_ms().is_none_or(|next| next > late));
        assert!(matches!(third.due(late, HOUR_LONG), IndexChange::Remove { .. }) == changed.paused);
    }
    let (paused, _) = put(Some(&second), Schedule { paused: true, ..wanted("0 1 * * *") }, late);
    let (again, _) = put(paused.as_ref(), wanted("0 1 * * *"), late + 48 * HOUR);
    let again = again.expect("it goes on").schedule;
    assert_eq!(again.next_at.map(millis), Some(BASE_MS + 73 * HOUR), "what fell into the rest is gone");
    assert_eq!((again.fired, &again.last_job_id), (1, &second.schedule.last_job_id));
}

#[test]
fn refusals_count_as_missed_and_a_row_of_them_ends_with_a_job() {
    let (record, timetable) = put(None, wanted("@hourly"), BASE_MS);
    let mut record = record.expect("new");
    for (outcome, is_refused, missed) in [
        (Outcome::Refused, true, 1),
        (Outcome::Refused, true, 2),
        (Outcome::Fired, false, 2),
        (Outcome::Refused, true, 3),
    ] {
        let at = record.next_ms().expect("an instant");
        assert_eq!(record.pass(&timetable, at, false), Passed::Fires);
        record.put_down(outcome);
        assert_eq!((record.is_refused, record.schedule.missed), (is_refused, missed));
        // A put does not begin the row anew.
        let input = Schedule { input_json: format!("[{at}]"), ..wanted("@hourly") };
        record = put(Some(&record), input, at).0.expect("another input");
        assert_eq!(record.is_refused, is_refused);
    }
}

const HOUR_LONG: Duration = Duration::from_secs(3600);

#[test]
fn the_job_s_id_is_made_of_owner_name_and_instant() {
    let id = |tenant: &str, owner: &str, name: &str, at| {
        let schedule =
            Schedule { tenant: tenant.into(), owner: owner.into(), name: name.into(), ..Schedule::default() };
        Record { schedule, ..Record::default() }.job_id(at)
    };
    let one = id("t", "me", "a", BASE_MS);
    assert_eq!(one, id("t", "me", "a", BASE_MS));
    assert!(crate::engine::check_job_id(&one).is_ok(), "{one}");
    for other in [
        id("u", "me", "a", BASE_MS),
        id("t", "you", "a", BASE_MS),
        id("t", "me", "b", BASE_MS),
        id("t", "me", "a", BASE_MS + 1000),
        id("t", "m", "ea", BASE_MS),
    ] {
        assert_ne!(one, other);
    }
    // Those of one concurrency key belong together in a partitioned log.
    let options =
        JobOptions { concurrency: Some(Concurrency { key: "k".into(), limit: 1 }), ..JobOptions::default() };
    let schedule = Schedule { tenant: "t".into(), options: Some(options), ..Schedule::default() };
    let id = Record { schedule, ..Record::default() }.job_id(BASE_MS);
    assert_eq!(id[32..], crate::engine::new_job_id(Some(&index::gate("t", "k")))[32..]);
}

#[derive(Clone, Debug)]
enum Step {
    /// Time goes by, and somebody looks.
    Look { after: u64, busy: bool },
    /// The firing in hand ends like this.
    PutDown(Outcome),
    /// It is put.
    Put { cron: usize, paused: bool },
}

fn step() -> impl Strategy<Value = Step> {
    let after = prop_oneof![0..2000u64, 0..2 * HOUR, 0..100 * HOUR];
    let outcome = prop::sample::select(
        &[Outcome::Fired, Outcome::Skipped, Outcome::Missed, Outcome::Refused, Outcome::Superseded][..],
    );
    prop_oneof![
        6 => (after, any::<bool>()).prop_map(|(after, busy)| Step::Look { after, busy }),
        3 => outcome.prop_map(Step::PutDown),
        1 => (0..4usize, prop::bool::weighted(0.2)).prop_map(|(cron, paused)| Step::Put { cron, paused }),
    ]
}

proptest! {
    #[test]
    fn instants_that_fire_only_grow_and_none_fires_while_it_rests_or_too_late(
        steps in prop::collection::vec(step(), 1..60), zone in prop::sample::select(&["UTC", "Europe/Berlin"][..]),
    ) {
        const CRONS: [&str; 4] = ["*/20 * * * * *", "* * * * *", "30 2 * * *", "@hourly"];
        let wanted = |cron: usize, paused| Schedule { time_zone: zone.into(), paused, ..wanted(CRONS[cron]) };
        let (mut now, mut last) = (BASE_MS + 85 * 24 * HOUR, 0);
        let (record, mut timetable) = put(None, wanted(0, false), now);
        let mut record = record.unwrap();
        let mut passes = 0;
        for step in steps {
            match step {
                Step::Put { cron, paused } if record.in_hand.is_none() => {
                    let (changed, times) = put(Some(&record), wanted(cron, paused), now);
                    (record, timetable) = (changed.unwrap_or(record), times);
                    prop_assert_eq!(record.next_ms().is_none(), paused);
                }
                Step::Put { .. } => {}
                Step::PutDown(outcome) => record.put_down(outcome),
                Step::Look { after, busy } if record.in_hand.is_none() => {
                    now += after;
                    let due = record.next_ms().is_some_and(|next| next <= now);
                    let passed = record.pass(&timetable, now, busy);
                    passes += u64::from(due);
                    prop_assert_eq!(passed == Passed::Early, !due);
                    prop_assert!(record.next_ms().is_none_or(|next| next > now));
                    if let Some(firing) = &record.in_hand {
                        prop_assert!(!busy && !record.schedule.paused);
                        prop_assert!(firing.at_ms > last && firing.at_ms <= now && firing.at_ms + HOUR >= now);
                        last = firing.at_ms;
                    }
                }
                Step::Look { after, .. } => now += after,
            }
            let Schedule { fired, skipped, missed, .. } = record.schedule;
            prop_assert!(fired + skipped + missed <= passes);
        }
    }
}
