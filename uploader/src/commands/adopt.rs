//! `uploader adopt`: manifests and markers for what a bucket holds already, without any `data_dir`.
//!
//! The bucket is listed and its archives are put together to units by their keys. Of an archive that no manifest names
//! nothing is known but what it holds: it is fetched once, checked as one on disk is, and given our metadata where it
//! lies. From there on the unit goes the way of every other (`process`): laid over what is published, read back,
//! announced. Where the list of what is published is lost, which may have been in the bucket only, it is made again from
//! the same archives (`relist`).
//!
//! A second run asks for each archive's metadata, finds all of it named as it is, and changes nothing. One that was killed
//! fetches again what of its last units no manifest names yet.

mod adopted;
mod list;
mod object;
mod relist;
mod report;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};
use std::{fs, io};

use common::config::Config;
use common::unit::Unit;
use futures::{StreamExt, stream};
use tempfile::TempDir;

use crate::announced::standing;
use crate::contents::unit_plan::OlderArchive;
use crate::error::{PassError, UnitError};
use crate::local::marks;
use crate::site::context::{Site, UNITS_MAX, blocking};
use crate::site::queue::QueueError;
use crate::unit::cleanup::Policy;
use crate::unit::previous::PublishedUnit;
use crate::unit::process::{Mode, Outcome, Processed};
use crate::unit::{previous, process};

use crate::cli::context::check_words;
use crate::site::context::Accepted;
use adopted::Adopted;
use clap::Args;
use common::bwlimit::BwLimit;
use common::output::{Failure, ListArgs};
use common::unit_filter::UnitFilter;
use list::ListedArchive;
use object::{Adopter, CheckedObject};
pub(crate) use report::AdoptReport;

pub(super) const ADOPT_EXAMPLES: &str = "\
Examples:
  uploader adopt --dry-run
  uploader adopt --market um --interval 1h --from 2026-01
  uploader adopt --marked --json";

#[derive(Debug, Args)]
pub struct Adopt {
    /// Only list the bucket and say what would be fetched and announced
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Only units whose mark lies in local.data_dir; else every unit the bucket has an archive of
    #[arg(long)]
    pub(crate) marked: bool,
    /// Announce the objects of this unit that are older than the announced ones, dated as published now
    ///
    /// May be given several times.
    #[arg(long, value_name = "UNIT")]
    accept_rollback: Vec<Unit>,
    #[command(flatten)]
    pub(crate) filter: UnitFilter,
    #[command(flatten)]
    pub(crate) list: ListArgs,
    /// How fast bytes may come and go, instead of storage.bwlimit: 10M, 512K, off, or a timetable '08:00,512K 19:00,off'
    #[arg(long, value_name = "LIMIT")]
    pub(super) bwlimit: Option<BwLimit>,
}

impl Adopt {
    /// # Errors
    /// Arguments that are wrong in themselves.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        self.filter.check()?;
        check_words(&self.accept_rollback)
    }

    /// To announce what lies in this bucket is what it is run for.
    pub(crate) fn accepted(&self) -> Accepted {
        let rollbacks = self.accept_rollback.iter().cloned().collect();
        Accepted { move_here: true, bucket_is_whole: true, rollbacks }
    }
}

/// How the folders begin in which archives are checked.
const SCRATCH: &str = "marketferry-adopt-";
const RETENTION: Duration = Duration::from_secs(24 * 3600);

/// Adopts what is there, and says how it went.
pub(crate) async fn run(site: &Site, config: &Config, args: &Adopt) -> AdoptReport {
    let started = Instant::now();
    let mut report = AdoptReport::new(args.dry_run);
    if let Err(error) = every_unit(site, config, args, &mut report).await {
        report.fail(error.into());
    }
    site.progress.end();
    report.end(started.elapsed());
    report
}

async fn every_unit(site: &Site, config: &Config, args: &Adopt, report: &mut AdoptReport) -> Result<(), PassError> {
    site.bucket_is_there().await?;
    match site.queue.bus().await {
        Ok(_) => {}
        Err(QueueError::Refused(error)) => return Err(PassError::Queue(error)),
        Err(error @ (QueueError::Away(_) | QueueError::Lost)) => {
            // Why is said at the end.
            if !args.dry_run {
                tracing::warn!("NATS does not answer: what is stored now is announced by the next run");
            }
            report.queue = Some(error.into());
        }
    }
    site.progress.doing("listing the bucket".into());
    let mut listed = list::list(site, &args.filter).await?;
    let is_empty = listed.is_empty();
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
    let found: HashSet<&Unit> = listed.units.iter().map(|(unit, _)| unit).collect();
    let accepted = site.accepted.rollbacks.iter();
    let mut absent: Vec<Unit> = accepted.filter(|unit| !found.contains(unit)).cloned().collect();
    absent.sort();
    if !absent.is_empty() {
        // The other units are adopted all the same.
        report.fail(PassError::NotAdopted(absent).into());
    }
    if is_empty && let Ok(Some(newest)) = site.queue.newest().await {
        // A wrong prefix looks like an empty bucket.
        standing::check(&standing::Place::of_site(site), &newest, false)?;
    }
    // Those without a mark are summed up, and did match.
    if listed.units.is_empty() && report.units.not_marked == 0 && !args.filter.is_empty() {
        let all = listed.left_out.len() as u64;
        return Err(PassError::NoMatch(Box::new(args.filter.clone()), Some(all)));
    }
    site.progress.begin(listed.units.len(), 0);

    let scratch = scratch(config.local.state_dir.as_deref());
    let scratch = scratch.map_err(|error| PassError::Scratch(error.to_string()))?;
    let adopter = Adopter { site, scratch: scratch.path(), dry_run: args.dry_run };
    let processed = stream::iter(&listed.units)
        .take_until(site.shutdown.cancelled())
        .map(|(unit, found)| one(&adopter, unit, found))
        .buffer_unordered(UNITS_MAX);
    let mut processed = std::pin::pin!(processed);
    while let Some(adopted) = processed.next().await {
        report.add(adopted?);
        site.progress.unit_done();
    }
    if site.shutdown.is_cancelled() { Err(PassError::Stopped) } else { Ok(()) }
}

/// Where archives lie while they are checked; gone with the value.
fn scratch(state_dir: Option<&Path>) -> io::Result<TempDir> {
    let folder = state_dir.map_or_else(std::env::temp_dir, Path::to_owned);
    fs::create_dir_all(&folder)?;
    if let Err(error) = sweep(&folder, SystemTime::now()) {
        tracing::warn!(folder = %folder.display(), %error, "what killed runs left there stays for now");
    }
    tempfile::Builder::new().prefix(SCRATCH).tempdir_in(folder)
}

/// Removes the folders that runs left behind which were killed. One in use gets a folder for each archive, and so is
/// younger than [`RETENTION`].
fn sweep(folder: &Path, now: SystemTime) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let ours = entry.file_name().to_string_lossy().starts_with(SCRATCH) && entry.file_type()?.is_dir();
        if ours && now.duration_since(entry.metadata()?.modified()?).unwrap_or_default() > RETENTION {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

async fn one(adopter: &Adopter<'_>, unit: &Unit, found: &[ListedArchive]) -> Result<Adopted, PassError> {
    adopter.site.progress.doing(unit.to_string());
    let mut adopted = Adopted {
        processed: Processed::new(unit.clone(), Outcome::HeldBack(vec![])),
        archives: found.len(),
        new: 0,
        bytes: 0,
    };
    match check_and_process(adopter, unit, found, &mut adopted).await {
        Ok(processed) => adopted.processed = processed,
        Err(error) => {
            let reasons = error.into_reasons()?;
            reasons.iter().for_each(|reason| tracing::error!(%unit, reason, "unit held back"));
            adopted.processed = Processed::new(unit.clone(), Outcome::HeldBack(reasons));
        }
    }
    if let Outcome::Published { subject, objects, .. } = &adopted.processed.outcome {
        tracing::info!(%unit, subject, objects, fetched = adopted.new, "published");
    }
    Ok(adopted)
}

async fn check_and_process(
    adopter: &Adopter<'_>,
    unit: &Unit,
    found: &[ListedArchive],
    adopted: &mut Adopted,
) -> Result<Processed, UnitError> {
    let site = adopter.site;
    let latest = process::latest(site, unit).await?;
    let (previous, list_lost) = match previous::read_published(site, unit, latest.as_ref().ok()).await? {
        PublishedUnit::All(previous) => (previous, false),
        PublishedUnit::ListLost { left, .. } => (left, true),
    };
    let published: HashMap<&str, _> = previous.objects.iter().map(|object| (object.key.as_str(), object)).collect();
    let mut checks =
        stream::iter(found).map(|found| adopter.check_object(unit, found, &published)).buffered(site.transfers_max);
    let (mut archives, mut faults) = (Vec::new(), Vec::new());
    while let Some(checked) = checks.next().await {
        match checked? {
            CheckedObject::AsPublished => {}
            CheckedObject::New { bytes, archive } => {
                adopted.new += 1;
                adopted.bytes += bytes;
                archives.extend(archive);
            }
            CheckedObject::Faulty(fault) => {
                site.metrics.object_failed();
                faults.push(fault);
            }
        }
    }
    drop(checks);
    if !faults.is_empty() {
        return Err(UnitError::HeldBack(faults));
    }
    if adopter.dry_run && (adopted.new > 0 || list_lost) {
        let missing = crate::bucket::upload::Missing::default();
        return Ok(Processed::new(unit.clone(), Outcome::Planned { archives: found.len(), missing }));
    }
    if list_lost {
        return relist::store_list(site, unit, previous, &archives, latest).await;
    }
    // What is published and unchanged need not be laid over itself.
    let mode = Mode { dry_run: adopter.dry_run, cleanup: Policy::NEVER, service: false };
    let processed = process::process_with(site, unit, true, &archives, mode).await?;
    if processed.older.is_empty() {
        Ok(processed)
    } else {
        Err(UnitError::HeldBack(older_in_bucket(unit, &processed.older)))
    }
}

/// Says that another program has put older publications over what is announced.
fn older_in_bucket(unit: &Unit, older: &[OlderArchive]) -> Vec<String> {
    let line = |archive: &OlderArchive| {
        format!(
            "bucket: {} was generated at {}, before the announced archive of {}: `uploader reconcile --fix` on the machine \
             that has the announced one puts it back, `uploader adopt --accept-rollback {unit}` announces this one",
            archive.key, archive.generated_at, archive.announced_generated_at
        )
    };
    older.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_run_left_goes_after_a_day() {
        let dir = tempfile::tempdir().expect("a folder");
        let killed = scratch(Some(dir.path())).expect("made").keep();
        fs::write(killed.join("a.zip"), "half").expect("written");
        fs::create_dir(dir.path().join("rsync")).expect("made");
        fs::write(dir.path().join(format!("{SCRATCH}file")), "not ours").expect("written");
        let names = || fs::read_dir(dir.path()).expect("reads").count();
        let soon = SystemTime::now() + RETENTION / 2;
        sweep(dir.path(), soon).expect("swept");
        assert_eq!(names(), 3);
        sweep(dir.path(), soon + RETENTION).expect("swept");
        assert!(names() == 2 && !killed.exists());
    }
}
