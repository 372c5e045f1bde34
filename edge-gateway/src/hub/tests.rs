//! The seam between attaching and publishing, at every interleaving: no socket, no clock, one thread.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use http_body::Body as _;
use proptest::prelude::*;
use tidegate_proto::v1::{Completed, Log};

use super::{viewer::Viewer, *};
use crate::{caller::Caller, engine::Engine, limits::StreamPermit};

/// A browser: polls its viewer only when woken, as hyper does.
struct Browser {
    viewer: Viewer,
    woken: Arc<Flag>,
    after: u64,
    seen: String,
    ended: bool,
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Browser {
    fn attach(hub: &Arc<Hub>, after: u64) -> Self {
        let user = User::new(hub);
        let slot = hub.crowd.join();
        let place = Place { cursor: after, generation: 0, beats: 0, seen: Place::UNSEEN, stored: None };
        let tenures = Tenures::new(None, None);
        let tenure = tenures.enter(&Caller::anonymous(), &slot, StreamId::random(), &hub.job_id).unwrap();
        let viewer = Viewer::new(user, tenure, slot, place, Bytes::new(), Some(StreamPermit::alone()));
        let woken = Arc::new(Flag(AtomicBool::new(true)));
        Self { viewer, woken, after, seen: String::new(), ended: false }
    }

    /// Polls at most `frames` times, if woken; a full socket stops earlier than the viewer has to say.
    fn poll(&mut self, frames: usize) {
        let waker = Waker::from(Arc::clone(&self.woken));
        if self.ended || !self.woken.0.swap(false, Ordering::SeqCst) {
            return;
        }
        for _ in 0..frames {
            match Pin::new(&mut self.viewer).poll_frame(&mut Context::from_waker(&waker)) {
                Poll::Pending => return,
                Poll::Ready(None) => {
                    self.ended = true;
                    return;
                }
                Poll::Ready(Some(frame)) => {
                    let bytes = frame.unwrap().into_data().unwrap();
                    self.seen.push_str(std::str::from_utf8(&bytes).unwrap());
                }
            }
        }
        self.woken.0.store(true, Ordering::SeqCst); // the socket has room again later
    }

    fn numbers(&self) -> Vec<u64> {
        let ids = self.seen.lines().filter_map(|line| line.strip_prefix("id: "));
        ids.map(|id| id.strip_suffix("-e").unwrap().parse().unwrap()).collect()
    }
}

fn hub(first: u64) -> Arc<Hub> {
    let engine =
        Engine::new("http://127.0.0.1:1".parse().unwrap(), tidegate_proto::bearer::Bearer::default());
    let job_id: Arc<str> = Arc::from("job");
    let metrics = Arc::new(Metrics::new());
    let history = History::new(Arc::clone(&job_id), engine, metrics.history_reads.clone());
    let hub = Arc::new(Hub::new(job_id, history, metrics));
    let job = Job { epoch: "e".into(), first_seq: first, last_seq: first - 1, ..Job::default() };
    hub.open(&job, &Cursor::new(first - 1, "e"));
    hub
}

fn publish(hub: &Hub, count: u64, kind: &Kind) {
    let (next, epoch) = hub.expected();
    let event = |seq| Event { seq, kind: Some(kind.clone()), ..Event::default() };
    let mut batch = (next..next + count).map(|seq| (sse::event(&epoch, &event(seq)), event(seq))).collect();
    hub.publish(&mut batch);
}

#[derive(Clone, Debug)]
enum Step {
    Publish(u64),
    Attach(u64),
    Poll(usize, usize),
    Beat,
    Leave(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1u64..5).prop_map(Step::Publish),
        2 => (0u64..60).prop_map(Step::Attach),
        6 => (0usize..8, 1usize..4).prop_map(|(who, frames)| Step::Poll(who, frames)),
        1 => Just(Step::Beat),
        1 => (0usize..8).prop_map(Step::Leave),
    ]
}

proptest! {
    #[test]
    fn j13_an_event_at_any_point_of_the_attach_is_seen_exactly_once(steps in proptest::collection::vec(step(), 1..80)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _context = runtime.enter(); // for the channel, which never connects
        let hub = hub(1);
        let log = Kind::Log(Log { text: "x".into(), ..Log::default() });
        let mut browsers: Vec<Browser> = Vec::new();
        for step in steps {
            match step {
                Step::Publish(count) => publish(&hub, count, &log),
                // A cursor may be ahead of the ring while an upstream catches up.
                Step::Attach(after) => browsers.push(Browser::attach(&hub, after)),
                Step::Poll(who, frames) => if let Some(browser) = browsers.get_mut(who) { browser.poll(frames) },
                Step::Beat => hub.beat(Instant::now()),
                Step::Leave(who) => if who < browsers.len() { drop(browsers.swap_remove(who)) },
            }
            for browser in &browsers {
                // Whoever sleeps has seen everything: nobody has to be woken for what is old.
                if !browser.woken.0.load(Ordering::SeqCst) && !browser.ended {
                    let seen = browser.numbers().last().copied().unwrap_or(browser.after);
                    prop_assert!(seen + 1 >= hub.expected().0, "asleep at {} of {}", seen, hub.expected().0);
                }
            }
        }
        while hub.expected().0 <= 60 {
            publish(&hub, 1, &log);
        }
        publish(&hub, 1, &Kind::Complete(Completed { result_json: "1".into() }));
        prop_assert!(hub.finished());
        hub.finish(End::Finished);
        let last = hub.expected().0 - 1;
        for browser in &mut browsers {
            browser.poll(1000);
            prop_assert!(browser.ended, "the end wakes everybody");
            prop_assert_eq!(browser.numbers(), (browser.after + 1..=last).collect::<Vec<_>>());
        }
        drop(browsers);
        prop_assert_eq!(hub.crowd.len(), 0);
        prop_assert_eq!(hub.users.load(Ordering::SeqCst), 0);
    }
}

#[test]
fn e26_a_reset_reaches_every_viewer_wherever_it_stands() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _context = runtime.enter();
    let hub = hub(1);
    let log = Kind::Log(Log::default());
    publish(&hub, 5, &log);
    let (mut ahead, mut behind) = (Browser::attach(&hub, 5), Browser::attach(&hub, 0));
    ahead.poll(9);
    let job = Job { epoch: "f".into(), first_seq: 3, last_seq: 3, ..Job::default() };
    hub.open(&job, &Cursor::new(2, "f"));
    publish(&hub, 1, &log);
    for browser in [&mut ahead, &mut behind] {
        browser.poll(9);
        let ids: Vec<_> = browser.seen.lines().filter(|line| line.starts_with("id: ")).collect();
        assert_eq!(ids, ["id: 2-f", "id: 3-f"], "{}", browser.seen);
    }
}
