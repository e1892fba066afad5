//! The bucket: put, head, get. The only module that names S3 types.
//!
//! R2's rules are kept everywhere: region `auto`, no checksum headers unless an operation requires one, no ACLs,
//! no bucket-level calls (a token scoped to one bucket may not make them).

use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Credentials, Region, RequestChecksumCalculation, StalledStreamProtectionConfig,
};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use aws_smithy_http_client::tls;
use bytes::Bytes;

use crate::chain::chain;
use crate::checksum::Sha256Sum;
use crate::config::Storage;

/// User metadata that carries an object's sha256 (`x-amz-meta-sha256`).
const SHA256: &str = "sha256";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest silence of the server, also between two chunks of a body.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Of one request; beyond it the caller's own retries decide.
const ATTEMPTS: u32 = 4;

#[derive(Clone)]
pub struct ObjectStore {
    client: Client,
    bucket: String,
}

/// What the bucket's own metadata says of a stored object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Bytes.
    pub size: u64,
    /// Without its quotes. The MD5 of the content, if it was stored by a single PUT.
    pub etag: String,
    pub sha256: Option<Sha256Sum>,
}

/// Some of the keys below a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// At most 1,000.
    pub keys: Vec<String>,
    /// What to ask for the next page with; `None`: this is the last.
    pub next: Option<String>,
}

impl ObjectStore {
    pub fn new(storage: &Storage) -> Self {
        let http = aws_smithy_http_client::Builder::new()
            .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring))
            .build_https();
        let timeouts = TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).read_timeout(READ_TIMEOUT).build();
        let credentials = Credentials::new(
            storage.access_key_id.clone(),
            storage.secret_access_key.reveal(),
            None,
            None,
            "marketferry configuration",
        );
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .http_client(http)
            .endpoint_url(&storage.endpoint)
            .region(Region::new(storage.region.clone()))
            .credentials_provider(credentials)
            .force_path_style(storage.path_style)
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
            .timeout_config(timeouts)
            // Our own limit in `Download::chunk` says which object stalled.
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .build();
        Self { client: Client::from_conf(config), bucket: storage.bucket.clone() }
    }

    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// What is stored under a key; `None` when nothing is.
    pub async fn head(&self, key: &str) -> Result<Option<Stored>, StoreError> {
        let head = match self.client.head_object().bucket(&self.bucket).key(key).send().await {
            Ok(head) => head,
            Err(error) => {
                let error = StoreError::from_sdk("HEAD", key, error);
                return if error.kind == StoreErrorKind::NotFound { Ok(None) } else { Err(error) };
            }
        };
        let sha256 = head.metadata().and_then(|metadata| metadata.get(SHA256)).and_then(|text| text.parse().ok());
        Ok(Some(Stored {
            size: head.content_length().and_then(|size| u64::try_from(size).ok()).unwrap_or_default(),
            etag: head.e_tag().unwrap_or_default().trim_matches('"').to_owned(),
            sha256,
        }))
    }

    /// Stores an object by a single PUT, with its sha256 as user metadata.
    pub async fn put(&self, key: &str, body: Bytes, sha256: Sha256Sum) -> Result<(), StoreError> {
        let put = self.client.put_object().bucket(&self.bucket).key(key);
        let sent = put.metadata(SHA256, sha256.to_string()).body(ByteStream::from(body)).send().await;
        sent.map(drop).map_err(|error| StoreError::from_sdk("PUT", key, error))
    }

    /// Begins to fetch an object.
    pub async fn get(&self, key: &str) -> Result<Download, StoreError> {
        let got = self.client.get_object().bucket(&self.bucket).key(key).send().await;
        let got = got.map_err(|error| StoreError::from_sdk("GET", key, error))?;
        Ok(Download { key: key.to_owned(), body: got.body })
    }

    /// Fetches a small object whole; `None` when there is none.
    ///
    /// # Errors
    /// Also when the object is larger than `bytes_max`.
    pub async fn get_small(&self, key: &str, bytes_max: u64) -> Result<Option<Bytes>, StoreError> {
        let mut download = match self.get(key).await {
            Ok(download) => download,
            Err(error) if error.kind == StoreErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        while let Some(chunk) = download.chunk().await? {
            if (bytes.len() + chunk.len()) as u64 > bytes_max {
                let message = format!("is larger than {bytes_max} bytes");
                return Err(StoreError { kind: StoreErrorKind::Other, operation: "GET", key: key.into(), message });
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(Some(bytes.into()))
    }

    /// One page of the keys below a prefix, in their order; `after` is what the page before said comes next.
    pub async fn list(&self, prefix: &str, after: Option<String>) -> Result<Page, StoreError> {
        let page = self.client.list_objects_v2().bucket(&self.bucket).prefix(prefix).set_continuation_token(after);
        let page = page.send().await.map_err(|error| StoreError::from_sdk("LIST", prefix, error))?;
        let next = page.next_continuation_token.filter(|_| page.is_truncated == Some(true));
        Ok(Page { keys: page.contents.unwrap_or_default().into_iter().filter_map(|object| object.key).collect(), next })
    }

    /// Asks for one key, which tells whether endpoint, bucket and credentials work: a missing bucket and a
    /// missing permission answer differently.
    pub async fn probe(&self, prefix: &str) -> Result<(), StoreError> {
        let listed = self.client.list_objects_v2().bucket(&self.bucket).prefix(prefix).max_keys(1).send().await;
        listed.map(drop).map_err(|error| StoreError::from_sdk("LIST", prefix, error))
    }
}

/// The body of an object, chunk by chunk.
pub struct Download {
    key: String,
    body: ByteStream,
}

impl Download {
    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// The connection broke, or nothing came for 30 seconds.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, StoreError> {
        let broken = |message| StoreError {
            kind: StoreErrorKind::Unavailable,
            operation: "GET",
            key: self.key.clone(),
            message,
        };
        match tokio::time::timeout(READ_TIMEOUT, self.body.next()).await {
            Ok(None) => Ok(None),
            Ok(Some(Ok(chunk))) => Ok(Some(chunk)),
            Ok(Some(Err(error))) => Err(broken(format!("broke off: {}", chain(&error)))),
            Err(_) => Err(broken(format!("sent nothing for {} s", READ_TIMEOUT.as_secs()))),
        }
    }
}

/// What a caller can do about a failed request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreErrorKind {
    NotFound,
    NoSuchBucket,
    /// Wrong keys, or keys that may not do this.
    Denied,
    /// The signature's time is too far from the server's.
    ClockSkew,
    /// Away, overloaded or slow: worth another try.
    Unavailable,
    Other,
}

#[derive(Debug, Clone, thiserror::Error)]
#[error("{operation} of '{key}': {message}")]
pub struct StoreError {
    pub kind: StoreErrorKind,
    operation: &'static str,
    key: String,
    message: String,
}

impl StoreError {
    fn from_sdk<E>(operation: &'static str, key: &str, error: SdkError<E>) -> Self
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let (kind, message) = match &error {
            SdkError::ServiceError(service) => {
                let status = service.raw().status().as_u16();
                let code = service.err().code().unwrap_or_default().to_owned();
                (kind_of(status, &code), format!("the server answered {status} {code}").trim_end().to_owned())
            }
            SdkError::TimeoutError(_) | SdkError::DispatchFailure(_) | SdkError::ResponseError(_) => {
                (StoreErrorKind::Unavailable, chain(&error))
            }
            _ => (StoreErrorKind::Other, chain(&error)),
        };
        Self { kind, operation, key: crate::unit::shorten(key), message }
    }

    /// What to do about it, for a person.
    pub fn advice(&self) -> &'static str {
        match self.kind {
            StoreErrorKind::NotFound => "check storage.r2.prefix, and that the uploader has finished",
            StoreErrorKind::NoSuchBucket => {
                "there is no bucket of that name: check storage.r2.bucket, and that storage.r2.endpoint is the account's \
                 (it must not carry the bucket's name)"
            }
            StoreErrorKind::Denied => {
                "check storage.r2.access_key_id and secret_access_key, and that the token may read and write this bucket"
            }
            StoreErrorKind::ClockSkew => {
                "this machine's clock is off: synchronise it (NTP), requests are signed with the time"
            }
            StoreErrorKind::Unavailable => "check storage.r2.endpoint and the network",
            StoreErrorKind::Other => "see the message",
        }
    }
}

fn kind_of(status: u16, code: &str) -> StoreErrorKind {
    match (status, code) {
        (_, "NoSuchBucket") => StoreErrorKind::NoSuchBucket,
        (_, "RequestTimeTooSkewed") => StoreErrorKind::ClockSkew,
        (_, "AccessDenied" | "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "Unauthorized") => StoreErrorKind::Denied,
        (404, _) => StoreErrorKind::NotFound,
        (401 | 403, _) => StoreErrorKind::Denied,
        (429 | 500..=599, _) | (_, "SlowDown" | "RequestTimeout") => StoreErrorKind::Unavailable,
        _ => StoreErrorKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        let check = |status, code, kind| assert_eq!(kind_of(status, code), kind, "{status} {code}");
        check(404, "NoSuchKey", StoreErrorKind::NotFound);
        check(404, "", StoreErrorKind::NotFound);
        check(404, "NoSuchBucket", StoreErrorKind::NoSuchBucket);
        check(403, "RequestTimeTooSkewed", StoreErrorKind::ClockSkew);
        check(403, "SignatureDoesNotMatch", StoreErrorKind::Denied);
        check(403, "", StoreErrorKind::Denied);
        check(503, "SlowDown", StoreErrorKind::Unavailable);
        check(429, "", StoreErrorKind::Unavailable);
        check(400, "RequestTimeout", StoreErrorKind::Unavailable);
        check(400, "InvalidArgument", StoreErrorKind::Other);
    }
}
