//! Every kind of request that the work makes, on one object of our own, for `doctor`.
//!
//! A bucket may answer a listing and refuse the header that a fetch carries, keep no metadata, or store over an object that a
//! conditional PUT should have left alone. Each of these would otherwise show at the first archive, as a unit held back.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use crate::error::{StoreError, StoreErrorKind};
use crate::interface::{End, Given, Over, Put, Stored};
use crate::object_store::{Backend, ObjectStore};
use common::backoff::{Backoff, Growth};
use common::checksum::{Md5Sum, Sha256Sum, parts_etag};
use common::marker::CURRENT_BYTES_MAX;
use common::object_key::Prefix;

const FIRST: &[u8] = b"marketferry doctor: this object may be removed\n";
const SECOND: &[u8] = b"marketferry doctor: this object may be removed, its second content\n";
/// How often it is begun anew where another doctor may have been at the same object: all of them use one, since a token need
/// not be allowed to remove it.
const ATTEMPTS: u32 = 4;
const BETWEEN_ATTEMPTS: Backoff = Backoff {
    initial: Duration::from_millis(300),
    growth: Growth::Exponential { factor: 2.0 },
    max: Duration::from_secs(2),
};
/// Larger than both.
const BYTES_MAX: u64 = 1024;

/// What became of the object that the requests were made on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// Nothing was written.
    NotWritten,
    Removed,
    /// The work deletes nothing in a bucket, so a token need not be allowed to.
    Stays(String),
}

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
    /// Makes each kind of request that the work at this end makes. The uploader's are made on [`Prefix::probe_key`], which is
    /// removed again where the token may do that. The puller's read an object, if one is known that should be there.
    ///
    /// # Errors
    /// The first request that failed, or did something else than it should.
    pub async fn rehearse(&self, prefix: &Prefix, end: End, known: Option<&str>) -> Result<Probe, Unfit> {
        let rehearsing = || self.rehearse_once(prefix, end, known);
        BETWEEN_ATTEMPTS.retry(rehearsing, |unfit, attempt| unfit.may_be_another_doctor && attempt < ATTEMPTS).await
    }

    async fn rehearse_once(&self, prefix: &Prefix, end: End, known: Option<&str>) -> Result<Probe, Unfit> {
        let key = prefix.probe_key();
        self.rehearse_reading(&key, end, known).await?;
        if end == End::Puller {
            return Ok(Probe::NotWritten);
        }
        let written = self.rehearse_writing(&key).await;
        // Also after a request that failed.
        let probe = self.remove_probe(&key).await;
        written.map(|()| probe)
    }

    async fn rehearse_reading(&self, key: &str, end: End, known: Option<&str>) -> Result<(), Unfit> {
        let absent = format!("{key}-absent");
        match self.get_small(&absent, BYTES_MAX).await {
            Ok(None) => {}
            Ok(Some(_)) => return Err(unfit("GET", format!("'{absent}' is there, and should not be"))),
            Err(error) => return Err(absent_is_denied("GET", &error)),
        }
        if end == End::Puller {
            // That something is missing is not for here to say.
            let known = known.unwrap_or(key);
            return self.get_small(known, CURRENT_BYTES_MAX).await.map(drop).map_err(|error| failed("GET", &error));
        }
        match self.head(&absent).await {
            Ok(None) => Ok(()),
            Ok(Some(_)) => Err(unfit("HEAD", format!("'{absent}' is there, and should not be"))),
            Err(error) => Err(absent_is_denied("HEAD", &error)),
        }
    }

    async fn rehearse_writing(&self, key: &str) -> Result<(), Unfit> {
        self.put(key, Bytes::from_static(FIRST), Sha256Sum::of(FIRST)).await.map_err(|error| failed("PUT", &error))?;
        self.expect_stored("PUT", key, FIRST).await?;
        // The answer does not tell a refusal from a failure; what is stored does.
        if self.put_new(key, Bytes::from_static(SECOND), Sha256Sum::of(SECOND)).await {
            return Err(unfit("PUT with If-None-Match", "it stored over an object that was there"));
        }
        let stored = self.expect_stored("PUT with If-None-Match", key, FIRST).await?;
        let other =
            Stored { etag: Md5Sum::of(SECOND).to_string(), sha256: Some(Sha256Sum::of(SECOND)), ..stored.clone() };
        let put = self.put_over(key, Bytes::from_static(SECOND), Sha256Sum::of(SECOND), Over::This(&other)).await;
        match put.map_err(|error| failed("PUT with If-Match", &error))? {
            Put::Changed => {}
            Put::Done | Put::OtherBytes => {
                return Err(unfit("PUT with If-Match", "it stored over an object with another ETag"));
            }
        }
        self.expect_stored("PUT with If-Match", key, FIRST).await?;
        match self.give_sha256(key, &stored.etag, Sha256Sum::of(FIRST)).await {
            // Only `adopt` needs copies, and says so itself.
            Ok(Given::Done | Given::Refused(_)) => {}
            Ok(Given::Changed) => return Err(unfit("COPY", format!("'{key}' was changed meanwhile"))),
            Err(error) => return Err(failed("COPY", &error)),
        }
        self.rehearse_parts(key).await
    }

    /// Nothing else is ever deleted from a bucket, and this only because `doctor` has just written it.
    async fn remove_probe(&self, key: &str) -> Probe {
        let Backend::S3(bucket) = &self.backend else { return Probe::NotWritten };
        if let Err(error) = bucket.delete(key).await {
            return Probe::Stays(error.to_string());
        }
        match self.head(key).await {
            Ok(None) => Probe::Removed,
            Ok(Some(_)) => Probe::Stays("it is there after a DELETE that was accepted".to_owned()),
            Err(error) => Probe::Stays(error.to_string()),
        }
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
        let completed = self.complete_parts(&upload, &[etag], Over::Anything).await;
        let _put = completed.map_err(|error| failed("CompleteMultipartUpload", &error))?;
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
