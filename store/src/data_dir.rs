//! The uploader's end of a store that rsync reads: the data_dir itself.
//!
//! An archive's key, without the prefix, is its path below data_dir, so that it is stored by lying there. Manifests are
//! written beside the tree, below `_markers/`. Nothing else in data_dir is ever written.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;

use crate::error::{StoreError, StoreErrorKind, StoreType};
use crate::folder::{Fault, FileDownload, Folder, absent_is_none, answered, open_root, stored, unblocked};
use crate::interface::{Over, Page, Put, Stored};
use crate::path;
use common::bwlimit::BwLimit;

use crate::bandwidth::Bandwidth;
use common::checksum::Sha256Sum;
use common::object_key::Prefix;

const STORE: StoreType = StoreType::DataDir;

#[derive(Clone)]
pub(crate) struct DataDir {
    root: Arc<Path>,
    prefix: Prefix,
    folder: Folder,
}

impl DataDir {
    pub(crate) fn new(root: &Path, prefix: &Prefix) -> Self {
        // A disk of this machine's own: nothing of it crosses a line that a limit could be about.
        let folder = Folder::of(root, STORE, Bandwidth::new(BwLimit::default()));
        Self { root: root.into(), prefix: prefix.clone(), folder }
    }

    pub(crate) async fn head(&self, key: &str) -> Result<Option<Stored>, StoreError> {
        let path = self.path("HEAD", key)?;
        if Prefix::is_manifest(path) {
            return self.folder.head(path).await;
        }
        let outcome = self.with_archive("HEAD", key, path, |file| Ok(stored(file)?)).await;
        absent_is_none(outcome)
    }

    /// An archive is there already, with these bytes, or it is not put there.
    pub(crate) async fn put_over(
        &self,
        key: &str,
        body: Bytes,
        sha256: Sha256Sum,
        over: Over<'_>,
    ) -> Result<Put, StoreError> {
        let path = self.path("PUT", key)?;
        if Prefix::is_manifest(path) {
            return self.folder.put_over(path, body, over).await;
        }
        match self.head(key).await? {
            Some(stored) if stored.sha256 == Some(sha256) => Ok(Put::Done),
            _ => {
                let message = "with storage.type rsync archives are not written, they lie in local.data_dir; this one \
                               is not there with these bytes";
                Err(StoreError::new(STORE, StoreErrorKind::Other, "PUT", key, message))
            }
        }
    }

    pub(crate) async fn get(&self, key: &str) -> Result<FileDownload, StoreError> {
        let path = self.path("GET", key)?;
        if Prefix::is_manifest(path) {
            return self.folder.get(path).await;
        }
        let file = answered(STORE, "GET", key, self.with_archive("GET", key, path, Ok)).await?;
        Ok(FileDownload::new(STORE, key, file))
    }

    pub(crate) async fn list(&self, prefix: &str, after: Option<String>) -> Result<Page, StoreError> {
        let path = match self.prefix.strip(prefix) {
            Some(path) => path,
            // All keys begin so.
            None if self.prefix.to_string().starts_with(prefix) => "",
            None => return Ok(Page { keys: Vec::new(), next: None }),
        };
        let page = self.folder.list(path, after).await?;
        Ok(Page { keys: page.keys.iter().map(|path| self.prefix.archive_key(path)).collect(), next: page.next })
    }

    pub(crate) async fn exists(&self, key: &str) -> Result<bool, StoreError> {
        let path = self.path("HEAD", key)?;
        if Prefix::is_manifest(path) {
            return self.folder.exists(path).await;
        }
        let opened = self.with_archive("HEAD", key, path, |_| Ok(()));
        Ok(absent_is_none(answered(STORE, "HEAD", key, opened).await)?.is_some())
    }

    pub(crate) async fn server_time(&self) -> Result<Timestamp, StoreError> {
        self.folder.server_time().await
    }

    pub(crate) async fn probe(&self, prefix: &str) -> Result<(), StoreError> {
        self.folder.probe(prefix).await
    }

    pub(crate) async fn probe_writing(&self) -> Result<(), StoreError> {
        self.folder.probe_writing().await
    }

    fn path<'k>(&self, operation: &'static str, key: &'k str) -> Result<&'k str, StoreError> {
        let refused = |why| StoreError::new(STORE, StoreErrorKind::BadKey, operation, key, why);
        let path = self.prefix.strip(key).ok_or_else(|| refused("the key is outside storage.r2.prefix"))?;
        path::check(path).map_err(refused)?;
        Ok(path)
    }

    /// Opens an archive as the scan does: links are followed, for a data_dir may be put together from several disks.
    async fn with_archive<T: Send + 'static>(
        &self,
        operation: &'static str,
        key: &str,
        path: &str,
        work: impl FnOnce(std::fs::File) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (root, file) = (Arc::clone(&self.root), self.root.join(path));
        let opened = move || {
            // A disk that is not mounted is not an archive that is missing.
            open_root(&root)?;
            if !std::fs::metadata(&file)?.is_file() {
                return Err(Fault::no_file());
            }
            work(std::fs::File::open(&file)?)
        };
        unblocked(opened).await.map_err(|fault| fault.into_error(STORE, operation, key))
    }
}
