//! A Tidegate that asks who calls: four processes that prove to each other who they are, by keys that `tidegate token` made.

use std::{fs, path::Path};

use reqwest::{Method, RequestBuilder, Response, header};
use serde_json::{Value, json};
use tempfile::TempDir;
use tidegate::{api::Client, follow::Follower};

use crate::support::{DEADLINE, Process, binary, data, eventually, follow, free_port};

/// Engine, two gateways and a worker, with the most that they can be made to log.
struct Guarded {
    engine: Process,
    gateways: [Process; 2],
    worker: Process,
    addresses: [String; 2],
    admin: String,
    http: reqwest::Client,
    /// What must be nowhere.
    secrets: Vec<(String, String)>,
    dir: TempDir,
}

/// Runs `tidegate token …`: what it prints for programs, and for people.
async fn token(dir: &Path, args: &[&str]) -> (String, String) {
    let mut command = tokio::process::Command::new(binary("tidegate"));
    let output = command.arg("token").args(args).current_dir(dir).output().await.unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr))
}

impl Guarded {
    async fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("tidegate-system-").tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let mut config = "[auth]\nreload_seconds = 1\nsecret_file = 'edge.secret'\n".to_owned();
        config += &token(dir.path(), &["init", "--dir", "."]).await.0;
        config += "leeway_seconds = 0\n";
        let mut secrets = Vec::new();
        for (name, scopes) in [
            ("edge", &["engine:delegate"][..]),
            ("workers", &["engine:work"][..]),
            ("robot", &["jobs:submit", "jobs:read", "jobs:control"][..]),
        ] {
            let mut args = vec!["key", "--name", name, "--subject", name];
            args.extend(scopes.iter().flat_map(|scope| ["--scope", *scope]));
            let (key, told) = token(dir.path(), &args).await;
            config += told.split("The section").next().unwrap();
            fs::write(dir.path().join(name), &key).unwrap();
            secrets.push((format!("the API key of {name}"), key.trim().to_owned()));
        }
        fs::write(dir.path().join("tidegate.toml"), config).unwrap();

        let [one, two, grpc, engine_admin, admin, other] =
            [(); 6].map(|()| format!("127.0.0.1:{}", free_port()));
        let config = format!("--config={}", path("tidegate.toml"));
        let start = |name: &str, program: &str, args: Vec<String>| {
            let talkative = ["RUST_LOG=trace", "TIDEGATE_LOG=trace"].map(str::to_owned).into_iter();
            let program = binary(program).display().to_string();
            let args = talkative.chain([program]).chain(args).chain([config.clone()]).collect();
            Process::start(name, Path::new("/usr/bin/env"), args, dir.path())
        };
        let engine_args = [
            format!("--grpc-listen={grpc}"),
            format!("--admin-listen={engine_admin}"),
            format!("--data-dir={}", path("data")),
        ];
        let engine = start("engine", "job-engine", engine_args.to_vec());
        let gateway = |name, listen: &str, admin: &str| {
            let args = [
                format!("--listen={listen}"),
                format!("--admin-listen={admin}"),
                format!("--engine=http://{grpc}"),
                format!("--engine-token-file={}", path("edge")),
            ];
            start(name, "edge-gateway", args.to_vec())
        };
        let gateways = [gateway("gateway-1", &one, &admin), gateway("gateway-2", &two, &other)];
        let worker_args = [
            format!("--engine=http://{grpc}"),
            format!("--data-dir={}", path("data")),
            format!("--token-file={}", path("workers")),
        ];
        let worker = start("worker", "tidegate-worker", worker_args.to_vec());
        let http = reqwest::Client::builder().no_proxy().timeout(DEADLINE).build().unwrap();
        let mut world = Self { engine, gateways, worker, addresses: [one, two], admin, http, secrets, dir };
        let robot = world.client(0, &world.key("robot"));
        let Self { engine, gateways: [one, two], worker, .. } = &mut world;
        eventually("the worker's kinds are on offer", async || {
            [&mut *engine, &mut *one, &mut *two, &mut *worker].into_iter().for_each(Process::assert_running);
            let kinds = robot.call(robot.request(Method::GET, &["api", "kinds"])).await.ok()?;
            kinds["kinds"].as_array()?.iter().any(|k| k["kind"] == "demo" && k["live"] == true).then_some(())
        })
        .await;
        world
    }

    fn key(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(name)).unwrap().trim().to_owned()
    }

    /// A token of `tidegate token mint`, which must be nowhere either.
    async fn mint(&mut self, args: &[&str]) -> String {
        let args: Vec<&str> = ["mint", "--key", "dev-key.json"].iter().chain(args).copied().collect();
        let minted = token(self.dir.path(), &args).await.0.trim().to_owned();
        self.hide(&format!("the token {args:?}"), &minted);
        minted
    }

    /// `secret` must be nowhere.
    fn hide(&mut self, what: &str, secret: &str) {
        assert!(secret.len() >= 8, "{what} {secret:?} could be anything");
        self.secrets.push((what.to_owned(), secret.to_owned()));
    }

    fn client(&self, gateway: usize, token: &str) -> Client {
        Client::new(&format!("http://{}", self.addresses[gateway])).unwrap().with_token(token).unwrap()
    }

    fn request(&self, gateway: usize, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("http://{}{path}", self.addresses[gateway]))
    }

    /// Everything that was logged, by process.
    fn logs(&self) -> Vec<(&'static str, String)> {
        let [one, two] = &self.gateways;
        [("engine", &self.engine), ("gateway-1", one), ("gateway-2", two), ("worker", &self.worker)]
            .map(|(name, process)| (name, process.output()))
            .to_vec()
    }
}

async fn text(response: Response) -> (u16, String) {
    let headers = format!("{:?}", response.headers());
    (response.status().as_u16(), headers + &response.text().await.unwrap())
}

/// Reads a stream until it has seen `what`.
async fn read_until(response: &mut Response, what: &str) -> String {
    let mut seen = String::new();
    while !seen.contains(what) {
        let chunk = tokio::time::timeout(DEADLINE, response.chunk()).await.expect("in time").unwrap();
        seen += str::from_utf8(&chunk.unwrap_or_else(|| panic!("the stream ended after {seen}"))).unwrap();
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn e46_no_secret_is_in_any_log_metric_or_refusal_and_two_gateways_know_each_other_s() {
    let mut world = Guarded::start().await;
    let alice = world.mint(&["--subject", "alice"]).await;
    let mallory = world.mint(&["--subject", "mallory"]).await;
    let expired = world.mint(&["--subject", "alice", "--seconds", "1"]).await;
    let client = world.client(0, &alice);
    let job = json!({"kind": "demo", "input": {"steps": 400, "seconds": 200}});
    let job = client.call(client.request(Method::POST, &["api", "jobs"]).json(&job)).await.unwrap();
    let id = job["jobId"].as_str().unwrap().to_owned();
    let progress = format!("/api/progress/{id}");

    // A ticket of one gateway, at the other; killed there, and back here: as a browser does, with its cursor.
    let order = json!({"jobId": id});
    let issued = client.call(client.request(Method::POST, &["api", "tickets"]).json(&order)).await.unwrap();
    let ticket = issued["ticket"].as_str().unwrap().to_owned();
    world.hide("the ticket", &ticket);
    let url = format!("{progress}?ticket={ticket}");
    let mut stream = world.request(1, Method::GET, &url).send().await.unwrap();
    assert_eq!(stream.status(), 200);
    let seen = read_until(&mut stream, "event: progress").await;
    let cursor = seen.lines().rev().find_map(|line| line.strip_prefix("id: ")).unwrap().to_owned();
    world.hide("the cursor", &cursor);
    let epoch = cursor.split_once('-').unwrap().1.to_owned();
    world.gateways[1].kill();
    let again = || world.request(0, Method::GET, &url).header("last-event-id", &cursor);
    let mut stream = again().send().await.unwrap();
    assert!(read_until(&mut stream, "event: progress").await.contains(r#""resumed":true"#));
    world.gateways[1].start_again();

    // A session of one gateway, at the other.
    let begin = world.request(0, Method::POST, "/api/session").bearer_auth(&alice).send().await.unwrap();
    let cookie = begin.headers()[header::SET_COOKIE].to_str().unwrap().split(';').next().unwrap().to_owned();
    world.hide("the cookie", cookie.split_once('=').unwrap().1);
    let who = eventually("the other gateway knows the session", async || {
        let who =
            world.request(1, Method::GET, "/api/session").header("cookie", &cookie).send().await.ok()?;
        who.json::<Value>().await.ok()
    })
    .await;
    assert_eq!(who["subject"], "alice");
    let mut by_cookie =
        world.request(1, Method::GET, &progress).header("cookie", &cookie).send().await.unwrap();
    read_until(&mut by_cookie, "event: connected").await;

    // The command line, by its environment and by a file.
    fs::write(world.dir.path().join("alice"), &alice).unwrap();
    for (name, value) in [
        ("TIDEGATE_TOKEN", alice.clone()),
        ("TIDEGATE_TOKEN_FILE", world.dir.path().join("alice").display().to_string()),
    ] {
        let mut command = tokio::process::Command::new(binary("tidegate"));
        let server = format!("http://{}", world.addresses[0]);
        let output = command.args(["jobs", "--server", &server]).env(name, value).output().await.unwrap();
        let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        assert!(text.contains(&id) && !text.contains(&alice), "{text}");
    }

    // Whatever is refused is not repeated.
    eventually("a token has expired", async || {
        let get = world.request(0, Method::GET, "/api/session").bearer_auth(&expired).send().await.unwrap();
        (get.status() == 401).then_some(())
    })
    .await;
    let unknown = "tg_0123456789012345678901234567890123456789012";
    let forged = format!("{alice}x");
    let mut refusals = Vec::new();
    for request in [
        world.request(0, Method::GET, &url).bearer_auth(&mallory),
        world.request(0, Method::GET, &format!("{url}x")),
        world.request(0, Method::GET, &format!("{url}&lastEventId={cursor}")),
        world.request(0, Method::GET, &format!("/api/jobs/{id}?ticket={ticket}")),
        world.request(0, Method::GET, &progress).bearer_auth(&mallory).header("last-event-id", &cursor),
        world
            .request(0, Method::GET, &progress)
            .bearer_auth(&alice)
            .header("last-event-id", format!("{cursor}<")),
        world.request(0, Method::GET, &progress).bearer_auth(&forged),
        world.request(0, Method::GET, &progress).bearer_auth(&expired),
        world.request(0, Method::GET, &progress).header("x-api-key", unknown),
        world.request(0, Method::GET, &progress).header("cookie", format!("{cookie}x")),
        world
            .request(0, Method::GET, &progress)
            .header("cookie", &cookie)
            .header("sec-fetch-site", "cross-site"),
        world.request(0, Method::GET, &format!("/api/nothing?ticket={ticket}")).bearer_auth(&alice),
    ] {
        let (status, text) = text(request.send().await.unwrap()).await;
        assert!((400..500).contains(&status), "{status} {text}");
        refusals.push(text);
    }
    world.hide("an unknown key", unknown);
    let (_, metrics) =
        text(world.http.get(format!("http://{}/metrics", world.admin)).send().await.unwrap()).await;
    assert!(metrics.contains("tidegate_gateway"));

    client.call(client.request(Method::POST, &["api", "jobs", &id, "cancel"])).await.unwrap();
    let seen = follow(Follower::new(client.clone(), &id, "", DEADLINE), |_| {}).await;
    seen.assert_whole(0);
    let [one, two] = &mut world.gateways;
    for process in [one, two, &mut world.worker, &mut world.engine] {
        process.stop().await;
    }

    let logs = world.logs();
    for (name, log) in &logs {
        assert!(log.contains("TRACE") && log.len() > 1000, "{name} has logged nothing to look at");
    }
    assert!(logs[1].1.contains(&progress), "the gateway logs no requests any more");
    let everything = logs.into_iter().chain([("a metric", metrics), ("a refusal", refusals.join("\n"))]);
    let mut found = Vec::new();
    for (place, text) in everything {
        for (what, secret) in &world.secrets {
            if let Some(line) = text.lines().find(|line| line.contains(secret.as_str())) {
                found.push(format!("{what} is in {place}: {line:.300}"));
            }
        }
        // The epoch alone is what makes a ticket good for reconnects.
        if !place.starts_with("engine") && text.contains(&epoch) {
            let line = text.lines().find(|line| line.contains(&epoch)).unwrap_or_default();
            found.push(format!("the epoch is in {place}: {line:.300}"));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn e55_a_gateway_whose_own_token_ends_or_is_wrong_shows_nobody_a_refusal_that_is_not_theirs() {
    let mut world = Guarded::start().await;
    let robot = world.client(0, &world.key("robot"));
    let job = json!({"kind": "demo", "input": {"steps": 40, "seconds": 20}});
    // From its next start on the gateway shows the engine a token that lasts some seconds.
    let short = world.mint(&["--subject", "edge", "--scope", "engine:delegate", "--seconds", "8"]).await;
    let long = world.mint(&["--subject", "edge", "--scope", "engine:delegate"]).await;
    fs::write(world.dir.path().join("edge"), &short).unwrap();
    world.gateways[0].kill();
    world.gateways[0].start_again();
    eventually("the gateway is back", async || {
        robot.call(robot.request(Method::GET, &["api", "kinds"])).await.ok()
    })
    .await;
    let job = robot.call(robot.request(Method::POST, &["api", "jobs"]).json(&job)).await.unwrap();
    let id = job["jobId"].as_str().unwrap().to_owned();
    let viewer = tokio::spawn(follow(Follower::new(robot.clone(), &id, "", DEADLINE), |_| {}));
    eventually("the job runs", async || {
        let job = robot.job(&id).await.unwrap();
        (job["progress"]["done"].as_u64()? > 2).then_some(())
    })
    .await;
    // It ends, and for a while there is no other: nobody is told that there is no such job, or to sign in.
    let refused = eventually("the engine refuses the gateway", async || {
        let get = world.request(0, Method::GET, &format!("/api/jobs/{id}")).bearer_auth(world.key("robot"));
        let (status, text) = text(get.send().await.unwrap()).await;
        (status != 200).then_some((status, text))
    })
    .await;
    assert!(refused.0 == 503 && refused.1.contains("engine-unavailable"), "{refused:?}");
    fs::write(world.dir.path().join("edge"), &long).unwrap();
    eventually("the new token is used", async || robot.job(&id).await.ok()).await;
    let seen = viewer.await.unwrap();
    seen.assert_whole(0);
    assert_eq!(seen.losses, 0, "the viewer has noticed");
    assert_eq!(data(seen.events.last().unwrap())["status"], "COMPLETED");
}
