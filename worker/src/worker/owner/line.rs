//! The owner's connection: what is said on it, and what follows when it comes up or breaks.

use std::{net::SocketAddr, time::Duration};

use futures_util::FutureExt as _;
use tidegate_proto::{
    limits,
    pool::Pick,
    v1::{self, work_response::Message},
};
use tokio::time::Instant;

use super::{Limits, Line, Owner, Phase, Up};
use crate::{
    context::Ticket,
    session::Effect,
    worker::{
        Status,
        link::{self, Dialled, Link},
    },
};

/// The ping interval when the engine does not say.
const DEFAULT_PING: Duration = Duration::from_secs(10);
/// How many reports leave in one message at most, whatever the engine allows: each can still be superseded before.
const MAX_BATCH: usize = 256;

impl Owner {
    pub(super) fn heard(&mut self, message: Message) {
        let now = Instant::now();
        if let Line::Up(up) = &mut self.line {
            up.heard = now;
        }
        let effects = match message {
            Message::Assignment(assignment) => return self.assigned(assignment),
            Message::Ack(ack) => self.acked(ack),
            Message::Acks(acks) => acks.acks.into_iter().flat_map(|ack| self.acked(ack)).collect(),
            Message::Cancel(order) => self.session.cancel(order),
            Message::LeaseLost(lost) => self.session.lost(&lost),
            Message::Drain(drain) => {
                tracing::info!("the engine drains");
                self.status.send_replace(Status::Draining);
                if let Line::Up(up) = &mut self.line {
                    // A little before the engine hangs up by itself.
                    let left = drain.deadline.and_then(until).unwrap_or_default();
                    up.leave_at = Some(now + left.saturating_sub(Duration::from_secs(1)));
                }
                return;
            }
            Message::Welcome(_) => return self.hang_up("the engine said welcome twice"),
            Message::Pong(_) => return,
        };
        self.apply(effects);
    }

    fn acked(&mut self, ack: v1::ReportAck) -> Vec<Effect<Ticket>> {
        self.plan.metrics.answered(ack.result);
        self.session.acked(ack)
    }

    pub(super) fn dialled(&mut self, dialled: Dialled) {
        self.engine = dialled.engine;
        match dialled.outcome {
            Ok((link, welcome)) => self.connected(link, welcome),
            Err(error) => {
                tracing::warn!(engine = self.engine_name(), %error, "no engine");
                self.plan.metrics.connect_failures.increment(1);
                self.redial(Duration::ZERO);
            }
        }
    }

    fn connected(&mut self, link: Link, welcome: v1::Welcome) {
        tracing::info!(engine = self.engine_name(), resumed = welcome.resumed.len(), "connected");
        self.plan.metrics.connected(std::mem::replace(&mut self.was_connected, true));
        let now = Instant::now();
        // Bounded below: a ping a millisecond would be an attack on the engine.
        let ping = duration(welcome.ping_interval).unwrap_or(DEFAULT_PING).max(Duration::from_millis(50));
        let better = better(&link.pick).boxed();
        let (next_ping, leave_at, left) = (now + ping, None, false);
        let up = Up { link, since: now, heard: now, ping, next_ping, leave_at, better, left };
        self.line = Line::Up(Box::new(up));
        let limit = |said: u32, default: usize| if said == 0 { default } else { said as usize };
        self.limits = Limits {
            checkpoint: limit(welcome.max_checkpoint_bytes, limits::MAX_CHECKPOINT_BYTES),
            custom: limit(welcome.max_custom_bytes, limits::MAX_CUSTOM_BYTES),
            result: limit(welcome.max_result_bytes, limits::MAX_RESULT_BYTES),
            batch: (welcome.max_batched_reports as usize).clamp(1, MAX_BATCH),
        };
        let effects = self.session.welcomed(welcome.resumed, &welcome.lost);
        self.apply(effects);
        if matches!(self.phase, Phase::Working) {
            self.status.send_replace(Status::Connected);
        }
    }

    /// The stream broke, or nothing is heard on it.
    pub(super) fn broken(&mut self, why: &str) {
        if let Line::Up(up) = &self.line {
            up.link.pick.failed();
        }
        self.hang_up(why);
    }

    pub(super) fn hang_up(&mut self, why: &str) {
        let Line::Up(up) = &self.line else { return };
        let lasted = up.since.elapsed();
        tracing::warn!(engine = self.engine_name(), why, "disconnected");
        self.session.disconnected();
        self.plan.metrics.disconnected();
        if matches!(self.phase, Phase::Working) {
            self.status.send_replace(Status::Connecting);
        }
        self.redial(lasted);
    }

    /// Goes to a better engine, with all leases.
    pub(super) fn move_to(&mut self, why: &str, engine: Option<Pick>) {
        self.hang_up(why);
        if let Some(engine) = engine {
            self.line = Line::Dialling(link::open_on(engine, self.hello()).boxed());
        }
    }

    fn redial(&mut self, lasted: Duration) {
        let (_, serving) = self.pool.size();
        let pause = self.backoff.pause(lasted, serving, rand::random_range(0.0..1.0));
        self.line = Line::Waiting(Instant::now() + pause);
    }

    fn engine_name(&self) -> String {
        self.engine.as_ref().map_or_else(|| self.plan.engines.to_string(), SocketAddr::to_string)
    }

    pub(super) fn hello(&self) -> v1::Hello {
        v1::Hello {
            name: self.plan.name.clone(),
            kinds: self.plan.kinds.clone(),
            capacity: self.plan.capacity,
            leases: self.session.held(),
            batched_acks: true,
            client: concat!("rust/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

/// Ends when another engine is the better one. Does not borrow the pick.
fn better(pick: &Pick) -> impl Future<Output = (&'static str, Option<Pick>)> + Send + use<> {
    let (lost, rebalanced) = (pick.lost(), pick.rebalanced());
    async {
        tokio::select! {
            () = lost => ("the engine fell silent, and another one serves", None),
            engine = rebalanced => ("another engine came, and gets its share", Some(engine)),
        }
    }
}

impl Up {
    /// When a silent engine counts as gone.
    pub(super) fn silent_at(&self) -> Instant {
        self.heard + 2 * self.ping
    }
}

/// The time from now to a time of the engine's clock; zero when it has passed.
pub(super) fn until(deadline: prost_types::Timestamp) -> Option<Duration> {
    let at = std::time::SystemTime::try_from(deadline).ok()?;
    Some(at.duration_since(std::time::SystemTime::now()).unwrap_or_default())
}

fn duration(duration: Option<prost_types::Duration>) -> Option<Duration> {
    Duration::try_from(duration?).ok().filter(|d| !d.is_zero())
}
