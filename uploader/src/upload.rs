//! Every object of a revision into the bucket, and read back from it.

use std::collections::HashMap;

use common::checksum::Sha256Sum;
use common::marker::Object;
use common::object_store::Stored;
use futures::{StreamExt, stream};

use crate::digest::Digested;
use crate::error::UnitError;
use crate::site::{Site, blocking};

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
/// The unit is held back if one object is not stored as it must be; all that are not are named.
pub(crate) async fn store(site: &Site, objects: &[Object], local: &[Digested]) -> Result<Transferred, UnitError> {
    let on_disk: HashMap<&str, &Digested> = local.iter().map(|archive| (archive.path.as_str(), archive)).collect();
    let mut transferred = Transferred::default();
    let mut faults = Vec::new();
    let mut results = stream::iter(objects)
        .map(|object| {
            let archive = site.prefix.archive_path(&object.key).ok().and_then(|path| on_disk.get(path).copied());
            one(site, object, archive)
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
            Err(error @ UnitError::Pass(_)) => return Err(error),
        }
    }
    drop(results);
    if !faults.is_empty() {
        return Err(UnitError::HeldBack(faults));
    }
    Ok(transferred)
}

/// The bytes that [`store`] would send.
pub(crate) async fn missing_bytes(site: &Site, objects: &[Object], local: &[Digested]) -> Result<Missing, UnitError> {
    let md5s: HashMap<String, &str> =
        local.iter().map(|archive| (site.prefix.archive_key(&archive.path), archive.checked.md5.as_str())).collect();
    let mut missing = Missing::default();
    let mut results = stream::iter(objects)
        .map(async |object| {
            let _place = site.transfer().await?;
            let md5 = md5s.get(&object.key).copied();
            let stored = site.store.head(&object.key).await?;
            let good = stored.is_some_and(|stored| difference(&stored, object, md5).is_none());
            Ok::<_, UnitError>((object, md5.is_some(), good))
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

/// Returns the bytes sent; `None` when the bucket had the object.
async fn one(site: &Site, object: &Object, archive: Option<&Digested>) -> Result<Option<u64>, UnitError> {
    let _place = site.transfer().await?;
    let key = &object.key;
    let md5 = archive.map(|archive| archive.checked.md5.as_str());
    let stored = site.store.head(&object.key).await?;
    if stored.as_ref().is_some_and(|stored| difference(stored, object, md5).is_none()) {
        site.metrics.object_present();
        return Ok(None);
    }
    // An archive on disk that the published one outranks does not occur: what is on disk replaces what is published.
    let Some(archive) = archive.filter(|archive| archive.sha256() == object.sha256) else {
        return Err(UnitError::held_back(lost(object)));
    };
    let _memory = site.memory(object.size).await?;
    let bytes = site.read(&archive.path).await.map_err(|fault| UnitError::held_back(format!("{key} {fault}")))?;
    // These bytes are the ones that were checked: whatever happened to the file since, nothing else is stored.
    let same = {
        let bytes = bytes.clone();
        blocking(move || Sha256Sum::of(&bytes)).await == object.sha256
    };
    if !same {
        return Err(UnitError::held_back(format!(
            "{key} changed after it was checked; the next run takes it as it is then"
        )));
    }
    site.store.put(&object.key, bytes, object.sha256).await?;
    common::failpoint::failpoint("uploader.object_put");
    site.progress.sent(object.size);
    let stored = site.store.head(&object.key).await?;
    match stored.map_or_else(|| Some("it is not there".to_owned()), |stored| difference(&stored, object, md5)) {
        None => {
            site.metrics.object_uploaded(object.size);
            Ok(Some(object.size))
        }
        Some(difference) => {
            Err(UnitError::held_back(format!("bucket: {key} was stored and does not read back as sent: {difference}")))
        }
    }
}

/// Whether the bucket holds this object with these bytes.
pub(crate) async fn is_stored(site: &Site, object: &Object, md5: &str) -> Result<bool, UnitError> {
    let stored = site.store.head(&object.key).await?;
    Ok(stored.is_some_and(|stored| difference(&stored, object, Some(md5)).is_none()))
}

fn lost(object: &Object) -> String {
    let key = &object.key;
    format!(
        "bucket: {key} was published, is not on disk, and is no longer in the bucket with {} bytes and sha256 {}; put \
         the archive back into data_dir",
        object.size, object.sha256
    )
}

/// How what is stored differs from what the marker says; `md5` is that of the bytes, where they are here.
pub(crate) fn difference(stored: &Stored, object: &Object, md5: Option<&str>) -> Option<String> {
    if stored.size != object.size {
        return Some(format!("it has {} bytes instead of {}", stored.size, object.size));
    }
    match stored.sha256 {
        None => return Some("it has no sha256 in its metadata".to_owned()),
        Some(sha256) if sha256 != object.sha256 => {
            return Some(format!("its metadata says sha256 {sha256} instead of {}", object.sha256));
        }
        Some(_) => {}
    }
    let md5 = md5.filter(|_| is_md5(&stored.etag))?;
    (stored.etag != md5).then(|| format!("its ETag is {} instead of {md5}", stored.etag))
}

/// The ETag of a multipart object is not an MD5, and looks different.
fn is_md5(etag: &str) -> bool {
    etag.len() == 32 && etag.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c))
}

#[cfg(test)]
mod tests {
    use common::checksum::md5_hex;

    use super::*;

    #[test]
    fn what_is_stored_is_compared_with_what_is_announced() {
        let object = Object {
            key: "download/a".into(),
            symbol: "A".into(),
            size: 3,
            sha256: Sha256Sum::of(b"abc"),
            generated_at: "2026-02-15T00:44:06Z".parse().expect("a time"),
        };
        let md5 = md5_hex(b"abc");
        let good = Stored { size: 3, etag: md5.clone(), sha256: Some(object.sha256) };
        let check =
            |stored: Stored, md5: Option<&str>, want: Option<&str>| match (difference(&stored, &object, md5), want) {
                (None, None) => {}
                (Some(text), Some(want)) => assert!(text.contains(want), "{text}"),
                (found, want) => panic!("{found:?}, expected {want:?}"),
            };
        check(good.clone(), Some(&md5), None);
        check(good.clone(), None, None);
        check(Stored { size: 4, ..good.clone() }, Some(&md5), Some("4 bytes instead of 3"));
        check(Stored { sha256: None, ..good.clone() }, None, Some("no sha256"));
        check(Stored { sha256: Some(Sha256Sum::of(b"x")), ..good.clone() }, None, Some("its metadata says"));
        check(Stored { etag: md5_hex(b"x"), ..good.clone() }, Some(&md5), Some("its ETag"));
        check(Stored { etag: md5_hex(b"x"), ..good.clone() }, None, None);
        check(Stored { etag: format!("{md5}-2"), ..good }, Some(&md5), None);
    }
}
