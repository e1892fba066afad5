//! What of a unit is published: what the stream says and what the bucket says.

use std::collections::HashSet;

use common::checksum::Sha256Sum;
use common::marker::{Content, Current, Dates, Marker, Object, revision};
use common::text::shorten;
use common::unit::Unit;
use jiff::Timestamp;
use nats::Latest;
use store::Stored;

use crate::contents::digest::Digested;
use crate::contents::unit_plan::{OlderArchive, merged, plan};
use crate::error::UnitError;
use crate::site::context::Site;
use store::{CurrentFile, ManifestFile};

/// Whether the stream's newest marker says of the unit all there is to say; answered without the bucket.
///
/// `None`: it does not, or that cannot be known without the bucket.
pub(crate) fn covers(site: &Site, latest: &Latest, local: &[Digested]) -> Option<Covered> {
    let marker = latest.marker.as_ref().filter(|marker| marker.bucket == site.store.bucket())?;
    match &marker.content {
        Content::Objects(_) => {
            let published = marker.checked_objects(&site.prefix, common::clock::now()).ok()?;
            let here = local.iter().map(|archive| archive.local_object(site)).collect();
            let plan = plan(published, here, site.rollback_at(&marker.unit));
            let needs_nothing = !plan.redated
                && revision(&plan.objects) == marker.revision
                && names_all_of(&plan.objects, other_lane(site, latest));
            needs_nothing.then_some(Covered { objects: Some(plan.objects), older: plan.older })
        }
        // The list is in the bucket, but without an archive on disk nothing can be new.
        Content::Manifest(_) if local.is_empty() => Some(Covered { objects: None, older: Vec::new() }),
        // The archives may be those of the revision, and only the list says whether they are dated as they should be.
        Content::Manifest(_) => None,
    }
}

/// A unit that needs nothing.
#[derive(Debug)]
pub(crate) struct Covered {
    /// `None`: they are in the manifest. No archive is on disk, so there was no need to read it.
    pub(crate) objects: Option<Vec<Object>>,
    pub(crate) older: Vec<OlderArchive>,
}

/// The objects of the marker on the unit's other subject, where it lists them.
fn other_lane<'l>(site: &Site, latest: &'l Latest) -> &'l [Object] {
    let other = latest.other_lane.as_ref().filter(|other| other.bucket == site.store.bucket());
    other.and_then(|other| other.checked_objects(&site.prefix, common::clock::now()).ok()).unwrap_or_default()
}

fn names_all_of(objects: &[Object], others: &[Object]) -> bool {
    let keys: HashSet<&str> = objects.iter().map(|object| object.key.as_str()).collect();
    others.iter().all(|object| keys.contains(object.key.as_str()))
}

/// What is published of a unit, read from stream and bucket.
#[derive(Debug, Default)]
pub(crate) struct Previous {
    /// All objects that any of the two names.
    pub(crate) objects: Vec<Object>,
    /// The revision that `current.json` names.
    pub(crate) current: Option<Sha256Sum>,
    /// `current.json`, as HEAD showed it before it was read.
    pub(crate) current_stored: Option<Stored>,
    /// When the newest of them was published.
    pub(crate) published_at: Option<Timestamp>,
}

/// Why a unit must not go on: it was announced from another bucket or prefix, and part of it is neither in this one nor on
/// disk, so that its next revision would have less.
pub(crate) fn left_behind(site: &Site, marker: &Marker, previous: &Previous, here: &[Digested]) -> Option<String> {
    let objects = match &marker.content {
        Content::Objects(objects) => objects,
        Content::Manifest(_) => return list_left_behind(site, marker, previous, here),
    };
    let elsewhere = marker.bucket != site.store.bucket()
        || objects.iter().any(|object| site.prefix.archive_path(&object.key).is_err());
    if !elsewhere {
        return None;
    }
    let stored = previous.objects.iter().map(|object| object.symbol.as_str());
    let symbols: HashSet<&str> = here.iter().map(|archive| archive.symbol.as_str()).chain(stored).collect();
    let mut gone = objects.iter().filter(|object| !symbols.contains(object.symbol.as_str()));
    let first = gone.next()?;
    Some(format!(
        "it was announced from another bucket or prefix with {} archives, {} of which are neither here nor in this one, \
         first {} of {}: copy them into this bucket and run `uploader adopt`",
        objects.len(),
        1 + gone.count(),
        shorten(&first.key),
        shorten(&marker.bucket)
    ))
}

/// The same of a list that was too long for the marker and cannot be read from here. The revision tells whether what is here
/// is all that it names: it is a hash over that list.
fn list_left_behind(site: &Site, marker: &Marker, previous: &Previous, here: &[Digested]) -> Option<String> {
    let there = marker.prefix().filter(|there| marker.bucket != site.store.bucket() || *there != site.prefix)?;
    if site.accepted.bucket_is_whole {
        return None;
    }
    let here: Vec<Object> = here.iter().map(|archive| archive.object(site)).collect();
    let mut at_hand = merged(&previous.objects, &here);
    let count = at_hand.len();
    for object in &mut at_hand {
        object.key = there.archive_key(site.prefix.archive_path(&object.key).ok()?);
    }
    (revision(&at_hand) != marker.revision).then(|| {
        format!(
            "it was announced from another bucket or prefix, with a list that lies there, and the {count} archives that are \
             here or in this one are not those: copy them from {} into this bucket and run `uploader adopt`",
            shorten(&marker.bucket)
        )
    })
}

/// What is known of what is published.
pub(crate) enum PublishedUnit {
    All(Previous),
    /// A list of objects that was in the bucket only is gone from there. Nobody knows what it named: what is left may be
    /// less, and so may be what is on disk.
    ListLost {
        why: String,
        left: Previous,
    },
}

/// Reads what is published. `latest` is `None` while the queue is away.
///
/// # Errors
/// The unit is held back where that cannot be known: its next revision could have less than the one before.
pub(crate) async fn read(site: &Site, unit: &Unit, latest: Option<&Latest>) -> Result<Previous, UnitError> {
    match read_published(site, unit, latest).await? {
        PublishedUnit::All(previous) => Ok(previous),
        PublishedUnit::ListLost { why, .. } => Err(UnitError::held_back(why)),
    }
}

/// Reads what is published, as far as it can be read.
pub(crate) async fn read_published(
    site: &Site,
    unit: &Unit,
    latest: Option<&Latest>,
) -> Result<PublishedUnit, UnitError> {
    let marker = latest.and_then(|latest| latest.marker.as_ref());
    let on_stream = match marker {
        Some(marker) => List::announced(site, unit, marker).await?,
        None => List::None,
    };
    let (current, current_stored) = read_current(site, unit).await?.unzip();
    let in_bucket = match &current {
        // The usual case: the manifest would say what the marker says, or is lost for both.
        Some(current)
            if !matches!(on_stream, List::None) && marker.is_some_and(|marker| marker.revision == current.revision) =>
        {
            List::None
        }
        Some(current) => {
            List::stored(site, unit, &current.revision).await?.dated(&current.dates).returned_at(current.published_at)
        }
        None => List::None,
    };
    let published_at = marker.map(|marker| marker.published_at).max(current.as_ref().and_then(|c| c.published_at));
    let current = current.map(|current| current.revision);
    let previous = |objects| Previous { objects, current, current_stored, published_at };
    // Each revision holds what the one before held, so the newer of the two is what both say together. Laying one over
    // the other holds also where a bucket or a stream was restored from an older copy.
    let objects = match (on_stream, in_bucket) {
        (List::None, List::None) => Vec::new(),
        // The stream was restored from an older copy.
        (List::Objects(stream_at, objects), List::Lost(bucket_at, key)) if bucket_at > stream_at => {
            return Ok(PublishedUnit::lost(unit, &key, previous(objects)));
        }
        (List::Objects(_, objects), List::None | List::Lost(..)) | (List::None, List::Objects(_, objects)) => objects,
        (List::Objects(stream_at, stream), List::Objects(bucket_at, bucket)) => {
            if stream_at > bucket_at {
                merged(&bucket, &stream)
            } else {
                merged(&stream, &bucket)
            }
        }
        (List::Lost(stream_at, _), List::Objects(bucket_at, bucket)) if bucket_at > stream_at => bucket,
        (List::Lost(_, key), in_bucket) => return Ok(PublishedUnit::lost(unit, &key, previous(in_bucket.objects()))),
        (List::None, List::Lost(_, key)) => return Ok(PublishedUnit::lost(unit, &key, previous(Vec::new()))),
    };
    let objects = match latest.map(|latest| other_lane(site, latest)) {
        Some(others) if !names_all_of(&objects, others) => merged(others, &objects),
        _ => objects,
    };
    Ok(PublishedUnit::All(previous(objects)))
}

impl PublishedUnit {
    fn lost(unit: &Unit, key: &str, left: Previous) -> Self {
        let Unit { market, interval, period, .. } = unit;
        let why = format!(
            "bucket: {key}, which has the list of what is published, is not there or not whole, and what is on disk may be \
             less than that; `uploader adopt --market {market} --interval {interval} --from {period} --to {period}` makes \
             the list again from the objects in the bucket"
        );
        Self::ListLost { why, left }
    }
}

/// The objects that one side names.
enum List {
    /// It names none, or nothing that is to be believed.
    None,
    /// When they were published.
    Objects(Timestamp, Vec<Object>),
    /// They are in a manifest that is gone; its key.
    Lost(Timestamp, String),
}

impl List {
    /// Those of a marker on the stream.
    async fn announced(site: &Site, unit: &Unit, marker: &Marker) -> Result<Self, UnitError> {
        if let Some(elsewhere) = marker.elsewhere(site.store.bucket(), &site.prefix) {
            tracing::info!(%unit, %elsewhere, "the unit was announced from another place");
            return Ok(Self::None);
        }
        match &marker.content {
            Content::Objects(_) => match marker.checked_objects(&site.prefix, common::clock::now()) {
                Ok(objects) => Ok(Self::Objects(marker.published_at, objects.to_vec())),
                Err(error) => {
                    tracing::warn!(%unit, %error, "the marker on the stream is not a good one, it will be replaced");
                    Ok(Self::None)
                }
            },
            Content::Manifest(reference) => {
                let stored = Self::stored(site, unit, &marker.revision).await?;
                Ok(stored.dated(&reference.dates).returned_at(Some(marker.published_at)))
            }
        }
    }

    /// Those of a manifest in the bucket.
    async fn stored(site: &Site, unit: &Unit, revision: &Sha256Sum) -> Result<Self, UnitError> {
        let manifest = read_manifest(site, unit, revision).await?.map(|(manifest, _)| manifest);
        Ok(match manifest {
            Some(Marker { content: Content::Objects(objects), published_at, .. }) => {
                Self::Objects(published_at, objects)
            }
            Some(_) | None => Self::Lost(Timestamp::MIN, site.prefix.manifest_key(unit, revision)),
        })
    }

    /// The same, published at another time, where that is known.
    fn returned_at(self, published_at: Option<Timestamp>) -> Self {
        match (self, published_at) {
            (Self::Objects(_, objects), Some(at)) => Self::Objects(at, objects),
            (Self::Lost(_, key), Some(at)) => Self::Lost(at, key),
            (list, _) => list,
        }
    }

    /// The same, with times that its manifest does not say.
    fn dated(mut self, dates: &Dates) -> Self {
        if let Self::Objects(_, objects) = &mut self {
            dates.apply(objects);
        }
        self
    }

    fn objects(self) -> Vec<Object> {
        match self {
            Self::Objects(_, objects) => objects,
            Self::None | Self::Lost(..) => Vec::new(),
        }
    }
}

/// With what HEAD says of it: whoever writes it replaces what it has read, and nothing newer.
async fn read_current(site: &Site, unit: &Unit) -> Result<Option<(Current, Stored)>, UnitError> {
    let key = site.prefix.current_key(unit);
    let Some(stored) = site.store.head(&key).await? else { return Ok(None) };
    match site.store.current(&site.prefix, unit).await? {
        CurrentFile::Absent => Ok(None),
        CurrentFile::Read(current) => Ok(Some((current, stored))),
        CurrentFile::Unreadable(error) => Err(UnitError::held_back(format!(
            "bucket: {key} cannot be understood ({error}); delete it to begin anew with what is on the stream and on disk"
        ))),
    }
}

/// A stored manifest and its bytes; `None` when it is not there, or is not that revision of that unit.
pub(crate) async fn read_manifest(
    site: &Site,
    unit: &Unit,
    revision: &Sha256Sum,
) -> Result<Option<(Marker, Vec<u8>)>, UnitError> {
    let why = match site.store.manifest(&site.prefix, unit, revision).await? {
        ManifestFile::Absent => return Ok(None),
        ManifestFile::Faulty { why, .. } => why,
        ManifestFile::Read { json, marker } => match marker.checked_objects(&site.prefix, common::clock::now()) {
            Ok(_) => return Ok(Some((*marker, json.to_vec()))),
            Err(error) => error.to_string(),
        },
    };
    tracing::warn!(object.key = site.prefix.manifest_key(unit, revision), why, "a manifest in the bucket is not whole");
    Ok(None)
}
