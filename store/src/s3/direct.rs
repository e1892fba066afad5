//! The requests that are made for every archive, without the SDK's machinery: it takes several times the processor time of
//! the request itself, which counts where archives are small.
//!
//! One try, and only plain success is an answer. Whatever else happens, the caller asks again through the SDK, which
//! knows what errors mean and what is worth another try.

use std::time::SystemTime;

use aws_sdk_s3::config::Credentials;
use aws_sigv4::http_request::{
    PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningSettings, UriPathNormalizationMode,
    sign,
};
use aws_sigv4::sign::v4;
use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{IF_MATCH, IF_NONE_MATCH};
use reqwest::{Client, Method, Response, StatusCode, Url};

use crate::interface::{Over, Stored};
use crate::s3::condition::Condition;
use crate::s3::limits::{CONNECT_TIMEOUT, READ_TIMEOUT, is_encrypted};
use common::checksum::Sha256Sum;
use common::config;

/// What stays as it is in a key: what the signature leaves as it is.
const KEY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// The header that carries an object's sha256: the metadata of that name.
const SHA256_HEADER: &str = "x-amz-meta-sha256";

const ENCRYPTION_HEADER: &str = "x-amz-server-side-encryption";
const CUSTOMER_ALGORITHM_HEADER: &str = "x-amz-server-side-encryption-customer-algorithm";

#[derive(Clone)]
pub(super) struct Direct {
    http: Client,
    /// With the bucket, and a slash at its end.
    base: String,
    region: String,
    credentials: Credentials,
}

impl Direct {
    /// `None` where the SDK has to say what is wrong with the settings.
    pub(super) fn new(bucket: &config::Bucket, credentials: Credentials) -> Option<Self> {
        // An error means that one is installed already: this one, by an earlier call.
        drop(rustls::crypto::ring::default_provider().install_default());
        let http = Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            // As the SDK does.
            .no_proxy()
            .build()
            .ok()?;
        let endpoint = bucket.endpoint.trim_end_matches('/');
        let (scheme, host) = endpoint.split_once("://")?;
        let name = utf8_percent_encode(&bucket.bucket, KEY);
        let base = if bucket.path_style { format!("{endpoint}/{name}/") } else { format!("{scheme}://{name}.{host}/") };
        Url::parse(&base).ok()?;
        Some(Self { http, base, region: bucket.region.clone(), credentials })
    }

    /// `Some(None)`: nothing is there.
    pub(super) async fn head(&self, key: &str) -> Option<Option<Stored>> {
        let response = self.send(Method::HEAD, key, None).await?;
        match response.status() {
            StatusCode::NOT_FOUND => Some(None),
            StatusCode::OK => {
                let said = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
                Some(Some(Stored {
                    size: said("content-length")?.parse().ok()?,
                    etag: said("etag")?.trim_matches('"').to_owned(),
                    encrypted: is_encrypted(said(ENCRYPTION_HEADER), said(CUSTOMER_ALGORITHM_HEADER)),
                    sha256: said(SHA256_HEADER).and_then(|text| text.parse().ok()),
                }))
            }
            _ => None,
        }
    }

    /// An object's body, chunk by chunk.
    pub(super) async fn get(&self, key: &str) -> Option<Response> {
        self.send(Method::GET, key, None).await.filter(|response| response.status() == StatusCode::OK)
    }

    /// Whether the object is stored.
    pub(super) async fn put(&self, key: &str, body: Bytes, sha256: Sha256Sum, over: Over<'_>) -> bool {
        let response = self.send(Method::PUT, key, Some((body, sha256, over))).await;
        response.is_some_and(|response| response.status() == StatusCode::OK)
    }

    async fn send(&self, method: Method, key: &str, body: Option<(Bytes, Sha256Sum, Over<'_>)>) -> Option<Response> {
        let url = format!("{}{}", self.base, utf8_percent_encode(key, KEY));
        let sha256 = body.as_ref().map(|(_, sha256, _)| sha256.to_string());
        let headers = self.signed(method.as_str(), &url, sha256.as_deref())?;
        let mut request = self.http.request(method, Url::parse(&url).ok()?);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        if let Some(sha256) = sha256 {
            request = request.header(SHA256_HEADER, sha256);
        }
        if let Some((bytes, _, over)) = body {
            request = request.body(bytes);
            request = match Condition::of(over) {
                Condition::Always => request,
                Condition::IfNoneMatch => request.header(IF_NONE_MATCH, "*"),
                Condition::IfMatch(etag) => request.header(IF_MATCH, etag),
            };
        }
        request.send().await.ok()
    }

    /// The headers that authenticate a request; the payload is signed by its sha256.
    fn signed(&self, method: &str, url: &str, sha256: Option<&str>) -> Option<Vec<(&'static str, String)>> {
        let mut settings = SigningSettings::default();
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        let identity = self.credentials.clone().into();
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name("s3")
            .time(SystemTime::now())
            .settings(settings)
            .build()
            .ok()?
            .into();
        let payload = sha256.map_or(SignableBody::Bytes(&[]), |sum| SignableBody::Precomputed(sum.to_owned()));
        let metadata = sha256.map(|sum| (SHA256_HEADER, sum));
        let request = SignableRequest::new(method, url, metadata.into_iter(), payload).ok()?;
        let (instructions, _) = sign(request, &params).ok()?.into_parts();
        let (headers, _) = instructions.into_parts();
        Some(headers.into_iter().map(|header| (header.name(), header.value().to_owned())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_that_of_the_metadata() {
        assert_eq!(SHA256_HEADER, format!("x-amz-meta-{}", crate::s3::limits::SHA256));
    }
}
