//! `tidegate doctor` finds what a real nginx does to event streams, and nothing where there is nothing.

use std::{fs, path::PathBuf, process::Output, time::Duration};

use futures_util::future::join_all;
use serde_json::Value;

use crate::support::{
    Options, Process, Stack, Store, binary,
    certificates::{self, Authority},
    eventually, free_port, redis,
};

/// A server of nginx before the gateway; `{settings}` are its faults.
const SERVER: &str = "server { listen {port}; location / { proxy_pass http://{gateway}; {settings} } }\n";

/// And one with TLS.
const ENCRYPTED_SERVER: &str = "server { listen {listen}; ssl_certificate {chain}; ssl_certificate_key {key}; \
     location / { proxy_pass http://{gateway}; } }\n";

/// Each fault (nginx speaks HTTP/1.0 to the gateway unless told otherwise, and then collects), the check that finds it, and what is said of it.
const PLANTED: [(&str, &str, &str); 3] = [
    ("proxy_ignore_headers X-Accel-Buffering;", "buffering", "something collects the stream"),
    ("proxy_http_version 1.1; proxy_read_timeout 5s;", "idle", "the connection was cut after"),
    (
        "proxy_ignore_headers X-Accel-Buffering; gzip on; gzip_types text/event-stream; gzip_proxied any;",
        "compression",
        "held back",
    ),
];

/// What the doctor finds, if anything: the check, how bad it is, what is said.
type Expected = Option<(&'static str, &'static str, &'static str)>;

/// Servers with TLS: whether they offer HTTP/2, and what is found.
const ENCRYPTED: [(&str, Expected); 6] = [
    (" http2", None),
    ("", Some(("http", "warning", "does not offer h2 by ALPN"))),
    (" http2", Some(("tls", "warning", "it ends in 5 days"))),
    (" http2", Some(("tls", "FAULT", "certificate has expired"))),
    (" http2", Some(("tls", "FAULT", "certificate is self-signed"))),
    (" http2", Some(("tls", "FAULT", "not for this name"))),
];

async fn tidegate(server: &str, args: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(binary("tidegate"));
    command.args(args).env("TIDEGATE_SERVER", server).kill_on_drop(true).output().await.unwrap()
}

async fn doctor(url: &str, flags: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(binary("tidegate"));
    command.args(["doctor", url, "--json"]).args(flags).kill_on_drop(true).output().await.unwrap()
}

/// What it said: by check, the result and the words.
fn found(output: &Output) -> Vec<(String, String, String)> {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let line = |line: &str| -> (String, String, String) {
        let line: Value = serde_json::from_str(line).unwrap();
        let text = |name: &str| line[name].as_str().unwrap().to_owned();
        (text("check"), text("result"), text("found"))
    };
    text.lines().map(line).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn e38_the_doctor_finds_each_planted_fault_and_no_other() {
    const ORIGIN: &str = "https://app.example";
    let gateway = vec![format!("--cors-origin={ORIGIN}")];
    let stack = Stack::start(Options { gateway, ..Options::from(Store::Embedded) }).await;
    let ports = PLANTED.map(|_| free_port());
    let servers = ports.iter().zip(PLANTED).map(|(port, (settings, ..))| {
        let server = SERVER.replace("{port}", &format!("127.0.0.1:{port}"));
        server.replace("{gateway}", &stack.http).replace("{settings}", settings)
    });
    let dir = stack.path("nginx");
    fs::create_dir_all(&dir).unwrap();
    let dir = dir.display();
    let authority = Authority::new();
    let encrypted = ENCRYPTED.map(|_| free_port());
    let certificates = [
        authority.sign("localhost"),
        authority.sign("localhost"),
        authority.sign_for("localhost", Duration::from_secs(6 * 24 * 3600 - 60)),
        authority.sign_expired("localhost"),
        certificates::self_signed("localhost"),
        authority.sign("tidegate.example"),
    ];
    let encrypted_servers =
        encrypted.iter().zip(certificates).zip(ENCRYPTED).map(|((port, own), (http2, _))| {
            let [chain, key] = ["pem", "key"].map(|kind| format!("{dir}/{port}.{kind}"));
            fs::write(&chain, own.chain).unwrap();
            fs::write(&key, own.key).unwrap();
            ENCRYPTED_SERVER
                .replace("{listen}", &format!("127.0.0.1:{port} ssl{http2}"))
                .replace("{chain}", &chain)
                .replace("{key}", &key)
                .replace("{gateway}", &stack.http)
        });
    let servers = servers.chain(encrypted_servers);
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {dir}/{kind}; "))
        .concat();
    let config = format!(
        "daemon off; master_process off; pid {dir}/pid; error_log {dir}/error.log; events {{}}\n\
         http {{ access_log off; {temporary}\n{} }}\n",
        servers.collect::<String>()
    );
    fs::write(format!("{dir}/nginx.conf"), config).unwrap();
    let program =
        ["/usr/sbin/nginx", "/usr/bin/nginx"].map(PathBuf::from).into_iter().find(|path| path.exists());
    let args =
        ["-e", &format!("{dir}/error.log"), "-c", &format!("{dir}/nginx.conf")].map(str::to_owned).to_vec();
    let program = program.expect("nginx, which Debian's package of that name installs");
    let nginx = Process::start("nginx", &program, args, stack.path("").as_path());
    for port in ports.into_iter().chain(encrypted) {
        eventually("nginx listens", async || tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok())
            .await;
    }

    let (redis, redis_url) = redis::start(stack.path("nginx").as_path()).await;
    let direct = format!("http://{}", stack.http);
    let behind = ports.map(|port| format!("http://127.0.0.1:{port}"));
    let asked = ["--origin", ORIGIN, "--redis", &redis_url];
    let https = encrypted.map(|port| format!("https://localhost:{port}"));
    let file = authority.file().display().to_string();
    let trusting = ["--ca", &*file];
    let (direct, planted, encrypted) = tokio::join!(
        doctor(&direct, &asked),
        join_all(behind.iter().map(|url| doctor(url, &[]))),
        join_all(https.iter().map(|url| doctor(url, &trusting))),
    );
    // What the other commands say, and that they work.
    let untrusted = tidegate(&https[0], &["jobs"]).await;
    let said = String::from_utf8_lossy(&untrusted.stderr).into_owned();
    assert!(untrusted.status.code() == Some(69) && said.contains("who is not trusted here"), "{said}");
    let submit = ["submit", "demo", r#"{"steps": 2, "seconds": 0.2}"#, "--watch", "--ca", &file];
    let watched = tidegate(&https[0], &submit).await;
    assert_eq!(watched.status.code(), Some(0), "{watched:?}");
    let listed = tidegate(&https[0], &["jobs", "--json", "--ca", &file]).await;
    let job: Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(job["status"], "COMPLETED");
    let deleted = tidegate(&https[0], &["delete", job["jobId"].as_str().unwrap(), "--ca", &file]).await;
    assert_eq!(deleted.status.code(), Some(0), "{deleted:?}");
    drop((nginx, redis));

    let well = found(&direct);
    for check in ["clock", "buffering", "compression", "idle", "connections", "delivery", "cors", "redis"] {
        assert!(well.iter().any(|(name, result, _)| name == check && result == "ok"), "{check}: {well:#?}");
    }
    let hurts: Vec<_> =
        well.iter().filter(|(_, result, _)| result == "warning").map(|(name, ..)| &**name).collect();
    assert_eq!(hurts, ["http"], "{well:#?}");
    assert_eq!(direct.status.code(), Some(0), "{well:#?}");

    for (output, (_, expected)) in encrypted.iter().zip(ENCRYPTED) {
        let found = found(output);
        let hurts: Vec<_> = found.iter().filter(|(_, result, _)| !matches!(&**result, "ok" | "-")).collect();
        match expected {
            None => assert!(hurts.is_empty() && found.iter().any(|(name, ..)| name == "tls"), "{found:#?}"),
            Some((check, level, words)) => assert!(
                matches!(hurts[..], [(name, result, what)] if name == check && result == level && what.contains(words)),
                "{check}, {words}: {found:#?}"
            ),
        }
        let broken = expected.is_some_and(|(_, level, _)| level == "FAULT");
        assert_eq!(output.status.code(), Some(i32::from(broken)), "{found:#?}");
    }
    for (output, (_, check, words)) in planted.iter().zip(PLANTED) {
        let found = found(output);
        let faults: Vec<_> = found.iter().filter(|(_, result, _)| result == "FAULT").collect();
        assert!(
            matches!(faults[..], [(name, _, what)] if name == check && what.contains(words)),
            "{check}: {found:#?}"
        );
        assert_eq!(output.status.code(), Some(1), "{found:#?}");
    }
    let left = stack.tidegate(&["jobs", "--json"]).await;
    assert_eq!(String::from_utf8_lossy(&left.stdout).trim(), "", "the doctor leaves no job behind");
}
