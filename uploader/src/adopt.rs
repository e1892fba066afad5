//! `uploader adopt`: manifests and markers for what a bucket holds already, without any `data_dir`.
//!
//! The bucket is listed and its archives are put together to units by their keys. Of an archive that no manifest names
//! nothing is known but what it holds: it is fetched once, checked as one on disk is, and given our metadata where it
//! lies. From there on the unit goes the way of every other (`settle`): laid over what is published, read back,
//! announced. Where the list of what is published is lost, which may have been in the bucket only, it is made again from
//! the same archives (`relist`).
//!
//! A second run asks for each archive's metadata, finds all of it named as it is, and changes nothing. One that was killed
//! fetches again what of its last units no manifest names yet.

mod list;
mod object;
mod relist;
mod report;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::Instant;

use common::config::Config;
use common::unit::Unit;
use futures::{StreamExt, stream};

use crate::cleanup::Policy;
use crate::cli::Adopt;
use crate::error::{PassError, UnitError};
use crate::marks;
use crate::previous::{self, Known};
use crate::queue::QueueError;
use crate::settle::{self, Mode, Outcome, Settled};
use crate::site::{Site, UNITS_MAX, blocking};

use list::Found;
use object::{Adopter, Looked};
pub(crate) use report::Report;

/// Adopts what is there, and says how it went.
pub(crate) async fn run(site: &Site, config: &Config, args: &Adopt) -> Report {
    let started = Instant::now();
    let mut report = Report::new(args.dry_run);
    if let Err(error) = every_unit(site, config, args, &mut report).await {
        tracing::error!(%error, "adopting ended early");
        report.fail(error.to_string(), error.exit_code());
    }
    site.progress.end();
    report.end(started.elapsed());
    report
}

async fn every_unit(site: &Site, config: &Config, args: &Adopt, report: &mut Report) -> Result<(), PassError> {
    site.bucket_is_there().await?;
    match site.queue.bus().await {
        Ok(_) => {}
        Err(QueueError::Refused(error)) => return Err(PassError::Queue(error)),
        Err(error @ (QueueError::Away(_) | QueueError::Lost)) => {
            tracing::warn!(%error, "adopting without the queue; the next run announces what this one stores");
        }
    }
    site.progress.doing("listing the bucket".into());
    let filter = args.selection.filter();
    let mut listed = list::list(site, &filter).await?;
    if args.marked {
        let data_dir = site.data_dir.clone();
        let marks = blocking(move || marks::read(&data_dir)).await;
        let marks = marks.map_err(|error| PassError::data_dir(site.data_dir.clone(), &error))?;
        let marked: HashSet<Unit> = marks.units.into_iter().collect();
        let before = listed.units.len();
        listed.units.retain(|(unit, _)| marked.contains(unit));
        report.units.not_marked = before - listed.units.len();
    }
    report.found(&listed);
    site.progress.begin(listed.units.len(), 0);

    let scratch = scratch(config.local.state_dir.as_deref());
    let scratch = scratch.map_err(|error| PassError::Scratch(error.to_string()))?;
    let adopter = Adopter { site, scratch: scratch.path(), dry_run: args.dry_run };
    let settled = stream::iter(&listed.units)
        .take_until(site.shutdown.cancelled())
        .map(|(unit, found)| one(&adopter, unit, found))
        .buffer_unordered(UNITS_MAX);
    let mut settled = std::pin::pin!(settled);
    while let Some(adopted) = settled.next().await {
        report.add(adopted?);
        site.progress.unit_done();
    }
    if site.shutdown.is_cancelled() { Err(PassError::Stopped) } else { Ok(()) }
}

/// Where archives lie while they are checked; gone with the value.
fn scratch(state_dir: Option<&Path>) -> std::io::Result<tempfile::TempDir> {
    let folder = state_dir.map_or_else(std::env::temp_dir, Path::to_owned);
    std::fs::create_dir_all(&folder)?;
    tempfile::Builder::new().prefix("adopt-").tempdir_in(folder)
}

/// What came of a unit, and what it took.
struct Adopted {
    settled: Settled,
    /// Archives of the unit that the bucket has.
    archives: usize,
    /// Archives that no manifest named: fetched, or to be fetched.
    new: usize,
    bytes: u64,
}

async fn one(adopter: &Adopter<'_>, unit: &Unit, found: &[Found]) -> Result<Adopted, PassError> {
    adopter.site.progress.doing(unit.to_string());
    let mut adopted = Adopted {
        settled: Settled::new(unit.clone(), Outcome::HeldBack(vec![])),
        archives: found.len(),
        new: 0,
        bytes: 0,
    };
    match look_and_settle(adopter, unit, found, &mut adopted).await {
        Ok(settled) => adopted.settled = settled,
        Err(UnitError::HeldBack(reasons)) => {
            reasons.iter().for_each(|reason| tracing::error!(%unit, reason, "unit held back"));
            adopted.settled = Settled::new(unit.clone(), Outcome::HeldBack(reasons));
        }
        Err(UnitError::Pass(error)) => return Err(error),
    }
    if let Outcome::Published { subject, objects, .. } = &adopted.settled.outcome {
        tracing::info!(%unit, subject, objects, fetched = adopted.new, "published");
    }
    Ok(adopted)
}

async fn look_and_settle(
    adopter: &Adopter<'_>,
    unit: &Unit,
    found: &[Found],
    adopted: &mut Adopted,
) -> Result<Settled, UnitError> {
    let site = adopter.site;
    let latest = settle::latest(site, unit).await?;
    let (previous, list_lost) = match previous::look(site, unit, latest.as_ref().ok()).await? {
        Known::All(previous) => (previous, false),
        Known::ListLost { left, .. } => (left, true),
    };
    let published: HashMap<&str, _> = previous.objects.iter().map(|object| (object.key.as_str(), object)).collect();
    let mut looks = stream::iter(found).map(|found| adopter.look(unit, found, &published)).buffered(site.transfers_max);
    let (mut archives, mut faults) = (Vec::new(), Vec::new());
    while let Some(looked) = looks.next().await {
        match looked? {
            Looked::AsPublished => {}
            Looked::New { bytes, archive } => {
                adopted.new += 1;
                adopted.bytes += bytes;
                archives.extend(archive);
            }
            Looked::Faulty(fault) => {
                site.metrics.object_failed();
                faults.push(fault);
            }
        }
    }
    drop(looks);
    if !faults.is_empty() {
        return Err(UnitError::HeldBack(faults));
    }
    if adopter.dry_run && (adopted.new > 0 || list_lost) {
        let missing = crate::upload::Missing::default();
        return Ok(Settled::new(unit.clone(), Outcome::Planned { archives: found.len(), missing }));
    }
    if list_lost {
        return relist::settle(site, unit, previous, &archives, latest).await;
    }
    // What is published and unchanged need not be laid over itself.
    let mode = Mode { dry_run: adopter.dry_run, cleanup: Policy::NEVER, service: false };
    settle::settle_with(site, unit, true, &archives, mode).await
}
