//! `puller run`: the worker service.

mod stream_metrics;
mod sweep;

use std::sync::Arc;

use clap::Args;
use common::backoff::Backoff;
use common::bwlimit::BwLimit;
use common::config::{Config, Destination as DestinationConfig};
use common::output::{Failure, Reply};
use common::service::http::{Readiness, serve};
use nats::{Bus, BusError};
use prometheus_client::registry::Registry;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cli::context::{Shared, served, worker_name};
use crate::clickhouse::schema::MissingTables;
use crate::worker::metrics::Metrics;

#[derive(Debug, Args)]
pub struct Run {
    /// How fast bytes may come, instead of storage.bwlimit: 10M, 512K, off, or a timetable '08:00,512K 19:00,off'
    #[arg(long, value_name = "LIMIT")]
    pub bwlimit: Option<BwLimit>,
}

pub(super) async fn run(config: Config, stop: CancellationToken) -> Result<Reply, Failure> {
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "puller starts");
    let readiness = Readiness::default();
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    readiness.not_ready("nats", "connecting");
    // Before the first of them is looked at: a part that has not said anything counts as ready.
    for destination in served(&config) {
        readiness.not_ready(&part(&destination), "starting");
    }
    if let Some(listen) = config.http_listen {
        serve(listen, readiness.clone(), registry, stop.clone())
            .await
            .map_err(|error| Failure::config(format!("http.listen: cannot listen on {listen}: {error}")))?;
    }
    let name = worker_name();
    let connecting = connect(&config, &name, &readiness);
    let Some(bus) = stop.run_until_cancelled(connecting).await else { return Ok(Reply::default()) };
    let shared = Arc::new(Shared::new(config, name, bus, readiness, metrics));
    let mut destinations = JoinSet::new();
    for destination in served(&shared.config) {
        destinations.spawn(serve_destination(shared.clone(), destination, stop.clone()));
    }
    destinations.spawn(sweep::run(shared.clone(), stop.clone()));
    destinations.spawn(stream_metrics::run(shared.clone(), stop.clone()));
    let (followed, ends) = (shared.clone(), stop.clone());
    destinations.spawn(async move {
        let following = followed.readiness.follow("nats", || std::future::ready(followed.bus.is_connected()));
        ends.run_until_cancelled(following).await;
    });
    while let Some(ended) = destinations.join_next().await {
        if let Err(error) = ended {
            stop.cancel();
            return Err(Failure::failed(format!("a destination's worker crashed: {error}")));
        }
    }
    shared.bus.close().await;
    tracing::info!("puller ends");
    Ok(Reply::default())
}

/// Connects to NATS, for as long as it takes.
async fn connect(config: &Config, name: &str, readiness: &Readiness) -> Bus {
    let failed = |error: BusError| {
        tracing::warn!(%error, "trying again");
        readiness.not_ready("nats", error.to_string());
    };
    let bus = Backoff::RECONNECT.retry_forever(|| Bus::connect(&config.nats, name), failed).await;
    readiness.ready("nats");
    bus
}

fn part(destination: &DestinationConfig) -> String {
    format!("destination {}", destination.name)
}

async fn serve_destination(shared: Arc<Shared>, destination: DestinationConfig, stop: CancellationToken) {
    let part = part(&destination);
    let open = || async {
        shared.prepare_queue(&destination.name).await.map_err(|error| error.to_string())?;
        let opened = shared.open(&destination, MissingTables::Make).await;
        opened.map_err(|error| format!("{error} ({})", error.advice()))
    };
    let failed = |error: String| {
        tracing::warn!(destination = destination.name, error, "not ready, trying again");
        shared.readiness.not_ready(&part, error);
    };
    let opening = Backoff::RECONNECT.retry_forever(open, failed);
    if let Some(runner) = stop.run_until_cancelled(opening).await {
        shared.readiness.ready(&part);
        tracing::info!(destination = destination.name, worker = shared.worker_name, "working");
        tokio::select! {
            () = runner.run(stop, true) => {}
            () = stream_metrics::watch_for_lost_units(&shared, &destination, &runner.opened) => {}
        }
    }
}
