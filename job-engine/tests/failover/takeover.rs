//! Another server takes over while many jobs run and all of them are watched: by Sentinel, in a Cluster, and when a slot
//! of a Cluster moves to another master.

use std::{cell::Cell, time::Duration};

use tidegate_proto::v1::JobState;
use tokio::time::Instant;

use crate::{
    Running,
    crowd::Crowd,
    eventually,
    redis_cluster::RedisCluster,
    redis_server::RedisServer,
    viewer::{Seen, clients, follow},
};

/// What became of it all.
struct Report {
    /// Viewers that were told of a loss.
    told: usize,
    /// How long no report was accepted.
    pause: Duration,
}

/// Runs so many jobs, with a viewer each, lets `happen` happen in the middle, and checks that every job is completed
/// once and every viewer has seen everything that was accepted, or was told that something was lost.
async fn ride_out(redis: &str, jobs: usize, happen: impl AsyncFnOnce()) -> Report {
    let engine = Running::start(redis, &[]).await;
    let crowd = Crowd::start(&engine, jobs).await;
    let clients = clients(&engine, jobs).await;
    let mut viewers = Vec::new();
    for n in 0..jobs {
        let job = engine.submit().await;
        let viewer = tokio::spawn(follow(clients[n / 50].clone(), job.job_id.clone()));
        viewers.push((job.job_id, viewer));
    }
    let each = |rounds: u64| rounds * jobs as u64;
    eventually("all jobs report", async || (crowd.accepted() >= each(3)).then_some(())).await;
    let longest = Cell::new(Duration::ZERO);
    let watch = async {
        let (mut before, mut since) = (crowd.accepted(), Instant::now());
        loop {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let now = crowd.accepted();
            if now != before {
                longest.set(longest.get().max(since.elapsed()));
                (before, since) = (now, Instant::now());
            }
        }
    };
    let trouble = async {
        happen().await;
        let so_far = crowd.accepted();
        eventually("all jobs go on", async || (crowd.accepted() >= so_far + each(3)).then_some(())).await;
    };
    tokio::select! {
        () = trouble => {}
        () = watch => {}
    }
    let accepted = crowd.finish().await;
    assert_eq!(accepted.len(), jobs);
    let mut told = 0;
    for (job_id, viewer) in viewers {
        let Seen { texts, gaps } = viewer.await.expect("no panic");
        let job = &accepted[&job_id];
        assert_eq!(job.completions, 1);
        told += usize::from(!gaps.is_empty());
        if gaps.is_empty() {
            assert_eq!(texts, job.texts, "{job_id}: what was accepted is what is seen");
        }
        let stored = engine.job(&job_id).await.expect("it is there");
        assert_eq!(stored.state(), JobState::Completed);
    }
    engine.stop().await;
    Report { told, pause: longest.get() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn j27_sentinel_names_another_master_under_running_jobs() {
    let mut master = RedisServer::start();
    let address = format!("127.0.0.1 {}", master.port());
    let replica = RedisServer::start_with(&["--replicaof", &address]);
    let sentinels: Vec<_> = (0..3).map(|_| RedisServer::start_sentinel(master.port())).collect();
    eventually("the sentinels know all", async || {
        let knows = |sentinel: &RedisServer| {
            let line = sentinel.info("master0")?;
            (line.contains("slaves=1") && line.contains("sentinels=3")).then_some(())
        };
        sentinels.iter().all(|s| knows(s).is_some()).then_some(())
    })
    .await;
    let hosts: Vec<_> = sentinels.iter().map(|s| format!("127.0.0.1:{}", s.port())).collect();
    let url = format!("redis+sentinel://{}/mymaster", hosts.join(","));
    let report = ride_out(&url, 20, async || {
        master.kill();
        eventually("the replica takes over", async || replica.info("role").filter(|role| role == "master"))
            .await;
    })
    .await;
    println!("sentinel: {} viewers were told of a loss, pause {:?}", report.told, report.pause);
    // The engine has everything that it wrote in the last seconds.
    assert_eq!(report.told, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn j26_a_cluster_s_master_dies_under_two_hundred_running_jobs() {
    let mut cluster = RedisCluster::start(3, 1).await;
    let url = cluster.url();
    let report = ride_out(&url, 200, async || {
        let master = cluster.masters().remove(0);
        cluster.kill(master.port);
        eventually("its replica takes over", async || {
            let masters = cluster.masters();
            (masters.len() == 3 && masters.iter().all(|node| node.id != master.id)).then_some(())
        })
        .await;
    })
    .await;
    println!("cluster failover: {} viewers were told of a loss, pause {:?}", report.told, report.pause);
    assert_eq!(report.told, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn j26_a_cluster_s_slots_move_under_two_hundred_running_jobs() {
    let cluster = RedisCluster::start(3, 0).await;
    let url = cluster.url();
    let report = ride_out(&url, 200, async || {
        let masters = cluster.masters();
        let mut moved = 0;
        for slot in cluster.slots_in_use(&masters[0]) {
            moved += cluster.migrate(slot, &masters[0], &masters[1], Duration::from_millis(30)).await;
        }
        assert!(moved > 50, "{moved} keys were moved");
    })
    .await;
    println!("slot migration: {} viewers were told of a loss, pause {:?}", report.told, report.pause);
    assert_eq!(report.told, 0, "nothing is lost when a slot moves");
}
