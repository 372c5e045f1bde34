//! What every event log must do, run on both: `redis::…` and `embedded::…` have the same tests by the same names,
//! and a few of their own about what only they can suffer.

#[path = "conformance/ask.rs"]
mod ask;
#[path = "conformance/calls.rs"]
mod calls;
#[path = "conformance/confirm.rs"]
mod confirm;
#[path = "conformance/crash.rs"]
mod crash;
#[path = "conformance/faults.rs"]
mod faults;
#[path = "conformance/indexes.rs"]
mod indexes;
#[path = "conformance/loss.rs"]
mod loss;
#[path = "conformance/model.rs"]
mod model;
#[path = "conformance/outage.rs"]
mod outage;
#[path = "conformance/pair.rs"]
mod pair;
#[path = "conformance/proxy.rs"]
mod proxy;
#[path = "conformance/queues.rs"]
mod queues;
#[path = "conformance/redis_cluster.rs"]
mod redis_cluster;
#[path = "conformance/redis_server.rs"]
mod redis_server;
#[path = "conformance/suite.rs"]
mod suite;

use std::{path::Path, sync::Arc};

use job_engine::store::{
    Store,
    embedded::{Durability, EmbeddedStore},
    redis::{RedisOptions, RedisStore},
};
use redis_server::RedisServer;

/// A store under test, and a second way to the same data.
struct Subject {
    store: Arc<dyn Store>,
    /// Another connection to the same log; the same store where only one process can have it.
    other: Arc<dyn Store>,
    /// Kept while the test runs; dropped after the stores.
    _server: Option<RedisServer>,
    _dir: Option<tempfile::TempDir>,
}

async fn connect(server: &RedisServer) -> Arc<dyn Store> {
    let options = RedisOptions { namespace: "conformance".into(), ..RedisOptions::new(server.url()) };
    Arc::new(RedisStore::connect(&options).await.expect("redis-server answers"))
}

fn open(dir: &Path) -> Arc<dyn Store> {
    Arc::new(EmbeddedStore::open(dir, Durability::Buffer).expect("the directory can be opened"))
}

async fn on_redis() -> Subject {
    let server = RedisServer::start();
    let (store, other) = (connect(&server).await, connect(&server).await);
    Subject { store, other, _server: Some(server), _dir: None }
}

async fn on_cluster(cluster: &redis_cluster::RedisCluster, namespace: &str) -> Subject {
    let options = RedisOptions { namespace: namespace.into(), ..RedisOptions::new(cluster.url()) };
    let connect = async || Arc::new(RedisStore::connect(&options).await.expect("the Cluster answers"));
    Subject { store: connect().await, other: connect().await, _server: None, _dir: None }
}

async fn on_disk() -> Subject {
    let dir = tempfile::tempdir().expect("a scratch directory");
    let store = open(dir.path());
    Subject { other: store.clone(), store, _server: None, _dir: Some(dir) }
}

/// What does not hold across the partitions of a Cluster, but only within one: the order of a queue's lanes, a gate, and
/// members that are not named for their stream.
const APART: [&str; 4] = [
    "renew_moves_only_what_is_there",
    "lanes_take_turns",
    "taken_members_come_back_unless_dequeued",
    "a_refused_commit_moves_nobody",
];

macro_rules! conformance {
    ($($of:ident: $($name:ident)*;)*) => {
        mod redis {
            $($(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$of::$name(&super::on_redis().await).await;
            })*)*
        }
        /// On a Cluster; in one test, because making a Cluster takes seconds.
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn j26_redis_cluster() {
            let cluster = redis_cluster::RedisCluster::start(3, 0).await;
            let mut failed = Vec::new();
            $($(if !APART.contains(&stringify!($name)) {
                let cluster = on_cluster(&cluster, stringify!($name)).await;
                let test = std::panic::AssertUnwindSafe($of::$name(&cluster));
                if futures_util::FutureExt::catch_unwind(test).await.is_err() {
                    failed.push(stringify!($name));
                }
            })*)*
            assert!(failed.is_empty(), "{failed:?}");
        }
        mod embedded {
            $($(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$of::$name(&super::on_disk().await).await;
            })*)*
        }
    };
}

conformance! {
    suite:
    commit_creates_and_appends
    commit_conflicts_with_what_is_there
    refused_commit_changes_nothing
    commit_without_events_is_refused
    hundred_writers_make_one_dense_log
    delete_removes_everything
    delete_conflicts_with_what_is_there
    recreated_stream_is_another
    load_answers_in_order
    read_pages_by_count
    read_pages_by_bytes
    read_outside_the_log
    trimmed_events_are_gone
    trimming_in_one_sweep_of_thousands
    first_seq_never_goes_back
    values_may_be_large
    values_and_names_may_be_any_bytes
    ;
    indexes:
    index_members_are_put_moved_and_removed
    index_changes_apply_in_order
    claim_takes_the_due_soonest_first
    claim_hides_until_the_hold_ends
    claims_at_once_share_nothing
    renew_moves_only_what_is_there
    list_pages_downwards
    hints_tell_of_streams_and_indexes
    clock_is_near_and_never_goes_back
    ;
    queues:
    lanes_take_turns
    j32_a_long_lane_delays_another_by_one_member_at_most
    higher_priority_goes_first_within_its_lane
    taken_members_come_back_unless_dequeued
    takes_at_once_share_nothing
    a_gate_lets_in_as_many_as_it_may
    a_gate_s_first_in_turn_holds_up_the_others
    a_refused_commit_moves_nobody
    names_of_lanes_and_members_do_not_run_into_each_other
    whoever_enters_a_queue_wakes_those_who_wait_for_it
    counts_are_of_what_is_there
    what_a_stream_was_made_with_stays
    ;
}
