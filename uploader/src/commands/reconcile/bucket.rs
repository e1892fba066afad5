//! The bucket's side: which units it has manifests of, and what they say.

use std::collections::BTreeMap;

use common::checksum::Sha256Sum;
use common::marker::{Dates, Marker, Object};
use common::unit::Unit;
use futures::{StreamExt, stream};
use store::Stored;

use crate::bucket::compare::difference;
use crate::error::{PassError, UnitError};
use crate::site::context::Site;
use store::{CurrentFile, ManifestFile};

const CURRENT: &str = "current.json";

/// What the listing shows of a unit.
#[derive(Debug, Clone, Default)]
pub(super) struct Listed {
    current: bool,
    manifests: Vec<Sha256Sum>,
}

impl Listed {
    /// The same, where `current.json` is there by now or gone.
    pub(super) fn with_current(self, current: bool) -> Self {
        Self { current, ..self }
    }
}

/// What the bucket says of a unit.
pub(super) enum InBucket {
    /// No `current.json` that says anything.
    Absent,
    Whole(Box<Manifest>),
    /// Why its newest revision is not known.
    Faulty(String),
}

/// A manifest that was read and checked.
pub(super) struct Manifest {
    pub(super) key: String,
    pub(super) json: Vec<u8>,
    pub(super) marker: Marker,
    /// Whether `current.json` names it.
    pub(super) is_current: bool,
    /// Where `current.json` dates objects otherwise than its manifest; the marker and the objects have these times.
    pub(super) dates: Dates,
    objects: Vec<Object>,
}

impl Manifest {
    pub(super) fn objects(&self) -> &[Object] {
        &self.objects
    }
}

/// An object that is not in the bucket as a marker says.
#[derive(Debug)]
pub(super) struct Lost {
    pub(super) object: Object,
    pub(super) why: String,
    /// What lies in its place: only that is replaced.
    pub(super) stored: Option<Stored>,
}

/// An object of a marker, and what HEAD shows under its key.
pub(super) struct ObjectCheck<'o> {
    pub(super) object: &'o Object,
    pub(super) stored: Option<Stored>,
    /// Why that is not as the marker says.
    pub(super) fault: Option<String>,
}

impl ObjectCheck<'_> {
    pub(super) fn lost(self, why: String) -> Lost {
        Lost { object: self.object.clone(), why, stored: self.stored }
    }
}

/// All units the bucket has manifests of.
pub(super) async fn list(site: &Site) -> Result<BTreeMap<Unit, Listed>, PassError> {
    let mut units: BTreeMap<Unit, Listed> = BTreeMap::new();
    let (prefix, mut next) = (site.prefix.manifests(), None);
    loop {
        let page = site.store.list(&prefix, next).await.map_err(PassError::Bucket)?;
        for key in &page.keys {
            let Some((unit, name)) = site.prefix.manifest_parts(key) else {
                tracing::warn!(object.key = key, "not the key of a manifest");
                continue;
            };
            let listed = units.entry(unit).or_default();
            match name.strip_suffix(".json").map(str::parse) {
                _ if name == CURRENT => listed.current = true,
                Some(Ok(revision)) => listed.manifests.push(revision),
                _ => tracing::warn!(object.key = key, "not the key of a manifest"),
            }
        }
        next = page.next;
        if next.is_none() {
            return Ok(units);
        }
        if site.shutdown.is_cancelled() {
            return Err(PassError::Stopped);
        }
    }
}

/// Reads what `current.json` names. Where there is none and the stream knows nothing either, the newest manifest counts:
/// an uploader that died, or somebody's deletion, left it without a name.
pub(super) async fn read(
    site: &Site,
    unit: &Unit,
    listed: Option<&Listed>,
    announced: bool,
) -> Result<InBucket, UnitError> {
    let Some(listed) = listed else { return Ok(InBucket::Absent) };
    if listed.current {
        return match site.store.current(&site.prefix, unit).await? {
            CurrentFile::Absent => Ok(InBucket::Absent),
            CurrentFile::Read(current) => {
                let mut found = manifest(site, unit, &current.revision, true).await?;
                if let InBucket::Whole(manifest) = &mut found {
                    current.dates.apply(&mut manifest.objects);
                    manifest.marker = current.applied_to(manifest.marker.clone());
                    manifest.dates = current.dates;
                }
                Ok(found)
            }
            CurrentFile::Unreadable(error) => {
                let key = site.prefix.current_key(unit);
                Ok(InBucket::Faulty(format!("{key} cannot be understood: {error}")))
            }
        };
    }
    if announced {
        return Ok(InBucket::Absent);
    }
    let mut newest: Option<Box<Manifest>> = None;
    for revision in &listed.manifests {
        if let InBucket::Whole(found) = manifest(site, unit, revision, false).await?
            && newest.as_ref().is_none_or(|newest| newest.marker.published_at < found.marker.published_at)
        {
            newest = Some(found);
        }
    }
    Ok(newest.map_or_else(
        || InBucket::Faulty("there is no current.json, and no manifest that can be read".into()),
        InBucket::Whole,
    ))
}

/// A manifest by its revision, checked as a worker would.
pub(super) async fn manifest(
    site: &Site,
    unit: &Unit,
    revision: &Sha256Sum,
    is_current: bool,
) -> Result<InBucket, UnitError> {
    let key = site.prefix.manifest_key(unit, revision);
    let faulty = |why: &dyn std::fmt::Display| Ok(InBucket::Faulty(format!("manifest {key} is not whole: {why}")));
    let (json, marker) = match site.store.manifest(&site.prefix, unit, revision).await? {
        ManifestFile::Absent => return Ok(InBucket::Faulty(format!("manifest {key} is not in the bucket"))),
        ManifestFile::Faulty { why, .. } => return faulty(&why),
        ManifestFile::Read { json, marker } => (json, *marker),
    };
    let objects = match marker.checked_objects(&site.prefix, common::clock::now()) {
        Ok(objects) => objects.to_vec(),
        Err(error) => return faulty(&error),
    };
    Ok(InBucket::Whole(Box::new(Manifest {
        key,
        json: json.to_vec(),
        marker,
        is_current,
        dates: Dates::default(),
        objects,
    })))
}

/// The revision that `current.json` names now; `None` also where it cannot be understood.
pub(super) async fn current_revision(site: &Site, unit: &Unit) -> Result<Option<Sha256Sum>, UnitError> {
    Ok(site.store.current(&site.prefix, unit).await?.readable().map(|current| current.revision))
}

/// The objects that the bucket does not have as the marker says, by its own metadata.
pub(super) async fn faulty_objects(site: &Site, objects: &[Object]) -> Result<Vec<Lost>, UnitError> {
    let faulty = |mut checked: ObjectCheck<'_>| checked.fault.take().map(|why| checked.lost(why));
    Ok(check_objects(site, objects).await?.into_iter().filter_map(faulty).collect())
}

/// Asks for every object, in the order given.
pub(super) async fn check_objects<'o>(site: &Site, objects: &'o [Object]) -> Result<Vec<ObjectCheck<'o>>, UnitError> {
    let mut all = Vec::with_capacity(objects.len());
    let mut heads = stream::iter(objects)
        .map(async |object| {
            let _place = site.transfer().await?;
            let stored = site.store.head(&object.key).await?;
            let fault = match &stored {
                None => Some("it is not in the bucket".to_owned()),
                Some(stored) => difference(stored, object, None),
            };
            Ok::<_, UnitError>(ObjectCheck { object, stored, fault })
        })
        .buffered(site.transfers_max);
    while let Some(checked) = heads.next().await {
        all.push(checked?);
    }
    Ok(all)
}
