//! Connecting, and what can go wrong with a server.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::jetstream::{self, Context};
use async_nats::{ConnectErrorKind, ConnectOptions, Event, Statistics};
use common::backoff::{Backoff, Growth};
use common::config::{Nats, Secret, StreamLimits};
use common::marker::INLINE_BYTES_MAX;
use common::output::{Failure, FailureClass};
use common::text::chain;
use percent_encoding::percent_decode_str;
use tokio::sync::watch;

/// A server or a link that is frozen, and not cut, is noticed at the third ping after the last that was answered.
const PING_INTERVAL: Duration = Duration::from_secs(4);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Room for the headers of a marker, or of a dead letter, whose error text may have 16 KiB.
const HEADER_BYTES: usize = 24 * 1024;
/// A name may have several addresses, and finding them takes as long as the resolver does.
const CONNECT_ALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an answer is waited for where nothing else is said.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the end of a process waits for what it has still to send.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Pauses between attempts to connect again. The longest is short: who waits for the network waits that much more.
const RECONNECT: Backoff = Backoff {
    initial: Duration::from_millis(250),
    growth: Growth::Exponential { factor: 2.0 },
    max: Duration::from_secs(4),
};

/// A connection to NATS, shared by cloning.
#[derive(Clone)]
pub struct Bus {
    pub(crate) client: async_nats::Client,
    pub(crate) context: Context,
    pub(crate) link: Link,
    /// This process's unique name.
    pub(crate) worker: String,
    /// Copies of each stream.
    pub(crate) replicas: usize,
    /// Bytes of each stream.
    pub(crate) limits: StreamLimits,
}

impl Bus {
    /// Connects once; after that the connection comes back by itself.
    ///
    /// # Errors
    /// No server answers, none accepts the credentials, or a file of them cannot be read.
    pub async fn connect(config: &Nats, worker: &str) -> Result<Self, BusError> {
        let (connected, connections) = watch::channel(());
        let mut options = ConnectOptions::new()
            .name(worker)
            .connection_timeout(CONNECT_TIMEOUT)
            .ping_interval(PING_INTERVAL)
            .reconnect_delay_callback(pause_before)
            .request_timeout(Some(REQUEST_TIMEOUT))
            .event_callback(move |event| {
                if matches!(event, Event::Connected) {
                    connected.send_replace(());
                }
                log_event(event)
            });
        if let Some((user, password)) = login(config) {
            options = options.user_and_password(user, password.reveal().to_owned());
        }
        if let Some(file) = &config.nkey_file {
            options = options.nkey(nkey_seed(file)?);
        }
        if let Some(file) = &config.credentials_file {
            options = options.credentials(&read(file)?).map_err(|error| unusable(file, &error))?;
        }
        if let Some(file) = &config.ca_file {
            options = options.add_root_certificates(file.clone()).require_tls(true);
        }
        if let (Some(cert), Some(key)) = (&config.cert_file, &config.key_file) {
            options = options.add_client_certificate(cert.clone(), key.clone());
        }
        if let Some(role) = &config.role {
            options = options.custom_inbox_prefix(format!("_INBOX_{role}"));
        }
        let urls: Vec<String> = config.urls.iter().map(|url| parts(url.reveal()).0).collect();
        let cannot_connect = || format!("cannot connect to {}", public_urls(config));
        let connecting = tokio::time::timeout(CONNECT_ALL_TIMEOUT, options.connect(urls)).await;
        let connected = connecting.map_err(|elapsed| BusError::unavailable(cannot_connect(), &elapsed))?;
        let client = connected.map_err(|error| {
            let kind = match error.kind() {
                ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => BusErrorKind::Denied,
                ConnectErrorKind::ServerParse | ConnectErrorKind::Tls => BusErrorKind::Refused,
                ConnectErrorKind::Dns
                | ConnectErrorKind::TimedOut
                | ConnectErrorKind::Io
                | ConnectErrorKind::MaxReconnects => BusErrorKind::Unavailable,
            };
            BusError::new(kind, cannot_connect(), &error)
        })?;
        let context = jetstream::new(client.clone());
        let link = Link { connections, statistics: client.statistics() };
        let worker = worker.to_owned();
        Ok(Self { client, context, link, worker, replicas: config.replicas, limits: config.limits })
    }

    pub fn is_connected(&self) -> bool {
        self.client.connection_state() == async_nats::connection::State::Connected
    }

    /// Longest message that may carry its list of objects, by what this server takes: there must be room for headers, and
    /// for those of a dead letter with the marker in it.
    pub fn inline_bytes_max(&self) -> usize {
        INLINE_BYTES_MAX.min(self.client.max_payload().saturating_sub(HEADER_BYTES))
    }

    /// How often this process has connected; more than before means that the server may not be what it was.
    pub fn connects(&self) -> u64 {
        self.link.connects()
    }

    /// Sends what is queued; best effort, for the end of a process.
    pub async fn close(&self) {
        match tokio::time::timeout(CLOSE_TIMEOUT, self.client.drain()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "closing the NATS connection"),
            Err(_) => tracing::debug!("the NATS connection could not be closed in time"),
        }
    }
}

/// Tells when the connection was made anew: what was asked before will not be answered.
#[derive(Clone)]
pub(crate) struct Link {
    /// Changes with every connection that is made.
    connections: watch::Receiver<()>,
    statistics: Arc<Statistics>,
}

impl Link {
    pub(crate) fn connects(&self) -> u64 {
        self.statistics.connects.load(Ordering::Relaxed)
    }

    /// Returns when there were other connections than so many.
    pub(crate) async fn other_than(&self, connects: u64) {
        let mut connections = self.connections.clone();
        while self.connects() == connects {
            if connections.changed().await.is_err() {
                // The client has gone, and its subscriptions end.
                std::future::pending::<()>().await;
            }
        }
    }
}

/// The configured servers without user names and passwords.
pub fn public_urls(config: &Nats) -> String {
    config.urls.iter().map(|url| parts(url.reveal()).0).collect::<Vec<_>>().join(", ")
}

/// The pause before an attempt to connect, counted from 1: async-nats asks also before the first one.
fn pause_before(attempt: usize) -> Duration {
    match u32::try_from(attempt).unwrap_or(u32::MAX) {
        0 | 1 => Duration::ZERO,
        attempt => RECONNECT.delay(attempt - 1),
    }
}

/// The user and the password: their own keys first, else the first URL that holds some. async-nats 0.51 does not
/// use those of a URL.
fn login(config: &Nats) -> Option<(String, Secret)> {
    if let Some(user) = &config.user {
        return Some((user.clone(), config.password.clone().unwrap_or_else(|| Secret::new(""))));
    }
    config.urls.iter().find_map(|url| parts(url.reveal()).1)
}

/// A URL without its `user:password@`, and those, percent-decoded.
fn parts(url: &str) -> (String, Option<(String, Secret)>) {
    let (scheme, rest) = url.split_once("://").unwrap_or(("nats", url));
    let Some((login, host)) = rest.rsplit_once('@') else { return (format!("{scheme}://{rest}"), None) };
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    (format!("{scheme}://{host}"), Some((decoded(user), Secret::new(decoded(password)))))
}

fn read(file: &Path) -> Result<String, BusError> {
    std::fs::read_to_string(file).map_err(|error| unusable(file, &error))
}

/// The seed in a file. The library would only log that it cannot sign with it, and not say which file it was.
fn nkey_seed(file: &Path) -> Result<String, BusError> {
    let seed = read(file)?.trim().to_owned();
    match nkeys::KeyPair::from_seed(&seed) {
        Ok(pair) if matches!(pair.key_pair_type(), nkeys::KeyPairType::User) => Ok(seed),
        // The library's words for what is wrong with it may hold parts of it.
        Ok(_) | Err(_) => {
            let why = "it does not hold the seed of a user's nkey, which begins with SU";
            Err(BusError::plain(BusErrorKind::Refused, format!("cannot use {}", file.display()), why))
        }
    }
}

fn unusable(file: &Path, error: &std::io::Error) -> BusError {
    BusError::new(BusErrorKind::Refused, format!("cannot use {}", file.display()), error)
}

/// Permission errors are visible nowhere else: a denied request only times out.
async fn log_event(event: Event) {
    match event {
        Event::Connected => tracing::debug!("connected to NATS"),
        Event::Disconnected => tracing::warn!("connection to NATS lost, reconnecting"),
        Event::ServerError(error) => tracing::warn!(%error, "NATS server error"),
        Event::ClientError(error) => tracing::warn!(%error, "NATS client error"),
        Event::SlowConsumer(subscription) => tracing::warn!(subscription, "NATS drops messages to a slow subscription"),
        Event::LameDuckMode => tracing::info!("NATS server is shutting down, moving to another"),
        Event::Draining | Event::Closed => tracing::debug!(%event, "NATS connection"),
    }
}

/// What a caller can do about an error of the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BusErrorKind {
    /// Away, slow or without a leader: worth another try.
    Unavailable,
    Denied,
    /// A stream or consumer is not there.
    Missing,
    /// The server refuses the request for good.
    Refused,
    /// The stream has no room for it now.
    Full,
}

#[derive(Debug, Clone, thiserror::Error)]
pub struct BusError {
    pub kind: BusErrorKind,
    doing: String,
    why: String,
}

impl BusError {
    pub(crate) fn new(kind: BusErrorKind, doing: impl Into<String>, why: &(impl std::error::Error + ?Sized)) -> Self {
        Self { kind, doing: doing.into(), why: chain(why) }
    }

    pub(crate) fn unavailable(doing: impl Into<String>, why: &(impl std::error::Error + ?Sized)) -> Self {
        Self::new(BusErrorKind::Unavailable, doing, why)
    }

    /// Nothing was heard in this time.
    pub fn unanswered(doing: &str, time: Duration) -> Self {
        Self::plain(BusErrorKind::Unavailable, doing, format!("no answer for {} s", time.as_secs()))
    }

    /// Whether the stream of markers itself may be what is missing: a consumer that somebody deleted is no lost stream.
    fn is_of_markers(&self) -> bool {
        self.doing.ends_with("stream MARKERS") && !self.doing.starts_with("consumer ")
    }

    pub(crate) fn plain(kind: BusErrorKind, doing: impl Into<String>, why: impl Into<String>) -> Self {
        Self { kind, doing: doing.into(), why: why.into() }
    }
}

/// An answer, or that there was none in this time.
///
/// The library's own time-outs begin when the connection has taken the question. It takes none while it is lost and its
/// queue is full, so whoever runs for long needs this around them.
pub async fn within<T>(
    time: Duration,
    doing: &str,
    answer: impl Future<Output = Result<T, BusError>>,
) -> Result<T, BusError> {
    tokio::time::timeout(time, answer).await.unwrap_or_else(|_| Err(BusError::unanswered(doing, time)))
}

impl fmt::Display for BusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NATS: {}: {}", self.doing, self.why)
    }
}

impl From<BusError> for Failure {
    fn from(error: BusError) -> Self {
        let (class, advice) = match error.kind {
            BusErrorKind::Unavailable => {
                (FailureClass::Unreachable, "check nats.url, the network and the certificates")
            }
            BusErrorKind::Denied => {
                (FailureClass::Denied, "check the NATS user and password, nkey or credentials file")
            }
            BusErrorKind::Missing if error.is_of_markers() => (
                FailureClass::Missing,
                "run `puller migrate`; where the stream was lost, `uploader reconcile --fix` makes it again from the bucket",
            ),
            BusErrorKind::Missing => (FailureClass::Missing, "run `puller migrate`, which makes what is missing"),
            // These say themselves what to do.
            BusErrorKind::Refused => return Self::new(FailureClass::Refused, error.to_string()),
            BusErrorKind::Full => return Self::failed(error.to_string()),
        };
        Self::new(class, error.to_string()).advice(advice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_missing_stream_of_markers_may_have_been_lost() {
        let advice = |doing: &str| {
            let failure = Failure::from(BusError::plain(BusErrorKind::Missing, doing, "it is not there"));
            failure.advice.unwrap_or_default()
        };
        assert!(advice("stream MARKERS").contains("uploader reconcile --fix"));
        for doing in ["stream TASKS", "consumer reader-1 of stream MARKERS", "consumer sweeper of stream ADVISORIES"] {
            let advice = advice(doing);
            assert!(advice.contains("puller migrate") && !advice.contains("lost"), "{doing}: {advice}");
        }
    }

    #[test]
    fn a_url_is_parted_from_its_password() {
        let check = |url: &str, public: &str, login: Option<(&str, &str)>| {
            let login = login.map(|(user, password)| (user.to_owned(), Secret::new(password)));
            assert_eq!(parts(url), (public.to_owned(), login));
        };
        check("nats://user:p@ss@host:4222", "nats://host:4222", Some(("user", "p@ss")));
        check("tls://user:a%3Ab%2Fc@host:4222", "tls://host:4222", Some(("user", "a:b/c")));
        check("tls://host:4222", "tls://host:4222", None);
        check("host", "nats://host", None);
    }
}
