//! An archive too large for a single PUT, part by part.
//!
//! Parts that arrived stay in the bucket when the process dies. The next run asks which are there and sends the others;
//! [`crate::state::pending`] knows under which id. What is put together in the end is what was checked: its parts have the sums
//! that were taken then, or the upload is aborted.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::checksum::{Md5Sum, parts_etag};
use common::failpoint::failpoint;
use common::files::regular_file;
use common::marker::Object;
use futures::{StreamExt, stream};
use jiff::SignedDuration;
use store::parts::{PartStored, UploadId, part_bytes};
use store::{Over, Put, StoreError, StoreErrorKind};

use crate::error::{PassError, UnitError};
use crate::local::scan::Fingerprint;
use crate::site::context::{Site, blocking};
use crate::state::pending::PendingUpload;

/// Parts that nobody has added to for so long are taken out of the bucket.
const STALE_AFTER: SignedDuration = SignedDuration::from_hours(48);
/// How long an object is waited for that an earlier run asked the bucket to put together.
const COMPLETION_CHECKS: u32 = 10;
const COMPLETING_PAUSE: Duration = Duration::from_millis(500);

/// Why an upload went no further.
enum Failed {
    /// The bucket does not want more of it; it may know nothing of it any more.
    Refused(StoreError),
    /// The object is not the one that was to be replaced, nor what is being sent. The parts stay.
    Changed,
    Unit(UnitError),
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        match error.kind {
            StoreErrorKind::Unavailable | StoreErrorKind::ClockSkew | StoreErrorKind::NoSuchBucket => {
                Self::Unit(error.into())
            }
            // Of an upload that is gone, some servers say that access is denied.
            StoreErrorKind::NotFound
            | StoreErrorKind::Denied
            | StoreErrorKind::TooLarge
            | StoreErrorKind::BadKey
            | StoreErrorKind::Other => Self::Refused(error),
        }
    }
}

impl From<PassError> for Failed {
    fn from(error: PassError) -> Self {
        Self::Unit(error.into())
    }
}

/// Stores what lies at `path` over what HEAD showed, going on where an earlier run was cut short; returns the bytes it took.
/// `None`: another object lies there by now.
///
/// `parts_etag` is that of the bytes whose sha256 is the object's.
pub(crate) async fn send(
    site: &Site,
    object: &Object,
    path: &str,
    parts_etag: &str,
    over: Over<'_>,
) -> Result<Option<u64>, UnitError> {
    let file = site.data_dir.join(path);
    let opened = blocking(move || -> io::Result<_> {
        let file = regular_file::open(&file)?;
        let fingerprint = Fingerprint::of(&file.metadata()?);
        Ok(Source { file, fingerprint })
    });
    let source =
        opened.await.map_err(|error| UnitError::held_back(format!("{} cannot be read: {error}", object.key)))?;
    if source.fingerprint.size != object.size {
        return Err(changed(object));
    }
    let mut sending = Sending { site, object, source: Arc::new(source), parts_etag, over, sent: 0 };
    if let Some(entry) = sending.earlier().await? {
        match sending.go_on(entry).await {
            Ok(()) => return Ok(Some(sending.sent)),
            Err(Failed::Changed) => return Ok(None),
            Err(Failed::Unit(error)) => return Err(error),
            Err(Failed::Refused(error)) => {
                tracing::info!(key = object.key, %error, "an upload cannot be gone on with and begins anew");
            }
        }
    }
    let entry = sending.begin().await?;
    match sending.all_parts(entry, &HashMap::new()).await {
        Ok(()) => Ok(Some(sending.sent)),
        Err(Failed::Changed) => Ok(None),
        Err(Failed::Unit(error)) => Err(error),
        Err(Failed::Refused(error)) => Err(error.into()),
    }
}

fn changed(object: &Object) -> UnitError {
    UnitError::held_back(format!("{} changed after it was checked; the next run takes it as it is then", object.key))
}

struct Sending<'s> {
    site: &'s Site,
    object: &'s Object,
    source: Arc<Source>,
    parts_etag: &'s str,
    over: Over<'s>,
    /// Bytes that went out.
    sent: u64,
}

struct Source {
    file: File,
    fingerprint: Fingerprint,
}

impl Sending<'_> {
    fn part_bytes(&self) -> u64 {
        part_bytes(self.object.size)
    }

    fn parts(&self) -> u64 {
        self.object.size.div_ceil(self.part_bytes())
    }

    /// The upload of these very bytes that an earlier run began. One of other bytes is aborted.
    async fn earlier(&self) -> Result<Option<PendingUpload>, UnitError> {
        let (site, object) = (self.site, self.object);
        let (pending, key) = (site.pending.clone(), object.key.clone());
        let Some(entry) = blocking(move || pending.find(&key)).await else { return Ok(None) };
        if (entry.sha256, entry.size, entry.part_bytes) == (object.sha256, object.size, self.part_bytes()) {
            return Ok(Some(entry));
        }
        tracing::info!(key = object.key, "changed since its upload began; what was sent of it is dropped");
        abort(site, &entry.upload()).await?;
        Ok(None)
    }

    async fn begin(&self) -> Result<PendingUpload, UnitError> {
        let (site, object) = (self.site, self.object);
        let upload = {
            let _place = site.transfer().await?;
            site.store.begin_parts(&object.key, object.sha256).await?
        };
        let entry = PendingUpload {
            key: upload.key,
            upload_id: upload.id,
            sha256: object.sha256,
            size: object.size,
            part_bytes: self.part_bytes(),
            completing: false,
            touched_at: common::clock::now(),
        };
        remember(site, &entry).await;
        Ok(entry)
    }

    async fn go_on(&mut self, entry: PendingUpload) -> Result<(), Failed> {
        let listed = {
            let _place = self.site.transfer().await?;
            self.site.store.stored_parts(&entry.upload()).await
        };
        if entry.completing && !listed.as_ref().is_ok_and(|parts| parts.len() as u64 == self.parts()) {
            // The bucket may be at it still.
            for _ in 0..COMPLETION_CHECKS {
                if self.is_whole().await? {
                    forget(self.site, &entry.key).await;
                    return Ok(());
                }
                tokio::time::sleep(COMPLETING_PAUSE).await;
            }
        }
        let stored: HashMap<u32, PartStored> = listed?.into_iter().map(|part| (part.number, part)).collect();
        tracing::info!(key = entry.key, parts = self.parts(), stored = stored.len(), "going on with an upload");
        self.all_parts(entry, &stored).await
    }

    /// Sends the parts that are not stored, and has the bucket put all of them together.
    async fn all_parts(&mut self, mut entry: PendingUpload, stored: &HashMap<u32, PartStored>) -> Result<(), Failed> {
        let (site, object) = (self.site, self.object);
        let upload = entry.upload();
        let mut done: Vec<Option<(Md5Sum, String)>> = vec![None; usize::try_from(self.parts()).unwrap_or_default()];
        let numbers = (1..).take(done.len());
        let this = &*self;
        let mut parts = stream::iter(numbers)
            .map(|number| this.part(&upload, number, stored.get(&number)))
            .buffer_unordered(site.transfers_max);
        let mut sent = 0;
        while let Some(part) = parts.next().await {
            let UploadPart { number, md5, etag, bytes_sent } = match part {
                Ok(part) => part,
                Err(failed) => {
                    drop(parts);
                    self.sent += sent;
                    return Err(failed);
                }
            };
            done[number as usize - 1] = Some((md5, etag));
            sent += bytes_sent;
            if bytes_sent > 0 {
                failpoint("uploader.part_put");
                entry.touched_at = common::clock::now();
                remember(site, &entry).await;
            }
        }
        drop(parts);
        self.sent += sent;
        let (md5s, etags): (Vec<Md5Sum>, Vec<String>) = done.into_iter().flatten().unzip();
        if parts_etag(&md5s) != self.parts_etag {
            abort(site, &upload).await.map_err(Failed::Unit)?;
            forget(site, &entry.key).await;
            return Err(Failed::Unit(changed(object)));
        }
        entry.completing = true;
        remember(site, &entry).await;
        let completed = {
            let _place = site.transfer().await?;
            site.store.complete_parts(&upload, &etags, self.over).await
        };
        failpoint("uploader.parts_completed");
        // An answer may be lost; asking again finds no such upload.
        let failed = match completed {
            Ok(Put::Done | Put::OtherBytes) => None,
            Ok(Put::Changed) => Some(Failed::Changed),
            Err(error) => Some(error.into()),
        };
        if let Some(failed) = failed
            && !self.is_whole().await?
        {
            return Err(failed);
        }
        forget(site, &entry.key).await;
        Ok(())
    }

    /// Stores a part, unless it is there.
    async fn part(&self, upload: &UploadId, number: u32, stored: Option<&PartStored>) -> Result<UploadPart, Failed> {
        let site = self.site;
        let offset = u64::from(number - 1) * self.part_bytes();
        let size = self.part_bytes().min(self.object.size - offset);
        if let Some(stored) = stored.filter(|stored| stored.size == size) {
            let _memory = site.memory(size).await?;
            let (_, md5) = self.read(offset, size).await?;
            // Where the server does not tell, the ETag of the whole will.
            if stored.md5.is_none_or(|stored| stored == md5) {
                site.progress.present(size);
                let etag = etag_or_md5(&stored.etag, md5);
                return Ok(UploadPart { number, md5, etag, bytes_sent: 0 });
            }
        }
        // First the place, then the memory, as everywhere: the other order could leave each waiting for the other.
        let _place = site.transfer().await?;
        let _memory = site.memory(size).await?;
        let (bytes, md5) = self.read(offset, size).await?;
        let etag = etag_or_md5(&site.store.put_part(upload, number, bytes).await?, md5);
        site.progress.sent(size);
        Ok(UploadPart { number, md5, etag, bytes_sent: size })
    }

    async fn read(&self, offset: u64, size: u64) -> Result<(Bytes, Md5Sum), Failed> {
        let source = Arc::clone(&self.source);
        let read = blocking(move || -> io::Result<_> {
            let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
            source.file.read_exact_at(&mut bytes, offset)?;
            let same = Fingerprint::of(&source.file.metadata()?) == source.fingerprint;
            let md5 = Md5Sum::of(&bytes);
            Ok(same.then(|| (Bytes::from(bytes), md5)))
        });
        let failed = match read.await {
            Ok(Some(part)) => return Ok(part),
            Ok(None) => changed(self.object),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => changed(self.object),
            Err(error) => UnitError::held_back(format!("{} cannot be read: {error}", self.object.key)),
        };
        Err(Failed::Unit(failed))
    }

    async fn is_whole(&self) -> Result<bool, Failed> {
        let _place = self.site.transfer().await?;
        let stored = self.site.store.head(&self.object.key).await?;
        Ok(stored.is_some_and(|stored| {
            let is_ours = stored.sha256 == Some(self.object.sha256) && stored.size == self.object.size;
            is_ours && (stored.encrypted || stored.etag == self.parts_etag)
        }))
    }
}

/// A part that is in the bucket.
struct UploadPart {
    /// From 1.
    number: u32,
    md5: Md5Sum,
    /// What the bucket knows it by: its MD5, unless the bucket encrypts it with a key of its own.
    etag: String,
    bytes_sent: u64,
}

/// A part's ETag as the server gave it; not every server does.
fn etag_or_md5(etag: &str, md5: Md5Sum) -> String {
    if etag.is_empty() { format!("\"{md5}\"") } else { etag.to_owned() }
}

async fn remember(site: &Site, entry: &PendingUpload) {
    let (pending, entry) = (site.pending.clone(), entry.clone());
    blocking(move || pending.remember(&entry)).await;
}

async fn forget(site: &Site, key: &str) {
    let (pending, key) = (site.pending.clone(), key.to_owned());
    blocking(move || pending.forget(&key)).await;
}

/// Takes an upload's parts out of the bucket.
async fn abort(site: &Site, upload: &UploadId) -> Result<(), UnitError> {
    let aborted = {
        let _place = site.transfer().await?;
        site.store.abort_parts(upload).await
    };
    match aborted.map_err(Failed::from) {
        // A refusal means that it is not there.
        Ok(()) | Err(Failed::Refused(_) | Failed::Changed) => Ok(()),
        Err(Failed::Unit(error)) => Err(error),
    }
}

/// Aborts, now and then, what was left behind: the uploads we know of, and whatever else lies under our prefix, if the
/// bucket tells. What cannot be done now is done another time.
pub(crate) async fn abort_stale(site: &Site) {
    if site.is_time_to_clear()
        && let Err(error) = clear(site).await
    {
        tracing::warn!(%error, "parts left behind stay in the bucket for now");
    }
}

async fn clear(site: &Site) -> Result<(), UnitError> {
    let pending = site.pending.clone();
    let known = blocking(move || pending.all()).await;
    let now = common::clock::now();
    for entry in known.iter().filter(|entry| now.duration_since(entry.touched_at) > STALE_AFTER) {
        abort(site, &entry.upload()).await?;
        forget(site, &entry.key).await;
        tracing::info!(key = entry.key, since = %entry.touched_at, "parts left behind were taken out of the bucket");
    }
    let listed = {
        let _place = site.transfer().await?;
        site.store.pending_uploads(&site.prefix.archive_key("")).await
    };
    let listed = match listed {
        Ok(listed) => listed,
        Err(error) => {
            // Not every server can, and not every token may.
            tracing::debug!(%error, "uploads left behind by others are not looked for");
            return Ok(());
        }
    };
    for found in listed.iter().filter(|found| now.duration_since(found.begun) > STALE_AFTER) {
        if known.iter().all(|entry| entry.upload() != found.upload) {
            abort(site, &found.upload).await?;
            tracing::info!(key = found.upload.key, since = %found.begun, "parts left behind were taken out of the bucket");
        }
    }
    Ok(())
}
