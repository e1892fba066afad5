//! The uploader: archives in `data_dir` that are marked complete → checked → in the bucket, read back → announced.
//!
//! It keeps no ledger: what is published is what the stream and the bucket say, and every decision is made from them
//! and the disk. It can be killed at any instant and run again. It knows nothing of what the rows mean.

mod cli;
mod error;

mod download;

mod layout;
mod mark;
mod marks;
mod scan;
mod spelling;
mod strays;
mod tree;

mod complete;

mod cache;
mod check;
mod digest;

mod older;
mod previous;
mod unit_plan;

mod foreign;
mod multipart;
mod pending;
mod upload;

mod publish;

mod cleanup;

mod settle;
mod standing;
mod turn;

mod memory;
mod pass;

mod arrivals;
mod basis;
mod events;
mod watch;

mod reconcile;

mod adopt;

mod doctor;
mod metrics;
mod progress;
mod queue;
mod report;
mod signs;
mod site;

use std::path::PathBuf;
use std::time::Duration;

use common::config::Config;
use common::output::{Failure, Reply};
use common::service::http;
use common::service::http::Readiness;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

pub use cli::{Cli, Command, Upload};
pub use progress::Progress;

use cleanup::Policy;
use memory::Memory;
use metrics::Metrics;
use pass::Watching;
use site::Site;

/// What a pass takes to end by itself, and then the connection.
const STOP_SLACK: Duration = Duration::from_secs(8);

/// Runs a command to its end, or until `shutdown`.
///
/// # Errors
/// Why it could not begin.
pub async fn run(
    cli: &Cli,
    config: &Config,
    progress: Progress,
    shutdown: CancellationToken,
) -> Result<Reply, Failure> {
    // Whatever drains ends by itself; whatever waits for a server is left when the time to drain is over.
    let overdue = {
        let shutdown = shutdown.clone();
        async move {
            common::service::shutdown::overdue(shutdown).await;
            tokio::time::sleep(STOP_SLACK).await;
        }
    };
    tokio::select! {
        ended = carry_out(cli, config, progress, shutdown) => ended,
        () = overdue => Err(Failure::stopped("stopped by a signal before the end")),
    }
}

/// Waits until [`run`] is to have ended long ago. It reads and writes the state folder itself, and looks at the data folder
/// before it begins: a disk that hangs stops it.
pub async fn hangs(shutdown: CancellationToken) -> Failure {
    common::service::shutdown::overdue(shutdown).await;
    tokio::time::sleep(STOP_SLACK + 2 * common::service::shutdown::LEAVE).await;
    Failure::stopped("stopped by a signal; a disk (local.state_dir or local.data_dir) does not answer")
}

async fn carry_out(
    cli: &Cli,
    config: &Config,
    progress: Progress,
    shutdown: CancellationToken,
) -> Result<Reply, Failure> {
    match &cli.command {
        Command::Upload(upload) => {
            upload.check()?;
            let mode = upload.mode(&config.publish);
            cleanup::allowed(&config.storage, mode.cleanup).map_err(Failure::usage)?;
            let mut site = site(config, &mut Registry::default(), progress, shutdown)?;
            site.accepted = upload.accepted();
            site.queue.only_looks = mode.dry_run;
            let report = pass::run(&site, &upload.scope(), mode, &mut Memory::default(), &Watching::default()).await;
            site.queue.close().await;
            Ok(report.into_reply(upload.list.all))
        }
        Command::Download(args) => {
            let report = download::run(config, args, progress, shutdown).await.map_err(Failure::usage)?;
            Ok(report.into_reply(args.list.all))
        }
        Command::Watch(_) => watch(config, progress, shutdown).await,
        Command::Reconcile(args) => {
            args.filter.check()?;
            let metrics = Metrics::new(&mut Registry::default());
            // Empty where there is none; only `--fix` looks there, and only if one is set.
            let data_dir = config.local.data_dir.clone().unwrap_or_default();
            let site = Site::new(config, data_dir, metrics, progress, shutdown);
            let report = reconcile::run(&site, config, args, cli.output.verbose).await;
            Ok(report.into_reply(args.list.all))
        }
        Command::Adopt(args) => {
            args.check()?;
            let metrics = Metrics::new(&mut Registry::default());
            // Only `--marked` looks there, and is refused without one.
            let data_dir = config.local.data_dir.clone().unwrap_or_default();
            let mut site = Site::new(config, data_dir, metrics, progress, shutdown);
            site.accepted = args.accepted();
            site.queue.only_looks = args.dry_run;
            let report = adopt::run(&site, config, args).await;
            site.queue.close().await;
            Ok(report.into_reply(args.list.all))
        }
        Command::Mark(args) => {
            let data_dir = data_dir(config)?;
            let (args, when) = (args.clone(), config.publish.when);
            // Walks the tree.
            site::blocking(move || mark::run(&data_dir, &args, when, &shutdown)).await
        }
        Command::Doctor { config_only: true } => Ok(doctor::configuration(config).into_reply()),
        Command::Doctor { config_only: false } => Ok(doctor::examine(config, &shutdown).await.into_reply()),
        Command::Healthcheck { .. } => unreachable!("answered before a configuration is loaded"),
    }
}

/// The service.
async fn watch(config: &Config, progress: Progress, shutdown: CancellationToken) -> Result<Reply, Failure> {
    cleanup::allowed(&config.storage, Policy::of(&config.publish, false, None)).map_err(Failure::config)?;
    let mut registry = Registry::default();
    let site = site(config, &mut registry, progress, shutdown)?;
    let bandwidth = site.store.bandwidth().clone();
    let schedule =
        download::schedule(config, &mut registry, bandwidth, site.shutdown.clone()).map_err(Failure::config)?;
    let readiness = Readiness::default();
    watch::starting(&readiness);
    if let Some(listen) = config.http_listen {
        let serving = http::serve(listen, readiness.clone(), registry, site.shutdown.clone()).await;
        serving.map_err(|error| Failure::config(format!("http.listen: cannot listen on {listen}: {error}")))?;
    }
    let download = async {
        if let Some(schedule) = schedule {
            schedule.follow(&readiness).await;
        }
    };
    let watching = async {
        let ended = watch::run(&site, config.watch.rescan, &readiness).await;
        // It may have ended by itself.
        site.shutdown.cancel();
        ended
    };
    let following = readiness.follow("nats", || site.queue.is_connected());
    let following = async {
        site.shutdown.run_until_cancelled(following).await;
    };
    let (ended, (), ()) = tokio::join!(watching, download, following);
    site.queue.close().await;
    ended.map(|()| Reply::default())
}

/// What a pass works with.
fn site(
    config: &Config,
    registry: &mut Registry,
    progress: Progress,
    shutdown: CancellationToken,
) -> Result<Site, Failure> {
    Ok(Site::new(config, data_dir(config)?, Metrics::new(registry), progress, shutdown))
}

fn data_dir(config: &Config) -> Result<PathBuf, Failure> {
    let not_set = || Failure::config("local.data_dir is not set (the folder with the archives)");
    config.local.data_dir.clone().ok_or_else(not_set)
}
