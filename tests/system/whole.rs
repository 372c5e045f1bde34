//! `tidegate` alone, as somebody starts it for the first time, and the command line on a terminal.

use std::{process::Stdio, time::Instant};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tidegate::api::Client;
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::support::{Process, Stack, Store, binary, eventually, follow, free_port, number};

/// The whole in one process.
struct Whole {
    process: Process,
    client: Client,
    url: String,
    _scratch: TempDir,
}

impl Whole {
    async fn start(more: &[&str]) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let http = format!("127.0.0.1:{}", free_port());
        let mut args =
            vec![format!("--listen={http}"), format!("--data-dir={}", scratch.path().join("data").display())];
        args.extend(
            ["grpc-listen", "admin-listen", "engine-admin-listen"]
                .map(|f| format!("--{f}=127.0.0.1:{}", free_port())),
        );
        args.extend(more.iter().map(|&flag| flag.to_owned()));
        let process = Process::start("tidegate", &binary("tidegate"), args, scratch.path());
        let url = format!("http://{http}");
        let mut whole = Self { process, client: Client::new(&url).unwrap(), url, _scratch: scratch };
        whole.ready(1).await;
        whole
    }

    /// Waits for the `times`-th banner.
    async fn ready(&mut self, times: usize) {
        eventually("the banner is printed", async || {
            self.process.assert_running();
            (self.process.output().matches("Tidegate is ready.").count() == times).then_some(())
        })
        .await;
    }

    async fn submit(&self, input: Value) -> String {
        let request = self.client.request(reqwest::Method::POST, &["api", "jobs"]);
        let job = self.client.call(request.json(&json!({ "kind": "demo", "input": input }))).await.unwrap();
        job["jobId"].as_str().unwrap().to_owned()
    }

    async fn done(&self, job: &str, steps: u64) {
        eventually("some steps are done", async || {
            let job = self.client.job(job).await.unwrap();
            job["progress"]["done"].as_u64().filter(|done| *done >= steps)
        })
        .await;
    }
}

/// j36: a stop gives running jobs back, and the next start takes them up where they were.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_in_the_middle_of_a_job_costs_nothing() {
    let mut whole = Whole::start(&[]).await;
    let banner = whole.process.output();
    for part in [&*whole.url, "gRPC", "--import-dir", "submit demo", "submit csv-import"] {
        assert!(banner.contains(part), "{part} is missing in {banner}");
    }
    let job = whole.submit(json!({ "steps": 60, "seconds": 15 })).await;
    whole.done(&job, 3).await;
    let status = whole.process.stop().await;
    assert_eq!(status.code(), Some(0), "{}", whole.process.output());
    whole.process.start_again();
    whole.ready(2).await;
    let follower =
        tidegate::follow::Follower::new(whole.client.clone(), &job, "", std::time::Duration::from_secs(30));
    let seen = follow(follower, |_| {}).await;
    seen.assert_whole(0);
    assert_eq!(seen.events.last().unwrap().name, "complete");
    let said: Vec<_> = seen.events.iter().map(|e| format!("{} {} {}", e.id, e.name, e.data)).collect();
    let resumed = seen.events.iter().any(|e| e.data.starts_with("\"Resuming after step "));
    assert!(resumed, "the job began anew:\n{}", said.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_interrupt_ends_it_at_once() {
    let mut whole = Whole::start(&[]).await;
    let job = whole.submit(json!({ "steps": 60, "seconds": 60 })).await;
    whole.done(&job, 1).await;
    // A viewer that does not read keeps the drain waiting for its goodbye.
    let response = reqwest::Client::builder().no_proxy().build().unwrap();
    let _viewer = response.get(format!("{}/api/progress/{job}", whole.url)).send().await.unwrap();
    whole.process.signal(Signal::SIGINT);
    eventually("the first interrupt is confirmed", async || {
        whole.process.output().contains("Once more").then_some(())
    })
    .await;
    let begun = Instant::now();
    whole.process.signal(Signal::SIGINT);
    let status = whole.process.wait().await;
    assert!(matches!(status.code(), Some(0 | 130)), "{status}");
    assert!(begun.elapsed().as_secs() < 3, "it took {:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_configuration_is_told_as_a_whole_with_exit_code_64() {
    let whole = Whole::start(&[]).await;
    let taken = whole.url.trim_start_matches("http://");
    let scratch = tempfile::tempdir().unwrap();
    std::fs::write(scratch.path().join("bad.toml"), "[[exec]]\nkind = 'x'\nshell = true\n").unwrap();
    let args = [
        format!("--listen={taken}"),
        "--grpc-listen=0.0.0.0:1".to_owned(),
        "--admin-listen=nowhere".to_owned(),
        format!("--data-dir={}", scratch.path().display()),
        format!("--config={}", scratch.path().join("bad.toml").display()),
    ];
    let output = tokio::process::Command::new(binary("tidegate")).args(args).output().await.unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(64), "{errors}");
    for part in ["--grpc-listen 0.0.0.0:1", "--insecure", "--admin-listen \"nowhere\"", "bad.toml"] {
        assert!(errors.contains(part), "{part} is missing in {errors}");
    }
    let args = [format!("--listen={taken}"), format!("--data-dir={}", scratch.path().display())];
    let output = tokio::process::Command::new(binary("tidegate")).args(args).output().await.unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(64), "{errors}");
    assert!(errors.contains(&format!("--listen {taken}: another program listens there")), "{errors}");
}

#[tokio::test(flavor = "multi_thread")]
async fn e39_ctrl_c_stops_the_watching_and_not_the_job() {
    let stack = Stack::start(Store::Embedded).await;
    // Far longer than this test: it ends by being cancelled, however slow the machine is.
    let job = stack.submit("demo", json!({ "steps": 1000, "seconds": 500 })).await;
    let mut command = stack.tidegate_command(&["watch", &job]);
    let mut watch = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    while !lines.next_line().await.unwrap().expect("the watch ended").starts_with("checkpoint") {}
    kill(Pid::from_raw(watch.id().unwrap().try_into().unwrap()), Signal::SIGINT).unwrap();
    let output = watch.wait_with_output().await.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("the job goes on") && said.contains(&format!("tidegate cancel {job}")), "{said}");

    // The cursor that it printed is one to go on from.
    let cursor = said.split("--cursor ").nth(1).unwrap().split_whitespace().next().unwrap();
    eventually("the job goes on", async || {
        let now = stack.job(&job).await;
        assert_eq!(now["status"], "PROCESSING");
        (number(now["cursor"].as_str().unwrap()) > number(cursor) + 3).then_some(())
    })
    .await;
    stack.post(&["api", "jobs", &job, "cancel"], &json!({})).await;
    let rest = follow(stack.follower(&job, cursor), |_| {}).await;
    assert_eq!(rest.events.last().unwrap().name, "cancelled");
    rest.assert_whole(number(cursor));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_gets_a_bar_and_colours_unless_it_wants_none() {
    let stack = Stack::start(Store::Embedded).await;
    let job = stack.submit("demo", json!({ "steps": 3, "seconds": 0.3 })).await;
    // util-linux's `script` runs a command on a terminal of its own.
    let watch = format!("stty cols 120; exec {} watch {job}", binary("tidegate").display());
    for no_color in ["", "1"] {
        let mut command = tokio::process::Command::new("script");
        command.args(["-qec", &watch, "/dev/null"]).stdin(Stdio::null());
        command.env("TIDEGATE_SERVER", format!("http://{}", stack.http)).env("TERM", "xterm-256color");
        let output =
            command.env("NO_COLOR", no_color).output().await.expect("script is missing (apt: bsdutils)");
        let shown = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{shown}");
        assert!(shown.contains("Processing part 2") && shown.contains("COMPLETED"), "{shown}");
        assert_eq!(shown.contains("\x1b[1;32mCOMPLETED"), no_color.is_empty(), "{shown:?}");
        if no_color.is_empty() {
            assert!(shown.contains('━') && shown.contains("3 of 3 steps"), "there is no bar: {shown:?}");
        }
    }
}
