//! Uploads of large archives that were begun and are not complete: a small file each, below `local.state_dir`.
//!
//! What is stored is what the bucket says. Without these files a large archive is sent from its beginning again, and the
//! parts that lie in the bucket are forgotten by it after a time.

use std::fs;
use std::io::{self};
use std::path::{Path, PathBuf};

use common::checksum::Sha256Sum;
use common::config::{Place, Storage};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use store::parts::UploadId;

use crate::state::cache;
use crate::state::file::replace;

/// Largest file that is read; keys have at most 1,024 bytes, ids some hundred.
const FILE_BYTES_MAX: u64 = 16 * 1024;

/// The folder of one bucket. Every call blocks, for as long as a small file takes.
#[derive(Debug, Clone)]
pub(crate) struct Pending {
    /// `None`: nowhere to keep it.
    folder: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PendingUpload {
    pub(crate) key: String,
    pub(crate) upload_id: String,
    /// Of the whole archive, whose parts these are.
    pub(crate) sha256: Sha256Sum,
    pub(crate) size: u64,
    pub(crate) part_bytes: u64,
    /// All parts are stored, and the bucket was asked to put them together.
    pub(crate) completing: bool,
    /// When it last moved.
    pub(crate) touched_at: Timestamp,
}

impl PendingUpload {
    pub(crate) fn upload(&self) -> UploadId {
        UploadId { key: self.key.clone(), id: self.upload_id.clone() }
    }
}

impl Pending {
    pub(crate) fn open(state_dir: Option<&Path>, storage: &Storage) -> Self {
        // Only a bucket takes archives in parts.
        let Place::S3(bucket) = &storage.place else { return Self { folder: None } };
        let name = Sha256Sum::of(format!("{}\n{}", bucket.endpoint, bucket.bucket).as_bytes()).to_string();
        Self { folder: cache::folder(state_dir).map(|folder| folder.join(format!("uploads-{}", &name[..16]))) }
    }

    pub(crate) fn find(&self, key: &str) -> Option<PendingUpload> {
        read(&self.file(key)?).filter(|entry| entry.key == key)
    }

    /// Remembers an upload, in the place of a former one of the same key.
    pub(crate) fn remember(&self, entry: &PendingUpload) {
        let Some(file) = self.file(&entry.key) else { return };
        if let Err(error) = write(&file, entry) {
            let path = file.display();
            tracing::warn!(%path, %error, "cannot remember an upload; if this run is cut short, it begins anew");
        }
    }

    pub(crate) fn forget(&self, key: &str) {
        let Some(file) = self.file(key) else { return };
        if let Err(error) = fs::remove_file(&file)
            && error.kind() != io::ErrorKind::NotFound
        {
            let path = file.display();
            tracing::warn!(%path, %error, "cannot be removed; it is about an upload that is no more");
        }
    }

    pub(crate) fn all(&self) -> Vec<PendingUpload> {
        let files = self.folder.as_ref().and_then(|folder| fs::read_dir(folder).ok());
        files.into_iter().flatten().filter_map(|file| read(&file.ok()?.path())).collect()
    }

    fn file(&self, key: &str) -> Option<PathBuf> {
        let name = Sha256Sum::of(key.as_bytes()).to_string();
        Some(self.folder.as_ref()?.join(format!("{}.json", &name[..32])))
    }
}

/// What cannot be read is as good as not there.
fn read(file: &Path) -> Option<PendingUpload> {
    if fs::metadata(file).ok()?.len() > FILE_BYTES_MAX {
        return None;
    }
    serde_json::from_slice(&fs::read(file).ok()?).ok()
}

fn write(file: &Path, entry: &PendingUpload) -> io::Result<()> {
    replace(file, |writer| Ok(serde_json::to_writer(writer, entry)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upload_is_known_until_it_is_forgotten() {
        let dir = tempfile::tempdir().expect("a folder");
        let pending = Pending { folder: Some(dir.path().join("uploads")) };
        let mut entry = PendingUpload {
            key: "download/a b.zip".into(),
            upload_id: "id".into(),
            sha256: Sha256Sum::of(b"abc"),
            size: 20 << 20,
            part_bytes: 8 << 20,
            completing: false,
            touched_at: "2026-02-15T00:44:06Z".parse().expect("a time"),
        };
        assert_eq!((pending.find(&entry.key), pending.all()), (None, vec![]));
        pending.remember(&entry);
        entry.completing = true;
        pending.remember(&entry);
        assert_eq!(pending.find(&entry.key), Some(entry.clone()));
        assert_eq!(pending.all(), [entry.clone()]);
        assert_eq!(pending.find("download/b.zip"), None);
        fs::write(dir.path().join("uploads/damaged.json"), "{").expect("written");
        assert_eq!(pending.all().len(), 1);
        pending.forget(&entry.key);
        pending.forget(&entry.key);
        assert_eq!(pending.find(&entry.key), None);
        // Nowhere to keep anything.
        let nowhere = Pending { folder: None };
        nowhere.remember(&entry);
        assert_eq!(nowhere.find(&entry.key), None);
    }
}
