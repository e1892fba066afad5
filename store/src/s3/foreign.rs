//! Objects that somebody else put there: what their metadata says, and how they get ours.

use std::time::Duration;

use aws_sdk_s3::types::MetadataDirective;
use jiff::Timestamp;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::error::{StoreError, StoreErrorKind};
use crate::interface::{Details, Given};
use crate::s3::limits::SHA256;
use crate::s3::retry::{patiently, retried};
use crate::s3::{S3, stored};
use common::checksum::{Sha256Sum, md5_of_base64};

/// rclone's name for the MD5 of a file that it sent in parts, in base64.
const RCLONE_MD5: &str = "md5chksum";
/// rclone's name for the file's modification time: seconds since 1970, with a fraction.
const RCLONE_MTIME: &str = "mtime";
/// Largest object that a bucket copies by one request.
const COPY_BYTES_MAX: u64 = 5 << 30;
/// What stays as it is in the name of a copy's source.
const SOURCE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.').remove(b'~');

impl S3 {
    pub(crate) async fn details(&self, key: &str) -> Result<Option<Details>, StoreError> {
        let Some(head) = self.head_output(key).await? else { return Ok(None) };
        let said = |name: &str| head.metadata().and_then(|metadata| metadata.get(name));
        let sent_from = said(RCLONE_MTIME).and_then(|text| text.parse().ok()).and_then(at);
        let modified = sent_from.or_else(|| {
            let stored_at = head.last_modified()?;
            Timestamp::new(stored_at.secs(), i32::try_from(stored_at.subsec_nanos()).ok()?).ok()
        });
        Ok(Some(Details {
            md5: said(RCLONE_MD5).and_then(|text| md5_of_base64(text)),
            modified,
            stored: stored(&head),
        }))
    }

    /// Copies an object onto itself, with its sha256 among its metadata: no byte of it crosses the link.
    ///
    /// All else that its metadata says is kept. What the bucket then says of the ETag of an object that was sent in parts
    /// differs: S3 makes it the MD5, others leave it as it was.
    pub(crate) async fn give_sha256(&self, key: &str, etag: &str, sha256: Sha256Sum) -> Result<Given, StoreError> {
        let Some(head) = self.head_output(key).await? else { return Ok(Given::Changed) };
        let now = stored(&head);
        if now.etag != etag {
            return Ok(Given::Changed);
        }
        if now.size > COPY_BYTES_MAX {
            return Ok(Given::Refused(format!("{} bytes are more than a bucket copies at once", now.size)));
        }
        let mut metadata = head.metadata().cloned().unwrap_or_default();
        metadata.insert(SHA256.to_owned(), sha256.to_string());
        let source = format!("{}/{key}", self.bucket);
        let source = utf8_percent_encode(&source, SOURCE).to_string();
        let request = || {
            let copy = self.uploads.copy_object().bucket(&self.bucket).key(key).copy_source(&source);
            let copy = copy
                // Whoever stores another object in between keeps it: the copy is refused then.
                .copy_source_if_match(format!("\"{etag}\""))
                .metadata_directive(MetadataDirective::Replace)
                .set_metadata(Some(metadata.clone()))
                .set_content_type(head.content_type().map(str::to_owned))
                .set_content_encoding(head.content_encoding().map(str::to_owned))
                .set_content_disposition(head.content_disposition().map(str::to_owned))
                .set_content_language(head.content_language().map(str::to_owned))
                .set_cache_control(head.cache_control().map(str::to_owned))
                // A copy is in the standard class unless told otherwise.
                .set_storage_class(head.storage_class().cloned());
            patiently(copy.send())
        };
        let Err(error) = retried("COPY", key, request).await else { return Ok(Given::Done) };
        match error.kind {
            StoreErrorKind::NoSuchBucket | StoreErrorKind::ClockSkew | StoreErrorKind::Unavailable => Err(error),
            StoreErrorKind::Denied
            | StoreErrorKind::NotFound
            | StoreErrorKind::TooLarge
            | StoreErrorKind::BadKey
            | StoreErrorKind::Other => {
                // The copy may have been made and its answer lost. Where that changed the ETag, another try is refused.
                let found = self.head_output(key).await?.map(|head| stored(&head));
                Ok(match found {
                    Some(found) if found.sha256 == Some(sha256) && found.size == now.size => Given::Done,
                    Some(found) if found.etag == now.etag => Given::Refused(error.to_string()),
                    _ => Given::Changed,
                })
            }
        }
    }
}

fn at(seconds: f64) -> Option<Timestamp> {
    let since_1970 = Duration::try_from_secs_f64(seconds).ok()?;
    Timestamp::UNIX_EPOCH.checked_add(since_1970).ok()
}
