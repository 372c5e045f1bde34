//! Schedules on every store: one job for each firing, whoever crashes, races or was away.
//!
//! Where time has to pass, the store is wrapped and its clock set ahead; where somebody has to die, the wrapper refuses
//! every call from a chosen one on, with its effect or without. The last tests run whole engines by the clock.

#[path = "conformance/ask.rs"]
mod ask;
#[path = "schedules/desk.rs"]
mod desk;
#[path = "schedules/faulty.rs"]
mod faulty;
#[path = "conformance/redis_cluster.rs"]
mod redis_cluster;
#[path = "conformance/redis_server.rs"]
mod redis_server;
#[path = "schedules/support.rs"]
mod support;

use std::{collections::BTreeSet, time::Duration};

use desk::{e25_anothers_schedule_is_one_that_is_not_there, pauses_changes_and_deletions_hold};
use job_engine::{job::index, schedule::fire};
use support::{Next as _, World, caller, on_every_store, wanted};
use tidegate_proto::v1::{
    Concurrency, DeleteScheduleRequest, GetScheduleRequest, Job, JobOptions, JobState, Overlap,
    PutScheduleRequest, Schedule, SubmitJobRequest, schedule_service_client::ScheduleServiceClient,
};
use tonic::Code;
use tonic_types::StatusExt as _;

const MINUTE: u64 = 60;
const HOUR: u64 = 3600;

on_every_store! {
    j4_a_crash_anywhere_in_a_firing_makes_one_job
    j23_a_schedule_that_lost_its_last_commits_meets_the_job_that_it_made
    j31_engines_that_race_make_one_job
    what_passed_while_nothing_ran_is_made_up_for_once
    a_firing_left_in_hand_for_long_is_given_up_or_taken_over_by_a_later_instant
    a_firing_is_skipped_while_the_last_job_has_not_ended
    j31_a_unique_key_that_was_left_or_passed_on_hides_no_job
    j31_a_put_at_the_moment_of_an_early_look_keeps_its_time
    pauses_changes_and_deletions_hold
    e25_anothers_schedule_is_one_that_is_not_there
    a_refused_job_is_missed_and_the_next_is_made
    a_whole_engine_fires_by_the_clock_and_goes_on_after_a_restart
}

async fn j4_a_crash_anywhere_in_a_firing_makes_one_job(world: World) {
    let (mut crashes, mut doomed) = (0, 0);
    // One job fills the queue: whoever comes back to it must not take it for another that is in the way.
    let engine = async || world.engine_with(|engine| engine.bounds.queued_per_owner = 1).await;
    for effective in [false, true] {
        for calls in 0..16 {
            let name = format!("s{calls}-{effective}");
            let alive = engine().await;
            // Jobs of one concurrency key belong together, wherever their schedules are.
            let concurrency = (calls % 2 == 0).then(|| Concurrency { key: "k".into(), limit: 2 });
            let options = Some(JobOptions { concurrency, ..JobOptions::default() });
            let at = alive.put(Schedule { options, ..wanted(&name, "@daily") }).await.next();
            let ahead = alive.until(at);
            let dying = engine().await;
            dying.store.set_ahead(ahead);
            dying.store.die_after(calls, effective);
            let died = fire::due(&dying.engine, &alive.stream(&name)).await.is_err();
            crashes += usize::from(died);
            // Whoever claims it next, a little later.
            alive.store.set_ahead(ahead + 15_000);
            fire::due(&alive.engine, &alive.stream(&name)).await.expect("the log answers");
            fire::due(&alive.engine, &alive.stream(&name)).await.expect("the log answers");
            let jobs = alive.jobs_of(&name).await;
            assert_eq!(jobs.len(), 1, "{name}: {jobs:?}");
            assert_eq!(jobs[0].scheduled_for.map(|t| t.seconds.unsigned_abs() * 1000), Some(at));
            assert_eq!((jobs[0].owner.as_str(), jobs[0].schedule.as_str()), ("me", &*name));
            let schedule = alive.get(&name).await;
            assert_eq!((schedule.fired, schedule.missed, schedule.skipped), (1, 0, 0), "{name}");
            assert_eq!(schedule.last_job_id, jobs[0].job_id);
            assert_eq!(schedule.next(), at + 24 * HOUR * 1000);
            alive.engine.cancel(None, &jobs[0].job_id, "").await.expect("it waits");
            doomed += 1;
        }
    }
    assert!(
        crashes >= 10 && crashes < doomed,
        "{crashes} of {doomed} crashed: the calls reach over the whole firing"
    );
}

async fn j23_a_schedule_that_lost_its_last_commits_meets_the_job_that_it_made(world: World) {
    let engine = world.engine_with(|engine| engine.bounds.queued_per_owner = 1).await;
    let at = engine.put(wanted("s", "@daily")).await.next();
    let stream = engine.stream("s");
    let before = engine.store.snapshot(&stream).await;
    engine.store.set_ahead(engine.until(at));
    engine.look("s").await;
    let fired = engine.get("s").await;
    // A failover that the schedule's commits did not survive, and the job's did.
    engine.store.put_back(&stream, &before).await;
    assert_eq!((engine.get("s").await.fired, engine.get("s").await.next()), (0, at));
    engine.look("s").await;
    let again = engine.get("s").await;
    assert_eq!((again.fired, &again.last_job_id, again.next_at), (1, &fired.last_job_id, fired.next_at));
    assert_eq!(engine.jobs_of("s").await.len(), 1);
}

async fn j31_engines_that_race_make_one_job(world: World) {
    let engines = [world.engine().await, world.engine().await];
    engines[0].put(Schedule { overlap: Overlap::Allow.into(), ..wanted("race", "* * * * *") }).await;
    let stream = engines[0].stream("race");
    for round in 1..=10 {
        let ahead = engines[0].until(engines[0].get("race").await.next());
        engines.iter().for_each(|engine| engine.store.set_ahead(ahead));
        let look = |n: usize| fire::due(&engines[n % 2].engine, &stream);
        let (a, b, c, d, e, f) = tokio::join!(look(0), look(1), look(2), look(3), look(4), look(5));
        for looked in [a, b, c, d, e, f] {
            looked.expect("the log answers");
        }
        let jobs = engines[0].jobs_of("race").await;
        let instants: BTreeSet<_> = jobs.iter().map(|job| job.scheduled_for.map(|t| t.seconds)).collect();
        assert_eq!((jobs.len(), instants.len()), (round, round));
        assert_eq!(engines[1].get("race").await.fired, round as u64);
    }
}

async fn what_passed_while_nothing_ran_is_made_up_for_once(world: World) {
    let engine = world.engine().await;
    let daily = engine.put(wanted("daily", "@daily")).await.next();
    engine.put(wanted("minutely", "* * * * *")).await;
    // Two hours after the daily one's time, and hours after the other's.
    engine.store.set_ahead(engine.until(daily) + 2 * HOUR * 1000);
    for _ in 0..3 {
        engine.look("daily").await;
        engine.look("minutely").await;
    }
    assert_eq!(engine.jobs_of("daily").await, []);
    let schedule = engine.get("daily").await;
    assert_eq!((schedule.fired, schedule.missed), (0, 1));
    assert_eq!(schedule.next(), daily + 24 * HOUR * 1000);
    let jobs = engine.jobs_of("minutely").await;
    assert_eq!(jobs.len(), 1);
    let last = jobs[0].scheduled_for.map_or(0, |t| t.seconds.unsigned_abs());
    assert!(last * 1000 + MINUTE * 1000 >= daily + 2 * HOUR * 1000, "the last instant of those that went by");
    assert_eq!(engine.get("minutely").await.missed, 0);
}

async fn a_firing_left_in_hand_for_long_is_given_up_or_taken_over_by_a_later_instant(world: World) {
    for (name, cron, fired, missed) in [("daily", "@daily", 0, 1), ("minutely", "* * * * *", 1, 0)] {
        let (engine, dying) = (world.engine().await, world.engine().await);
        let at = engine.put(wanted(name, cron)).await.next();
        let ahead = engine.until(at);
        dying.store.set_ahead(ahead);
        dying.store.die_at_second_commit();
        fire::due(&dying.engine, &engine.stream(name)).await.expect_err("it dies with the firing in hand");
        engine.store.set_ahead(ahead + 2 * HOUR * 1000);
        engine.look(name).await;
        let (schedule, jobs) = (engine.get(name).await, engine.jobs_of(name).await);
        assert_eq!((schedule.fired, schedule.missed, jobs.len() as u64), (fired, missed, fired), "{name}");
        let recent =
            |job: &Job| job.scheduled_for.is_some_and(|t| t.seconds.unsigned_abs() * 1000 > at + HOUR * 1000);
        assert!(jobs.iter().all(recent), "{jobs:?}");
    }
}

async fn a_firing_is_skipped_while_the_last_job_has_not_ended(world: World) {
    let engine = world.engine().await;
    engine.put(wanted("skips", "* * * * *")).await;
    engine.put(Schedule { overlap: Overlap::Allow.into(), ..wanted("allows", "* * * * *") }).await;
    for _ in 0..3 {
        engine.store.set_ahead(engine.until(engine.get("skips").await.next()));
        engine.look("skips").await;
        engine.look("allows").await;
    }
    let schedule = engine.get("skips").await;
    assert_eq!((schedule.fired, schedule.skipped), (1, 2));
    assert_eq!(engine.jobs_of("allows").await.len(), 3);
    let ended = engine.engine.cancel(None, &schedule.last_job_id, "").await.expect("it waits");
    assert_eq!(ended.state(), JobState::Cancelled);
    engine.store.set_ahead(engine.until(schedule.next()));
    engine.look("skips").await;
    let schedule = engine.get("skips").await;
    assert_eq!((schedule.fired, schedule.skipped), (2, 2));
    // The last job was removed: it has ended, surely.
    let cancelled = engine.engine.cancel(None, &schedule.last_job_id, "").await.expect("it waits");
    engine.engine.delete(None, &cancelled.job_id).await.expect("it has ended");
    engine.store.set_ahead(engine.until(schedule.next()));
    engine.look("skips").await;
    assert_eq!(engine.get("skips").await.fired, 3);
    // A unique key is the other way not to have two.
    let options = JobOptions { unique_key: "only one".into(), ..JobOptions::default() };
    let unique =
        Schedule { overlap: Overlap::Allow.into(), options: Some(options), ..wanted("unique", "* * * * *") };
    engine.put(unique).await;
    for _ in 0..2 {
        engine.store.set_ahead(engine.until(engine.get("unique").await.next()));
        engine.look("unique").await;
    }
    let schedule = engine.get("unique").await;
    assert_eq!((schedule.fired, schedule.skipped, engine.jobs_of("unique").await.len()), (1, 1, 1));
}

async fn j31_a_unique_key_that_was_left_or_passed_on_hides_no_job(world: World) {
    let engine = world.engine().await;
    let options = JobOptions { unique_key: "k".into(), ..JobOptions::default() };
    let submission = SubmitJobRequest {
        caller: Some(caller("me")),
        kind: "demo".into(),
        input_json: "{}".into(),
        options: Some(options.clone()),
        ..SubmitJobRequest::default()
    };
    // Somebody takes the key and dies before the job is made: the firing makes it under that id.
    let dying = world.engine().await;
    dying.store.die_at_second_commit();
    dying.engine.submit(submission.clone()).await.expect_err("it dies");
    let at = engine.put(Schedule { options: Some(options), ..wanted("s", "* * * * *") }).await.next();
    engine.store.set_ahead(engine.until(at));
    engine.look("s").await;
    let (schedule, jobs) = (engine.get("s").await, engine.jobs_of("s").await);
    assert_eq!((schedule.fired, schedule.skipped, jobs.len()), (1, 0, 1));
    assert_eq!(schedule.last_job_id, jobs[0].job_id);
    engine.engine.cancel(None, &schedule.last_job_id, "").await.expect("it waits");

    // The engine dies when the job is made; that ends before somebody looks, and another job has the key.
    let dying = world.engine().await;
    let ahead = engine.until(schedule.next());
    dying.store.set_ahead(ahead);
    // The firing in hand, the key, the job.
    dying.store.die_after_commits(2, true);
    fire::due(&dying.engine, &engine.stream("s")).await.expect_err("it dies");
    let jobs = engine.jobs_of("s").await;
    assert_eq!(jobs.len(), 2);
    engine.engine.cancel(None, &jobs[1].job_id, "").await.expect("it waits");
    assert!(engine.engine.submit(submission).await.expect("the key is free").1);
    engine.store.set_ahead(ahead + 15_000);
    engine.look("s").await;
    let schedule = engine.get("s").await;
    assert_eq!((schedule.fired, schedule.skipped, &schedule.last_job_id), (2, 0, &jobs[1].job_id));
}

async fn j31_a_put_at_the_moment_of_an_early_look_keeps_its_time(world: World) {
    let (slow, quick) = (world.engine().await, world.engine().await);
    quick.put(wanted("s", "@yearly")).await;
    let stream = quick.stream("s");
    // One engine has looked, too early, and is about to say when to look again; meanwhile it is put on another.
    let gate = slow.store.gate.write().await;
    let put = async {
        slow.store.waits.notified().await;
        let put = quick.put(wanted("s", "* * * * *")).await;
        drop(gate);
        put
    };
    let (looked, put) = tokio::join!(fire::due(&slow.engine, &stream), put);
    looked.expect("the log answers");
    let due = quick.store.due(index::FIRINGS, &stream).await.expect("it is waited for");
    assert!(due < put.next() + MINUTE * 1000, "due at {due}, next at {}", put.next());
}

async fn a_refused_job_is_missed_and_the_next_is_made(world: World) {
    let engine = world.engine_with(|engine| engine.bounds.queued_per_owner = 1).await;
    engine.put(Schedule { overlap: Overlap::Allow.into(), ..wanted("s", "* * * * *") }).await;
    for _ in 0..2 {
        engine.store.set_ahead(engine.until(engine.get("s").await.next()));
        engine.look("s").await;
    }
    let schedule = engine.get("s").await;
    assert_eq!((schedule.fired, schedule.missed), (1, 1));
    engine.engine.cancel(None, &schedule.last_job_id, "").await.expect("it waits");
    engine.store.set_ahead(engine.until(schedule.next()));
    engine.look("s").await;
    let schedule = engine.get("s").await;
    assert_eq!((schedule.fired, schedule.missed), (2, 1));
    // A log that is away is no refusal.
    engine.engine.cancel(None, &schedule.last_job_id, "").await.expect("it waits");
    engine.store.set_ahead(engine.until(schedule.next()));
    engine.store.die_at_second_commit();
    fire::due(&engine.engine, &engine.stream("s")).await.expect_err("the log is away");
    engine.store.revive();
    engine.look("s").await;
    let schedule = engine.get("s").await;
    assert_eq!((schedule.fired, schedule.missed, engine.jobs_of("s").await.len()), (3, 1, 3));
}

async fn a_whole_engine_fires_by_the_clock_and_goes_on_after_a_restart(world: World) {
    let running = world.serve().await;
    running.offer("demo").await;
    let mut schedules =
        ScheduleServiceClient::connect(running.url.clone()).await.expect("the engine answers");
    let schedule = Schedule { overlap: Overlap::Allow.into(), ..wanted("tick", "*/2 * * * * *") };
    let put = PutScheduleRequest { caller: Some(caller("me")), schedule: Some(schedule) };
    let answer = schedules.put_schedule(put.clone()).await.expect("accepted").into_inner();
    assert!(answer.created);
    let bad = Schedule { cron: "0 0 31 2 *".into(), ..wanted("never", "") };
    let refused = schedules.put_schedule(PutScheduleRequest { caller: None, schedule: Some(bad) }).await;
    let refused = refused.expect_err("it never fires");
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(refused.get_details_bad_request().expect("details").field_violations[0].field, "cron");
    let unknown = Schedule { kind: "unknown".into(), ..wanted("unknown", "@daily") };
    let refused = schedules.put_schedule(PutScheduleRequest { caller: None, schedule: Some(unknown) }).await;
    assert_eq!(refused.expect_err("nobody offers it").code(), Code::InvalidArgument);

    running.fired("tick", 2).await;
    running.serves().await;
    running.stop().await;
    // This is the outage itself: instants go by that nobody sees, and nothing but time makes them.
    tokio::time::sleep(Duration::from_secs(3)).await;
    // On Redis two engines: each firing is one of them's.
    let running = world.serve().await;
    let second = if world.is_shared() { Some(world.serve().await) } else { None };
    let so_far = running.get("tick").await.fired;
    running.fired("tick", so_far + 2).await;
    let mut schedules =
        ScheduleServiceClient::connect(running.url.clone()).await.expect("the engine answers");
    let delete =
        DeleteScheduleRequest { caller: Some(caller("me")), name: "tick".into(), owner: String::new() };
    let get = GetScheduleRequest { caller: Some(caller("me")), name: "tick".into(), owner: String::new() };
    // That finishes the firing in hand, so that nothing moves when it is compared.
    let pause = PutScheduleRequest { schedule: put.schedule.map(|s| Schedule { paused: true, ..s }), ..put };
    schedules.put_schedule(pause).await.expect("accepted");
    let schedule =
        schedules.get_schedule(get.clone()).await.expect("there").into_inner().schedule.expect("one");
    schedules.delete_schedule(delete).await.expect("there");
    assert_eq!(schedules.get_schedule(get).await.expect_err("gone").code(), Code::NotFound);
    let jobs = running.jobs_of("tick").await;
    assert_eq!(jobs.len() as u64, schedule.fired);
    let instants: BTreeSet<_> = jobs.iter().map(|job| job.scheduled_for.map(|t| t.seconds)).collect();
    assert_eq!(instants.len(), jobs.len(), "one job for each instant");
    if let Some(second) = second {
        second.stop().await;
    }
    running.stop().await;
}
