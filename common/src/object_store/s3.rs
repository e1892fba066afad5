//! A bucket behind the S3 API. The only module that names S3 types.
//!
//! R2's rules are kept everywhere: region `auto`, no checksum headers unless an operation requires one, no ACLs,
//! no bucket-level calls (a token scoped to one bucket may not make them).

mod direct;
mod foreign;
mod paced;
mod parts;

use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    StalledStreamProtectionConfig,
};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::primitives::ByteStream;
use aws_smithy_http_client::tls;
use bytes::Bytes;

use super::error::{StoreError, StoreErrorKind, StoreType};
use super::{Over, Page, Put, Stored};
use crate::backoff::{Backoff, Growth};
use crate::bwlimit::Bandwidth;
use crate::chain::chain;
use crate::checksum::Sha256Sum;
use crate::config;
use direct::Direct;
use paced::Pacer;

/// User metadata that carries an object's sha256 (`x-amz-meta-sha256`).
const SHA256: &str = "sha256";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest silence of the server, also between two chunks of a body.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// For a whole answer whose body the SDK reads: to a list, a small object, a refusal. [`READ_TIMEOUT`] ends with its head.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// Longest silence while a body goes out. A reply comes only after all of it arrived, and the system's buffers may still
/// have a good deal to send on a slow link when we have none left.
const UPLOAD_SILENCE: Duration = Duration::from_secs(120);
/// An object of up to so many bytes is sent in one go; a larger one takes its time on a slow link.
const DIRECT_BYTES_MAX: usize = 256 << 10;
/// Of one request; beyond it the caller's own retries decide.
const ATTEMPTS: u32 = 6;
/// Between the attempts: 7.75 seconds in all.
const PAUSES: Backoff = Backoff {
    initial: Duration::from_millis(250),
    growth: Growth::Exponential { factor: 2.0 },
    max: Duration::from_secs(10),
};
/// Longest pause a server's `Retry-After` is granted.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

#[derive(Clone)]
pub(super) struct S3 {
    client: Client,
    /// The same without a limit on how long a reply may take: a body on a slow link takes its time.
    uploads: Client,
    /// For what is asked of every archive; `None` where the settings are not right.
    direct: Option<Direct>,
    bucket: String,
    bandwidth: Bandwidth,
}

impl S3 {
    pub(super) fn new(storage: &config::Bucket, bandwidth: Bandwidth) -> Self {
        Self::answered_within(ANSWER_TIMEOUT, storage, bandwidth)
    }

    fn answered_within(answer: Duration, storage: &config::Bucket, bandwidth: Bandwidth) -> Self {
        let http = aws_smithy_http_client::Builder::new()
            .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring))
            .build_https();
        // The attempt to fetch an object ends with the head of its answer; its body is watched in `Download::chunk`.
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .operation_attempt_timeout(answer)
            .build();
        let credentials = Credentials::new(
            storage.access_key_id.reveal(),
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
            .credentials_provider(credentials.clone())
            .force_path_style(storage.path_style)
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            // Otherwise GETs carry `x-amz-checksum-mode`, which R2 was reported to answer with 501. What is fetched is
            // compared with the marker's sha256 in any case.
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            // Ours, in `retried`: the SDK's share a quota that a link which keeps dropping uses up, after which nothing is
            // tried again.
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts)
            // Our own limit in `Download::chunk` says which object stalled.
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .build();
        let connecting = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .disable_read_timeout()
            .disable_operation_attempt_timeout()
            .build();
        let uploads = config.to_builder().timeout_config(connecting).build();
        Self {
            client: Client::from_conf(config),
            uploads: Client::from_conf(uploads),
            direct: Direct::new(storage, credentials),
            bucket: storage.bucket.clone(),
            bandwidth,
        }
    }

    pub(super) fn bucket(&self) -> &str {
        &self.bucket
    }

    /// What is stored under a key; `None` when nothing is.
    pub(super) async fn head(&self, key: &str) -> Result<Option<Stored>, StoreError> {
        if let Some(direct) = &self.direct
            && let Some(answer) = direct.head(key).await
        {
            return Ok(answer);
        }
        Ok(self.head_output(key).await?.map(|head| stored(&head)))
    }

    async fn head_output(&self, key: &str) -> Result<Option<HeadObjectOutput>, StoreError> {
        let request = || self.client.head_object().bucket(&self.bucket).key(key).send();
        match retried("HEAD", key, request).await {
            Ok(head) => Ok(Some(head)),
            Err(error) if error.kind == StoreErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Stores an object by a single PUT, with its sha256 as user metadata.
    pub(super) async fn put_over(
        &self,
        key: &str,
        body: Bytes,
        sha256: Sha256Sum,
        over: Over<'_>,
    ) -> Result<Put, StoreError> {
        if let Some(direct) = &self.direct
            && body.len() <= DIRECT_BYTES_MAX
            && self.bandwidth.is_off()
            && direct.put(key, body.clone(), sha256, over).await
        {
            return Ok(Put::Done);
        }
        let request = async |condition: Condition| {
            let pacer = Pacer::new(self.bandwidth.clone(), body.clone());
            let put = self.uploads.put_object().bucket(&self.bucket).key(key).metadata(SHA256, sha256.to_string());
            let (if_match, if_none_match) = condition.headers();
            let put = put.set_if_match(if_match).set_if_none_match(if_none_match);
            let put = put.body(ByteStream::from(body.clone())).customize().interceptor(pacer.clone());
            pacer.watch(UPLOAD_SILENCE, put.send()).await
        };
        self.replaced("PUT", key, over, request).await
    }

    /// Makes a request that replaces an object, only over what HEAD showed.
    async fn replaced<T, E, F>(
        &self,
        operation: &'static str,
        key: &str,
        over: Over<'_>,
        request: impl Fn(Condition) -> F,
    ) -> Result<Put, StoreError>
    where
        F: Future<Output = Result<T, SdkError<E>>>,
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let condition = Condition::of(over);
        let conditional = async || match request(condition.clone()).await {
            Ok(_) => Ok(Put::Done),
            Err(error) if condition != Condition::Always && is_precondition_failed(&error) => Ok(Put::Changed),
            Err(error) => Err(error),
        };
        match retried(operation, key, conditional).await {
            // Some servers answer 501 to such headers, or 400, whatever lies there.
            Err(error) if error.kind == StoreErrorKind::Other && condition != Condition::Always => {
                tracing::debug!(%error, "asking for the object in place of a condition");
                if !over.is_still(self.head(key).await?.as_ref()) {
                    return Ok(Put::Changed);
                }
                retried(operation, key, || request(Condition::Always)).await.map(|_| Put::Done)
            }
            outcome => outcome,
        }
    }

    /// See [`super::ObjectStore::put_new`].
    pub(super) async fn put_new(&self, key: &str, body: Bytes, sha256: Sha256Sum) -> bool {
        match &self.direct {
            Some(direct) if body.len() <= DIRECT_BYTES_MAX && self.bandwidth.is_off() => {
                direct.put(key, body, sha256, Over::Nothing).await
            }
            _ => false,
        }
    }

    /// Begins to fetch an object.
    pub(super) async fn get(&self, key: &str) -> Result<S3Download, StoreError> {
        if let Some(direct) = &self.direct
            && let Some(response) = direct.get(key).await
        {
            return Ok(S3Download { key: key.to_owned(), body: Body::Direct(response) });
        }
        let got = retried("GET", key, || self.client.get_object().bucket(&self.bucket).key(key).send()).await?;
        Ok(S3Download { key: key.to_owned(), body: Body::Sdk(got.body) })
    }

    /// One page of the keys below a prefix, in their order; `after` is what the page before said comes next.
    pub(super) async fn list(&self, prefix: &str, after: Option<String>) -> Result<Page, StoreError> {
        let request = || {
            let page = self.client.list_objects_v2().bucket(&self.bucket).prefix(prefix);
            page.set_continuation_token(after.clone()).send()
        };
        let page = retried("LIST", prefix, request).await?;
        let next = page.next_continuation_token.filter(|_| page.is_truncated == Some(true));
        Ok(Page { keys: page.contents.unwrap_or_default().into_iter().filter_map(|object| object.key).collect(), next })
    }

    /// Removes an object; also where there is none.
    pub(super) async fn delete(&self, key: &str) -> Result<(), StoreError> {
        retried("DELETE", key, || self.client.delete_object().bucket(&self.bucket).key(key).send()).await.map(drop)
    }

    /// Asks for one key, which tells whether endpoint, bucket and credentials work: a missing bucket and a
    /// missing permission answer differently.
    pub(super) async fn probe(&self, prefix: &str) -> Result<(), StoreError> {
        let request = || self.client.list_objects_v2().bucket(&self.bucket).prefix(prefix).max_keys(1).send();
        retried("LIST", prefix, request).await.map(drop)
    }
}

/// On which a server stores an object.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Condition {
    Always,
    IfNoneMatch,
    /// The ETag, in its quotes.
    IfMatch(String),
}

impl Condition {
    fn of(over: Over<'_>) -> Self {
        match over {
            Over::Anything => Self::Always,
            // No strong ETag to compare with.
            Over::This(stored) if stored.etag.is_empty() || stored.etag.contains('"') => Self::Always,
            Over::Nothing => Self::IfNoneMatch,
            Over::This(stored) => Self::IfMatch(format!("\"{}\"", stored.etag)),
        }
    }

    /// `If-Match` and `If-None-Match`.
    fn headers(self) -> (Option<String>, Option<String>) {
        match self {
            Self::Always => (None, None),
            Self::IfNoneMatch => (None, Some("*".to_owned())),
            Self::IfMatch(etag) => (Some(etag), None),
        }
    }
}

/// Whether the server did nothing because something else lies there, or somebody stores it at the same moment.
fn is_precondition_failed<E: ProvideErrorMetadata>(error: &SdkError<E>) -> bool {
    let SdkError::ServiceError(service) = error else { return false };
    match (service.raw().status().as_u16(), service.err().code()) {
        (412, _) | (409, Some("ConditionalRequestConflict")) => true,
        // If-Match, and the object is gone.
        (404, code) => code == Some("NoSuchKey"),
        _ => false,
    }
}

fn stored(head: &HeadObjectOutput) -> Stored {
    let sha256 = head.metadata().and_then(|metadata| metadata.get(SHA256)).and_then(|text| text.parse().ok());
    Stored {
        size: head.content_length().and_then(|size| u64::try_from(size).ok()).unwrap_or_default(),
        etag: head.e_tag().unwrap_or_default().trim_matches('"').to_owned(),
        encrypted: is_encrypted(
            head.server_side_encryption().map(aws_sdk_s3::types::ServerSideEncryption::as_str),
            head.sse_customer_algorithm(),
        ),
        sha256,
    }
}

/// Whether an object is encrypted with a key of its own, by what the server says of its encryption and of the customer's
/// key. The ETag is no MD5 then. With the server's one key (`AES256`) it is.
fn is_encrypted(encryption: Option<&str>, customer_algorithm: Option<&str>) -> bool {
    encryption.is_some_and(|encryption| encryption.starts_with("aws:kms")) || customer_algorithm.is_some()
}

/// Waits for what a server does with a large object by itself: that takes a while, and there is no body to watch.
async fn patiently<T, E, R>(request: impl Future<Output = Result<T, SdkError<E, R>>>) -> Result<T, SdkError<E, R>> {
    match tokio::time::timeout(UPLOAD_SILENCE, request).await {
        Ok(done) => done,
        Err(_) => {
            let seconds = UPLOAD_SILENCE.as_secs();
            Err(SdkError::timeout_error(format!("no answer for {seconds} s")))
        }
    }
}

/// Sends a request again, by itself, while the server or the way to it is at fault.
async fn retried<T, E, F>(operation: &'static str, key: &str, request: impl Fn() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, SdkError<E>>>,
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let mut attempt = 0;
    loop {
        attempt += 1;
        let failure = match request().await {
            Ok(done) => return Ok(done),
            Err(failure) => failure,
        };
        let asked = retry_after(&failure);
        let error = StoreError::from_sdk(operation, key, failure);
        if error.kind != StoreErrorKind::Unavailable || attempt >= ATTEMPTS {
            return Err(error);
        }
        tracing::debug!(%error, attempt, "trying again");
        tokio::time::sleep(asked.unwrap_or_else(|| PAUSES.delay(attempt))).await;
    }
}

fn retry_after<E>(failure: &SdkError<E>) -> Option<Duration> {
    let seconds = failure.raw_response()?.headers().get("retry-after")?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}

/// The body of an object, chunk by chunk.
pub(super) struct S3Download {
    key: String,
    body: Body,
}

enum Body {
    Direct(reqwest::Response),
    Sdk(ByteStream),
}

impl S3Download {
    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// The connection broke, or nothing came for 30 seconds.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, StoreError> {
        let next = async {
            match &mut self.body {
                Body::Direct(response) => response.chunk().await.map_err(|error| chain(&error)),
                Body::Sdk(body) => body.next().await.transpose().map_err(|error| chain(&error)),
            }
        };
        let why = match tokio::time::timeout(READ_TIMEOUT, next).await {
            Ok(Ok(chunk)) => return Ok(chunk),
            Ok(Err(error)) => format!("broke off: {error}"),
            Err(_) => format!("sent nothing for {} s", READ_TIMEOUT.as_secs()),
        };
        Err(StoreError::new(StoreType::S3, StoreErrorKind::Unavailable, "GET", &self.key, why))
    }
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
                let message = match status {
                    200..=299 => format!("the server answered {status} with a body that is not that of this request"),
                    _ => format!("the server answered {status} {code}").trim_end().to_owned(),
                };
                (kind_of(status, &code), message)
            }
            SdkError::TimeoutError(_) | SdkError::DispatchFailure(_) | SdkError::ResponseError(_) => {
                (StoreErrorKind::Unavailable, chain(&error))
            }
            _ => (StoreErrorKind::Other, chain(&error)),
        };
        Self { store: StoreType::S3, kind, operation, key: crate::unit::shorten(key), message }
    }
}

fn kind_of(status: u16, code: &str) -> StoreErrorKind {
    match (status, code) {
        (_, "NoSuchBucket") => StoreErrorKind::NoSuchBucket,
        (_, "RequestTimeTooSkewed") => StoreErrorKind::ClockSkew,
        (_, "AccessDenied" | "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "Unauthorized") => StoreErrorKind::Denied,
        (404, _) => StoreErrorKind::NotFound,
        // For ever, unlike its neighbours.
        (501, _) => StoreErrorKind::Other,
        (401 | 403, _) => StoreErrorKind::Denied,
        (429 | 500..=599, _) | (_, "SlowDown" | "RequestTimeout") => StoreErrorKind::Unavailable,
        _ => StoreErrorKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;
    use crate::bwlimit::BwLimit;

    #[tokio::test]
    async fn an_answer_that_stops_in_the_middle_is_no_answer() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        std::thread::spawn(move || {
            let mut open = Vec::new();
            for connection in listener.incoming().flatten() {
                let mut connection = connection;
                drop(connection.read(&mut [0; 4096]));
                drop(connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n<?xml"));
                open.push(connection);
            }
        });
        let bucket = config::Bucket {
            bucket: "bucket".into(),
            endpoint: format!("http://{address}"),
            region: "auto".into(),
            access_key_id: config::Secret::new("key"),
            secret_access_key: config::Secret::new("secret"),
            path_style: true,
        };
        let s3 = S3::answered_within(Duration::from_millis(200), &bucket, Bandwidth::new(BwLimit::default()));
        let listed = tokio::time::timeout(READ_TIMEOUT, s3.list("prefix/", None)).await.expect("it does not wait");
        assert_eq!(listed.expect_err("no list").kind, StoreErrorKind::Unavailable);
    }

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
        check(500, "InternalError", StoreErrorKind::Unavailable);
        check(501, "NotImplemented", StoreErrorKind::Other);
        check(400, "RequestTimeout", StoreErrorKind::Unavailable);
        check(400, "InvalidArgument", StoreErrorKind::Other);
    }
}
