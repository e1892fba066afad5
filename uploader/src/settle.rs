//! One unit, from what is on disk to its marker on the stream.
//!
//! Everything is decided from what disk, bucket and stream say now, so that any step may be the last of a run and the
//! first of the next one.

use common::marker::Object;
use common::unit::Unit;
use nats::{Latest, Published};

use crate::cleanup;
use crate::digest::{self, Digested};
use crate::error::UnitError;
use crate::previous;
use crate::publish;
use crate::queue::QueueError;
use crate::scan::LocalUnit;
use crate::site::Site;
use crate::unit_plan::overlay;
use crate::upload::{self, Missing, Transferred};

/// How often a unit is decided on anew because another uploader announced it in between.
const OVERTAKEN_MAX: usize = 4;

/// What came of a unit.
#[derive(Debug)]
pub(crate) struct Settled {
    pub(crate) unit: Unit,
    pub(crate) outcome: Outcome,
    pub(crate) transferred: Transferred,
    pub(crate) removed: cleanup::Removed,
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
    /// Of a dry run: what would be uploaded, and then published.
    Planned {
        archives: usize,
        missing: Missing,
    },
}

impl Settled {
    pub(crate) fn new(unit: Unit, outcome: Outcome) -> Self {
        Self { unit, outcome, transferred: Transferred::default(), removed: cleanup::Removed::default() }
    }

    /// Takes what came of another try on the same unit. What the first found or put there is not counted again.
    pub(crate) fn carry_on(&mut self, again: Self) {
        self.outcome = again.outcome;
        let present = again.transferred.present.saturating_sub(self.transferred.uploaded + self.transferred.present);
        self.transferred.add(Transferred { present, ..again.transferred });
        self.removed = again.removed;
    }
}

/// How a unit is to be settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mode {
    /// Only find out what would be done.
    pub(crate) dry_run: bool,
    /// Remove from disk what is announced.
    pub(crate) cleanup: bool,
}

/// A unit after a first look, which reads neither archives nor the bucket.
pub(crate) enum Look {
    Done(Settled),
    NeedsWork(LocalUnit),
}

/// Tells units that need nothing from those that do. Cheap, so that a run with nothing to do is.
pub(crate) async fn look(site: &Site, local: LocalUnit, mode: Mode) -> Look {
    let Some(archives) = digest::known(site, &local) else { return Look::NeedsWork(local) };
    if mode.cleanup && !mode.dry_run && !archives.is_empty() {
        return Look::NeedsWork(local);
    }
    // While the queue is away, the bucket says what is left to do.
    let Ok(latest) = site.queue.latest(&local.unit).await else { return Look::NeedsWork(local) };
    let covered = latest.marker.as_ref().and_then(|marker| previous::covers(site, marker, &archives));
    match covered {
        Some(covered) => {
            let objects = covered.listed().map(|objects| objects.len());
            Look::Done(Settled::new(local.unit, Outcome::Unchanged { objects }))
        }
        None => Look::NeedsWork(local),
    }
}

/// Does all that a unit needs.
pub(crate) async fn settle(site: &Site, local: &LocalUnit, mode: Mode) -> Result<Settled, UnitError> {
    let archives = digest::digest(site, local).await?;
    let mut transferred = Transferred::default();
    for _ in 0..OVERTAKEN_MAX {
        let latest = latest(site, &local.unit).await?;
        let step = step(site, local, &archives, &latest, mode, &mut transferred).await?;
        let Some((outcome, announced)) = step else { continue };
        let mut settled = Settled { transferred, ..Settled::new(local.unit.clone(), outcome) };
        if mode.cleanup && !mode.dry_run && !announced.is_empty() {
            settled.removed = cleanup::remove(site, &local.unit, &announced, &archives).await?;
            site.metrics.removed(settled.removed.archives);
        }
        return Ok(settled);
    }
    Err(UnitError::held_back("NATS: the stream refused the marker each time: another uploader announces this unit too"))
}

/// The stream's newest marker, or why it cannot be asked now.
async fn latest(site: &Site, unit: &Unit) -> Result<Result<Latest, QueueError>, UnitError> {
    let latest = site.queue.latest(unit).await;
    match &latest {
        Ok(found) if found.marker.is_none() && found.ready_sequence.max(found.backfill_sequence) > 0 => {
            tracing::warn!(%unit, "the last message of the unit on the stream is no marker this version reads");
        }
        Ok(_) | Err(QueueError::Away(_) | QueueError::Lost) => {}
        Err(QueueError::Refused(error)) => return Err(UnitError::held_back(error.to_string())),
    }
    Ok(latest)
}

/// One try: the outcome, and the objects that the stream is known to announce. `None`: overtaken, decide again.
async fn step(
    site: &Site,
    local: &LocalUnit,
    archives: &[Digested],
    latest: &Result<Latest, QueueError>,
    mode: Mode,
    transferred: &mut Transferred,
) -> Result<Option<(Outcome, Vec<Object>)>, UnitError> {
    let unit = &local.unit;
    let published = latest.as_ref().ok().and_then(|latest| latest.marker.as_ref());
    if let Some(covered) = published.and_then(|marker| previous::covers(site, marker, archives)) {
        let objects = covered.listed();
        return Ok(Some((Outcome::Unchanged { objects: objects.as_ref().map(Vec::len) }, objects.unwrap_or_default())));
    }
    site.bucket_is_there().await?;
    let previous = previous::read(site, unit, latest.as_ref().ok()).await?;
    let here = archives.iter().map(|archive| archive.object(site)).collect();
    let objects = overlay(&previous.objects, here);
    if objects.is_empty() {
        return Err(UnitError::held_back(
            "it is marked complete, but no archive of it is in data_dir and none was published",
        ));
    }
    let marker = publish::marker(site, unit, objects.clone())?;
    let on_stream = published.filter(|published| published.bucket == marker.bucket).map(|published| published.revision);
    if on_stream == Some(marker.revision) {
        return Ok(Some((Outcome::Unchanged { objects: Some(objects.len()) }, objects)));
    }
    if mode.dry_run {
        let missing = upload::missing_bytes(site, &objects, archives).await?;
        if !missing.lost.is_empty() {
            return Err(UnitError::HeldBack(missing.lost));
        }
        return Ok(Some((Outcome::Planned { archives: objects.len(), missing }, Vec::new())));
    }

    if let Err(away) = latest
        && previous.current == Some(marker.revision)
    {
        // Stored in full by an earlier run: current.json is written last. Looked at again when it can be announced.
        return Ok(Some((Outcome::Unannounced { why: away.to_string() }, Vec::new())));
    }

    // Rule 1: nothing is announced before every object of it was read back.
    let sent = upload::store(site, &objects, archives).await?;
    transferred.add(sent);
    let stored = publish::store(site, marker, previous.current).await?;
    let unannounced = |why: String| Ok(Some((Outcome::Unannounced { why }, Vec::new())));
    let latest = match latest {
        Ok(latest) => latest,
        Err(away) => return unannounced(away.to_string()),
    };
    match publish::announce(site, &stored, latest).await {
        Ok((_, Published::AlreadyThere))
            if published.is_some_and(|published| published.revision == stored.marker.revision) =>
        {
            Err(UnitError::held_back(
                "stored, but the stream announces this revision from another bucket, and takes it again only two days \
                 after that",
            ))
        }
        Ok((subject, Published::Stored { .. } | Published::AlreadyThere)) => {
            let revision = stored.marker.revision.to_string();
            Ok(Some((Outcome::Published { subject, revision, objects: objects.len() }, objects)))
        }
        Ok((_, Published::Overtaken)) => Ok(None),
        Err(QueueError::Refused(error)) => Err(UnitError::held_back(format!("stored, but not announced: {error}"))),
        Err(error @ (QueueError::Away(_) | QueueError::Lost)) => unannounced(error.to_string()),
    }
}
