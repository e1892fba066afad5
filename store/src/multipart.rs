//! Stores an object part by part.

use bytes::Bytes;
use common::checksum::Sha256Sum;

use crate::error::{StoreError, StoreErrorKind, StoreType};
use crate::interface::{Over, Put};
use crate::object_store::{Backend, ObjectStore};
use crate::parts::{PartStored, PendingUpload, UploadId};
use crate::s3::S3;

impl ObjectStore {
    fn with_parts(&self, key: &str) -> Result<&S3, StoreError> {
        match &self.backend {
            Backend::S3(s3) => Ok(s3),
            Backend::Folder(_) | Backend::DataDir(_) | Backend::Rsync(_) => {
                let message = "only a bucket takes an object part by part";
                Err(StoreError::new(StoreType::Folder, StoreErrorKind::Other, "PUT", key, message))
            }
        }
    }

    /// Begins to store an object part by part, with its sha256.
    pub async fn begin_parts(&self, key: &str, sha256: Sha256Sum) -> Result<UploadId, StoreError> {
        self.with_parts(key)?.begin_parts(key, sha256).await
    }

    /// Stores a part, and returns its ETag; one of the same number is replaced.
    pub async fn put_part(&self, upload: &UploadId, number: u32, body: Bytes) -> Result<String, StoreError> {
        self.with_parts(&upload.key)?.put_part(upload, number, body).await
    }

    /// The parts that are there. None also of an upload that is not there, on some servers.
    pub async fn stored_parts(&self, upload: &UploadId) -> Result<Vec<PartStored>, StoreError> {
        self.with_parts(&upload.key)?.stored_parts(upload).await
    }

    /// Makes the object of its parts, if they have these ETags (not every server looks), over what HEAD showed.
    pub async fn complete_parts(&self, upload: &UploadId, etags: &[String], over: Over<'_>) -> Result<Put, StoreError> {
        self.with_parts(&upload.key)?.complete_parts(upload, etags, over).await
    }

    /// Forgets an upload and its parts.
    pub async fn abort_parts(&self, upload: &UploadId) -> Result<(), StoreError> {
        self.with_parts(&upload.key)?.abort_parts(upload).await
    }

    /// All uploads of keys with this prefix, whoever began them.
    pub async fn pending_uploads(&self, prefix: &str) -> Result<Vec<PendingUpload>, StoreError> {
        match &self.backend {
            Backend::S3(s3) => s3.pending_uploads(prefix).await,
            Backend::Folder(_) | Backend::DataDir(_) | Backend::Rsync(_) => Ok(Vec::new()),
        }
    }
}
