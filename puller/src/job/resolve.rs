//! A delivery becomes a job: the marker read, checked, and its list of objects at hand.

use bytes::Bytes;
use common::checksum::Sha256Sum;
use common::marker::{Content, MANIFEST_BYTES_MAX, Marker, MarkerError, Object};
use common::object_key::Prefix;
use common::text::shorten;
use common::unit::Unit;
use jiff::{SignedDuration, Timestamp};
use nats::{Activity, Announcement, Bus, BusError, Delivery, Lane, MarkerSubject, ReplayOptions};
use store::ObjectStore;

use crate::error::work::{FaultyObject, ObjectFault, WorkError};
use crate::job::memory::MemoryBudget;
use crate::job::writes::Writes;

/// How far this machine's clock may be behind the NATS server's. A marker's times are compared with the later of the two, so
/// hours do no harm; beyond, nothing is left of what the log says of when.
const CLOCK_BEHIND_MAX: SignedDuration = SignedDuration::from_hours(24);
/// Memory for a manifest while it is read: its text, which may have twice its size set aside while it grows, and its list.
const MANIFEST_FOOTPRINT: u64 = 3 * MANIFEST_BYTES_MAX;

/// A unit to bring to a destination.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub unit: Unit,
    pub marker_id: String,
    pub revision: Sha256Sum,
    /// In the order of their symbols, which is that of the table.
    pub objects: Vec<Object>,
    pub options: ReplayOptions,
    pub published_at: Timestamp,
    /// Whether some of it may be loaded by an attempt that did not come to its end.
    pub tried_before: bool,
    /// What is written for it.
    pub writes: Writes,
}

/// Reads and checks what a delivery carries; fetches the manifest where the marker only refers to it.
pub(crate) async fn resolve(
    store: &ObjectStore,
    prefix: &Prefix,
    memory: &MemoryBudget,
    delivery: &Delivery,
    activity: &Activity,
) -> Result<Job, WorkError> {
    if let Some(behind) = is_behind(delivery.stored_at) {
        return Err(WorkError::ClockBehind(behind));
    }
    let marker = parse(store, prefix, &delivery.payload)?;
    let _memory = match &marker.content {
        Content::Manifest(_) => Some(activity.while_waiting(memory.acquire(MANIFEST_FOOTPRINT)).await),
        Content::Objects(_) => None,
    };
    // The server's clock has the last word: a worker whose own one is behind would refuse what is generated today.
    let now = common::clock::now().max(delivery.stored_at);
    checked(store, prefix, marker, &delivery.subject, delivery.options.clone(), now).await
}

/// By how much this machine's clock is behind a time by the server's, if that is too much.
pub(crate) fn is_behind(server_time: Timestamp) -> Option<SignedDuration> {
    let behind = server_time.duration_since(common::clock::now());
    (behind > CLOCK_BEHIND_MAX).then_some(behind)
}

/// Reads and checks a marker that came on this subject.
pub(crate) async fn read(
    store: &ObjectStore,
    prefix: &Prefix,
    subject: &str,
    payload: &[u8],
    options: ReplayOptions,
) -> Result<Job, WorkError> {
    let marker = parse(store, prefix, payload)?;
    checked(store, prefix, marker, subject, options, common::clock::now()).await
}

/// A marker of the bucket and prefix that this worker is configured with.
fn parse(store: &ObjectStore, prefix: &Prefix, payload: &[u8]) -> Result<Marker, WorkError> {
    let marker = Marker::parse(payload)?;
    match marker.elsewhere(store.bucket(), prefix) {
        Some(elsewhere) => Err(elsewhere.into()),
        None => Ok(marker),
    }
}

async fn checked(
    store: &ObjectStore,
    prefix: &Prefix,
    mut marker: Marker,
    subject: &str,
    options: ReplayOptions,
    now: Timestamp,
) -> Result<Job, WorkError> {
    let wrong_subject =
        |marker: &Marker| MarkerError::Subject { marker: marker.unit.to_string(), subject: shorten(subject) };
    match MarkerSubject::parse(subject) {
        Ok(parsed) if parsed.unit == marker.unit => {}
        Ok(_) | Err(_) => return Err(wrong_subject(&marker).into()),
    }
    if let Content::Manifest(reference) = &marker.content {
        let key = prefix.manifest_key(&marker.unit, &marker.revision);
        let wrong = |why: &str| MarkerError::Manifest { key: shorten(&reference.key), why: why.to_owned() };
        if reference.key != key {
            return Err(wrong("its key is not that of this unit and revision").into());
        }
        let json = manifest(store, &key, reference.sha256).await?;
        let manifest = Marker::parse(&json)?;
        if manifest.unit != marker.unit || manifest.revision != marker.revision {
            return Err(wrong("it is of another unit or revision").into());
        }
        let dates = reference.dates.clone();
        marker.content = manifest.content;
        if let Content::Objects(objects) = &mut marker.content {
            dates.apply(objects);
        }
    }
    let mut objects = marker.checked_objects(prefix, now)?.to_vec();
    if !options.symbols.is_empty() {
        objects.retain(|object| options.symbols.contains(&object.symbol));
    }
    objects.sort_by(|a, b| a.symbol.cmp(&b.symbol));
    Ok(Job {
        unit: marker.unit,
        marker_id: marker.id,
        revision: marker.revision,
        objects,
        options,
        published_at: marker.published_at,
        tried_before: false,
        writes: Writes::default(),
    })
}

async fn manifest(store: &ObjectStore, key: &str, sha256: Sha256Sum) -> Result<Bytes, WorkError> {
    let faulty = |fault| WorkError::Manifest(FaultyObject { key: key.to_owned(), fault });
    match store.manifest_bytes(key).await? {
        None => Err(faulty(ObjectFault::Missing)),
        Some(json) if Sha256Sum::of(&json) != sha256 => {
            Err(faulty(ObjectFault::Differs(format!("sha256 {}", Sha256Sum::of(&json)))))
        }
        Some(json) => Ok(json),
    }
}

/// Whether the stream holds a later announcement of the unit, which has a delivery of its own.
///
/// `current.json` alone cannot tell: it may be rolled back with the bucket, or come from a cache, or be ahead of the stream.
/// See also [`crate::fetch::fetcher::Fetcher::is_replaced`].
pub(crate) async fn is_superseded(
    bus: &Bus,
    delivery: &Delivery,
    unit: &Unit,
    published_at: Option<Timestamp>,
) -> Result<bool, BusError> {
    let newest = bus.newest_announcement_of(unit).await?;
    let replayed = MarkerSubject::parse(&delivery.subject).is_ok_and(|subject| subject.lane == Lane::Replay);
    let this = if replayed { Announced::Again(published_at) } else { Announced::At(delivery.stream_sequence) };
    Ok(newest.is_some_and(|newest| this.is_before(&newest)))
}

/// Where on the stream a marker was announced.
#[derive(Debug, Clone, Copy)]
enum Announced {
    At(u64),
    /// It is a replay: its place says nothing. When it was published.
    Again(Option<Timestamp>),
}

impl Announced {
    fn is_before(self, newest: &Announcement) -> bool {
        match self {
            Self::At(sequence) => newest.sequence > sequence,
            Self::Again(published_at) => {
                let newest = newest.marker.as_ref().map(|marker| marker.published_at);
                published_at.zip(newest).is_some_and(|(this, newest)| newest > this)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_is_superseded_by_what_was_announced_after_it() {
        let at = |text: &str| text.parse::<Timestamp>().expect("a time");
        let newest = |sequence, published_at: &str| {
            let unit = "binance/um/klines/1h/2026-02-14".parse().expect("a unit");
            let marker = Marker::new(unit, "archive".into(), vec![], at(published_at), "host".into());
            Announcement { sequence, marker: Some(marker) }
        };
        let check = |this: Announced, newest: &Announcement, expected| assert_eq!(this.is_before(newest), expected);
        check(Announced::At(7), &newest(7, "2026-02-15T02:00:00Z"), false);
        // The uploader's clock may have gone back between the two; the stream's order stands.
        check(Announced::At(7), &newest(9, "2026-02-01T00:00:00Z"), true);
        check(Announced::At(7), &newest(3, "2026-02-28T00:00:00Z"), false);
        check(Announced::At(7), &Announcement { sequence: 9, marker: None }, true);
        let replay = |text: &str| Announced::Again(Some(at(text)));
        check(replay("2026-02-15T02:00:00Z"), &newest(3, "2026-02-16T00:00:00Z"), true);
        check(replay("2026-02-15T02:00:00Z"), &newest(3, "2026-02-15T02:00:00Z"), false);
        check(replay("2026-02-15T02:00:00Z"), &newest(3, "2026-02-14T00:00:00Z"), false);
        check(Announced::Again(None), &newest(3, "2026-02-14T00:00:00Z"), false);
    }
}
