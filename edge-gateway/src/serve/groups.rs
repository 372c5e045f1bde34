//! Connections, driven by few tasks: each group of them is one task.
//!
//! An event wakes every viewer of its job at nearly the same moment. Were each connection a task of its own, the
//! runtime would schedule, steal and wake threads for each of them, which costs more than the write itself. In a group
//! a wake-up is a push to a list, and only the first one schedules a task. Groups stay small, so that the cores share
//! a large crowd, and a panic takes nobody along but its own connection.
//!
//! Invariant: a connection that was handed over is driven until it ends, or until the group is dropped. No I/O of its
//! own, no order between connections, no cap: whoever accepts has taken a permit before.

use std::{
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use tokio::{
    sync::mpsc,
    task::{JoinSet, coop},
};

/// Connections that share a task before another is begun.
const SHARED: usize = 64;

/// A connection, from its first byte to its last.
type Connection = Pin<Box<dyn Future<Output = ()> + Send>>;

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
    pub(super) fn drive(&mut self, connection: impl Future<Output = ()> + Send + 'static) {
        let load = |group: &Group| group.open.load(Ordering::Relaxed);
        let least = self.groups.iter().enumerate().map(|(at, group)| (load(group), at)).min();
        let at = match least {
            Some((open, at)) if open == 0 || (open < SHARED && self.groups.len() >= self.spread) => at,
            _ => self.begin(),
        };
        let Group { arrivals, open } = &self.groups[at];
        open.fetch_add(1, Ordering::Relaxed);
        // A group outlives its sender; that it is gone means that the runtime is.
        let _ = arrivals.send(Box::pin(connection));
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

/// Drives the connections of one group until there are none and none can come any more.
async fn run(mut arriving: mpsc::UnboundedReceiver<Connection>, open: Arc<AtomicUsize>) {
    let mut connections = FuturesUnordered::new();
    let mut more = true;
    while more || !connections.is_empty() {
        tokio::select! {
            arrived = arriving.recv(), if more => match arrived {
                Some(connection) => connections.push(AssertUnwindSafe(connection).catch_unwind()),
                None => more = false,
            },
            Some(_ended) = connections.next() => {
                open.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}
