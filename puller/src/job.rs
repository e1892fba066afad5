//! A delivery becomes a job: the marker read, checked, and its list of objects at hand.

use bytes::Bytes;
use common::checksum::Sha256Sum;
use common::marker::{Content, Current, MANIFEST_BYTES_MAX, Marker, MarkerError, Object};
use common::object_key::Prefix;
use common::object_store::{ObjectStore, StoreError};
use common::unit::{Unit, shorten};
use nats::{Delivery, MarkerSubject, ReplayOptions};

use crate::error::{FaultyObject, ObjectFault, WorkError};

/// A unit to bring to a destination.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub unit: Unit,
    pub marker_id: String,
    pub revision: Sha256Sum,
    /// In the order of their symbols, which is that of the table.
    pub objects: Vec<Object>,
    pub options: ReplayOptions,
}

/// Reads and checks what a delivery carries; fetches the manifest where the marker only refers to it.
pub(crate) async fn resolve(store: &ObjectStore, prefix: &Prefix, delivery: &Delivery) -> Result<Job, WorkError> {
    read(store, prefix, &delivery.subject, &delivery.payload, delivery.options.clone()).await
}

/// Reads and checks a marker that came on this subject.
pub(crate) async fn read(
    store: &ObjectStore,
    prefix: &Prefix,
    subject: &str,
    payload: &[u8],
    options: ReplayOptions,
) -> Result<Job, WorkError> {
    let mut marker = Marker::parse(payload)?;
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
    let mut objects = marker.checked_objects(prefix, common::clock::now())?.to_vec();
    if !options.symbols.is_empty() {
        objects.retain(|object| options.symbols.contains(&object.symbol));
    }
    objects.sort_by(|a, b| a.symbol.cmp(&b.symbol));
    Ok(Job { unit: marker.unit, marker_id: marker.id, revision: marker.revision, objects, options })
}

async fn manifest(store: &ObjectStore, key: &str, sha256: Sha256Sum) -> Result<Bytes, WorkError> {
    let faulty = |fault| WorkError::Manifest(FaultyObject { key: key.to_owned(), fault });
    match store.get_small(key, MANIFEST_BYTES_MAX).await? {
        None => Err(faulty(ObjectFault::Missing)),
        Some(json) if Sha256Sum::of(&json) != sha256 => {
            Err(faulty(ObjectFault::Differs(format!("sha256 {}", Sha256Sum::of(&json)))))
        }
        Some(json) => Ok(json),
    }
}

/// Whether the bucket names another revision of the unit as its newest.
pub(crate) async fn is_superseded(store: &ObjectStore, prefix: &Prefix, job: &Job) -> Result<bool, StoreError> {
    let Some(json) = store.get_small(&prefix.current_key(&job.unit), 64 * 1024).await? else { return Ok(false) };
    match serde_json::from_slice::<Current>(&json) {
        Ok(current) => Ok(current.revision != job.revision),
        Err(error) => {
            tracing::warn!(unit = %job.unit, %error, "current.json is not understood");
            Ok(false)
        }
    }
}
