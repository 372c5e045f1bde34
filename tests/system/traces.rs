//! What a collector receives of one job, and what the admin ports change of the log while the processes run.

use std::{collections::HashMap, sync::Arc};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value as Attribute,
};
use parking_lot::Mutex;
use reqwest::Method;
use serde_json::{Value, json};
use tokio_util::task::AbortOnDropHandle;
use tonic::{
    Request, Response, Status,
    transport::{Identity, Server, ServerTlsConfig, server::TcpIncoming},
};

use crate::support::{
    Options, Stack, Store,
    certificates::{Authority, Certificate},
    eventually, follow,
};

/// A span as it arrived.
#[derive(Clone, Debug)]
struct Span {
    trace: String,
    id: String,
    parent: String,
    name: String,
    service: String,
}

/// A collector: takes spans by OTLP and keeps them.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        for from in request.into_inner().resource_spans {
            let attributes = from.resource.map(|resource| resource.attributes).unwrap_or_default();
            let service = attributes.into_iter().find(|attribute| attribute.key == "service.name");
            let service = match service.and_then(|attribute| attribute.value?.value) {
                Some(Attribute::StringValue(service)) => service,
                other => panic!("a service without a name: {other:?}"),
            };
            for span in from.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                self.0.lock().push(Span {
                    trace: hex(&span.trace_id),
                    id: hex(&span.span_id),
                    parent: hex(&span.parent_span_id),
                    name: span.name,
                    service: service.clone(),
                });
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Listens until the handle is dropped; also its address.
    fn start() -> (Self, String, AbortOnDropHandle<()>) {
        let (collector, port, serving) = Self::serve(Server::builder());
        (collector, format!("http://127.0.0.1:{port}"), serving)
    }

    /// The same by TLS, as `localhost`.
    fn start_encrypted(certificate: &Certificate) -> (Self, String, AbortOnDropHandle<()>) {
        let identity = Identity::from_pem(&certificate.chain, &certificate.key);
        let server = Server::builder().tls_config(ServerTlsConfig::new().identity(identity)).unwrap();
        let (collector, port, serving) = Self::serve(server);
        (collector, format!("https://localhost:{port}"), serving)
    }

    fn serve(mut server: Server) -> (Self, u16, AbortOnDropHandle<()>) {
        let (collector, incoming) = (Self::default(), TcpIncoming::bind(([127, 0, 0, 1], 0).into()).unwrap());
        let port = incoming.local_addr().unwrap().port();
        let service = TraceServiceServer::new(collector.clone());
        let serve = async move {
            server.add_service(service).serve_with_incoming(incoming).await.unwrap();
        };
        (collector, port, AbortOnDropHandle::new(tokio::spawn(serve)))
    }

    /// The spans of a trace, once all these have come.
    async fn trace(&self, id: &str, names: &[&str]) -> Vec<Span> {
        eventually("the spans of the trace arrive", async || {
            let spans: Vec<_> = self.0.lock().iter().filter(|span| span.trace == id).cloned().collect();
            names.iter().all(|name| spans.iter().any(|span| span.name == *name)).then_some(spans)
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_job_is_one_trace_from_the_request_to_the_worker_and_back() {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let (collector, url, _collecting) = Collector::start();
    let options = Options { all: vec![format!("--otlp-endpoint={url}")], ..Options::from(Store::Redis) };
    let stack = Stack::start(options).await;
    let job = json!({ "kind": "demo", "input": { "steps": 20, "seconds": 1 } });
    let submit = stack.client.request(Method::POST, &["api", "jobs"]).json(&job);
    let submit = submit.header("traceparent", format!("00-{TRACE}-00f067aa0ba902b7-01"));
    let made = stack.client.call(submit).await.unwrap();
    let id = made["jobId"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned();
    follow(stack.follower(&id, ""), |_| {}).await.assert_whole(0);

    let names = ["POST /api/jobs", "submit", "commit", "dispatch", "run", "conclude"];
    let spans = collector.trace(TRACE, &names).await;
    let by_id: HashMap<_, _> = spans.iter().map(|span| (span.id.as_str(), span)).collect();
    let parents = |name: &str| -> Vec<&str> {
        let named = spans.iter().filter(|span| span.name == name);
        named
            .map(|span| by_id.get(span.parent.as_str()).map_or(&*span.parent, |parent| &*parent.name))
            .collect()
    };
    assert_eq!(parents("POST /api/jobs"), ["00f067aa0ba902b7"], "{spans:#?}");
    for (name, parent) in [("submit", "POST /api/jobs"), ("dispatch", "submit"), ("run", "dispatch")] {
        assert_eq!(parents(name), [parent], "{name}: {spans:#?}");
    }
    assert_eq!(parents("conclude"), ["dispatch"], "{spans:#?}");
    // One for what made the job, one for what gave it away, one for its end; none for its events.
    let mut commits = parents("commit");
    commits.sort_unstable();
    assert_eq!(commits, ["conclude", "dispatch", "submit"], "{spans:#?}");
    for (name, service) in
        [("submit", "tidegate-engine"), ("run", "tidegate-worker"), ("POST /api/jobs", "tidegate-gateway")]
    {
        assert!(
            spans.iter().filter(|span| span.name == name).all(|span| span.service == service),
            "{spans:#?}"
        );
    }

    // The opening of a stream is a trace of its own, which ends when the stream is open.
    let opened = eventually("the opening of the stream arrives", async || {
        let spans = collector.0.lock().clone();
        let watch = spans.iter().find(|span| span.name == "watch")?;
        let follow = spans.iter().find(|span| span.id == watch.parent)?;
        let opening = spans.iter().find(|span| span.id == follow.parent)?;
        Some([&follow.name, &opening.name].map(String::clone))
    })
    .await;
    assert_eq!(opened, ["follow", "GET /api/progress/{jobId}"]);
    let commits = collector.0.lock().iter().filter(|span| span.name == "commit").count();
    assert_eq!(commits, 3, "a job's events have spans of their own");
}

/// A part without an export is no hole in the trace of others; and who exports does so by TLS.
#[tokio::test(flavor = "multi_thread")]
async fn a_trace_goes_through_parts_that_export_nothing_to_a_worker_that_does_by_tls() {
    const TRACE: &str = "5cf92f3577b34da6a3ce929d0e0e4736";
    const CALLER: &str = "00f067aa0ba902b7";
    let authority = Authority::new();
    let (collector, url, _collecting) = Collector::start_encrypted(&authority.sign("localhost"));
    let worker = vec![format!("--otlp-endpoint={url}"), format!("--otlp-ca={}", authority.file().display())];
    let stack = Stack::start(Options { worker, ..Options::from(Store::Embedded) }).await;
    let job = json!({ "kind": "demo", "input": { "steps": 2, "seconds": 0.2 } });
    let submit = stack.client.request(Method::POST, &["api", "jobs"]).json(&job);
    let submit = submit.header("traceparent", format!("00-{TRACE}-{CALLER}-01"));
    stack.client.call(submit).await.unwrap();
    let spans = collector.trace(TRACE, &["run"]).await;
    let found: Vec<_> = spans.iter().map(|span| (&*span.name, &*span.parent)).collect();
    assert_eq!(found, [("run", CALLER)], "{spans:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_logged_is_changed_while_the_processes_run() {
    let options = Options { all: vec!["--log-format=json".into()], ..Options::from(Store::Embedded) };
    let stack = Stack::start(options).await;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("http://{}/loglevel", stack.gateway_admin);
    let lines = || -> Vec<Value> {
        let output = stack.gateway.output();
        output.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
    };
    let requests = || lines().iter().filter(|line| line["message"] == "request").count();
    let ask = async || {
        let kinds = stack.client.request(Method::GET, &["api", "kinds"]).header("x-request-id", "abc-1");
        stack.client.call(kinds).await.unwrap();
    };
    ask().await;
    eventually("the request is logged under its id", async || {
        lines().iter().any(|line| line["message"] == "request" && line["id"] == "abc-1").then_some(())
    })
    .await;

    let set = async |filter: &str| {
        let answer = http.put(&url).body(filter.to_owned()).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    assert_eq!(set("warn").await, (200, "warn\n".to_owned()));
    let before = requests();
    ask().await;
    let (status, why) = set("edge_gateway=loud").await;
    assert!(status == 400 && why.contains("no filter"), "{why}");
    assert_eq!(set("info").await.0, 200);
    ask().await;
    eventually("requests are logged again", async || (requests() > before).then_some(())).await;
    assert_eq!(requests(), before + 1, "nothing was logged between");
    assert_eq!(http.get(&url).send().await.unwrap().text().await.unwrap(), "info\n");
}
