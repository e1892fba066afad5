//! Objects stored part by part.

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;
use jiff::Timestamp;

use crate::error::{StoreError, StoreErrorKind, StoreType};
use crate::interface::{Over, Put};
use crate::parts::{PartStored, PendingUpload, UploadId};
use crate::s3::S3;
use crate::s3::condition::Condition;
use crate::s3::limits::{SHA256, UPLOAD_SILENCE};
use crate::s3::paced::Pacer;
use crate::s3::retry::{patiently, retried};
use common::checksum::Sha256Sum;

impl S3 {
    pub(crate) async fn begin_parts(&self, key: &str, sha256: Sha256Sum) -> Result<UploadId, StoreError> {
        let request = || {
            let begin = self.client.create_multipart_upload().bucket(&self.bucket).key(key);
            begin.metadata(SHA256, sha256.to_string()).send()
        };
        let begun = retried("CreateMultipartUpload", key, request).await?;
        let id = begun.upload_id.ok_or_else(|| {
            let message = "the server gave no upload id";
            StoreError::new(StoreType::S3, StoreErrorKind::Other, "CreateMultipartUpload", key, message)
        })?;
        Ok(UploadId { key: key.to_owned(), id })
    }

    pub(crate) async fn put_part(&self, upload: &UploadId, number: u32, body: Bytes) -> Result<String, StoreError> {
        let request = async || {
            let pacer = Pacer::new(self.bandwidth.clone(), body.clone());
            let part = self.uploads.upload_part().bucket(&self.bucket).key(&upload.key).upload_id(&upload.id);
            let part = part.part_number(number.cast_signed()).body(ByteStream::from(body.clone()));
            pacer.watch(UPLOAD_SILENCE, part.customize().interceptor(pacer.clone()).send()).await
        };
        let stored = retried("UploadPart", &upload.key, request).await?;
        Ok(stored.e_tag.unwrap_or_default())
    }

    pub(crate) async fn stored_parts(&self, upload: &UploadId) -> Result<Vec<PartStored>, StoreError> {
        let mut parts = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let request = || {
                let page = self.client.list_parts().bucket(&self.bucket).key(&upload.key).upload_id(&upload.id);
                page.set_part_number_marker(after.clone()).send()
            };
            let page = retried("ListParts", &upload.key, request).await?;
            parts.extend(page.parts.unwrap_or_default().into_iter().filter_map(|part| {
                Some(PartStored {
                    number: u32::try_from(part.part_number?).ok()?,
                    size: u64::try_from(part.size?).ok()?,
                    md5: part.e_tag.as_deref().and_then(|etag| etag.trim_matches('"').parse().ok()),
                    etag: part.e_tag.unwrap_or_default(),
                })
            }));
            after = page
                .next_part_number_marker
                .filter(|next| page.is_truncated == Some(true) && Some(next) != after.as_ref());
            if after.is_none() {
                return Ok(parts);
            }
        }
    }

    pub(crate) async fn complete_parts(
        &self,
        upload: &UploadId,
        etags: &[String],
        over: Over<'_>,
    ) -> Result<Put, StoreError> {
        let numbered = etags.iter().zip(1..);
        let parts = numbered.map(|(etag, n)| CompletedPart::builder().part_number(n).e_tag(etag).build());
        let whole = CompletedMultipartUpload::builder().set_parts(Some(parts.collect())).build();
        let request = |condition: Condition| {
            let (if_match, if_none_match) = condition.headers();
            let complete = self.uploads.complete_multipart_upload().bucket(&self.bucket).key(&upload.key);
            let complete = complete.set_if_match(if_match).set_if_none_match(if_none_match);
            patiently(complete.upload_id(&upload.id).multipart_upload(whole.clone()).send())
        };
        self.replaced("CompleteMultipartUpload", &upload.key, over, request).await
    }

    pub(crate) async fn abort_parts(&self, upload: &UploadId) -> Result<(), StoreError> {
        let request = || {
            let abort = self.client.abort_multipart_upload().bucket(&self.bucket).key(&upload.key);
            abort.upload_id(&upload.id).send()
        };
        retried("AbortMultipartUpload", &upload.key, request).await.map(drop)
    }

    pub(crate) async fn pending_uploads(&self, prefix: &str) -> Result<Vec<PendingUpload>, StoreError> {
        let mut pending = Vec::new();
        let mut after: Option<(String, String)> = None;
        loop {
            let request = || {
                let page = self.client.list_multipart_uploads().bucket(&self.bucket).prefix(prefix);
                let (key, id) = after.clone().unzip();
                page.set_key_marker(key).set_upload_id_marker(id).send()
            };
            let page = retried("ListMultipartUploads", prefix, request).await?;
            pending.extend(page.uploads.unwrap_or_default().into_iter().filter_map(|upload| {
                let begun = Timestamp::from_second(upload.initiated?.secs()).ok()?;
                Some(PendingUpload { upload: UploadId { key: upload.key?, id: upload.upload_id? }, begun })
            }));
            let next = page.next_key_marker.zip(page.next_upload_id_marker);
            after = next.filter(|next| page.is_truncated == Some(true) && Some(next) != after.as_ref());
            if after.is_none() {
                return Ok(pending);
            }
        }
    }
}
