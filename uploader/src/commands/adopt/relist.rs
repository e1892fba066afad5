//! A unit whose list of objects is gone from the bucket, and was nowhere else: made again from the archives that lie there.

use common::checksum::Sha256Sum;
use common::marker::{Content, Marker, Object};
use common::unit::Unit;
use nats::{Latest, Published};

use crate::announced::basis::Basis;
use crate::bucket::upload;
use crate::contents::digest::Digested;
use crate::contents::unit_plan::plan;
use crate::error::UnitError;
use crate::site::context::Site;
use crate::site::queue::QueueError;
use crate::unit::previous::Previous;
use crate::unit::process::{Outcome, Processed};
use crate::unit::publish;

/// Stores the list, and announces it where it is not the very one that was announced.
///
/// `left` is what can still be read of what is published, `archives` are those of the bucket that it does not name.
pub(super) async fn store_list(
    site: &Site,
    unit: &Unit,
    left: Previous,
    archives: &[Digested],
    latest: Result<Latest, QueueError>,
) -> Result<Processed, UnitError> {
    let here = archives.iter().map(|archive| archive.local_object(site)).collect();
    let objects = plan(&left.objects, here, site.rollback_at(unit)).objects;
    // Rule 1, also of a list that was announced before.
    let basis = Basis::new(unit, &latest, &left.objects, left.current_stored.as_ref());
    upload::store(site, &objects, archives, &basis).await?;
    let marker = latest.as_ref().ok().and_then(|latest| latest.marker.as_ref());
    let announced = marker.and_then(|marker| announced_with(marker, &objects));
    let is_announced = announced.is_some();
    let marker = match announced {
        Some(marker) => marker,
        None => publish::marker(site, unit, objects.clone(), None, left.published_at)?,
    };
    let stored = publish::store(site, marker, &left).await?;
    if is_announced {
        tracing::info!(%unit, "the list that was announced is in the bucket again");
        return Ok(Processed::new(unit.clone(), Outcome::Unchanged { objects: Some(objects.len()) }));
    }
    tracing::warn!(%unit, "the bucket's archives are not known to be those that were announced: announcing what there is");
    let announced = match &latest {
        Ok(latest) => publish::announce(site, &stored, latest).await,
        Err(away) => Err(away.clone()),
    };
    let outcome = match announced {
        Ok((subject, Published::Stored { .. } | Published::AlreadyThere)) => {
            Outcome::Published { subject, revision: stored.marker.revision.to_string(), objects: objects.len() }
        }
        Ok((_, Published::Overtaken)) => {
            return Err(UnitError::held_back("NATS: another uploader announced this unit meanwhile; run this again"));
        }
        Err(QueueError::Refused(error)) => {
            return Err(UnitError::held_back(format!("stored, but not announced: {error}")));
        }
        Err(error @ (QueueError::Away(_) | QueueError::Lost)) => Outcome::Unannounced { why: error.to_string() },
    };
    Ok(Processed::new(unit.clone(), outcome))
}

/// The marker on the stream with its list, if these objects are that to the byte: workers compare its hash.
fn announced_with(marker: &Marker, objects: &[Object]) -> Option<Marker> {
    let Content::Manifest(reference) = &marker.content else { return None };
    let listed = Marker { content: Content::Objects(objects.to_vec()), ..marker.clone() };
    (Sha256Sum::of(&listed.to_json()) == reference.sha256).then_some(listed)
}
