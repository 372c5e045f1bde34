//! A real Redis Cluster of processes on this machine.
#![allow(dead_code)] // shared by tests that each use a part of it

use std::{collections::BTreeSet, process::Command, time::Duration};

use tokio::time::Instant;

use crate::redis_server::RedisServer;

const PATIENCE: Duration = Duration::from_secs(60);

/// A running Cluster.
pub(crate) struct RedisCluster {
    pub(crate) nodes: Vec<RedisServer>,
}

/// A node as `CLUSTER NODES` has it.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) id: String,
    pub(crate) port: u16,
    pub(crate) is_master: bool,
    slots: Vec<(u16, u16)>,
}

impl RedisCluster {
    /// Starts so many masters with so many replicas each, and waits until all is well.
    pub(crate) async fn start(masters: usize, replicas: usize) -> Self {
        let nodes: Vec<_> = (0..masters * (1 + replicas)).map(|_| RedisServer::start_node()).collect();
        let mut command = Command::new("redis-cli");
        command.args(["--cluster", "create"]);
        command.args(nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())));
        command.args(["--cluster-replicas", &replicas.to_string(), "--cluster-yes"]);
        let made = tokio::task::spawn_blocking(move || command.output()).await.expect("no panic");
        let made = made.expect("redis-cli must be installed to run these tests");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
        let cluster = Self { nodes };
        cluster.until("all is well", |cluster| cluster.is_well()).await;
        cluster
    }

    /// All nodes, for `--redis`.
    pub(crate) fn url(&self) -> String {
        let nodes: Vec<_> = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
        format!("redis+cluster://{}", nodes.join(","))
    }

    /// The nodes as the one at this place knows them.
    pub(crate) fn view(&self, from: usize) -> Option<Vec<Node>> {
        let text = self.nodes[from].ask::<String>(&["CLUSTER", "NODES"]).ok()?;
        text.lines().map(understand).collect()
    }

    /// Kills the node at this port as a crash would.
    pub(crate) fn kill(&mut self, port: u16) {
        let node = self.nodes.iter_mut().find(|node| node.port() == port);
        node.expect("a node of this Cluster").kill();
    }

    /// The masters that hold keys, as the first node that answers knows them.
    pub(crate) fn masters(&self) -> Vec<Node> {
        let view = (0..self.nodes.len()).find_map(|i| self.view(i)).expect("a node answers");
        view.into_iter().filter(|node| node.is_master && !node.slots.is_empty()).collect()
    }

    pub(crate) fn node(&self, port: u16) -> &RedisServer {
        self.nodes.iter().find(|node| node.port() == port).expect("a node of this Cluster")
    }

    /// The slots of a master in which there are keys.
    pub(crate) fn slots_in_use(&self, master: &Node) -> BTreeSet<u16> {
        let node = self.node(master.port);
        let keys: Vec<String> = node.ask(&["KEYS", "*"]).expect("an answer");
        let tags: BTreeSet<_> =
            keys.iter().filter_map(|key| Some(key.split_once('}')?.0.to_owned())).collect();
        let slot = |tag: String| node.ask(&["CLUSTER", "KEYSLOT", &format!("{tag}}}")]).expect("an answer");
        tags.into_iter().map(slot).collect()
    }

    /// Moves a slot from one master to another, as redis-cli does, with a pause between every few keys.
    pub(crate) async fn migrate(&self, slot: u16, from: &Node, to: &Node, pause: Duration) -> usize {
        let (source, target) = (self.node(from.port), self.node(to.port));
        let slot = slot.to_string();
        let set = |node: &RedisServer, how: &str, id: &str| {
            node.ask::<()>(&["CLUSTER", "SETSLOT", &slot, how, id]).expect("it is done");
        };
        set(target, "IMPORTING", &from.id);
        set(source, "MIGRATING", &to.id);
        let port = to.port.to_string();
        let mut moved = 0;
        loop {
            let keys: Vec<String> =
                source.ask(&["CLUSTER", "GETKEYSINSLOT", &slot, "10"]).expect("an answer");
            if keys.is_empty() {
                break;
            }
            moved += keys.len();
            let mut words = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
            words.extend(keys.iter().map(String::as_str));
            source.ask::<()>(&words).expect("it is done");
            tokio::time::sleep(pause).await;
        }
        set(target, "NODE", &to.id);
        set(source, "NODE", &to.id);
        moved
    }

    /// Waits for a condition.
    pub(crate) async fn until(&self, what: &str, is: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is(self) {
            assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn is_well(&self) -> bool {
        self.nodes.iter().enumerate().all(|(i, node)| {
            let state = node.ask::<String>(&["CLUSTER", "INFO"]).unwrap_or_default();
            let linked = node.info("role").is_some_and(|role| role == "master")
                || node.info("master_link_status").is_some_and(|status| status == "up");
            let all = self.view(i).is_some_and(|view| view.len() == self.nodes.len());
            state.contains("cluster_state:ok") && linked && all
        })
    }
}

fn understand(line: &str) -> Option<Node> {
    let words: Vec<_> = line.split_whitespace().collect();
    let [id, address, flags, _, _, _, _, _, slots @ ..] = &words[..] else { return None };
    let port = address.split('@').next()?.rsplit(':').next()?.parse().ok()?;
    let is_master = flags.contains("master") && !flags.contains("fail");
    // What is moving is in brackets.
    let slots = slots.iter().filter(|slots| !slots.starts_with('['));
    let slots = slots.map(|slots| {
        let (from, to) = slots.split_once('-').unwrap_or((slots, slots));
        Some((from.parse().ok()?, to.parse().ok()?))
    });
    Some(Node { id: (*id).to_owned(), port, is_master, slots: slots.collect::<Option<_>>()? })
}
