//! `exec` with real commands: what they print, how they end, and that nothing of them stays behind.

use std::{fs, path::Path, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tidegate_proto::v1::{self, LogLevel, ReportResult, report::Body};
use tidegate_worker::kinds::exec::{Exec, ExecConfig};

use crate::{
    Running,
    engine::{Engine, Stream, code, is_end, job, logs, result},
    eventually, start,
};

/// An engine, and a worker that runs one declared command.
struct Bench {
    stream: Stream,
    engine: Engine,
    worker: Running,
}

impl Bench {
    /// Declares `command` with more `settings`, in TOML, under the kind `run`.
    async fn new(command: &[&str], settings: &str) -> Self {
        let config: ExecConfig =
            toml::from_str(&format!("kind = \"run\"\ncommand = {}\n{settings}", json!(command))).unwrap();
        let mut engine = Engine::start().await;
        let worker = start(&[engine.uri()], vec![Arc::new(Exec::new(config).unwrap())]);
        let stream = engine.welcome().await;
        Self { stream, engine, worker }
    }

    async fn shell(script: &str, settings: &str) -> Self {
        Self::new(&["sh", "-c", script], settings).await
    }

    async fn run(&mut self) -> (Vec<Body>, Body) {
        self.stream.play(&job("j", "run", &json!({}))).await
    }

    /// Assigns the job and answers its reports until a log line comes.
    async fn until_line(&mut self) -> String {
        self.stream.assign(&job("j", "run", &json!({}))).await;
        loop {
            let report = self.stream.report().await;
            self.stream.answer(&report, ReportResult::Ok).await;
            match report.body.unwrap() {
                Body::Log(log) => return log.text,
                body => assert!(!is_end(&body), "{body:?}"),
            }
        }
    }
}

/// Whether a process runs; a zombie does not.
fn runs(pid: &str) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(pid).join("stat")).unwrap_or_default();
    stat.rsplit(')')
        .next()
        .is_some_and(|rest| !rest.trim().is_empty() && !rest.trim().starts_with(['Z', 'X']))
}

/// Children of this process that ended and were not waited for.
fn zombies() -> Vec<String> {
    let me = std::process::id().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let rest: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        if rest.first() == Some(&"Z") && rest.get(1) == Some(&me.as_str()) {
            found.push(stat);
        }
    }
    found
}

/// A command that ignores SIGTERM, as does its child; it prints both process ids.
const DEAF: &str = "trap '' TERM; sh -c 'trap \"\" TERM; while :; do sleep 0.1; done' & echo $$ $!; while :; do sleep 0.1; done";

#[tokio::test]
async fn j40_output_becomes_events() {
    let script = "echo plain; echo warned >&2; echo '::progress 40 compiling'; echo '::progress 3/10 linking'; \
        echo '::checkpoint half at 50'; echo '::custom chart {\"a\": [1]}'; echo '::progress oops'; \
        printf '\\033[31mred\\033[0m\\001\\n'; echo '::mask s3cret'; echo 'it is s3cret, s3cret'; \
        printf 'bad \\377 utf8\\n'; echo '::result {\"ok\": true}'; printf 'no end'";
    let mut bench = Bench::shell(script, "").await;
    let (bodies, end) = bench.run().await;
    assert_eq!(result(&end), json!({"ok": true}));
    let mut lines: Vec<_> = logs(&bodies);
    // The two pipes are read side by side.
    let warned = lines.iter().position(|l| l.1 == "stderr").unwrap();
    assert_eq!(lines.remove(warned), (LogLevel::Warn, "stderr", "warned"));
    let texts: Vec<_> = lines.iter().map(|l| l.2).collect();
    let expected = ["plain", "::progress oops", "red\\u{1}", "it is ***, ***", "bad \u{fffd} utf8", "no end"];
    assert_eq!(texts, expected);
    assert!(lines.iter().all(|l| l.0 == LogLevel::Info && l.1 == "stdout"));
    let last =
        bodies.iter().rev().find_map(|b| if let Body::Progress(p) = b { Some(p.clone()) } else { None });
    let last = last.unwrap();
    assert_eq!(
        (last.percent, last.done, last.total, last.message.as_str()),
        (Some(30.0), Some(3), Some(10), "linking")
    );
    assert!(bodies.iter().any(|b| matches!(b, Body::Checkpoint(c) if c.name == "half" && c.data == "at 50")));
    assert!(
        bodies.iter().any(|b| matches!(b, Body::Custom(c) if c.name == "chart" && c.json == "{\"a\": [1]}"))
    );
}

#[tokio::test]
async fn the_environment_is_the_declared_one_and_the_checkpoint_comes_back() {
    let script = "env | cut -d= -f1 | sort | grep -v -e _ -e PWD -e SHLVL | tr '\\n' ' '; echo; \
        echo \"$TIDEGATE_JOB_ID $TIDEGATE_ATTEMPT $TIDEGATE_CHECKPOINT $TIDEGATE_INPUT $EXTRA\"; pwd; \
        echo \"$TIDEGATE_SCHEDULED_FOR\"";
    let mut bench = Bench::shell(script, "cwd = \"/\"\nenv = { EXTRA = \"more\" }").await;
    let checkpoint = Some(v1::Checkpoint { name: "half".into(), data: "at 50".into(), size: 5 });
    let scheduled_for = Some(prost_types::Timestamp { seconds: 1_798_761_600, nanos: 0 });
    let job = v1::Assignment { checkpoint, attempt: 2, scheduled_for, ..job("j", "run", &json!({})) };
    let (bodies, _) = bench.stream.play(&job).await;
    let lines: Vec<_> = logs(&bodies).iter().map(|l| l.2).collect();
    for name in lines[0].split_whitespace() {
        assert!(["PATH", "HOME", "LANG", "EXTRA"].contains(&name), "{name} was inherited");
    }
    assert!(lines[0].contains("PATH"), "{lines:?}");
    assert_eq!(lines[1..], ["j 2 at 50 {} more", "/", "2027-01-01T00:00:00Z"]);
}

#[tokio::test]
async fn input_reaches_the_command_as_whole_arguments() {
    let mut bench = Bench::new(&["printf", "[%s]\\n", "{a}", "{b?}"], "").await;
    let (bodies, end) = bench.stream.play(&job("j", "run", &json!({"a": "$(id); 'x' \"y\" *"}))).await;
    assert_eq!(result(&end), json!({"exitCode": 0}));
    assert_eq!(logs(&bodies)[0].2, "[$(id); 'x' \"y\" *]");
    let (_, end) = bench.stream.play(&job("k", "run", &json!({"a": "x", "c": 1}))).await;
    assert_eq!(code(&end), "input_invalid");
}

#[tokio::test]
async fn ends_have_codes() {
    for (script, settings, expected, may_retry) in [
        ("exit 2", "", "exit_2", false),
        ("exit 75", "retry_exit_codes = [75]", "exit_75", true),
        ("kill -9 $$", "", "signal_9", false),
        ("sleep 60", "timeout_seconds = 0.2", "timeout", false),
    ] {
        let mut bench = Bench::shell(script, settings).await;
        let (_, end) = bench.run().await;
        assert_eq!(code(&end), expected);
        assert!(matches!(&end, Body::Fail(failed) if failed.retryable == may_retry), "{end:?}");
    }
    let mut bench = Bench::new(&["/no/such/program"], "").await;
    assert_eq!(code(&bench.run().await.1), "spawn_failed");
}

#[tokio::test]
async fn j11_cancel_terminates_then_kills_the_whole_group() {
    let mut bench = Bench::shell(DEAF, "kill_after_seconds = 0.3").await;
    let pids = bench.until_line().await;
    assert!(pids.split(' ').all(runs), "{pids}");
    bench.stream.cancel(&job("j", "run", &json!({})), Duration::from_secs(20)).await;
    assert!(matches!(bench.stream.until_end().await[..], [Body::Stopped(_)]));
    eventually("both processes are gone", || !pids.split(' ').any(runs)).await;
    eventually("no zombie is left", || zombies().is_empty()).await;
}

#[tokio::test]
async fn cancel_lets_a_command_clean_up() {
    let mut bench =
        Bench::shell("trap 'echo cleaned up; exit 0' TERM; echo begun; while :; do sleep 0.05; done", "")
            .await;
    assert_eq!(bench.until_line().await, "begun");
    bench.stream.cancel(&job("j", "run", &json!({})), Duration::from_secs(20)).await;
    let bodies = bench.stream.until_end().await;
    // The shell itself may say on stderr that its `sleep` was terminated.
    let said: Vec<_> = logs(&bodies).into_iter().filter(|l| l.1 == "stdout").map(|l| l.2).collect();
    assert_eq!(said, ["cleaned up"]);
    assert!(matches!(bodies.last(), Some(Body::Stopped(_))));
}

#[tokio::test]
async fn j1_a_lost_lease_kills_the_group_at_once() {
    let mut bench = Bench::shell(DEAF, "").await;
    let pids = bench.until_line().await;
    let lost = v1::LeaseLost { job_id: "j".into(), lease_token: "1-j".into(), reason: "expired".into() };
    bench.stream.say(v1::work_response::Message::LeaseLost(lost)).await;
    eventually("both processes are gone", || !pids.split(' ').any(runs)).await;
    eventually("no zombie is left", || zombies().is_empty()).await;
}

#[tokio::test]
async fn a_shutdown_gives_the_job_back_and_leaves_no_process() {
    let mut bench = Bench::shell(DEAF, "kill_after_seconds = 0.3").await;
    let pids = bench.until_line().await;
    bench.worker.shutdown.cancel();
    assert!(matches!(bench.stream.until_end().await[..], [Body::Released(_)]));
    eventually("both processes are gone", || !pids.split(' ').any(runs)).await;
    drop(bench.engine);
}

#[tokio::test]
async fn what_a_command_leaves_behind_goes_with_it() {
    let mut bench = Bench::shell("sleep 1000 & echo $!; exit 0", "").await;
    let (bodies, end) = bench.run().await;
    assert_eq!(result(&end), json!({"exitCode": 0}), "the pipe that the child holds open is not waited for");
    let pid = logs(&bodies)[0].2.to_owned();
    eventually("the child is gone", || !runs(&pid)).await;
}

#[tokio::test]
async fn j40_a_flood_is_limited_and_its_end_is_seen() {
    let script = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; echo '::result 7'";
    let mut bench = Bench::shell(script, "lines_per_second = 20").await;
    let (bodies, end) = bench.run().await;
    assert_eq!(result(&end), json!(7), "directives are never dropped");
    let lines = logs(&bodies);
    let count = |word: &str| lines.iter().filter(|l| l.2.contains(word)).count();
    let told: usize = lines.iter().filter(|l| l.2.contains("left out")).map(|l| number(l.2)).sum();
    assert!((200..2000).contains(&count("line ")), "{}", count("line "));
    assert_eq!(count("line ") + told, 20_000, "every line is shown or counted");
}

fn number(text: &str) -> usize {
    text.split(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn j40_a_huge_line_is_cut() {
    let mut bench = Bench::shell("head -c 3000000 /dev/zero | tr '\\0' x; echo; echo next", "").await;
    let (bodies, _) = bench.run().await;
    let lines = logs(&bodies);
    assert_eq!((lines.len(), lines[1].2), (2, "next"));
    assert!(lines[0].2.len() <= 16 * 1024 && lines[0].2.ends_with("[cut]"));
}

#[tokio::test]
async fn a_refused_report_stops_the_command() {
    let mut bench =
        Bench::shell("echo '::checkpoint c x'; trap '' PIPE; while :; do echo x; sleep 0.1; done", "").await;
    bench.stream.assign(&job("j", "run", &json!({}))).await;
    loop {
        let report = bench.stream.report().await;
        match report.body.clone().unwrap() {
            Body::Checkpoint(_) => bench.stream.answer(&report, ReportResult::Rejected).await,
            body if is_end(&body) => {
                assert_eq!(code(&body), "report_rejected");
                break;
            }
            _ => bench.stream.answer(&report, ReportResult::Ok).await,
        }
    }
}

#[tokio::test]
async fn the_offer_describes_the_input() {
    let bench = Bench::new(&["make", "{target}", "{jobs?}"], "description = \"Builds.\"").await;
    let kind = &bench.stream.hello.kinds[0];
    let schema: Value = serde_json::from_str(&kind.input_schema_json).unwrap();
    assert_eq!((kind.kind.as_str(), kind.description.as_str()), ("run", "Builds."));
    assert_eq!(schema["required"], json!(["target"]));
    assert_eq!(schema["additionalProperties"], json!(false));
    assert!(schema["properties"]["jobs"].is_object());
}
