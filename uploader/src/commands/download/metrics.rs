//! What the download counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::fault::DownloadFault;
use super::outcome::DownloadOutcome;

/// The counters, shared by cloning.
#[derive(Clone, Default)]
pub(crate) struct DownloadMetrics {
    archives: Family<[(&'static str, &'static str); 1], Counter>,
    bytes: Counter,
    last_run: Gauge,
}

impl DownloadMetrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let r = registry.sub_registry_with_prefix("marketferry_uploader_download");
        r.register("archives", "Archives looked at, by what came of them", metrics.archives.clone());
        r.register("bytes", "Bytes of archives received from the exchange", metrics.bytes.clone());
        r.register(
            "last_run_end_time_seconds",
            "When the last run ended that was not cut short, in seconds since 1970",
            metrics.last_run.clone(),
        );
        metrics
    }

    pub(crate) fn archive(&self, outcome: &Result<DownloadOutcome, DownloadFault>) {
        let outcome = match outcome {
            Ok(DownloadOutcome::Downloaded { .. }) => "downloaded",
            Ok(DownloadOutcome::Unchanged) => "unchanged",
            Ok(DownloadOutcome::NotPublished) => "not_published",
            Err(DownloadFault::Stopped) => return,
            Err(_) => "failed",
        };
        self.archives.get_or_create(&[("outcome", outcome)]).inc();
    }

    pub(crate) fn received(&self, bytes: u64) {
        self.bytes.inc_by(bytes);
    }

    pub(crate) fn run(&self) {
        self.last_run.set(common::clock::now().as_second());
    }
}
