//! `tidegate` alone: engine, gateway and a local worker in one process.
//!
//! The three parts are the same code as the single binaries, joined by the same protocols over loopback; nothing
//! here knows a job. Everything is checked and bound before anything is announced. At a signal the gateway
//! leaves first, so that viewers hear a goodbye; then the worker gives its jobs back; then the engine closes the
//! log. A second signal ends the process at once, which loses nothing that was acknowledged.

mod banner;
pub(crate) mod plan;

use std::{io, time::Duration};

use edge_gateway::Gateway;
use reqwest::Method;
use tidegate_auth::Authenticator;
use tidegate_proto::bearer::Bearer;
use tidegate_worker::Status;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use self::plan::Plan;
use crate::{
    api::Client,
    args::Serve,
    exit::{self, Failure},
};

/// How long the parts may take to find each other.
const START_WITHIN: Duration = Duration::from_secs(20);

/// Serves until a signal; returns the exit code.
///
/// # Errors
/// [`Failure::Usage`] with everything that is wrong with the configuration, and whatever keeps a part from
/// starting or makes it end by itself.
pub async fn run(args: &Serve) -> Result<u8, Failure> {
    let mut signals = Signals::new()?;
    let Plan { engine, mut gateway, worker } = Plan::check(args)?;

    let auth = gateway.auth.clone();
    let key = auth.as_ref().map(Authenticator::process_key);
    let bearer = key.as_deref().map_or(Ok(Bearer::default()), Bearer::token).map_err(anyhow::Error::from)?;
    gateway.bearer = bearer.clone();
    let engine = job_engine::server::bind(&engine, auth).await?;
    let grpc = engine.grpc_addr()?;
    gateway.engines = plan::url(grpc).parse().map_err(anyhow::Error::from)?;
    let gateway = Gateway::bind(gateway).map_err(anyhow::Error::from)?;
    let http = gateway.addr();

    let stop = [(); 3].map(|()| CancellationToken::new());
    let [stop_gateway, stop_worker, stop_engine] = stop.clone();
    // Dropped on every way out, so that no part outlives this function.
    let mut engine = AbortOnDropHandle::new(tokio::spawn(engine.serve(stop_engine)));
    let mut gateway = AbortOnDropHandle::new(tokio::spawn(gateway.serve(stop_gateway.cancelled_owned())));
    let status = watch::Sender::new(Status::Connecting);
    let worker = worker.map(|mut settings| {
        settings.engines = vec![plan::url(grpc)];
        settings.bearer = bearer;
        AbortOnDropHandle::new(tokio::spawn(tidegate_worker::run(settings, status.clone(), stop_worker)))
    });

    let ready = async {
        if worker.is_some() {
            // The sender lives in this function, so waiting ends only with the status.
            let _ = status.subscribe().wait_for(|s| *s == Status::Connected).await;
        }
        answers(&plan::url(http), key.as_deref()).await
    };
    tokio::select! {
        ready = tokio::time::timeout(START_WITHIN, ready) => match ready {
            Ok(ready) => ready?,
            Err(_) => return Err(anyhow::anyhow!("the parts did not find each other in {START_WITHIN:?}").into()),
        },
        ended = &mut engine => return Err(ended_early("engine", flatten(ended))),
        _ = &mut gateway => return Err(ended_early("gateway", None)),
        () = signals.next() => return Ok(exit::INTERRUPTED),
    }
    banner::print(args, http, grpc)?;

    tokio::select! {
        () = signals.next() => {}
        ended = &mut engine => return Err(ended_early("engine", flatten(ended))),
        _ = &mut gateway => return Err(ended_early("gateway", None)),
    }
    eprintln!("\nStopping: viewers are told, running jobs are given back. Once more to stop at once.");
    let [stop_gateway, stop_worker, stop_engine] = stop;
    let drained = async {
        stop_gateway.cancel();
        let _ = gateway.await;
        stop_worker.cancel();
        if let Some(worker) = worker {
            let _ = worker.await;
        }
        stop_engine.cancel();
        flatten(engine.await)
    };
    tokio::select! {
        failed = drained => failed.map_or(Ok(0), |error| Err(ended_early("engine", Some(error)))),
        () = signals.next() => Ok(exit::INTERRUPTED),
    }
}

/// Waits until the gateway at `url` answers a question that it must pass on to the engine.
async fn answers(url: &str, key: Option<&str>) -> Result<(), Failure> {
    let client = Client::new(url)?;
    let client = key.map_or(Ok(client.clone()), |key| client.with_token(key))?;
    while client.call(client.request(Method::GET, &["api", "kinds"])).await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// What a task failed with, if it did: its own error, or its panic.
fn flatten(ended: Result<anyhow::Result<()>, tokio::task::JoinError>) -> Option<anyhow::Error> {
    ended.map_err(anyhow::Error::from).and_then(|result| result).err()
}

fn ended_early(part: &str, error: Option<anyhow::Error>) -> Failure {
    match error {
        Some(error) => error.context(format!("the {part} failed")).into(),
        None => anyhow::anyhow!("the {part} ended by itself").into(),
    }
}

/// SIGINT and SIGTERM; both ask for the same.
struct Signals(Signal, Signal);

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self(signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?))
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.0.recv() => {}
            _ = self.1.recv() => {}
        }
    }
}
