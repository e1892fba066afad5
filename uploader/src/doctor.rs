//! `uploader doctor`: everything this site depends on, looked at one by one.

use std::path::Path;

use common::config::{Config, Place, When};
use common::doctor::machine::{self, ARCHIVES_BYTES, FILES_BYTES};
use common::doctor::{Report, check_storage, describe_http, describe_storage};
use common::object_store::End;
use nats::Bus;

use crate::download;
use crate::marks;
use crate::site::blocking;

/// What is configured. Whatever is wrong with it was said before, and nothing else is looked at.
pub(crate) fn configuration(config: &Config) -> Report {
    let mut report = Report::default();
    if let Some(data_dir) = &config.local.data_dir {
        report.good("data_dir", data_dir.display().to_string());
    }
    describe_storage(&mut report, &config.storage);
    report.good("nats", nats::public_urls(&config.nats));
    describe_http(&mut report, config.http_listen);
    report
}

/// Looks at everything; changes nothing.
pub(crate) async fn examine(config: &Config) -> Report {
    let mut report = Report::default();
    match &config.local.data_dir {
        Some(data_dir) => look_at_data_dir(&mut report, data_dir, config.publish.when).await,
        None => report.bad("data_dir", "local.data_dir is not set", "set it to the folder with the archives"),
    }
    download::look_at_exchange(&mut report, config).await;
    check_storage(&mut report, &config.storage, End::Uploader).await;
    machine::check_store_clock(&mut report, &config.storage).await;
    look_at_queue(&mut report, config).await;
    look_at_machine(&mut report, config);
    report
}

/// Where something is written: archives that are downloaded, objects of a shared folder, and what is remembered.
fn look_at_machine(report: &mut Report, config: &Config) {
    if let Some(data_dir) = config.local.data_dir.as_deref().filter(|_| config.download.every.is_some()) {
        machine::check_space(report, "data_dir, space", data_dir, ARCHIVES_BYTES);
    }
    if let Place::Folder { path } = &config.storage.place {
        machine::check_space(report, "shared folder, space", path, ARCHIVES_BYTES);
    }
    if let Some(state_dir) = config.local.state_dir.as_deref().filter(|path| path.exists()) {
        machine::check_space(report, "local.state_dir, space", state_dir, FILES_BYTES);
    }
    machine::check_open_files(report, open_files_needed(config));
}

/// A file and a connection a transfer; beside them are NATS, the log and the folders that are watched.
pub(crate) fn open_files_needed(config: &Config) -> u64 {
    const BESIDE: u64 = 128;
    (config.storage.transfers as u64).saturating_mul(2).saturating_add(BESIDE)
}

async fn look_at_data_dir(report: &mut Report, data_dir: &Path, when: When) {
    let (folder, tree) = (data_dir.to_owned(), data_dir.join("data"));
    let shown = data_dir.display();
    match blocking(move || marks::read(&folder)).await {
        Err(error) => {
            let advice = "check local.data_dir, and that this user may read it";
            report.bad("data_dir", format!("{shown} cannot be read: {error}"), advice);
            return;
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
                [] => report.good("marks", format!("{} units are marked complete", found.units.len())),
                bad => report.bad(
                    "marks",
                    format!("{} of the marks cannot be understood: {}", bad.len(), bad.join(", ")),
                    format!("a mark is called {}", marks::SHAPE),
                ),
            }
        }
    }
    match blocking(move || std::fs::read_dir(tree)).await {
        Ok(_) => report.good("archives", format!("{shown}/data can be read")),
        Err(error) => {
            let advice = "local.data_dir is the folder that holds Binance's tree: data/spot/…, data/futures/…";
            report.bad("archives", format!("{shown}/data cannot be read: {error}"), advice);
        }
    }
}

async fn look_at_queue(report: &mut Report, config: &Config) {
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
            return;
        }
    };
    match bus.missing(config.nats.replicas, &[]).await {
        Ok(missing) if missing.is_empty() => report.good("streams", "all are there, with the expected settings"),
        Ok(missing) => {
            let found: Vec<&str> = missing.iter().map(|missing| missing.0.as_str()).collect();
            let advice = if config.nats.manage {
                "`puller migrate` makes and changes them; the first upload makes those that are not there"
            } else {
                "have an operator run `puller migrate`"
            };
            report.bad("streams", found.join("; "), advice);
        }
        Err(error) => {
            let advice = "check that JetStream is enabled for this account and that this user may ask about streams";
            report.bad("streams", error.to_string(), advice);
        }
    }
    bus.close().await;
}
