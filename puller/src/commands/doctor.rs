//! `puller doctor`: every server, credential and setting, one by one.

mod backlog;
mod clickhouse;

use std::collections::HashMap;
use std::path::Path;

use common::config::{Config, DestinationKind};
use common::output::Reply;
use common::service::doctor::machine::{ARCHIVES_BYTES, FILES_BYTES};
use common::service::doctor::{DoctorReport, describe_http, machine};
use nats::{Bus, ConsumerSettings, StaleConsumer, StreamUsage};
use store::doctor::{Announced, check_requests, check_storage, describe_storage};
use store::{End, ObjectStore};

use crate::cli::context::{open_files_needed, served, worker_name};
use crate::clickhouse::lost_stream;
use crate::clickhouse::lost_stream::LostUnits;
use common::output::Failure;

pub(crate) async fn run(config: &Config, config_only: bool) -> Reply {
    let report = if config_only { configuration(config) } else { examine(config).await };
    report.into_reply()
}

/// What is configured. Whatever is wrong with it was said before, and nothing else is looked at.
fn configuration(config: &Config) -> DoctorReport {
    let mut report = DoctorReport::default();
    describe_storage(&mut report, &config.storage);
    report.good("nats", nats::public_urls(&config.nats));
    for destination in served(config) {
        let found = match &destination.kind {
            DestinationKind::ClickHouse(server) => {
                format!("ClickHouse at {}:{}, database {}", server.host, server.port, server.database)
            }
            DestinationKind::Directory { path } => format!("folder {}", path.display()),
        };
        report.good(&format!("destination {}", destination.name), found);
    }
    describe_http(&mut report, config.http_listen);
    report
}

async fn examine(config: &Config) -> DoctorReport {
    let mut report = DoctorReport::default();
    check_storage(&mut report, &config.storage, End::Puller).await;
    machine::check_store_clock(&mut report, &config.storage).await;
    let (announced, backlog) = check_queue(&mut report, config).await;
    check_requests(&mut report, &config.storage, End::Puller, &announced).await;
    if config.destinations.is_empty() {
        report.bad("destinations", "none is configured", "set clickhouse.host, or list some under destinations");
    }
    for destination in &config.destinations {
        let name = format!("destination {}", destination.name);
        match &destination.kind {
            DestinationKind::ClickHouse(server) => clickhouse::check(&mut report, &name, server).await,
            DestinationKind::Directory { path } => {
                let to_come = backlog.get(&destination.name).copied().unwrap_or_default();
                check_directory(&mut report, &name, path, to_come).await;
            }
        }
    }
    if let Some(path) = &config.local.data_dir {
        check_directory(&mut report, "local.data_dir", path, 0).await;
    }
    if let Some(path) = config.local.state_dir.as_deref() {
        machine::check_space(&mut report, "local.state_dir, space", path, FILES_BYTES).await;
    }
    machine::check_open_files(&mut report, open_files_needed(config));
    report
}

/// Also returns what directory destinations are still to get.
async fn check_queue(report: &mut DoctorReport, config: &Config) -> (Announced, HashMap<String, u64>) {
    let bus = match Bus::connect(&config.nats, &worker_name()).await {
        Ok(bus) => bus,
        Err(error) => {
            let failure = Failure::from(error);
            let advice = failure.advice.unwrap_or_else(|| "the server must run, and accept these credentials".into());
            report.bad("nats", failure.text, advice);
            return (Announced::Unknown, HashMap::new());
        }
    };
    report.good("nats", "reachable, credentials accepted");
    machine::check_clock(report, "nats, clock", async || bus.server_time().await.ok().flatten()).await;
    let settings: Vec<ConsumerSettings> = config
        .destinations
        .iter()
        .map(|destination| ConsumerSettings { destination: destination.name.clone(), ack_wait: config.puller.ack_wait })
        .collect();
    const NAME: &str = "streams and consumers";
    match bus.queue_faults(&settings).await {
        Ok(faults) if faults.is_empty() => {
            let found = format!("as this version needs them; the streams set {} aside", bus.storage_needed());
            report.good(NAME, found);
        }
        Ok(faults) => faults.into_iter().for_each(|fault| report.bad(NAME, fault.what, fault.advice)),
        Err(error) => {
            report.bad(NAME, error.to_string(), "is JetStream enabled, and are you allowed to look?");
        }
    }
    let announced = check_place(report, config, &bus).await;
    let mut names: Vec<String> = config.destinations.iter().map(|destination| destination.name.clone()).collect();
    names.push(common::config::MIRROR.into());
    match bus.stale_consumers(&names).await {
        Ok(stale) if stale.is_empty() => {}
        Ok(stale) => report.bad(
            "stale consumers",
            format!("{} belong to no configured destination", names_of(&stale)),
            "`puller migrate --prune` removes them",
        ),
        // The stream is not there, which was said above.
        Err(error) => tracing::debug!(%error, "looking for stale consumers"),
    }
    match bus.stream_usage().await {
        Ok(usage) => usage.iter().filter_map(StreamUsage::warning).for_each(|text| report.warn("room", text)),
        Err(error) => tracing::debug!(%error, "looking at how full the streams are"),
    }
    for destination in &config.destinations {
        match lost_stream::lost_units(&bus, config, destination).await {
            Ok(LostUnits { units: 0, .. }) => {}
            Ok(lost @ LostUnits { in_bucket: true, .. }) => {
                report.bad("stream MARKERS", lost.text(&destination.name), lost_stream::ADVICE);
            }
            // Nothing can be done about them.
            Ok(lost) => report.warn("stream MARKERS", lost.text(&destination.name)),
            // Each is said where it is looked at by itself.
            Err(failure) => tracing::debug!("comparing the ledger with the stream: {}", failure.text),
        }
    }
    let backlog = backlog::bytes(&bus, config).await;
    bus.close().await;
    (announced, backlog)
}

fn names_of(stale: &[StaleConsumer]) -> String {
    stale.iter().map(|consumer| consumer.name.as_str()).collect::<Vec<_>>().join(", ")
}

/// Whether what was announced last lies where this configuration looks for it.
async fn check_place(report: &mut DoctorReport, config: &Config, bus: &Bus) -> Announced {
    let found = match bus.has_stream().await {
        Ok(true) => bus.newest_announcement().await,
        Ok(false) => Ok(None),
        Err(error) => Err(error),
    };
    let marker = match found {
        Ok(None) => return Announced::Nothing,
        Ok(Some(newest)) => newest.marker,
        Err(error) => {
            // Said above, of streams and consumers.
            tracing::debug!(%error, "reading the newest marker");
            return Announced::Unknown;
        }
    };
    let Some(marker) = marker else { return Announced::Unknown };
    let (store, prefix) = (ObjectStore::new(&config.storage, End::Puller), &config.storage.prefix);
    match marker.elsewhere(store.bucket(), prefix) {
        None => {
            report.good("newest marker", format!("{} is of this bucket and prefix", marker.unit));
            Announced::Here { key: Some(prefix.current_key(&marker.unit)) }
        }
        Some(elsewhere) => {
            let advice = "bucket and prefix must be those of the uploader";
            report.bad("newest marker", format!("{}: {elsewhere}", marker.unit), advice);
            Announced::Elsewhere
        }
    }
}

/// `to_come`: bytes that are known to be needed there.
async fn check_directory(report: &mut DoctorReport, name: &str, path: &Path, to_come: u64) {
    // A real write: mode bits do not tell of read-only mounts or of other users' folders.
    let folder = path.to_owned();
    let written = move || tempfile::Builder::new().prefix(".ferry-doctor-").tempfile_in(folder).map(drop);
    match machine::on_disk(written).await {
        Ok(()) => {
            report.good(name, format!("{} can be written to", path.display()));
            machine::check_space(report, &format!("{name}, space"), path, ARCHIVES_BYTES.max(to_come)).await;
        }
        Err(error) => report.bad(
            name,
            format!("{}: {error}", path.display()),
            "the folder must exist, answer, and let this user write to it",
        ),
    }
}
