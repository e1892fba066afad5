//! Every object of a revision into the bucket, and read back from it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use common::checksum::Sha256Sum;
use common::marker::Object;
use futures::{StreamExt, stream};
use store::{Over, Put};
use tokio::sync::SemaphorePermit;

use crate::announced::basis::Basis;
use crate::bucket::compare::difference;
use crate::bucket::{foreign, multipart};
use crate::contents::digest::Digested;
use crate::error::UnitError;
use crate::local::check::Checked;
use crate::site::context::{Site, blocking};

/// So many bytes are hashed in less time than it takes to hand them to another thread and back.
const HASHED_HERE_BYTES_MAX: usize = 32 << 10;

/// What was done for one unit.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Transferred {
    pub(crate) uploaded: u64,
    pub(crate) present: u64,
    /// Of the uploaded.
    pub(crate) bytes: u64,
}

impl Transferred {
    pub(crate) fn add(&mut self, other: Self) {
        self.uploaded += other.uploaded;
        self.present += other.present;
        self.bytes += other.bytes;
    }
}

/// Stores the objects that the bucket lacks, and makes sure of each that the bucket's own metadata says what the marker
/// is going to say.
///
/// # Errors
/// The unit is held back if one object is not stored as it must be; all that are not are named. It is overtaken if another
/// uploader has stored one of them and announced the unit since `basis`.
pub(crate) async fn store(
    site: &Site,
    objects: &[Object],
    local: &[Digested],
    basis: &Basis<'_>,
) -> Result<Transferred, UnitError> {
    let on_disk: HashMap<&str, &Digested> = local.iter().map(|archive| (archive.path.as_str(), archive)).collect();
    let mut transferred = Transferred::default();
    let mut faults = Vec::new();
    let heads = HeadRequests::default();
    let mut results = stream::iter(objects)
        .map(|object| {
            let archive = site.prefix.archive_path(&object.key).ok().and_then(|path| on_disk.get(path).copied());
            // One with other bytes is an older publication, and tells nothing about the object.
            let archive = archive.filter(|archive| archive.sha256() == object.sha256);
            one(site, object, archive, basis, &heads)
        })
        .buffer_unordered(site.transfers_max);
    while let Some(result) = results.next().await {
        match result {
            Ok(Some(bytes)) => {
                transferred.uploaded += 1;
                transferred.bytes += bytes;
            }
            Ok(None) => transferred.present += 1,
            Err(UnitError::HeldBack(reasons)) => {
                site.metrics.object_failed();
                faults.extend(reasons);
            }
            Err(error @ (UnitError::Pass(_) | UnitError::Overtaken(_))) => return Err(error),
        }
    }
    drop(results);
    if !faults.is_empty() {
        return Err(UnitError::HeldBack(faults));
    }
    Ok(transferred)
}

/// The bytes that [`store`](fn@store) would send.
pub(crate) async fn missing_bytes(site: &Site, objects: &[Object], local: &[Digested]) -> Result<Missing, UnitError> {
    let on_disk: HashMap<String, &Digested> =
        local.iter().map(|archive| (site.prefix.archive_key(&archive.path), archive)).collect();
    let mut missing = Missing::default();
    let mut results = stream::iter(objects)
        .map(async |object| {
            let _place = site.transfer().await?;
            let archive = on_disk.get(&object.key).copied().filter(|archive| archive.sha256() == object.sha256);
            let good = match (site.store.head(&object.key).await?, archive) {
                (None, _) => false,
                (Some(stored), _) if difference(&stored, object, archive.map(|archive| &archive.checked)).is_none() => {
                    true
                }
                (Some(stored), Some(archive)) => foreign::is_same(site, object, archive, &stored).await?,
                (Some(_), None) => false,
            };
            Ok::<_, UnitError>((object, archive.is_some(), good))
        })
        .buffer_unordered(site.transfers_max);
    while let Some(result) = results.next().await {
        match result? {
            (_, _, true) => {}
            (object, true, false) => {
                missing.archives += 1;
                missing.bytes += object.size;
            }
            (object, false, false) => missing.lost.push(lost(object)),
        }
    }
    Ok(missing)
}

/// What the bucket lacks of a revision.
#[derive(Debug, Default)]
pub(crate) struct Missing {
    pub(crate) archives: u64,
    pub(crate) bytes: u64,
    /// Objects that are not on disk either: one line each.
    pub(crate) lost: Vec<String>,
}

/// What was found of a unit's objects in the bucket.
///
/// A unit of which nothing lies there where one looks first has nothing there, most likely; then asking for each object
/// before it is sent is a request too many. A run that was killed leaves the first objects, of which at least one is among
/// as many as are sent at once; another program may leave any. So objects are sent unasked until one is found: at most
/// those under way at that moment were sent in vain.
#[derive(Default)]
struct HeadRequests {
    absent: AtomicUsize,
    present: AtomicBool,
}

impl HeadRequests {
    fn checked(&self, present: bool) {
        if present {
            self.present.store(true, Ordering::Relaxed);
        } else {
            self.absent.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn nothing_is_there(&self, checks_min: usize) -> bool {
        !self.present.load(Ordering::Relaxed) && self.absent.load(Ordering::Relaxed) >= checks_min
    }
}

/// Returns the bytes sent; `None` when the bucket had the object. `archive` has the object's content, where it is here.
async fn one(
    site: &Site,
    object: &Object,
    archive: Option<&Digested>,
    basis: &Basis<'_>,
    heads: &HeadRequests,
) -> Result<Option<u64>, UnitError> {
    let place = site.transfer().await?;
    let key = &object.key;
    let checked = archive.map(|archive| &archive.checked);
    if let Some(archive) = archive
        && heads.nothing_is_there(site.transfers_max)
        && !is_sent_otherwise(site, archive)
    {
        let (bytes, memory) = checked_bytes(site, object, &archive.path).await?;
        site.progress.begin_sending();
        let is_stored = site.store.put_new(key, bytes, object.sha256).await;
        drop(memory);
        if is_stored {
            site.progress.sent(object.size);
            return read_back(site, object, checked, object.size).await.map(Some);
        }
        // Whatever the reason: from here on it is asked first.
        heads.checked(true);
    }
    let stored = site.store.head(&object.key).await?;
    heads.checked(stored.is_some());
    if stored.as_ref().is_some_and(|stored| difference(stored, object, checked).is_none()) {
        site.metrics.object_present();
        if archive.is_some() {
            site.progress.present(object.size);
        }
        return Ok(None);
    }
    if let (Some(stored), Some(archive)) = (&stored, archive)
        && foreign::recognise(site, object, archive, stored).await?
    {
        site.metrics.object_present();
        return Ok(None);
    }
    if let Some(stored) = &stored
        && !basis.may_replace(site, object, stored).await?
    {
        return Err(UnitError::replaced(key));
    }
    let Some(archive) = archive else {
        return Err(UnitError::held_back(lost(object)));
    };
    let over = Over::seen(stored.as_ref());
    let sent = send(site, place, object, &archive.path, archive.checked.parts_etag.as_deref(), over).await?;
    let _place = site.transfer().await?;
    match sent {
        Some(sent) => read_back(site, object, checked, sent).await.map(Some),
        None if is_stored(site, object, &archive.checked).await? => {
            site.metrics.object_uploaded(object.size);
            Ok(Some(object.size))
        }
        None => Err(UnitError::replaced(key)),
    }
}

/// Returns the bytes sent, if the bucket's own metadata say of the object what the marker is going to say.
async fn read_back(site: &Site, object: &Object, checked: Option<&Checked>, sent: u64) -> Result<u64, UnitError> {
    common::failpoint::failpoint("uploader.object_put");
    let key = &object.key;
    let stored = site.store.head(key).await?;
    match stored.map_or_else(|| Some("it is not there".to_owned()), |stored| difference(&stored, object, checked)) {
        None => {
            site.metrics.object_uploaded(sent);
            Ok(sent)
        }
        Some(difference) => {
            Err(UnitError::held_back(format!("bucket: {key} was stored and does not read back as sent: {difference}")))
        }
    }
}

/// Stores what lies at `path` below `data_dir`, if that is the object, over what HEAD showed; returns the bytes it took.
/// `None`: something else lies there by now, which may be the object itself.
///
/// `parts_etag` is that of the bytes whose sha256 is the object's, where they are too many for a single PUT.
pub(crate) async fn send(
    site: &Site,
    place: SemaphorePermit<'_>,
    object: &Object,
    path: &str,
    parts_etag: Option<&str>,
    over: Over<'_>,
) -> Result<Option<u64>, UnitError> {
    site.progress.begin_sending();
    if site.store.copies_files() {
        let put = site.store.put_file(&object.key, &site.data_dir.join(path), object.sha256, over).await?;
        return sent(site, object, put);
    }
    if let Some(parts_etag) = parts_etag {
        // Its parts have places of their own.
        drop(place);
        return multipart::send(site, object, path, parts_etag, over).await;
    }
    let (bytes, _memory) = checked_bytes(site, object, path).await?;
    let put = site.store.put_over(&object.key, bytes, object.sha256, over).await?;
    sent(site, object, put)
}

fn sent(site: &Site, object: &Object, put: Put) -> Result<Option<u64>, UnitError> {
    match put {
        Put::Done => {
            site.progress.sent(object.size);
            Ok(Some(object.size))
        }
        Put::Changed => Ok(None),
        Put::OtherBytes => Err(changed(object)),
    }
}

/// Whether [`send`] does it by more or other requests than a single PUT.
fn is_sent_otherwise(site: &Site, archive: &Digested) -> bool {
    site.store.copies_files() || archive.checked.parts_etag.is_some()
}

/// What lies at `path`, and the memory for it. These bytes are the ones that were checked: whatever happened to the file
/// since, nothing else is stored.
async fn checked_bytes<'s>(
    site: &'s Site,
    object: &Object,
    path: &str,
) -> Result<(Bytes, SemaphorePermit<'s>), UnitError> {
    let memory = site.memory(object.size).await?;
    let read = site.read(path).await;
    let bytes = read.map_err(|fault| UnitError::held_back(format!("{} {fault}", object.key)))?;
    let sha256 = if bytes.len() <= HASHED_HERE_BYTES_MAX {
        Sha256Sum::of(&bytes)
    } else {
        let bytes = bytes.clone();
        blocking(move || Sha256Sum::of(&bytes)).await
    };
    if sha256 == object.sha256 { Ok((bytes, memory)) } else { Err(changed(object)) }
}

fn changed(object: &Object) -> UnitError {
    UnitError::held_back(format!("{} changed after it was checked; the next run takes it as it is then", object.key))
}

/// Whether the bucket holds this object with these bytes.
pub(crate) async fn is_stored(site: &Site, object: &Object, checked: &Checked) -> Result<bool, UnitError> {
    let stored = site.store.head(&object.key).await?;
    Ok(stored.is_some_and(|stored| difference(&stored, object, Some(checked)).is_none()))
}

fn lost(object: &Object) -> String {
    let key = &object.key;
    format!(
        "bucket: {key} was published, is not on disk, and is no longer in the bucket with {} bytes and sha256 {}; put \
         the archive back into data_dir",
        object.size, object.sha256
    )
}
