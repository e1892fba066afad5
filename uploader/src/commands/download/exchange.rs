//! The exchange's server: requests, how long they are tried, and what an answer means.

use std::time::Duration;

use bytes::Bytes;
use common::backoff::{Backoff, Growth};
use common::config::Download;
use common::text::{chain, shorten};
use reqwest::header::{CONTENT_RANGE, ETAG, HeaderMap, HeaderName, IF_RANGE, LAST_MODIFIED, RANGE, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use serde::{Deserialize, Serialize};
use store::bandwidth::{Bandwidth, Direction};
use tokio_util::sync::CancellationToken;

use super::fault::DownloadFault;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const REDIRECTS_MAX: usize = 5;
/// Requests for one thing before it is given up.
const ATTEMPTS_MAX: u32 = 5;
const BACKOFF: Backoff = Backoff {
    initial: Duration::from_millis(500),
    growth: Growth::Exponential { factor: 2.0 },
    max: Duration::from_secs(30),
};
/// A server that asks to be left alone for longer is left to the next run.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(120);

/// What tells one publication of a file from the next.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Version {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    etag: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_modified: Option<String>,
}

impl Version {
    fn of(headers: &HeaderMap) -> Self {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        Self { etag: text(ETAG), last_modified: text(LAST_MODIFIED) }
    }

    /// Whether the server says anything that could be compared later.
    pub(crate) fn is_known(&self) -> bool {
        self.etag.is_some() || self.last_modified.is_some()
    }

    /// Whether both are of one publication, as far as can be told.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let strong = |etag: &str| etag.trim_start_matches("W/").to_owned();
        match (&self.etag, &other.etag) {
            (Some(a), Some(b)) => strong(a) == strong(b),
            _ => self.last_modified.is_some() && self.last_modified == other.last_modified,
        }
    }

    /// What `If-Range` takes: a weak ETag does not promise the same bytes.
    fn for_range(&self) -> Option<&str> {
        self.etag.as_deref().filter(|etag| !etag.starts_with("W/")).or(self.last_modified.as_deref())
    }
}

/// A client of one exchange, or of a mirror of it.
pub(crate) struct Exchange {
    client: Client,
    base: Url,
    list: Url,
    bandwidth: Bandwidth,
    shutdown: CancellationToken,
}

/// The beginning of an archive's answer.
pub(crate) struct Opened {
    pub(crate) version: Version,
    /// Of the whole archive.
    pub(crate) size: Option<u64>,
    /// Where in the archive the body begins.
    pub(crate) offset: u64,
    pub(crate) body: Body,
}

/// The body of an answer, as fast as the limit allows.
pub(crate) struct Body {
    answer: Response,
    /// Read from the connection and not handed on yet.
    arrived: Bytes,
    bandwidth: Bandwidth,
}

impl Body {
    /// The next bytes; `None` at the end.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, DownloadFault> {
        if self.arrived.is_empty() {
            match self.answer.chunk().await.map_err(DownloadFault::from_transfer)? {
                Some(chunk) => self.arrived = chunk,
                None => return Ok(None),
            }
        }
        // What is not handed on is not read on either, so the server slows down too.
        let granted = self.bandwidth.acquire(Direction::Down, self.arrived.len()).await;
        Ok(Some(self.arrived.split_to(granted)))
    }
}

impl Exchange {
    /// # Errors
    /// An address is none, or no TLS roots can be read.
    pub(crate) fn new(download: &Download, bandwidth: Bandwidth, shutdown: CancellationToken) -> Result<Self, String> {
        let url = |key: &str, text: &str| {
            let url = Url::parse(text).ok().filter(Url::has_host);
            url.ok_or_else(|| format!("{key}: '{text}' is not an address"))
        };
        // An error means that one is installed already: this one, by an earlier call.
        drop(rustls::crypto::ring::default_provider().install_default());
        let client = Client::builder()
            .user_agent(concat!("marketferry-uploader/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(download.timeout)
            .redirect(redirects())
            .build()
            .map_err(|error| format!("no HTTP client: {}", chain(&error)))?;
        Ok(Self {
            client,
            base: url("download.base_url", &download.base_url)?,
            list: url("download.list_url", &download.list_url)?,
            bandwidth,
            shutdown,
        })
    }

    /// Where the archives come from, for messages.
    pub(crate) fn base(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// One page of a listing.
    pub(crate) async fn list(&self, query: &[(&str, &str)], bytes_max: u64) -> Result<Vec<u8>, DownloadFault> {
        let mut url = self.list.clone();
        url.query_pairs_mut().extend_pairs(query);
        let page = self.whole(&url, bytes_max).await?;
        page.ok_or(DownloadFault::Refused { status: StatusCode::NOT_FOUND })
    }

    /// A small file; `None`: there is none.
    pub(crate) async fn small(&self, path: &str, bytes_max: u64) -> Result<Option<Vec<u8>>, DownloadFault> {
        self.whole(&self.url(path), bytes_max).await
    }

    /// What is published now; `None`: nothing.
    pub(crate) async fn version(&self, path: &str) -> Result<Option<Version>, DownloadFault> {
        let mut tries = Tries::default();
        loop {
            match self.send(self.client.head(self.url(path))).await {
                Ok(answer) if answer.status() == StatusCode::NOT_FOUND => return Ok(None),
                Ok(answer) => return Ok(Some(Version::of(answer.headers()))),
                Err(fault) => tries.retry(fault, &self.shutdown).await?,
            }
        }
    }

    /// Whether anything answers at all; one attempt.
    pub(crate) async fn probe(&self) -> Result<(), DownloadFault> {
        match self.send(self.client.head(self.base.clone())).await {
            // A bucket behind a site may refuse to show its root.
            Ok(_) | Err(DownloadFault::Refused { .. }) => Ok(()),
            Err(fault) => Err(fault),
        }
    }

    /// Asks for an archive, or what is missing of it; one attempt. `None`: there is none.
    pub(crate) async fn open(
        &self,
        path: &str,
        have: Option<(u64, &Version)>,
    ) -> Result<Option<Opened>, DownloadFault> {
        let mut request = self.client.get(self.url(path));
        if let Some((bytes, version)) = have
            && let Some(validator) = version.for_range()
        {
            request = request.header(RANGE, format!("bytes={bytes}-")).header(IF_RANGE, validator);
        }
        let answer = self.send(request).await?;
        let version = Version::of(answer.headers());
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(None),
            StatusCode::PARTIAL_CONTENT => {
                let Some((offset, size)) = content_range(answer.headers()) else {
                    return Err(DownloadFault::Cut("it answered with a part and does not say which".to_owned()));
                };
                Ok(Some(Opened { version, size, offset, body: self.body(answer) }))
            }
            _ => {
                let size = answer.content_length();
                Ok(Some(Opened { version, size, offset: 0, body: self.body(answer) }))
            }
        }
    }

    fn body(&self, answer: Response) -> Body {
        Body { answer, arrived: Bytes::new(), bandwidth: self.bandwidth.clone() }
    }

    async fn whole(&self, url: &Url, bytes_max: u64) -> Result<Option<Vec<u8>>, DownloadFault> {
        let mut tries = Tries::default();
        loop {
            match self.whole_once(url, bytes_max).await {
                Ok(bytes) => return Ok(bytes),
                Err(fault) => tries.retry(fault, &self.shutdown).await?,
            }
        }
    }

    async fn whole_once(&self, url: &Url, bytes_max: u64) -> Result<Option<Vec<u8>>, DownloadFault> {
        let answer = self.send(self.client.get(url.clone())).await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let mut body = self.body(answer);
        let mut bytes = Vec::new();
        while let Some(chunk) = body.chunk().await? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > bytes_max {
                return Err(DownloadFault::TooLarge { what: "an answer", bytes_max });
            }
        }
        Ok(Some(bytes))
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, DownloadFault> {
        let answer = request.send().await.map_err(DownloadFault::from_transfer)?;
        let status = answer.status();
        match status {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::NOT_FOUND => Ok(answer),
            StatusCode::RANGE_NOT_SATISFIABLE => {
                Err(DownloadFault::Cut("it has nothing beyond what is here".to_owned()))
            }
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Err(busy(&answer)),
            _ if status.is_server_error() => Err(busy(&answer)),
            _ => Err(DownloadFault::Refused { status }),
        }
    }

    /// The segments are escaped: a symbol may be in any script.
    fn url(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path.split('/'));
        }
        url
    }
}

/// How often one thing has been asked for.
#[derive(Debug, Default)]
pub(crate) struct Tries {
    failed: u32,
}

impl Tries {
    /// What was asked for came in part: a link that drops now and then must not use up the attempts.
    pub(crate) fn got_on(&mut self) {
        self.failed = 0;
    }

    /// Waits until it may be asked for again.
    ///
    /// # Errors
    /// The fault, if it does not pass or has been met often enough.
    pub(crate) async fn retry(
        &mut self,
        fault: DownloadFault,
        shutdown: &CancellationToken,
    ) -> Result<(), DownloadFault> {
        let asked = match &fault {
            DownloadFault::Busy { retry_after, .. } => *retry_after,
            DownloadFault::Unreachable(_) | DownloadFault::Cut(_) => None,
            _ => return Err(fault),
        };
        self.failed += 1;
        if self.failed >= ATTEMPTS_MAX || asked.is_some_and(|asked| asked > RETRY_AFTER_MAX) {
            return Err(fault);
        }
        let delay = BACKOFF.delay(self.failed).max(asked.unwrap_or_default());
        tracing::debug!(%fault, attempt = self.failed, delay_ms = delay.as_millis(), "trying again");
        tokio::select! {
            biased;
            () = shutdown.cancelled() => Err(DownloadFault::Stopped),
            () = tokio::time::sleep(delay) => Ok(()),
        }
    }
}

/// Follows redirects on the server that was asked only, also from http to https. Elsewhere, whoever answers for the exchange
/// could make this process ask any server that it reaches.
fn redirects() -> Policy {
    Policy::custom(|attempt| {
        let Some(from) = attempt.previous().last() else { return attempt.follow() };
        let to = attempt.url();
        // A port is `None` where it is the scheme's own.
        let same_server = (to.host_str(), to.port()) == (from.host_str(), from.port());
        let problem = match (from.scheme(), to.scheme()) {
            _ if attempt.previous().len() > REDIRECTS_MAX => "too many redirects".to_owned(),
            ("https", "http") => "a redirect away from TLS".to_owned(),
            (_, "http" | "https") if same_server => return attempt.follow(),
            (_, "http" | "https") => {
                format!("a redirect to another server, {}", shorten(to.host_str().unwrap_or_default()))
            }
            _ => "a redirect to something that is not HTTP".to_owned(),
        };
        attempt.error(problem)
    })
}

fn busy(answer: &Response) -> DownloadFault {
    let asked = header(answer.headers(), &RETRY_AFTER).and_then(|text| retry_after(text, common::clock::now()));
    DownloadFault::Busy { status: answer.status(), retry_after: asked }
}

fn header<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// Seconds, or a date.
fn retry_after(text: &str, now: jiff::Timestamp) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text.trim()).ok()?;
    Some(Duration::try_from(at.duration_since(now)).unwrap_or_default())
}

/// `bytes 100-199/200`, or with `*` for a size that is not known.
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let (range, size) = header(headers, &CONTENT_RANGE)?.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, _) = range.split_once('-')?;
    Some((first.trim().parse().ok()?, size.trim().parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(etag: Option<&str>, last_modified: Option<&str>) -> Version {
        Version { etag: etag.map(str::to_owned), last_modified: last_modified.map(str::to_owned) }
    }

    #[test]
    fn a_version_is_told_by_its_etag_and_else_by_its_date() {
        let check = |a: &Version, b: &Version, same| assert_eq!(a.is_same(b), same, "{a:?} {b:?}");
        let (monday, tuesday) = (Some("Mon, 02 Mar 2026 08:30:00 GMT"), Some("Tue, 03 Mar 2026 08:30:00 GMT"));
        check(&version(Some("\"a\""), monday), &version(Some("\"a\""), tuesday), true);
        check(&version(Some("\"a\""), monday), &version(Some("W/\"a\""), monday), true);
        check(&version(Some("\"a\""), monday), &version(Some("\"b\""), monday), false);
        check(&version(None, monday), &version(Some("\"b\""), monday), true);
        check(&version(None, monday), &version(None, tuesday), false);
        check(&version(None, None), &version(None, None), false);
        assert_eq!(version(Some("W/\"a\""), monday).for_range(), monday);
    }

    #[test]
    fn a_server_says_when_to_come_back() {
        let now = "2026-03-02T08:30:00Z".parse().expect("a time");
        assert_eq!(retry_after("7", now), Some(Duration::from_secs(7)));
        assert_eq!(retry_after("Mon, 02 Mar 2026 08:30:09 GMT", now), Some(Duration::from_secs(9)));
        assert_eq!(retry_after("Mon, 02 Mar 2026 08:29:00 GMT", now), Some(Duration::ZERO));
        assert_eq!(retry_after("soon", now), None);
    }

    #[test]
    fn a_part_says_where_it_begins() {
        let check = |text: &'static str, expected| {
            let headers = HeaderMap::from_iter([(CONTENT_RANGE, reqwest::header::HeaderValue::from_static(text))]);
            assert_eq!(content_range(&headers), expected, "{text}");
        };
        check("bytes 100-199/200", Some((100, Some(200))));
        check("bytes 100-199/*", Some((100, None)));
        check("bytes */200", None);
        check("items 1-2/3", None);
    }
}
