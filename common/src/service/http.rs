//! `/livez`, `/readyz` and `/metrics`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Connections served at the same time; more wait in the listener's queue.
const CONNECTIONS_MAX: usize = 32;
/// How long a connection lasts, with its one request and the answer: also who says nothing, or does not read, has only
/// this long.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause after a connection could not be accepted, for want of a file descriptor perhaps.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// How long a server is away before a service is not ready for that: a cut connection is made anew in less.
const AWAY_SHOWN: Duration = Duration::from_secs(10);
const AWAY_ASKED: Duration = Duration::from_secs(1);

/// Why a service is not ready, by part; ready when there is no reason.
///
/// Every part starts with a reason ("starting") and clears it when it works.
#[derive(Clone, Default)]
pub struct Readiness {
    reasons: Arc<Mutex<BTreeMap<String, String>>>,
}

impl Readiness {
    pub fn not_ready(&self, part: &str, reason: impl Into<String>) {
        self.reasons.lock().unwrap_or_else(PoisonError::into_inner).insert(part.to_owned(), reason.into());
    }

    pub fn ready(&self, part: &str) {
        self.reasons.lock().unwrap_or_else(PoisonError::into_inner).remove(part);
    }

    /// Shows, for as long as it is polled, that a server has been away for longer than a reconnection takes.
    pub async fn follow<F: Future<Output = bool>>(&self, part: &str, is_connected: impl Fn() -> F) {
        let mut away_since = None;
        loop {
            if is_connected().await {
                away_since = None;
                self.ready(part);
            } else {
                let away = away_since.get_or_insert_with(Instant::now).elapsed();
                if away >= AWAY_SHOWN {
                    self.not_ready(part, format!("not connected for {} s", away.as_secs()));
                }
            }
            tokio::time::sleep(AWAY_ASKED).await;
        }
    }

    /// One line a reason; empty when ready.
    pub fn reasons(&self) -> Vec<String> {
        let reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        reasons.iter().map(|(part, reason)| format!("{part}: {reason}")).collect()
    }
}

#[derive(Clone)]
struct Served {
    readiness: Readiness,
    registry: Arc<Registry>,
}

/// Serves until `stop`. Returns the address, which tells the port when 0 was asked for.
///
/// # Errors
/// The address cannot be listened on.
pub async fn serve(
    listen: SocketAddr,
    readiness: Readiness,
    registry: Registry,
    stop: CancellationToken,
) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(listen).await?;
    let address = listener.local_addr()?;
    let router = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(Served { readiness, registry: Arc::new(registry) });
    tokio::spawn(stop.run_until_cancelled_owned(accept(listener, router)));
    tracing::info!(%address, "serving /livez, /readyz and /metrics");
    Ok(address)
}

/// Accepts connections for ever, so many at a time.
async fn accept(listener: TcpListener, router: Router) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // Bounded by CONNECTION_TIMEOUT: then one of those that are served gives its place back.
        let place = Arc::clone(&places).acquire_owned().await;
        // No time-out: to wait for somebody who connects is all that is to be done.
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accepting an HTTP connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let router = router.clone();
        tokio::spawn(async move {
            if tokio::time::timeout(CONNECTION_TIMEOUT, answer(stream, router)).await.is_err() {
                tracing::debug!("an HTTP connection was closed: it lasted too long");
            }
            drop(place);
        });
    }
}

/// Answers one request.
async fn answer(stream: TcpStream, router: Router) {
    let mut server = auto::Builder::new(TokioExecutor::new()).http1_only();
    server.http1().keep_alive(false);
    if let Err(error) = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)).await {
        tracing::debug!(%error, "an HTTP connection ended early");
    }
}

async fn readyz(State(served): State<Served>) -> impl IntoResponse {
    match served.readiness.reasons().as_slice() {
        [] => (StatusCode::OK, "ready\n".to_owned()),
        reasons => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready\n{}\n", reasons.join("\n"))),
    }
}

async fn metrics(State(served): State<Served>) -> impl IntoResponse {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &served.registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            (StatusCode::OK, [(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
