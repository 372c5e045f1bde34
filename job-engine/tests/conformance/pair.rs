//! A primary, and a replica that can be kept from having what was written.
#![allow(dead_code)] // shared by tests that each use a part of it

use std::time::Duration;

use tokio::time::Instant;

use crate::{proxy::Proxy, redis_server::RedisServer};

/// A primary with a replica behind a link that can be held, and a way to them that leads to either.
pub(crate) struct Pair {
    primary: RedisServer,
    replica: RedisServer,
    link: Proxy,
    way: Proxy,
}

impl Pair {
    pub(crate) async fn start() -> Self {
        let primary = RedisServer::start();
        let (link, way) = (Proxy::to(primary.port()).await, Proxy::to(primary.port()).await);
        let master = format!("127.0.0.1 {}", link.port());
        let replica = RedisServer::start_with(&["--replicaof", &master]);
        let pair = Self { primary, replica, link, way };
        pair.synced().await;
        pair
    }

    /// The way to whichever is the primary.
    pub(crate) fn url(&self) -> String {
        self.way.url()
    }

    pub(crate) fn primary(&self) -> &RedisServer {
        &self.primary
    }

    /// The replica, which is the primary after a failover.
    pub(crate) fn promoted(&self) -> &RedisServer {
        &self.replica
    }

    /// Waits until the replica has everything.
    pub(crate) async fn synced(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        let written = || self.primary.info("master_repl_offset");
        let up = || self.replica.info("master_link_status").is_some_and(|status| status == "up");
        while !up() || self.replica.info("slave_repl_offset") != written() {
            assert!(Instant::now() < deadline, "the replica does not get up to date");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Nothing that is written from now on reaches the replica.
    pub(crate) fn hold(&self) {
        self.link.pause(true);
    }

    /// It reaches it again, with what was held up.
    pub(crate) fn release(&self) {
        self.link.pause(false);
    }

    /// The primary dies with what the replica does not have, and the replica takes over.
    pub(crate) fn fail_over(&mut self) {
        self.primary.kill();
        self.link.cut();
        assert!(self.replica.command("REPLICAOF NO ONE").expect("a reply").starts_with("+OK"));
        self.way.lead_to(self.replica.port());
    }
}
