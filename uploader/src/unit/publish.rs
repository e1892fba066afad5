//! A revision whose objects are stored: its manifest, `current.json`, and then the marker on the stream.
//!
//! In this order, because each step may be the last before the process dies: a manifest nobody names, or a
//! `current.json` that is ahead of the stream, is found and carried on by the next run. A marker ahead of its manifest
//! would send workers to something that is not there.

use bytes::Bytes;
use common::checksum::Sha256Sum;
use common::failpoint::failpoint;
use common::marker::{Content, Current, Dates, Incomplete, Marker, Object};
use common::unit::Unit;
use jiff::{SignedDuration, Timestamp};
use nats::{Latest, MarkerSubject, Published};
use store::{Over, Put};

use crate::error::UnitError;
use crate::site::context::Site;
use crate::site::queue::QueueError;
use crate::unit::previous;
use crate::unit::previous::Previous;

/// A revision that is in the bucket in full.
pub(crate) struct Stored {
    pub(crate) marker: Marker,
    manifest_key: String,
    manifest_json: Vec<u8>,
    /// Where the marker dates objects otherwise than the manifest.
    dates: Dates,
}

/// The marker of a revision of these objects, and whether a worker would take it. `previous_at` is when the revision before
/// it was published.
pub(crate) fn marker(
    site: &Site,
    unit: &Unit,
    objects: Vec<Object>,
    incomplete: Option<Incomplete>,
    previous_at: Option<Timestamp>,
) -> Result<Marker, UnitError> {
    let now = common::clock::now();
    // Of two revisions the one published later is the newer, whatever the clocks of their uploaders. Fractions of a
    // microsecond would only be noise.
    let after = previous_at.and_then(|at| at.checked_add(SignedDuration::from_micros(1)).ok());
    let published_at = after.map_or(now, |after| after.max(now));
    let published_at = Timestamp::from_microsecond(published_at.as_microsecond()).unwrap_or(published_at);
    let marker = Marker::new(unit.clone(), site.store.bucket().to_owned(), objects, published_at, site.host.clone());
    let marker = marker.lacking(incomplete);
    match marker.checked_objects(&site.prefix, now) {
        Ok(_) => Ok(marker),
        Err(error) => Err(UnitError::held_back(format!("no worker would take this unit: {error}"))),
    }
}

/// Stores the manifest, and makes `current.json` name it in the place of what `previous` was read from.
///
/// # Errors
/// The unit is overtaken where another uploader wrote `current.json` since.
pub(crate) async fn store(site: &Site, marker: Marker, previous: &Previous) -> Result<Stored, UnitError> {
    let unit = marker.unit.clone();
    let manifest_key = site.prefix.manifest_key(&unit, &marker.revision);
    let (manifest_json, dates) = match stored_manifest(site, &marker).await? {
        // Stored by a run that came no further, or when the unit was like this before. It stays as it is. When the objects
        // are announced, what is missing, and which of them is dated later to outrank another one, is a matter of today:
        // it is in the marker and in `current.json`.
        Some((manifest, json)) => {
            let dates = Dates::between(listed(&manifest), listed(&marker));
            (json, dates)
        }
        None => {
            let json = marker.to_json();
            failpoint("uploader.objects_stored");
            let stored = put_manifest(site, &marker, &manifest_key, json).await?;
            failpoint("uploader.manifest_stored");
            stored
        }
    };
    if previous.current != Some(marker.revision) || !dates.is_empty() {
        let over = Over::seen(previous.current_stored.as_ref());
        if !put_current(site, &marker, &manifest_key, dates.clone(), over).await? {
            return Err(UnitError::replaced(&site.prefix.current_key(&unit)));
        }
        failpoint("uploader.current_stored");
    }
    Ok(Stored { marker, manifest_key, manifest_json, dates })
}

/// The manifest of this revision that the bucket has already, if it is whole and of this bucket.
async fn stored_manifest(site: &Site, marker: &Marker) -> Result<Option<(Marker, Vec<u8>)>, UnitError> {
    let found = previous::read_manifest(site, &marker.unit, &marker.revision).await?;
    Ok(found.filter(|(manifest, _)| manifest.bucket == marker.bucket))
}

/// Stores a manifest where none that is whole lies; returns the one that lies there then. That may be another uploader's of
/// the same revision: markers name it by its hash, so it is not replaced.
async fn put_manifest(site: &Site, marker: &Marker, key: &str, json: Vec<u8>) -> Result<(Vec<u8>, Dates), UnitError> {
    if put_read_back(site, key, &json, Over::Nothing).await? {
        return Ok((json, Dates::default()));
    }
    let seen = site.store.head(key).await?;
    if let Some((manifest, json)) = stored_manifest(site, marker).await? {
        return Ok((json, Dates::between(listed(&manifest), listed(marker))));
    }
    // It is not whole, or was copied here with another bucket's name in it.
    if put_read_back(site, key, &json, Over::seen(seen.as_ref())).await? {
        return Ok((json, Dates::default()));
    }
    Err(UnitError::replaced(key))
}

fn listed(marker: &Marker) -> &[Object] {
    match &marker.content {
        Content::Objects(objects) => objects,
        Content::Manifest(_) => &[],
    }
}

/// Where a marker of the stream dates objects otherwise than its manifest.
pub(crate) async fn dates_of(site: &Site, marker: &Marker) -> Result<Dates, UnitError> {
    if let Content::Manifest(reference) = &marker.content {
        return Ok(reference.dates.clone());
    }
    let manifest = previous::read_manifest(site, &marker.unit, &marker.revision).await?;
    Ok(manifest.map(|(manifest, _)| Dates::between(listed(&manifest), listed(marker))).unwrap_or_default())
}

/// Makes `current.json` name the manifest of this marker; false where it is another by now than the one to be replaced.
pub(crate) async fn put_current(
    site: &Site,
    marker: &Marker,
    manifest_key: &str,
    dates: Dates,
    over: Over<'_>,
) -> Result<bool, UnitError> {
    let Marker { unit, revision, published_at, .. } = marker;
    let (manifest, published_at) = (manifest_key.to_owned(), Some(*published_at));
    let current = Current { revision: *revision, manifest, published_at, dates };
    let json = serde_json::to_vec(&current).expect("texts and times always serialise");
    put_read_back(site, &site.prefix.current_key(unit), &json, over).await
}

/// Stores a small object over what HEAD showed, and reads it back; false where something else lies there by now.
pub(crate) async fn put_read_back(site: &Site, key: &str, json: &[u8], over: Over<'_>) -> Result<bool, UnitError> {
    let sha256 = Sha256Sum::of(json);
    let put = site.store.put_over(key, Bytes::copy_from_slice(json), sha256, over).await?;
    let stored = site.store.head(key).await?;
    // Also where it was refused: the answer to an earlier try may have been lost.
    if stored.is_some_and(|stored| stored.size == json.len() as u64 && stored.sha256 == Some(sha256)) {
        return Ok(true);
    }
    if put != Put::Done {
        return Ok(false);
    }
    // Also when another uploader wrote the same key in between; the next try sees what it wrote.
    Err(UnitError::held_back(format!("bucket: {key} was stored and does not read back as sent")))
}

/// Publishes the marker on the subject its period calls for, if nothing was published there since `latest` was read.
pub(crate) async fn announce(site: &Site, stored: &Stored, latest: &Latest) -> Result<(String, Published), QueueError> {
    let unit = &stored.marker.unit;
    let backfill = is_backfill(unit, site.publish.live_days, common::clock::now());
    let subject = MarkerSubject::announcement(unit, backfill);
    let expected_last = if backfill { latest.backfill_sequence } else { latest.ready_sequence };
    let inline_bytes_max = site.queue.inline_bytes_max().await?;
    let payload =
        stored.marker.message(&stored.manifest_key, &stored.manifest_json, stored.dates.clone(), inline_bytes_max);
    let published = site.queue.publish(&subject, &stored.marker.revision, payload, expected_last).await?;
    failpoint("uploader.published");
    // The other subject has a sequence of its own: an uploader by whose clock the unit belongs there may have announced what
    // it has at the same moment. Of two that do, the second to publish sees the first. While that cannot be asked, the next
    // look at the unit finds it.
    if matches!(published, Published::Stored { .. })
        && matches!(site.queue.other_lane_moved(unit, backfill, latest).await, Ok(true))
    {
        return Ok((subject, Published::Overtaken));
    }
    Ok((subject, published))
}

/// Whether the unit's period ended so long ago that it must not stand before today's units.
pub(crate) fn is_backfill(unit: &Unit, live_days: u32, now: Timestamp) -> bool {
    let live = SignedDuration::from_hours(24 * i64::from(live_days));
    now.duration_since(unit.period.end()) > live
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_periods_are_backfill() {
        let now: Timestamp = "2026-02-18T00:00:00Z".parse().expect("a time");
        let check = |period: &str, backfill| {
            let unit = format!("binance/um/klines/1h/{period}").parse().expect("a unit");
            assert_eq!(is_backfill(&unit, 3, now), backfill, "{period}");
        };
        check("2026-02-17", false);
        check("2026-02-14", false);
        check("2026-02-13", true);
        check("2026-02", false);
        check("2026-01", true);
    }
}
