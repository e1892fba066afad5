//! What of a unit is published: what the stream says and what the bucket says.

use common::checksum::Sha256Sum;
use common::marker::{Content, Current, MANIFEST_BYTES_MAX, Marker, Object, revision};
use common::unit::{Unit, shorten};
use nats::Latest;

use crate::digest::Digested;
use crate::error::UnitError;
use crate::site::Site;
use crate::unit_plan::overlay;

const CURRENT_BYTES_MAX: u64 = 64 * 1024;

/// Whether the stream's newest marker says of the unit all there is to say; answered without the bucket.
///
/// `None`: it does not, or that cannot be known without the bucket.
pub(crate) fn covers(site: &Site, marker: &Marker, local: &[Digested]) -> Option<Covered> {
    if marker.bucket != site.store.bucket() {
        return None;
    }
    let here: Vec<Object> = local.iter().map(|archive| archive.object(site)).collect();
    match &marker.content {
        Content::Objects(_) => {
            let published = marker.checked_objects(&site.prefix, common::clock::now()).ok()?;
            let next = overlay(published, here);
            (revision(&next) == marker.revision).then_some(Covered::Listed(next))
        }
        // The list is in the bucket, but a full set of archives on disk, or none, needs no list.
        Content::Manifest(_) if here.is_empty() => Some(Covered::Elsewhere),
        Content::Manifest(_) => (revision(&here) == marker.revision).then_some(Covered::Listed(here)),
    }
}

/// The objects of a unit that needs nothing.
#[derive(Debug)]
pub(crate) enum Covered {
    Listed(Vec<Object>),
    /// In the manifest. No archive is on disk, so there was no need to read it.
    Elsewhere,
}

impl Covered {
    pub(crate) fn listed(self) -> Option<Vec<Object>> {
        match self {
            Self::Listed(objects) => Some(objects),
            Self::Elsewhere => None,
        }
    }
}

/// What is published of a unit, read from stream and bucket.
#[derive(Debug, Default)]
pub(crate) struct Previous {
    /// All objects that any of the two names.
    pub(crate) objects: Vec<Object>,
    /// The revision that `current.json` names.
    pub(crate) current: Option<Sha256Sum>,
}

/// Reads what is published. `latest` is `None` while the queue is away.
pub(crate) async fn read(site: &Site, unit: &Unit, latest: Option<&Latest>) -> Result<Previous, UnitError> {
    let marker = latest.and_then(|latest| latest.marker.as_ref());
    let on_stream = match marker {
        Some(marker) => objects_of(site, unit, marker).await?.map(|objects| (marker.published_at, objects)),
        None => None,
    };
    let current = read_current(site, unit).await?;
    let in_bucket = match current {
        None => None,
        // The usual case: the manifest would say what the marker says.
        Some(current) if on_stream.is_some() && marker.is_some_and(|marker| marker.revision == current) => None,
        Some(current) => match read_manifest(site, unit, &current).await? {
            Some((manifest, _)) => {
                let objects = manifest.checked_objects(&site.prefix, common::clock::now());
                objects.ok().map(|objects| (manifest.published_at, objects.to_vec()))
            }
            None if on_stream.is_some() => None,
            None => {
                let (current, key) = (site.prefix.current_key(unit), site.prefix.manifest_key(unit, &current));
                return Err(UnitError::held_back(format!(
                    "bucket: {current} names a revision whose manifest {key} is not there or not whole, so that nobody \
                     knows what was published; restore it, or delete {current} to begin anew with what is on disk"
                )));
            }
        },
    };
    // Each revision holds what the one before held, so the newer of the two is what both say together. Laying one over
    // the other holds also where a bucket or a stream was restored from an older copy.
    let objects = match (on_stream, in_bucket) {
        (None, None) => Vec::new(),
        (Some((_, objects)), None) | (None, Some((_, objects))) => objects,
        (Some((stream_at, stream)), Some((bucket_at, bucket))) => {
            if stream_at > bucket_at {
                overlay(&bucket, stream)
            } else {
                overlay(&stream, bucket)
            }
        }
    };
    Ok(Previous { objects, current })
}

/// The objects of a marker on the stream; `None` if it is not to be believed.
async fn objects_of(site: &Site, unit: &Unit, marker: &Marker) -> Result<Option<Vec<Object>>, UnitError> {
    if marker.bucket != site.store.bucket() {
        tracing::info!(%unit, bucket = shorten(&marker.bucket), "the unit was announced from another bucket");
        return Ok(None);
    }
    let stored;
    let marker = match &marker.content {
        Content::Objects(_) => marker,
        Content::Manifest(_) => match read_manifest(site, unit, &marker.revision).await? {
            Some((manifest, _)) => {
                stored = manifest;
                &stored
            }
            None => {
                tracing::warn!(%unit, revision = %marker.revision, "the manifest of the announced revision is gone");
                return Ok(None);
            }
        },
    };
    match marker.checked_objects(&site.prefix, common::clock::now()) {
        Ok(objects) => Ok(Some(objects.to_vec())),
        Err(error) => {
            tracing::warn!(%unit, %error, "the marker on the stream is not a good one, it will be replaced");
            Ok(None)
        }
    }
}

async fn read_current(site: &Site, unit: &Unit) -> Result<Option<Sha256Sum>, UnitError> {
    let key = site.prefix.current_key(unit);
    let Some(json) = site.store.get_small(&key, CURRENT_BYTES_MAX).await? else { return Ok(None) };
    match serde_json::from_slice::<Current>(&json) {
        Ok(current) => Ok(Some(current.revision)),
        Err(error) => Err(UnitError::held_back(format!(
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
    let key = site.prefix.manifest_key(unit, revision);
    let Some(json) = site.store.get_small(&key, MANIFEST_BYTES_MAX).await? else { return Ok(None) };
    let why = match Marker::parse(&json) {
        Ok(manifest) if manifest.unit != *unit => "it is of another unit".to_owned(),
        Ok(manifest) if manifest.revision != *revision => "it is of another revision".to_owned(),
        Ok(manifest) => match manifest.checked_objects(&site.prefix, common::clock::now()) {
            Ok(_) => return Ok(Some((manifest, json.to_vec()))),
            Err(error) => error.to_string(),
        },
        Err(error) => error.to_string(),
    };
    tracing::warn!(object.key = key, why, "a manifest in the bucket is not whole");
    Ok(None)
}
