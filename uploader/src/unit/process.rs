//! One unit, from what is on disk to its marker on the stream.
//!
//! Everything is decided from what disk, bucket and stream say now, so that any step may be the last of a run and the
//! first of the next one.

use common::marker::{Incomplete, Object};
use common::unit::Unit;
use jiff::Timestamp;
use nats::{Latest, Published, Stamp};
use store::Over;

use crate::announced::basis::Basis;
use crate::announced::standing;
use crate::bucket::upload;
use crate::bucket::upload::{Missing, Transferred};
use crate::contents::digest;
use crate::contents::digest::Digested;
use crate::contents::unit_plan::{OlderArchive, Plan, plan};
use crate::error::UnitError;
use crate::local::complete::Wait;
use crate::local::layout;
use crate::local::scan::LocalUnit;
use crate::site::context::Site;
use crate::site::queue::QueueError;
use crate::unit::previous::Covered;
use crate::unit::{cleanup, previous, publish};

/// How often a unit is decided on anew because another uploader announced it in between.
const OVERTAKEN_MAX: usize = 4;

const REFUSED: &str = "NATS: the stream refused the marker each time: another uploader announces this unit too";

/// What came of a unit.
#[derive(Debug)]
pub(crate) struct Processed {
    pub(crate) unit: Unit,
    pub(crate) outcome: Outcome,
    pub(crate) transferred: Transferred,
    pub(crate) removed: cleanup::Removed,
    /// The message of the stream that says all of what is on disk, where it is known.
    pub(crate) message: Option<Stamp>,
    /// When that was published, where it is known.
    pub(crate) published_at: Option<Timestamp>,
    /// What it is published without, where that is new.
    pub(crate) incomplete: Option<Incomplete>,
    /// Whether the revision before lacked as much: people were told.
    pub(crate) incomplete_before: bool,
    /// Archives at hand that are older publications than the announced ones, and not taken.
    pub(crate) older: Vec<OlderArchive>,
}

#[derive(Debug)]
pub(crate) enum Outcome {
    Published {
        subject: String,
        revision: String,
        objects: usize,
    },
    /// The newest marker on the stream says all there is to say.
    /// How many objects it has is not known when their list is in the bucket only.
    Unchanged {
        objects: Option<usize>,
    },
    /// One line a reason.
    HeldBack(Vec<String>),
    /// In the bucket, not on the stream.
    Unannounced {
        why: String,
    },
    /// Not complete yet, or still being written to.
    Waiting {
        wait: Wait,
        /// Configured symbols it waits for, as far as there is room.
        missing: Vec<String>,
    },
    /// Of a dry run: what would be uploaded, and then published.
    Planned {
        archives: usize,
        missing: Missing,
    },
}

impl Processed {
    pub(crate) fn new(unit: Unit, outcome: Outcome) -> Self {
        Self {
            unit,
            outcome,
            transferred: Transferred::default(),
            removed: cleanup::Removed::default(),
            message: None,
            published_at: None,
            incomplete: None,
            incomplete_before: false,
            older: Vec::new(),
        }
    }

    /// Takes what came of another try on the same unit. What the first found or put there is not counted again.
    pub(crate) fn carry_on(&mut self, again: Self) {
        self.outcome = again.outcome;
        self.message = again.message;
        self.published_at = again.published_at;
        self.incomplete = again.incomplete;
        self.incomplete_before = again.incomplete_before;
        self.older = again.older;
        let present = again.transferred.present.saturating_sub(self.transferred.uploaded + self.transferred.present);
        self.transferred.add(Transferred { present, ..again.transferred });
        self.removed = again.removed;
    }
}

/// How a unit is to be processed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mode {
    /// Only find out what would be done.
    pub(crate) dry_run: bool,
    /// When to remove from disk what is announced.
    pub(crate) cleanup: cleanup::Policy,
    /// There is a next pass: what is still being written, or cannot be announced now, is left to it.
    pub(crate) service: bool,
}

/// A unit after a first look, which reads neither archives nor the bucket.
pub(crate) enum LocalCheck {
    Done(LocalUnit, Box<Processed>),
    NeedsWork(LocalUnit),
}

/// Tells units that need nothing from those that do. Cheap, so that a run with nothing to do is.
pub(crate) async fn check_local(site: &Site, local: LocalUnit, mode: Mode) -> LocalCheck {
    let Some(archives) = digest::known(site, &local) else { return LocalCheck::NeedsWork(local) };
    // While the queue is away, the bucket says what is left to do.
    let Ok(latest) = site.queue.latest(&local.unit).await else { return LocalCheck::NeedsWork(local) };
    let covered = previous::covers(site, &latest, &archives);
    let removable = |at| !mode.dry_run && mode.cleanup.allows(&local.unit, at, common::clock::now());
    let removable = !archives.is_empty() && latest.marker.as_ref().is_some_and(|marker| removable(marker.published_at));
    match covered {
        // Where older archives are at hand, a roll-back may be stored and not announced: the bucket says.
        Some(covered) if !removable && covered.older.is_empty() => {
            let objects = covered.objects.map(|objects| objects.len());
            let processed = Processed::new(local.unit.clone(), Outcome::Unchanged { objects });
            let published_at = latest.marker.as_ref().map(|marker| marker.published_at);
            LocalCheck::Done(local, Box::new(Processed { message: latest.stamp(), published_at, ..processed }))
        }
        Some(_) | None => LocalCheck::NeedsWork(local),
    }
}

/// Does all that a unit needs.
pub(crate) async fn process(site: &Site, local: &LocalUnit, mode: Mode) -> Result<Processed, UnitError> {
    let archives = digest::digest(site, local).await?;
    process_with(site, &local.unit, local.marked, &archives, mode).await
}

/// The same for archives that are checked already; `marked`: somebody says that they are all there will be.
pub(crate) async fn process_with(
    site: &Site,
    unit: &Unit,
    marked: bool,
    archives: &[Digested],
    mode: Mode,
) -> Result<Processed, UnitError> {
    if let Some(why) = layout::is_no_series(unit) {
        return Err(UnitError::held_back(why));
    }
    let mut attempt = Attempt { unit, marked, archives, mode, overtaken: None, transferred: Transferred::default() };
    for _ in 0..OVERTAKEN_MAX {
        let latest = latest(site, unit).await?;
        let step = match attempt.step(site, &latest).await {
            Ok(step) => step,
            Err(UnitError::Overtaken(why)) => {
                tracing::info!(%unit, why, "planning the unit anew");
                attempt.overtaken = Some(why);
                continue;
            }
            Err(error) => return Err(error),
        };
        let transferred = attempt.transferred;
        let Step { outcome, announced, message, incomplete, older } = step;
        let before = latest.as_ref().ok().and_then(|latest| latest.marker.as_ref()?.incomplete.as_ref());
        let incomplete_before = match (&incomplete, before) {
            (Some(now), Some(before)) => now.count <= before.count,
            _ => false,
        };
        let now = common::clock::now();
        let published_at = match (&outcome, &latest) {
            (Outcome::Unchanged { .. }, Ok(Latest { marker: Some(marker), .. })) => Some(marker.published_at),
            (Outcome::Published { .. }, _) => Some(now),
            _ => None,
        };
        let mut processed = Processed {
            transferred,
            message,
            incomplete,
            incomplete_before,
            published_at,
            older,
            ..Processed::new(unit.clone(), outcome)
        };
        if !mode.dry_run
            && !announced.is_empty()
            && published_at.is_some_and(|published_at| mode.cleanup.allows(unit, published_at, now))
        {
            processed.removed = cleanup::remove(site, unit, &announced, archives).await?;
            site.metrics.removed(processed.removed.archives);
        }
        return Ok(processed);
    }
    Err(UnitError::held_back(attempt.overtaken.unwrap_or_default()))
}

/// The stream's newest marker, or why it cannot be asked now.
pub(crate) async fn latest(site: &Site, unit: &Unit) -> Result<Result<Latest, QueueError>, UnitError> {
    // Also where the queue came back after the pass began.
    let latest = match site.standing.confirm(site).await? {
        Ok(_) => site.queue.latest(unit).await,
        Err(error) => Err(error),
    };
    match &latest {
        Ok(found) if found.marker.is_none() && found.ready_sequence.max(found.backfill_sequence) > 0 => {
            tracing::warn!(%unit, "the last message of the unit on the stream is no marker this version reads");
        }
        Ok(_) | Err(QueueError::Away(_) | QueueError::Lost) => {}
        Err(QueueError::Refused(error)) => return Err(UnitError::held_back(error.to_string())),
    }
    Ok(latest)
}

/// What one try came to.
struct Step {
    outcome: Outcome,
    /// The objects that the stream is known to announce.
    announced: Vec<Object>,
    /// The message that announces them, where it is known.
    message: Option<Stamp>,
    incomplete: Option<Incomplete>,
    older: Vec<OlderArchive>,
}

impl Step {
    fn new(outcome: Outcome) -> Self {
        Self { outcome, announced: Vec::new(), message: None, incomplete: None, older: Vec::new() }
    }
}

/// The tries on one unit.
struct Attempt<'s> {
    unit: &'s Unit,
    marked: bool,
    archives: &'s [Digested],
    mode: Mode,
    /// Why the last try was in vain: another uploader works on the unit.
    overtaken: Option<String>,
    transferred: Transferred,
}

impl Attempt<'_> {
    /// One try.
    ///
    /// # Errors
    /// The unit is overtaken: it must be planned anew.
    async fn step(&mut self, site: &Site, latest: &Result<Latest, QueueError>) -> Result<Step, UnitError> {
        let Self { unit, marked, archives, mode, .. } = *self;
        let published = latest.as_ref().ok().and_then(|latest| latest.marker.as_ref());
        let stamp = latest.as_ref().ok().and_then(Latest::stamp);
        if let Some(Covered { objects, older }) =
            latest.as_ref().ok().and_then(|latest| previous::covers(site, latest, archives))
            && (self.overtaken.is_some() || is_all_there_is(archives, &older))
        {
            let unchanged = Outcome::Unchanged { objects: objects.as_ref().map(Vec::len) };
            let announced = objects.unwrap_or_default();
            if self.overtaken.is_some() && !mode.dry_run {
                self.give_way(site, latest, &announced).await?;
            }
            return Ok(Step { announced, message: stamp, older, ..Step::new(unchanged) });
        }
        if let Some(why) = published.and_then(|marker| standing::left_there(site, marker)) {
            return Err(UnitError::held_back(why));
        }
        site.bucket_is_there().await?;
        let previous = previous::read(site, unit, latest.as_ref().ok()).await?;
        if let Some(why) = published.and_then(|marker| previous::left_behind(site, marker, &previous, archives)) {
            return Err(UnitError::held_back(why));
        }
        let here = archives.iter().map(|archive| archive.local_object(site)).collect();
        let Plan { objects, older, redated } = plan(&previous.objects, here, site.rollback_at(unit));
        if objects.is_empty() {
            return Err(UnitError::held_back(
                "it is marked complete, but no archive of it is in data_dir and none was published",
            ));
        }
        let incomplete = site.completeness.incomplete(marked, &objects);
        let marker = publish::marker(site, unit, objects.clone(), incomplete.clone(), previous.published_at)?;
        let on_stream =
            published.filter(|published| published.bucket == marker.bucket).map(|published| published.revision);
        if on_stream == Some(marker.revision) && !redated {
            let replaced = replaced_by_older(site, unit, &older, archives).await?;
            if !replaced.is_empty() {
                return Err(UnitError::HeldBack(replaced));
            }
            if self.overtaken.is_some() && !mode.dry_run {
                self.give_way(site, latest, &objects).await?;
            }
            let unchanged = Outcome::Unchanged { objects: Some(objects.len()) };
            return Ok(Step { announced: objects, message: stamp, older, ..Step::new(unchanged) });
        }
        if mode.dry_run {
            let missing = upload::missing_bytes(site, &objects, archives).await?;
            if !missing.lost.is_empty() {
                return Err(UnitError::HeldBack(missing.lost));
            }
            let planned = Outcome::Planned { archives: objects.len(), missing };
            return Ok(Step { incomplete, older, ..Step::new(planned) });
        }

        if let Err(away) = latest
            && previous.current == Some(marker.revision)
        {
            // Stored in full by an earlier run: current.json is written last. Looked at again when it can be announced.
            return Ok(Step::new(Outcome::Unannounced { why: away.to_string() }));
        }

        // Rule 1: nothing is announced before every object of it was read back.
        let basis = Basis::new(unit, latest, &previous.objects, previous.current_stored.as_ref());
        let sent = upload::store(site, &objects, archives, &basis).await?;
        self.transferred.add(sent);
        let stored = publish::store(site, marker, &previous).await?;
        let unannounced = |why: String| Ok(Step::new(Outcome::Unannounced { why }));
        let latest = match latest {
            Ok(latest) => latest,
            Err(away) => return unannounced(away.to_string()),
        };
        // The connection may have been made anew while the archives were sent.
        let announced = match site.standing.confirm(site).await? {
            Ok(_) => publish::announce(site, &stored, latest).await,
            Err(error) => Err(error),
        };
        match announced {
            Ok((subject, how @ (Published::Stored { .. } | Published::AlreadyThere))) => {
                let revision = stored.marker.revision;
                let message = match how {
                    Published::Stored { sequence } => Some(Stamp { sequence, revision }),
                    Published::AlreadyThere | Published::Overtaken => None,
                };
                let outcome = Outcome::Published { subject, revision: revision.to_string(), objects: objects.len() };
                Ok(Step { outcome, announced: objects, message, incomplete: stored.marker.incomplete, older })
            }
            Ok((_, Published::Overtaken)) => Err(UnitError::Overtaken(REFUSED.to_owned())),
            Err(QueueError::Refused(error)) => Err(UnitError::held_back(format!("stored, but not announced: {error}"))),
            Err(error @ (QueueError::Away(_) | QueueError::Lost)) => unannounced(error.to_string()),
        }
    }

    /// Another uploader has announced all that is at hand, while this one stored objects and named them in `current.json`:
    /// lets that name what the stream has, and makes sure that the bucket has the objects.
    async fn give_way(
        &self,
        site: &Site,
        latest: &Result<Latest, QueueError>,
        announced: &[Object],
    ) -> Result<(), UnitError> {
        let (unit, key) = (self.unit, site.prefix.current_key(self.unit));
        let Ok(Latest { marker: Some(marker), .. }) = latest else { return Ok(()) };
        let mut seen = site.store.head(&key).await?;
        let dates = publish::dates_of(site, marker).await?;
        let manifest = site.prefix.manifest_key(unit, &marker.revision);
        if !publish::put_current(site, marker, &manifest, dates, Over::seen(seen.as_ref())).await? {
            return Err(UnitError::replaced(&key));
        }
        seen = site.store.head(&key).await?;
        let basis = Basis::new(unit, latest, announced, seen.as_ref());
        upload::store(site, announced, self.archives, &basis).await?;
        let now = self::latest(site, unit).await?;
        if now.is_ok_and(|now| now.stamp() == latest.as_ref().ok().and_then(Latest::stamp)) {
            return Ok(());
        }
        Err(UnitError::Overtaken(REFUSED.to_owned()))
    }
}

/// Whether the stream's marker alone tells that nothing is to be done. The bucket may have a newer revision that could not be
/// announced: a roll-back of what is at hand and older, or archives that `adopt` found and this run has not.
fn is_all_there_is(archives: &[Digested], older: &[OlderArchive]) -> bool {
    older.is_empty() && !archives.is_empty()
}

/// Older archives at hand that the bucket has in the place of the announced ones; one line each.
async fn replaced_by_older(
    site: &Site,
    unit: &Unit,
    older: &[OlderArchive],
    archives: &[Digested],
) -> Result<Vec<String>, UnitError> {
    let mut replaced = Vec::new();
    if site.accepted.bucket_is_whole {
        // `adopt` looks at nothing else, and says so itself.
        return Ok(replaced);
    }
    for OlderArchive { key, .. } in older {
        let Some(here) = archives.iter().find(|archive| site.prefix.archive_key(&archive.path) == *key) else {
            continue;
        };
        if site.store.head(key).await?.is_some_and(|stored| stored.sha256 == Some(here.sha256())) {
            replaced.push(format!(
                "bucket: {key} is the older archive that is on disk, and not the announced one: a roll-back was cut short, \
                 or another program stored it; `uploader upload --accept-rollback {unit}` announces it, `uploader \
                 reconcile --fix` on the machine that has the announced archive puts that one back"
            ));
        }
    }
    Ok(replaced)
}
