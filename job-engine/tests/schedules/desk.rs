//! What callers do with schedules: put, pause, list, delete; and that others' schedules are not theirs.

use std::collections::BTreeSet;

use job_engine::{error::EngineError, job::index, schedule::fire};
use tidegate_proto::{
    limits::MAX_SCHEDULES,
    v1::{Caller, ListSchedulesRequest, PutScheduleRequest, Schedule},
};

use crate::{
    HOUR, MINUTE,
    support::{Next as _, World, caller, wanted},
};

pub(crate) async fn pauses_changes_and_deletions_hold(world: World) {
    let engine = world.engine().await;
    let put = async |schedule: Schedule| engine.put(schedule).await;
    let first = put(wanted("s", "@hourly")).await;
    assert_eq!(put(wanted("s", "@hourly")).await, first, "the same twice is one");
    let due = async || engine.store.members(index::FIRINGS).await;
    assert_eq!(due().await, [engine.stream("s")]);
    // An hour passes while it rests.
    let paused = put(Schedule { paused: true, ..wanted("s", "@hourly") }).await;
    assert_eq!((paused.next_at, due().await.len()), (None, 0));
    engine.store.set_ahead(engine.until(first.next()));
    engine.look("s").await;
    let again = put(wanted("s", "@hourly")).await;
    engine.look("s").await;
    assert_eq!((again.next(), engine.jobs_of("s").await.len()), (first.next() + HOUR * 1000, 0));
    // Another expression counts from now on.
    let sooner = put(wanted("s", "* * * * *")).await;
    assert_eq!(sooner.next(), first.next() + MINUTE * 1000);
    engine.store.set_ahead(engine.until(sooner.next()));
    // Put at the very moment, with another input: the instant is not lost.
    put(Schedule { input_json: "[2]".into(), ..wanted("s", "* * * * *") }).await;
    engine.look("s").await;
    let jobs = engine.jobs_of("s").await;
    assert_eq!((jobs.len(), jobs[0].input_json.as_str()), (1, "[2]"));
    // A firing that was left in hand is finished as it was begun.
    engine.store.set_ahead(engine.until(engine.get("s").await.next()));
    engine.engine.cancel(None, &jobs[0].job_id, "").await.expect("it waits");
    let dying = world.engine().await;
    dying.store.set_ahead(engine.until(engine.get("s").await.next()));
    dying.store.die_at_second_commit();
    fire::due(&dying.engine, &engine.stream("s")).await.expect_err("it dies with the firing in hand");
    put(Schedule { input_json: "[3]".into(), ..wanted("s", "@daily") }).await;
    let jobs = engine.jobs_of("s").await;
    let inputs: Vec<_> = jobs.iter().map(|job| job.input_json.as_str()).collect();
    assert_eq!(inputs, ["[2]", "[2]"]);

    let stream = engine.stream("s");
    engine.engine.delete_schedule(Some(caller("me")), "", "s").await.expect("it is there");
    engine.store.set_ahead(engine.until(engine.store.now() + 48 * HOUR * 1000));
    fire::due(&engine.engine, &stream).await.expect("nothing to do");
    assert_eq!((due().await.len(), engine.jobs_of("s").await.len()), (0, 2));
    for list in [index::schedules_of("default", "me"), index::schedules_of_tenant("default")] {
        assert_eq!(engine.store.members(&list).await, [""; 0]);
    }
    let gone = engine.engine.delete_schedule(Some(caller("me")), "", "s").await;
    assert!(matches!(gone, Err(EngineError::ScheduleNotFound)), "{gone:?}");
    let fresh = put(wanted("s", "@daily")).await;
    assert_eq!(fresh.fired, 0);
}

pub(crate) async fn e25_anothers_schedule_is_one_that_is_not_there(world: World) {
    let engine = world.engine().await;
    engine.put(wanted("mine", "@daily")).await;
    let theirs =
        PutScheduleRequest { caller: Some(caller("you")), schedule: Some(wanted("mine", "@hourly")) };
    assert!(engine.engine.put_schedule(theirs).await.expect("another one").1, "names are the owner's own");
    let get = async |caller: Caller, owner: &str, name: &str| {
        engine.engine.get_schedule(Some(caller), owner, name).await.map(|s| s.cron)
    };
    let list = async |caller: Caller| {
        let request = ListSchedulesRequest { caller: Some(caller), ..ListSchedulesRequest::default() };
        engine.engine.list_schedules(request).await.expect("a page").schedules.len()
    };
    assert_eq!(get(caller("me"), "", "mine").await.expect("mine"), "@daily");
    assert_eq!(get(caller("me"), "me", "mine").await.expect("mine"), "@daily");
    for (owner, name) in [("you", "mine"), ("you", "none"), ("", "none")] {
        let refused = get(caller("me"), owner, name).await;
        assert!(matches!(refused, Err(EngineError::ScheduleNotFound)), "{refused:?}");
        let refused = engine.engine.delete_schedule(Some(caller("me")), owner, name).await;
        assert!(matches!(refused, Err(EngineError::ScheduleNotFound)), "{refused:?}");
    }
    let admin = Caller { whole_tenant: true, ..caller("admin") };
    assert_eq!(get(admin.clone(), "you", "mine").await.expect("the tenant's"), "@hourly");
    let foreign = Caller { tenant: "other".into(), ..admin.clone() };
    assert!(get(foreign.clone(), "you", "mine").await.is_err());
    assert_eq!((list(caller("me")).await, list(admin.clone()).await, list(foreign).await), (1, 2, 0));
    engine.engine.delete_schedule(Some(admin.clone()), "you", "mine").await.expect("the tenant's");
    assert_eq!((list(caller("me")).await, list(admin).await), (1, 1));

    // Pages, and an end to how many there may be.
    for n in 1..MAX_SCHEDULES {
        engine.put(wanted(&format!("s{n}"), "@daily")).await;
    }
    let one_more =
        PutScheduleRequest { caller: Some(caller("me")), schedule: Some(wanted("more", "@daily")) };
    let refused = engine.engine.put_schedule(one_more).await;
    assert!(matches!(&refused, Err(EngineError::Full(what)) if what.contains("1000")), "{refused:?}");
    engine.put(Schedule { paused: true, ..wanted("s1", "@daily") }).await;
    let (mut names, mut page_token) = (BTreeSet::new(), String::new());
    loop {
        let request = ListSchedulesRequest { caller: Some(caller("me")), page_size: 200, page_token };
        let page = engine.engine.list_schedules(request).await.expect("a page");
        names.extend(page.schedules.into_iter().map(|s| s.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(names.len() as u64, MAX_SCHEDULES);
}
