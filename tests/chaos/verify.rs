//! After the storm: what was promised is compared with what is there.

use serde_json::Value;
use tidegate::follow::Outcome;

use crate::{
    fleet::Fleet,
    ledger::{self, Ledger},
    load::Done,
    report::Report,
    support::{data, follow},
    viewer::assert_whole,
};

/// Panics at the first broken promise.
pub async fn all(fleet: &Fleet, jobs: &[Done], ledger: &Ledger, report: &mut Report) {
    for job in jobs {
        let id = &job.id;
        let stored = {
            let follower =
                tidegate::follow::Follower::new(fleet.client.clone(), id, "", crate::support::DEADLINE);
            follow(follower, |_| {}).await
        };
        assert_eq!(stored.gaps, [], "job {id}: the log has a hole");
        stored.assert_whole(0);
        for seen in &job.viewers {
            assert_whole(id, seen);
            let shown = |e: &tidegate::sse::Event| stored.events.iter().any(|s| s == e);
            if let Some(lie) = seen.events.iter().find(|e| !shown(e)) {
                panic!("job {id}: a viewer saw {lie:?}, which is not stored");
            }
            assert_eq!(seen.outcome, stored.outcome, "job {id}: a viewer saw another end");
            report.events += seen.events.len();
            report.gaps += seen.gaps.len();
            report.reconnects += seen.reconnects;
        }
        report.jobs += 1;
        report.stored += stored.events.len();
        let status = stored.outcome.unwrap();
        if job.cancelled {
            assert_eq!(status, Outcome::Cancelled, "job {id} was cancelled, yet it is {status}");
            let is_order =
                |e: &&tidegate::sse::Event| e.name == "state" && !data(e)["cancelRequested"].is_null();
            let ordered = stored.events.iter().position(|e| is_order(&e));
            let ran_on = stored.events.iter().skip(ordered.map_or(usize::MAX, |at| at + 1));
            let again = ran_on.filter(|e| e.name == "state" && data(e)["status"] == "PROCESSING").count();
            assert_eq!(again, 0, "job {id}: began again after it was cancelled");
            report.cancelled += 1;
        } else {
            assert_eq!(status, Outcome::Completed, "job {id} ({}): {:?}", job.kind, stored.events.last());
        }
        let attempts =
            stored.events.iter().filter(|e| e.name == "state" && data(e)["status"] == "PROCESSING").count();
        report.attempts += attempts;
        match job.kind {
            ledger::KIND => checkpoints(id, &stored.events, ledger, report),
            "csv-import" | "csv-import-python" if status == Outcome::Completed => {
                rows(fleet, job, &stored.events)
            }
            _ => {}
        }
    }
}

/// Every acknowledged checkpoint is stored, and none was made twice.
fn checkpoints(id: &str, events: &[tidegate::sse::Event], ledger: &Ledger, report: &mut Report) {
    let names: Vec<Value> =
        events.iter().filter(|e| e.name == "checkpoint").map(|e| data(e)["name"].clone()).collect();
    let expected: Vec<Value> = (1..=names.len()).map(|n| format!("n{n}").into()).collect();
    assert_eq!(names, expected, "job {id}: checkpoints are missing or doubled");
    let acknowledged = ledger.acknowledged(id);
    for n in &acknowledged {
        assert!(
            names.contains(&format!("n{n}").into()),
            "job {id}: checkpoint {n} was acknowledged and is not stored"
        );
    }
    report.acknowledged += acknowledged.len();
}

/// The table holds the file's rows, each once.
fn rows(fleet: &Fleet, job: &Done, events: &[tidegate::sse::Event]) {
    let result = data(events.last().unwrap());
    let name = result["result"]["database"].as_str().unwrap_or_else(|| panic!("no database in {result}"));
    let dir = fleet.scratch.path();
    let path = if job.kind == "csv-import" { dir.join("data").join(name) } else { dir.join(name) };
    let database =
        rusqlite::Connection::open_with_flags(&path, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let query = format!(
        "SELECT count(*), count(DISTINCT number), sum(CAST(number AS INTEGER)), \
         sum(name = 'name of ' || number), sum(length(code) = 5) FROM \"{}\"",
        job.table
    );
    let found: [i64; 5] = database
        .query_row(&query, [], |row| Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?]))
        .unwrap_or_else(|e| panic!("job {} ({}): {e}", job.id, job.kind));
    let rows = i64::try_from(job.rows).unwrap();
    assert_eq!(
        found,
        [rows, rows, rows * (rows - 1) / 2, rows, rows],
        "job {}: rows lost, doubled or changed",
        job.id
    );
}
