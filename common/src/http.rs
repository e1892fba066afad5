//! `/livez`, `/readyz` and `/metrics`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

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
    tokio::spawn(async move {
        let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await;
        if let Err(error) = served {
            tracing::error!(%error, "the HTTP endpoint stopped");
        }
    });
    tracing::info!(%address, "serving /livez, /readyz and /metrics");
    Ok(address)
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
