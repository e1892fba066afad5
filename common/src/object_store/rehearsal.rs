//! Every kind of request that the work makes, on one object of our own, for `doctor`.
//!
//! A bucket may answer a listing and refuse the header that a fetch carries, keep no metadata, or store over an object that a
//! conditional PUT should have left alone. Each of these would otherwise show at the first archive, as a unit held back.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use super::{End, Given, ObjectStore, StoreError, StoreErrorKind, Stored};
use crate::backoff::{Backoff, Growth};
use crate::checksum::{Md5Sum, Sha256Sum, parts_etag};
use crate::object_key::Prefix;

const FIRST: &[u8] = b"marketferry doctor: this object may be removed\n";
const SECOND: &[u8] = b"marketferry doctor: this object may be removed, its second content\n";
/// How often it is begun anew where another doctor may have been at the same object: all of them use one, since none of them
/// deletes anything.
const ATTEMPTS: u32 = 4;
const BETWEEN_ATTEMPTS: Backoff = Backoff {
    initial: Duration::from_millis(300),
    growth: Growth::Exponential { factor: 2.0 },
    max: Duration::from_secs(2),
};
/// Larger than both.
const BYTES_MAX: u64 = 1024;

/// A request that did not do what the work relies on.
#[derive(Debug)]
pub struct Unfit {
    /// The request, as the S3 API calls it.
    pub request: &'static str,
    pub why: String,
    pub advice: String,
    /// The object is not as it was left, which another doctor's requests explain as well.
    may_be_another_doctor: bool,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.request, self.why)
    }
}

fn failed(request: &'static str, error: &StoreError) -> Unfit {
    Unfit {
        request,
        why: error.to_string(),
        advice: error.advice().unwrap_or_default().to_owned(),
        may_be_another_doctor: false,
    }
}

fn unfit(request: &'static str, why: impl Into<String>) -> Unfit {
    let advice = "the store does not behave as S3 does here: report it to whoever runs it, or use another";
    Unfit { request, why: why.into(), advice: advice.to_owned(), may_be_another_doctor: true }
}

impl ObjectStore {
    /// Makes each kind of request that the work at this end makes. The uploader's leave one object, [`Prefix::probe_key`].
    ///
    /// # Errors
    /// The first request that failed, or did something else than it should.
    pub async fn rehearse(&self, prefix: &Prefix, end: End) -> Result<(), Unfit> {
        for attempt in 1..ATTEMPTS {
            match self.rehearse_once(prefix, end).await {
                Err(unfit) if unfit.may_be_another_doctor => tokio::time::sleep(BETWEEN_ATTEMPTS.delay(attempt)).await,
                ended => return ended,
            }
        }
        self.rehearse_once(prefix, end).await
    }

    async fn rehearse_once(&self, prefix: &Prefix, end: End) -> Result<(), Unfit> {
        let key = prefix.probe_key();
        let absent = format!("{key}-absent");
        match self.get_small(&absent, BYTES_MAX).await {
            Ok(None) => {}
            Ok(Some(_)) => return Err(unfit("GET", format!("'{absent}' is there, and should not be"))),
            Err(error) => return Err(absent_is_denied("GET", &error)),
        }
        if end == End::Puller {
            // Whatever the uploader's doctor left there.
            return self.get_small(&key, BYTES_MAX).await.map(drop).map_err(|error| failed("GET", &error));
        }
        match self.head(&absent).await {
            Ok(None) => {}
            Ok(Some(_)) => return Err(unfit("HEAD", format!("'{absent}' is there, and should not be"))),
            Err(error) => return Err(absent_is_denied("HEAD", &error)),
        }
        self.put(&key, Bytes::from_static(FIRST), Sha256Sum::of(FIRST)).await.map_err(|error| failed("PUT", &error))?;
        self.expect_stored("PUT", &key, FIRST).await?;
        // The answer does not tell a refusal from a failure; what is stored does.
        if self.put_new(&key, Bytes::from_static(SECOND), Sha256Sum::of(SECOND)).await {
            return Err(unfit("PUT with If-None-Match", "it stored over an object that was there"));
        }
        let stored = self.expect_stored("PUT with If-None-Match", &key, FIRST).await?;
        match self.give_sha256(&key, &stored.etag, Sha256Sum::of(FIRST)).await {
            // Only `adopt` needs copies, and says so itself.
            Ok(Given::Done | Given::Refused(_)) => {}
            Ok(Given::Changed) => return Err(unfit("COPY", format!("'{key}' was changed meanwhile"))),
            Err(error) => return Err(failed("COPY", &error)),
        }
        self.rehearse_parts(&key).await
    }

    /// An object of one part, which may be of any size.
    async fn rehearse_parts(&self, key: &str) -> Result<(), Unfit> {
        let (sha256, md5) = (Sha256Sum::of(SECOND), Md5Sum::of(SECOND));
        let upload = self.begin_parts(key, sha256).await.map_err(|error| failed("CreateMultipartUpload", &error))?;
        let put = self.put_part(&upload, 1, Bytes::from_static(SECOND)).await;
        let etag = put.map_err(|error| failed("UploadPart", &error))?;
        let parts = self.stored_parts(&upload).await.map_err(|error| failed("ListParts", &error))?;
        if parts.len() != 1 || parts[0].size != SECOND.len() as u64 {
            return Err(unfit("ListParts", "it does not show the part that was just stored"));
        }
        let completed = self.complete_parts(&upload, &[etag]).await;
        completed.map_err(|error| failed("CompleteMultipartUpload", &error))?;
        let stored = self.expect_stored("CompleteMultipartUpload", key, SECOND).await?;
        if !stored.encrypted && stored.etag != parts_etag(&[md5]) && stored.etag != md5.to_string() {
            let why = format!("the ETag {} is not that of the part that was sent", stored.etag);
            return Err(unfit("CompleteMultipartUpload", why));
        }
        let abandoned = self.begin_parts(key, sha256).await.map_err(|error| failed("CreateMultipartUpload", &error))?;
        self.abort_parts(&abandoned).await.map_err(|error| failed("AbortMultipartUpload", &error))
    }

    /// Asks for the object and its description, and compares both with what was sent.
    async fn expect_stored(&self, after: &'static str, key: &str, sent: &[u8]) -> Result<Stored, Unfit> {
        let stored = self.head(key).await.map_err(|error| failed("HEAD", &error))?;
        let Some(stored) = stored else { return Err(unfit(after, format!("HEAD does not find '{key}' afterwards"))) };
        if stored.size != sent.len() as u64 {
            return Err(unfit(after, format!("HEAD gives {} bytes of {} that were sent", stored.size, sent.len())));
        }
        if stored.sha256 != Some(Sha256Sum::of(sent)) {
            return Err(unfit(after, "HEAD does not give the metadata (x-amz-meta-sha256) that was sent"));
        }
        match self.get_small(key, BYTES_MAX).await {
            Ok(Some(bytes)) if bytes == sent => Ok(stored),
            Ok(_) => Err(unfit("GET", format!("it gives other bytes than {after} stored"))),
            Err(error) => Err(failed("GET", &error)),
        }
    }
}

/// S3 answers 403 in place of 404 where the token may not list.
fn absent_is_denied(request: &'static str, error: &StoreError) -> Unfit {
    let mut unfit = failed(request, error);
    if error.kind == StoreErrorKind::Denied {
        unfit.why = format!("{}; this object does not exist, so the answer should be 404", unfit.why);
        unfit.advice =
            "give the token the right to list the bucket too (s3:ListBucket): without it the server does not say \
                        that an object is missing"
                .to_owned();
    }
    unfit
}
