//! The uploader: archives in `data_dir` that are marked complete → checked → in the bucket, read back → announced.
//!
//! It keeps no ledger: what is published is what the stream and the bucket say, and every decision is made from them
//! and the disk. It can be killed at any instant and run again. It knows nothing of what the rows mean.

mod cli;
mod error;

mod download;

mod layout;
mod marks;
mod scan;
mod tree;

mod complete;

mod cache;
mod check;
mod digest;

mod previous;
mod unit_plan;

mod foreign;
mod multipart;
mod pending;
mod upload;

mod publish;

mod cleanup;

mod settle;
mod turn;

mod memory;
mod pass;

mod arrivals;
mod events;
mod watch;

mod reconcile;

mod adopt;

mod doctor;
mod metrics;
mod progress;
mod queue;
mod report;
mod site;

use std::io::{self, Write};

use common::config::Config;
use common::exit;
use common::http::{self, Readiness};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

pub use cli::{Cli, Command, Upload};
pub use progress::Progress;

use cleanup::Policy;
use memory::Memory;
use metrics::Metrics;
use pass::{Scope, Watching};
use site::Site;

/// Runs a command to its end, or until `shutdown`; returns the exit code.
pub async fn run(cli: &Cli, config: &Config, progress: Progress, shutdown: CancellationToken) -> u8 {
    match &cli.command {
        Command::Upload(upload) => {
            if let Err(why) = cleanup::allowed(&config.storage, upload.mode(&config.publish).cleanup) {
                tracing::error!("{why}");
                return exit::USAGE;
            }
            let mut registry = Registry::default();
            let Some(site) = site(config, &mut registry, progress, shutdown) else { return exit::USAGE };
            let scope = Scope::Everything(upload.filter());
            let mode = upload.mode(&site.publish);
            let report = pass::run(&site, &scope, mode, &mut Memory::default(), &Watching::default()).await;
            site.queue.close().await;
            print(&if upload.json { report.to_json() } else { report.to_text() });
            report.exit_code
        }
        Command::Download(args) => match download::run(config, args, progress, shutdown).await {
            Ok(report) => {
                print(&if args.json { report.to_json() } else { report.to_text() });
                report.exit_code
            }
            Err(error) => usage(&error),
        },
        Command::Watch(_) => {
            if let Err(why) = cleanup::allowed(&config.storage, Policy::of(&config.publish, false, None)) {
                tracing::error!("{why}");
                return exit::USAGE;
            }
            let mut registry = Registry::default();
            let Some(site) = site(config, &mut registry, progress, shutdown) else { return exit::USAGE };
            let bandwidth = site.store.bandwidth().clone();
            let schedule = match download::schedule(config, &mut registry, bandwidth, site.shutdown.clone()) {
                Ok(schedule) => schedule,
                Err(error) => return usage(&error),
            };
            let readiness = Readiness::default();
            watch::starting(&readiness);
            if let Some(listen) = config.http_listen
                && let Err(error) = http::serve(listen, readiness.clone(), registry, site.shutdown.clone()).await
            {
                tracing::error!(%listen, %error, "http.listen: cannot listen there");
                return exit::USAGE;
            }
            let download = async {
                if let Some(schedule) = schedule {
                    schedule.follow(&readiness).await;
                }
            };
            let (code, ()) = tokio::join!(watch::run(&site, config.watch.rescan, &readiness), download);
            site.queue.close().await;
            code
        }
        Command::Reconcile(args) => {
            let metrics = Metrics::new(&mut Registry::default());
            // Empty where there is none; only `--fix` looks there, and only if one is set.
            let data_dir = config.local.data_dir.clone().unwrap_or_default();
            let site = Site::new(config, data_dir, metrics, progress, shutdown);
            let report = reconcile::run(&site, config, args).await;
            print(&if args.json { report.to_json() } else { report.to_text() });
            report.exit_code
        }
        Command::Adopt(args) => {
            let metrics = Metrics::new(&mut Registry::default());
            // Only `--marked` looks there, and is refused without one.
            let data_dir = config.local.data_dir.clone().unwrap_or_default();
            let site = Site::new(config, data_dir, metrics, progress, shutdown);
            let report = adopt::run(&site, config, args).await;
            site.queue.close().await;
            print(&if args.json { report.to_json() } else { report.to_text() });
            report.exit_code
        }
        Command::Doctor { json, config_only } => {
            let report = if *config_only { doctor::configuration(config) } else { doctor::examine(config).await };
            let as_json = || serde_json::to_string_pretty(&report).expect("texts and flags always serialise");
            print(&if *json { as_json() } else { report.to_text() });
            report.exit_code()
        }
        Command::Healthcheck { .. } => unreachable!("answered before a configuration is loaded"),
    }
}

/// What a pass works with; `None`, and a line in the log, without a `data_dir`.
fn site(config: &Config, registry: &mut Registry, progress: Progress, shutdown: CancellationToken) -> Option<Site> {
    let Some(data_dir) = config.local.data_dir.clone() else {
        tracing::error!("local.data_dir is not set (the folder with the archives)");
        return None;
    };
    Some(Site::new(config, data_dir, Metrics::new(registry), progress, shutdown))
}

/// Says what is wrong with arguments or configuration, a line each.
fn usage(problems: &str) -> u8 {
    problems.lines().for_each(|problem| tracing::error!("{problem}"));
    exit::USAGE
}

/// The one place that writes to stdout, where the data goes. A reader that has seen enough (`| head`) is no failure.
fn print(text: &str) {
    if let Err(error) = writeln!(io::stdout(), "{}", text.trim_end())
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        tracing::error!(%error, "cannot write to stdout");
    }
}
