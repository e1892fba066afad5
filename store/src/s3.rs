//! A bucket behind the S3 API.
//!
//! R2's rules are kept everywhere: region `auto`, no checksum headers unless an operation requires one, no ACLs,
//! no bucket-level calls (a token scoped to one bucket may not make them).

mod foreign;
mod parts;

mod direct;

mod condition;
mod limits;
mod paced;
mod retry;

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

use common::checksum::Sha256Sum;
use common::config;
use common::text::chain;

use crate::bandwidth::Bandwidth;
use crate::error::{StoreError, StoreErrorKind, StoreType};
use crate::interface::{Over, Page, Put, Stored};
use condition::{Condition, is_precondition_failed};
use direct::Direct;
use limits::{CONNECT_TIMEOUT, READ_TIMEOUT, SHA256, UPLOAD_SILENCE, is_encrypted};
use paced::Pacer;
use retry::retried;

/// For a whole answer whose body the SDK reads: to a list, a small object, a refusal. [`READ_TIMEOUT`] ends with its head.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// An object of up to so many bytes is sent in one go; a larger one takes its time on a slow link.
const DIRECT_BYTES_MAX: usize = 256 << 10;
#[derive(Clone)]
pub(crate) struct S3 {
    client: Client,
    /// The same without a limit on how long a reply may take: a body on a slow link takes its time.
    uploads: Client,
    /// For what is asked of every archive; `None` where the settings are not right.
    direct: Option<Direct>,
    bucket: String,
    bandwidth: Bandwidth,
}

impl S3 {
    pub(crate) fn new(storage: &config::Bucket, bandwidth: Bandwidth) -> Self {
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

    pub(crate) fn bucket(&self) -> &str {
        &self.bucket
    }

    /// What is stored under a key; `None` when nothing is.
    pub(crate) async fn head(&self, key: &str) -> Result<Option<Stored>, StoreError> {
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
    pub(crate) async fn put_over(
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

    /// See [`crate::ObjectStore::put_new`].
    pub(crate) async fn put_new(&self, key: &str, body: Bytes, sha256: Sha256Sum) -> bool {
        match &self.direct {
            Some(direct) if body.len() <= DIRECT_BYTES_MAX && self.bandwidth.is_off() => {
                direct.put(key, body, sha256, Over::Nothing).await
            }
            _ => false,
        }
    }

    /// Begins to fetch an object.
    pub(crate) async fn get(&self, key: &str) -> Result<S3Download, StoreError> {
        if let Some(direct) = &self.direct
            && let Some(response) = direct.get(key).await
        {
            return Ok(S3Download { key: key.to_owned(), body: Body::Direct(response) });
        }
        let got = retried("GET", key, || self.client.get_object().bucket(&self.bucket).key(key).send()).await?;
        Ok(S3Download { key: key.to_owned(), body: Body::Sdk(got.body) })
    }

    /// One page of the keys below a prefix, in their order; `after` is what the page before said comes next.
    pub(crate) async fn list(&self, prefix: &str, after: Option<String>) -> Result<Page, StoreError> {
        let request = || {
            let page = self.client.list_objects_v2().bucket(&self.bucket).prefix(prefix);
            page.set_continuation_token(after.clone()).send()
        };
        let page = retried("LIST", prefix, request).await?;
        let next = page.next_continuation_token.filter(|_| page.is_truncated == Some(true));
        Ok(Page { keys: page.contents.unwrap_or_default().into_iter().filter_map(|object| object.key).collect(), next })
    }

    /// Removes an object; also where there is none.
    pub(crate) async fn delete(&self, key: &str) -> Result<(), StoreError> {
        retried("DELETE", key, || self.client.delete_object().bucket(&self.bucket).key(key).send()).await.map(drop)
    }

    /// Asks for one key, which tells whether endpoint, bucket and credentials work: a missing bucket and a
    /// missing permission answer differently.
    pub(crate) async fn probe(&self, prefix: &str) -> Result<(), StoreError> {
        let request = || self.client.list_objects_v2().bucket(&self.bucket).prefix(prefix).max_keys(1).send();
        retried("LIST", prefix, request).await.map(drop)
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

/// The body of an object, chunk by chunk.
pub(crate) struct S3Download {
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
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, StoreError> {
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

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;
    use common::bwlimit::BwLimit;

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
}
