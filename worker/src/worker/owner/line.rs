//! The owner's connection: what is said on it, and what follows when it comes up or breaks.

use std::time::Duration;

use tidegate_proto::{
    limits,
    v1::{self, work_response::Message},
};
use tokio::time::Instant;

use super::{Limits, Line, Owner, Phase, Up};
use crate::worker::{Status, link::Link};

/// The ping interval when the engine does not say.
const DEFAULT_PING: Duration = Duration::from_secs(10);

impl Owner {
    pub(super) fn heard(&mut self, message: Message) {
        let now = Instant::now();
        if let Line::Up(up) = &mut self.line {
            up.heard = now;
        }
        let effects = match message {
            Message::Assignment(assignment) => return self.assigned(assignment),
            Message::Ack(ack) => self.session.acked(ack),
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

    pub(super) fn connected(&mut self, link: Link, welcome: v1::Welcome) {
        tracing::info!(engine = %self.engine_uri(), resumed = welcome.resumed.len(), "connected");
        let now = Instant::now();
        // Bounded below: a ping a millisecond would be an attack on the engine.
        let ping = duration(welcome.ping_interval).unwrap_or(DEFAULT_PING).max(Duration::from_millis(50));
        let up = Up { link, since: now, heard: now, ping, next_ping: now + ping, leave_at: None };
        self.line = Line::Up(Box::new(up));
        let limit = |said: u32, default: usize| if said == 0 { default } else { said as usize };
        self.limits = Limits {
            checkpoint: limit(welcome.max_checkpoint_bytes, limits::MAX_CHECKPOINT_BYTES),
            custom: limit(welcome.max_custom_bytes, limits::MAX_CUSTOM_BYTES),
            result: limit(welcome.max_result_bytes, limits::MAX_RESULT_BYTES),
        };
        let effects = self.session.welcomed(welcome.resumed, &welcome.lost);
        self.apply(effects);
        if matches!(self.phase, Phase::Working) {
            self.status.send_replace(Status::Connected);
        }
    }

    pub(super) fn hang_up(&mut self, why: &str) {
        let Line::Up(up) = &self.line else { return };
        let lasted = up.since.elapsed();
        tracing::warn!(engine = %self.engine_uri(), why, "disconnected");
        self.session.disconnected();
        if matches!(self.phase, Phase::Working) {
            self.status.send_replace(Status::Connecting);
        }
        self.redial(lasted);
    }

    pub(super) fn redial(&mut self, lasted: Duration) {
        self.engine = (self.engine + 1) % self.plan.engines.len();
        let pause = self.backoff.pause(lasted, rand::random_range(0.0..1.0));
        self.line = Line::Waiting(Instant::now() + pause);
    }

    pub(super) fn engine_uri(&self) -> &tonic::codegen::http::Uri {
        self.plan.engines[self.engine].uri()
    }

    pub(super) fn hello(&self) -> v1::Hello {
        v1::Hello {
            name: self.plan.name.clone(),
            kinds: self.plan.kinds.clone(),
            capacity: self.plan.capacity,
            leases: self.session.held(),
            client: concat!("rust/", env!("CARGO_PKG_VERSION")).to_owned(),
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
