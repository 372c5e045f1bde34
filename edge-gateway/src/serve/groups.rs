//! Connections, driven by few tasks: each group of them is one task.
//!
//! An event wakes every viewer of its job at nearly the same moment. Were each connection a task of its own, the
//! runtime would schedule, steal and wake threads for each of them, which costs more than the write itself. In a group
//! a wake-up is a bit in a word, and only the first one schedules a task. Groups stay small, so that the cores share
//! a large crowd, and a panic takes nobody along but its own connection.
//!
//! Invariant: a connection that was handed over is driven until it ends, or until the group is dropped. No I/O of its
//! own, no order between connections, no cap: whoever accepts has taken a permit before.

use std::{
    fmt,
    future::poll_fn,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::{FutureExt as _, future::CatchUnwind, task::AtomicWaker};
use tokio::{
    sync::mpsc,
    task::{JoinSet, coop},
};

/// Connections that share a task before another is begun: the bits of a word.
const SHARED: usize = 64;

/// A connection, from its first byte to its last, or to where it goes on as another future: what is needed to speak
/// HTTP is more than what is needed to carry a stream.
pub(super) struct Connection(pub(super) Driven);

/// What is polled of a connection.
type Driven = Pin<Box<dyn Future<Output = Option<Connection>> + Send>>;

impl Connection {
    pub(super) fn new(connection: impl Future<Output = Option<Self>> + Send + 'static) -> Self {
        Self(Box::pin(connection))
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connection")
    }
}

/// All groups of a listener.
#[derive(Debug)]
pub(super) struct Groups {
    groups: Vec<Group>,
    tasks: JoinSet<()>,
    /// Groups that are begun before any is shared, so that all cores have something to do.
    spread: usize,
}

#[derive(Debug)]
struct Group {
    arrivals: mpsc::UnboundedSender<Connection>,
    open: Arc<AtomicUsize>,
}

impl Groups {
    /// No groups; one is begun with the first connection.
    pub(super) fn new() -> Self {
        let spread = std::thread::available_parallelism().map_or(1, usize::from);
        Self { groups: Vec::new(), tasks: JoinSet::new(), spread }
    }

    /// Drives `connection` from now on.
    pub(super) fn drive(&mut self, connection: Connection) {
        let load = |group: &Group| group.open.load(Ordering::Relaxed);
        let least = self.groups.iter().enumerate().map(|(at, group)| (load(group), at)).min();
        let at = match least {
            Some((open, at)) if open == 0 || (open < SHARED && self.groups.len() >= self.spread) => at,
            _ => self.begin(),
        };
        let Group { arrivals, open } = &self.groups[at];
        open.fetch_add(1, Ordering::Relaxed);
        // A group outlives its sender; that it is gone means that the runtime is.
        let _ = arrivals.send(connection);
    }

    /// The tasks, each of which ends with the last connection of its group.
    pub(super) fn close(self) -> JoinSet<()> {
        self.tasks
    }

    fn begin(&mut self) -> usize {
        let (arrivals, arriving) = mpsc::unbounded_channel();
        let open = Arc::<AtomicUsize>::default();
        // Without a budget: it is meant for one connection, and would end a round of many half-way.
        self.tasks.spawn(coop::unconstrained(run(arriving, Arc::clone(&open))));
        self.groups.push(Group { arrivals, open });
        self.groups.len() - 1
    }
}

/// Which connections of a group are to be polled.
#[derive(Debug, Default)]
struct Bells {
    rung: AtomicU64,
    task: AtomicWaker,
}

/// The bell of one connection.
struct Bell {
    all: Arc<Bells>,
    bit: u64,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.all.rung.fetch_or(self.bit, Ordering::AcqRel) == 0 {
            self.all.task.wake();
        }
    }
}

/// A connection and its bell. A bell that is rung late, for who sat here before, costs a look and no more.
struct Seat {
    connection: CatchUnwind<AssertUnwindSafe<Driven>>,
    waker: Waker,
}

impl Seat {
    fn new(Connection(connection): Connection, waker: Waker) -> Self {
        Self { connection: AssertUnwindSafe(connection).catch_unwind(), waker }
    }
}

/// Drives the connections of one group until there are none and none can come any more.
async fn run(mut arriving: mpsc::UnboundedReceiver<Connection>, open: Arc<AtomicUsize>) {
    let bells = Arc::<Bells>::default();
    let mut seats: Vec<Option<Seat>> = Vec::new();
    let mut more = true;
    poll_fn(|cx| {
        // Before the bells are looked at: one that rings from here on wakes this task again.
        bells.task.register(cx.waker());
        let mut rung = bells.rung.swap(0, Ordering::AcqRel);
        while more && let Poll::Ready(arrived) = arriving.poll_recv(cx) {
            match arrived {
                Some(connection) => rung |= sit(&mut seats, &bells, connection),
                None => more = false,
            }
        }
        while rung != 0 {
            let at = &mut seats[rung.trailing_zeros() as usize];
            rung &= rung - 1;
            while let Some(seat) = at
                && let Poll::Ready(ended) = seat.connection.poll_unpin(&mut Context::from_waker(&seat.waker))
            {
                *at = match ended {
                    Ok(Some(next)) => Some(Seat::new(next, seat.waker.clone())),
                    Ok(None) | Err(_) => None,
                };
                if at.is_none() {
                    open.fetch_sub(1, Ordering::Relaxed);
                }
            }
        }
        if more || seats.iter().any(Option::is_some) { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
}

/// Gives a connection a seat; its bit.
fn sit(seats: &mut Vec<Option<Seat>>, bells: &Arc<Bells>, connection: Connection) -> u64 {
    let free = seats.iter().position(Option::is_none);
    let free = free.unwrap_or_else(|| {
        seats.push(None);
        seats.len() - 1
    });
    let bit = 1 << free;
    let waker = Waker::from(Arc::new(Bell { all: Arc::clone(bells), bit }));
    seats[free] = Some(Seat::new(connection, waker));
    bit
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{sync::Barrier, task::yield_now, time::timeout};

    use super::*;

    /// Each of them waits for all others, so that none may be forgotten; and each goes on as another future.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn each_connection_is_driven_and_a_panic_takes_only_its_own() {
        const COUNT: usize = 1000;
        let mut groups = Groups::new();
        let barriers = Arc::new((Barrier::new(COUNT), Barrier::new(COUNT - 1)));
        let ended = Arc::<AtomicUsize>::default();
        for number in 0..COUNT {
            let (barriers, ended) = (Arc::clone(&barriers), Arc::clone(&ended));
            groups.drive(Connection::new(async move {
                yield_now().await;
                barriers.0.wait().await;
                assert!(number != 7, "this panic is meant");
                Some(Connection::new(async move {
                    barriers.1.wait().await;
                    ended.fetch_add(1, Ordering::Relaxed);
                    None
                }))
            }));
        }
        assert_eq!(groups.groups.len(), COUNT.div_ceil(SHARED));
        let all = groups.close().join_all();
        timeout(Duration::from_secs(30), all).await.expect("all end");
        assert_eq!(ended.load(Ordering::Relaxed), COUNT - 1);
    }
}
