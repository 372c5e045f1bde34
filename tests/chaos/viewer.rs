//! Viewers, and what all of them together have seen.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tidegate::{
    api::Client,
    follow::{Follower, Outcome, Step},
    sse::Event,
};
use tokio::time::Instant;

use crate::support::number;

/// Longer than any recovery.
const PATIENCE: Duration = Duration::from_secs(120);
/// What arrives so soon after a fault was under way before it.
const IN_FLIGHT: Duration = Duration::from_millis(50);
/// A job that showed something within this time before a fault is expected to go on after it.
const LIVELY: Duration = Duration::from_secs(2);

/// When each job was last heard of, and whether it is over.
#[derive(Clone, Default)]
pub struct Sightings(Arc<Mutex<HashMap<String, Sighting>>>);

#[derive(Clone, Copy)]
struct Sighting {
    first_after: Option<(Instant, Instant)>,
    last: Instant,
    over: bool,
}

impl Sightings {
    fn saw(&self, job: &str, over: bool) {
        let now = Instant::now();
        let mut all = self.0.lock();
        let sighting = all.entry(job.to_owned()).or_insert(Sighting { first_after: None, last: now, over });
        if let Some((since, first)) = &mut sighting.first_after
            && *first == *since
            && (over || now - *since > IN_FLIGHT)
        {
            *first = now;
        }
        sighting.last = now;
        sighting.over |= over;
    }

    /// The jobs that are under way at this moment; from now on the first news of each is timed.
    pub fn lively(&self, now: Instant) -> Vec<String> {
        let mut all = self.0.lock();
        let lively = all.iter_mut().filter(|(_, s)| !s.over && now - s.last < LIVELY);
        lively
            .map(|(job, s)| {
                s.first_after = Some((now, now));
                job.clone()
            })
            .collect()
    }

    /// How long after `struck` the last of `jobs` had news; none while one has had none.
    pub fn moved_on(&self, jobs: &[String], struck: Instant) -> Option<Duration> {
        let all = self.0.lock();
        let first = |job: &String| match all.get(job)?.first_after? {
            (since, first) if since == struck && first > since => Some(first - struck),
            (since, _) if since != struck => Some(Duration::ZERO),
            _ => None,
        };
        jobs.iter().map(first).try_fold(Duration::ZERO, |most, took| took.map(|took| most.max(took)))
    }

    /// Those of `jobs` that have had no news.
    pub fn waiting(&self, jobs: &[String], struck: Instant) -> Vec<String> {
        jobs.iter().filter(|job| self.moved_on(&[(*job).clone()], struck).is_none()).cloned().collect()
    }
}

/// What one viewer saw of one job.
#[derive(Debug, Default)]
pub struct Seen {
    pub events: Vec<Event>,
    /// The numbers each announced gap covers, both ends included.
    pub gaps: Vec<(u64, u64)>,
    pub outcome: Option<Outcome>,
    pub reconnects: usize,
}

/// Watches to the end.
pub async fn watch(client: Client, job: String, sightings: Sightings) -> Seen {
    let mut seen = Seen::default();
    let mut cursor = String::new();
    // The first connection may meet a fault: then it is simply tried again.
    'again: loop {
        let mut follower = Follower::new(client.clone(), &job, &cursor, PATIENCE);
        loop {
            match follower.next().await {
                Ok(Step::Connected(_)) => {}
                Ok(Step::Event(event)) => {
                    let over = Outcome::from_event(&event.name).is_some();
                    sightings.saw(&job, over);
                    seen.events.push(event);
                }
                Ok(Step::Gap(event)) => {
                    let data: serde_json::Value = serde_json::from_str(&event.data).unwrap();
                    let end = |name: &str| {
                        data[name].as_u64().unwrap_or_else(|| panic!("a gap without {name}: {event:?}"))
                    };
                    seen.gaps.push((end("from"), end("to")));
                }
                Ok(Step::Reconnecting { .. }) => seen.reconnects += 1,
                Ok(Step::Ended(outcome)) => {
                    seen.outcome = Some(outcome);
                    return seen;
                }
                Ok(Step::Dismissed(reason)) => panic!("a viewer of {job} was dismissed: {reason}"),
                Err(error) if follower.cursor().is_none() && seen.events.is_empty() => {
                    println!("     a viewer's first connection: {error}");
                    tokio::time::sleep(Duration::from_millis(300)).await;
                    cursor.clear();
                    continue 'again;
                }
                Err(error) => panic!("a viewer of {job} was lost after {:?}: {error}", seen.events.last()),
            }
        }
    }
}

/// Panics unless the events are dense but for announced gaps, in order, each once, with one end.
pub fn assert_whole(job: &str, seen: &Seen) {
    let mut next = 1;
    for event in &seen.events {
        let seq = number(&event.id);
        while let Some((_, to)) = seen.gaps.iter().find(|(from, _)| *from == next) {
            next = to + 1;
        }
        assert_eq!(
            seq, next,
            "job {job}: an event is missing, doubled or out of order; gaps: {:?}",
            seen.gaps
        );
        next += 1;
    }
    let ends = seen.events.iter().filter(|e| Outcome::from_event(&e.name).is_some()).count();
    assert_eq!(ends, 1, "job {job}: not exactly one end");
    assert!(
        Outcome::from_event(&seen.events.last().unwrap().name).is_some(),
        "job {job}: events follow the end"
    );
}
