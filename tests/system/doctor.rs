//! `tidegate doctor` finds what a real nginx does to event streams, and nothing where there is nothing.

use std::{fs, path::PathBuf, process::Output};

use serde_json::Value;

use crate::support::{Options, Process, Stack, Store, binary, eventually, free_port, redis};

/// A server of nginx before the gateway; `{settings}` are its faults.
const SERVER: &str = "server { listen {port}; location / { proxy_pass http://{gateway}; {settings} } }\n";

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
    for port in ports {
        eventually("nginx listens", async || tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok())
            .await;
    }

    let (redis, redis_url) = redis::start(stack.path("nginx").as_path()).await;
    let direct = format!("http://{}", stack.http);
    let behind = ports.map(|port| format!("http://127.0.0.1:{port}"));
    let asked = ["--origin", ORIGIN, "--redis", &redis_url];
    let (direct, [buffered, cut, compressed]) = tokio::join!(doctor(&direct, &asked), async {
        let (a, b, c) =
            tokio::join!(doctor(&behind[0], &[]), doctor(&behind[1], &[]), doctor(&behind[2], &[]));
        [a, b, c]
    });
    drop((nginx, redis));

    let well = found(&direct);
    for check in ["clock", "buffering", "compression", "idle", "connections", "delivery", "cors", "redis"] {
        assert!(well.iter().any(|(name, result, _)| name == check && result == "ok"), "{check}: {well:#?}");
    }
    let hurts: Vec<_> =
        well.iter().filter(|(_, result, _)| result == "warning").map(|(name, ..)| &**name).collect();
    assert_eq!(hurts, ["http"], "{well:#?}");
    assert_eq!(direct.status.code(), Some(0), "{well:#?}");

    for (output, (_, check, words)) in [buffered, cut, compressed].iter().zip(PLANTED) {
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
