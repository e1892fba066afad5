//! `uploader doctor`: everything this site depends on, looked at one by one.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::config::{Config, Place, When};
use common::output::{Failure, count};
use common::service::doctor::machine::{ARCHIVES_BYTES, FILES_BYTES};
use common::service::doctor::{DoctorReport, describe_http, machine};
use nats::{Bus, StreamUsage};
use prometheus_client::registry::Registry;
use store::doctor::{Announced, check_requests, check_storage, describe_storage};
use store::{End, ObjectStore};
use tokio_util::sync::CancellationToken;

use crate::announced::standing;
use crate::commands::download;
use crate::error::PassError;
use crate::local::complete::CompletenessRule;
use crate::local::{marks, strays};
use crate::pass::older;
use crate::site::context::{Site, blocking};
use crate::site::metrics::Metrics;
use crate::site::progress::Progress;

pub(super) const DOCTOR_EXAMPLES: &str = "\
Examples:
  uploader doctor
  uploader doctor --json
  uploader doctor --config-only      before the service is started: is every setting there?";

/// How long the archives that are still to be stored may be looked for.
const WALK_MAX: Duration = Duration::from_secs(8);
/// Units with older publications that are named one by one.
const OLDER_MAX: usize = 10;

/// What is configured. Whatever is wrong with it was said before, and nothing else is looked at.
pub(crate) fn configuration(config: &Config) -> DoctorReport {
    let mut report = DoctorReport::default();
    if let Some(data_dir) = &config.local.data_dir {
        report.good("data_dir", data_dir.display().to_string());
    }
    describe_storage(&mut report, &config.storage);
    report.good("nats", nats::public_urls(&config.nats));
    describe_http(&mut report, config.http_listen);
    report
}

/// Looks at everything. Changes nothing, but for one object in a bucket, which it removes again where it may.
pub(crate) async fn examine(config: &Config, stop: &CancellationToken) -> DoctorReport {
    let mut report = DoctorReport::default();
    match &config.local.data_dir {
        Some(data_dir) => {
            if check_data_dir(&mut report, data_dir, config.publish.when).await {
                check_archives(&mut report, data_dir, config, stop.clone()).await;
            }
        }
        None => report.bad("data_dir", "local.data_dir is not set", "set it to the folder with the archives"),
    }
    download::check_exchange(&mut report, config).await;
    check_storage(&mut report, &config.storage, End::Uploader).await;
    machine::check_store_clock(&mut report, &config.storage).await;
    let announced = check_queue(&mut report, config).await;
    check_requests(&mut report, &config.storage, End::Uploader, &announced).await;
    check_machine(&mut report, config).await;
    report
}

/// Where something is written: archives that are downloaded, objects of a shared folder, and what is remembered.
async fn check_machine(report: &mut DoctorReport, config: &Config) {
    if let Some(data_dir) = config.local.data_dir.as_deref().filter(|_| config.download.every.is_some()) {
        machine::check_space(report, "data_dir, space", data_dir, ARCHIVES_BYTES).await;
    }
    if let Place::Folder { path } = &config.storage.place {
        let store = path.join(config.storage.prefix.to_string());
        let data_dir = config.local.data_dir.clone();
        let to_come = data_dir.map(|data_dir| machine::on_disk(move || unstored_bytes(&data_dir, &store)));
        let to_come = match to_come {
            // A tree that takes longer than a moment says nothing.
            Some(asked) => asked.await.unwrap_or_default(),
            None => 0,
        };
        machine::check_space(report, "shared folder, space", path, ARCHIVES_BYTES.max(to_come)).await;
    }
    if let Some(state_dir) = config.local.state_dir.as_deref() {
        machine::check_space(report, "local.state_dir, space", state_dir, FILES_BYTES).await;
    }
    machine::check_open_files(report, open_files_needed(config));
}

/// Bytes of the archives in `data_dir` that the store has no file of. Blocks.
fn unstored_bytes(data_dir: &Path, store: &Path) -> io::Result<u64> {
    let begun = Instant::now();
    let (mut bytes, mut folders) = (0_u64, vec![PathBuf::from("data")]);
    while let Some(folder) = folders.pop() {
        if begun.elapsed() > WALK_MAX {
            return Err(io::ErrorKind::TimedOut.into());
        }
        for entry in std::fs::read_dir(data_dir.join(&folder))? {
            let entry = entry?;
            let (path, kind) = (folder.join(entry.file_name()), entry.file_type()?);
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() && path.extension().is_some_and(|end| end == "zip") && !store.join(&path).exists()
            {
                bytes = bytes.saturating_add(entry.metadata()?.len());
            }
        }
    }
    Ok(bytes)
}

/// A file and a connection a transfer; beside them are NATS, the log and the folders that are watched.
pub(crate) fn open_files_needed(config: &Config) -> u64 {
    const BESIDE: u64 = 128;
    (config.storage.transfers as u64).saturating_mul(2).saturating_add(BESIDE)
}

/// Whether it can be read.
async fn check_data_dir(report: &mut DoctorReport, data_dir: &Path, when: When) -> bool {
    let (folder, tree) = (data_dir.to_owned(), data_dir.join("data"));
    let shown = data_dir.display();
    match machine::on_disk(move || marks::read(&folder)).await {
        Err(error) => {
            let advice = "check local.data_dir, and that this user may read it";
            report.bad("data_dir", format!("{shown} cannot be read: {error}"), advice);
            return false;
        }
        Ok(found) => {
            report.good("data_dir", format!("{shown} can be read"));
            match found.bad.as_slice() {
                _ if when == When::Complete => {
                    report.good("marks", "are not looked at: publish.when is complete, so archives alone count");
                }
                [] if found.units.is_empty() && when == When::Both => {
                    report.good("marks", "no unit is marked complete; units go out by their archives too");
                }
                [] if found.units.is_empty() => {
                    report.good("marks", "no unit is marked complete; nothing is uploaded before one is");
                }
                [] => report.good("marks", marked(found.units.len())),
                bad => report.bad(
                    "marks",
                    format!("{} of the marks cannot be understood: {}", bad.len(), bad.join(", ")),
                    bad.first()
                        .map_or_else(String::new, |bad| format!("{bad} would be called {}", marks::right_name(bad))),
                ),
            }
        }
    }
    if let Err(error) = machine::on_disk(move || std::fs::read_dir(tree)).await {
        let advice = "local.data_dir is the folder that holds Binance's tree: data/spot/…, data/futures/…";
        report.bad("archives", format!("{shown}/data cannot be read: {error}"), advice);
    }
    true
}

fn marked(units: usize) -> String {
    if units == 1 { "1 unit is marked complete".to_owned() } else { format!("{units} units are marked complete") }
}

/// How many archives lie where they belong, and what looks like one and does not.
async fn check_archives(report: &mut DoctorReport, data_dir: &Path, config: &Config, stop: CancellationToken) {
    const NAME: &str = "archives";
    let (folder, rule) = (data_dir.to_owned(), CompletenessRule::new(config));
    // That the folder itself cannot be read was told before.
    let find = move || strays::find(&folder, &rule, &stop);
    let Ok(found) = blocking(find).await else { return };
    for why in &found.unreadable {
        report.bad(NAME, why, "let this user read it: archives that lie there are not uploaded");
    }
    for strays in &found.strays {
        if strays.is_remark() {
            report.warn(NAME, strays.to_string());
        } else {
            report.bad(NAME, strays.to_string(), "move, rename or remove them; docs/MIGRATING.md says what is taken");
        }
        report.paths(strays.paths());
    }
    if !report.checks.iter().any(|check| check.name == NAME && !check.ok) {
        report.good(NAME, format!("{} where they belong", count(found.in_place as u64, "archive")));
    }
}

async fn check_queue(report: &mut DoctorReport, config: &Config) -> Announced {
    let bus = match Bus::connect(&config.nats, "uploader-doctor").await {
        Ok(bus) => {
            report.good("nats", "a server answers and accepts the credentials");
            machine::check_clock(report, "nats, clock", async || bus.server_time().await.ok().flatten()).await;
            bus
        }
        Err(error) => {
            report.bad(
                "nats",
                error.to_string(),
                "check nats.url, the network, and the user, nkey or credentials file",
            );
            return Announced::Unknown;
        }
    };
    match bus.queue_faults(&[]).await {
        Ok(faults) if faults.is_empty() => {
            let found = format!("all are there, with the needed settings; they set {} aside", bus.storage_needed());
            report.good("streams", found);
        }
        Ok(faults) => faults.into_iter().for_each(|fault| report.bad("streams", fault.what, fault.advice)),
        Err(error) => {
            let advice = "check that JetStream is enabled for this account and that this user may ask about streams";
            report.bad("streams", error.to_string(), advice);
        }
    }
    match bus.stream_usage().await {
        Ok(usage) => usage.iter().filter_map(StreamUsage::warning).for_each(|text| report.warn("room", text)),
        Err(error) => tracing::debug!(%error, "looking at how full the streams are"),
    }
    let announced = check_place(report, config, &bus).await;
    check_older(report, config, &bus).await;
    bus.close().await;
    announced
}

/// Whether the stream's units are announced from the configured bucket and prefix, and not in the future.
async fn check_place(report: &mut DoctorReport, config: &Config, bus: &Bus) -> Announced {
    const NAME: &str = "place";
    let here = standing::Place::new(&ObjectStore::new(&config.storage, End::Uploader), &config.storage.prefix);
    let found = match bus.has_stream().await {
        Ok(true) => bus.newest_announcement().await,
        Ok(false) => Ok(None),
        Err(error) => Err(error),
    };
    match found {
        Ok(None) => {
            report.good(NAME, format!("nothing is announced yet; it will be from {here}"));
            Announced::Nothing
        }
        Ok(Some(newest)) => match standing::check(&here, &newest, false) {
            Ok(()) => {
                report.good(NAME, format!("units are announced from {here}"));
                let key = newest.marker.map(|marker| config.storage.prefix.current_key(&marker.unit));
                Announced::Here { key }
            }
            Err(error) => {
                report.bad(NAME, error.to_string(), "correct the configuration or the clock; see the message");
                if matches!(error, PassError::Elsewhere { .. }) { Announced::Elsewhere } else { Announced::Unknown }
            }
        },
        Err(error) => {
            let Failure { text, advice, .. } = Failure::from(error);
            report.bad(NAME, text, advice.unwrap_or_else(|| "see the server's log".into()));
            Announced::Unknown
        }
    }
}

/// Older publications that came back. That the announced ones stay is right, so nothing here is a fault.
async fn check_older(report: &mut DoctorReport, config: &Config, bus: &Bus) {
    const NAME: &str = "older publications";
    let Some(data_dir) = &config.local.data_dir else { return };
    let (metrics, stop) = (Metrics::new(&mut Registry::default()), CancellationToken::new());
    let site = Site::new(config, data_dir.clone(), metrics, Progress::hidden(), stop);
    match older::of_all_units(&site, bus).await {
        Ok(found) if found.is_empty() => report.good(NAME, "the last pass has met none in data_dir"),
        Ok(found) => {
            found.iter().take(OLDER_MAX).for_each(|unit| report.warn(NAME, unit.to_string()));
            let more = found.len().saturating_sub(OLDER_MAX);
            if more > 0 {
                report.warn(NAME, format!("{more} more units; `uploader reconcile` names all"));
            }
        }
        // Of a stream or a bucket that does not answer other lines tell.
        Err(error) => report.warn(NAME, format!("not compared with what is announced: {error}")),
    }
}
