//! What the uploader counts.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::local::signs;

/// How many units are in which state.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct UnitCounts {
    pub(crate) held_back: usize,
    pub(crate) unannounced: usize,
    pub(crate) waiting: usize,
}

/// The one label there is; its values are those of the enums below.
type ByOutcome = Family<[(&'static str, &'static str); 1], Counter>;

#[derive(Debug, Clone, Copy)]
enum ObjectOutcome {
    Uploaded,
    Present,
    Failed,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum UnitOutcome {
    Published,
    Unchanged,
    HeldBack,
    Unannounced,
    Waiting,
}

/// The counters, shared by cloning.
#[derive(Clone)]
pub(crate) struct Metrics {
    objects: ByOutcome,
    upload_bytes: Counter,
    units: ByOutcome,
    cleaned: Counter,
    pass_duration: Histogram,
    last_pass: Gauge,
    units_held_back: Gauge,
    units_unannounced: Gauge,
    units_waiting: Gauge,
    archives_read: Counter,
    watched_folders: Gauge,
    pass_restarts: Counter,
}

impl Metrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            objects: Family::default(),
            upload_bytes: Counter::default(),
            units: Family::default(),
            cleaned: Counter::default(),
            pass_duration: Histogram::new(exponential_buckets(0.01, 4.0, 10)),
            last_pass: Gauge::default(),
            units_held_back: Gauge::default(),
            units_unannounced: Gauge::default(),
            units_waiting: Gauge::default(),
            archives_read: Counter::default(),
            watched_folders: Gauge::default(),
            pass_restarts: Counter::default(),
        };
        let r = registry.sub_registry_with_prefix("marketferry_uploader");
        r.register("objects", "Archives handled, by what came of them", metrics.objects.clone());
        r.register("upload_bytes", "Bytes of archives sent to the bucket", metrics.upload_bytes.clone());
        r.register("units", "Units handled, by what came of them, once a pass", metrics.units.clone());
        r.register("archives_removed", "Archives removed from disk after they were announced", metrics.cleaned.clone());
        r.register_with_unit("pass_duration", "How long a pass took", Unit::Seconds, metrics.pass_duration.clone());
        r.register(
            "last_pass_end_time_seconds",
            "When the last pass ended that was not cut short, in seconds since 1970",
            metrics.last_pass.clone(),
        );
        r.register("held_back_units", "Units the last pass held back", metrics.units_held_back.clone());
        r.register(
            "unannounced_units",
            "Units the last pass stored and could not announce",
            metrics.units_unannounced.clone(),
        );
        r.register(
            "waiting_units",
            "Units that wait to be complete, or for an archive that is being written",
            metrics.units_waiting.clone(),
        );
        r.register("archives_read", "Archives opened, checked and hashed", metrics.archives_read.clone());
        r.register("watched_folders", "Folders whose events are listened to", metrics.watched_folders.clone());
        r.register("pass_restarts", "Passes that made no progress and were begun anew", metrics.pass_restarts.clone());
        metrics
    }

    fn object(&self, outcome: ObjectOutcome) {
        signs::bump();
        let outcome = match outcome {
            ObjectOutcome::Uploaded => "uploaded",
            ObjectOutcome::Present => "present",
            ObjectOutcome::Failed => "failed",
        };
        self.objects.get_or_create(&[("outcome", outcome)]).inc();
    }

    pub(crate) fn object_uploaded(&self, bytes: u64) {
        self.object(ObjectOutcome::Uploaded);
        self.upload_bytes.inc_by(bytes);
    }

    pub(crate) fn object_present(&self) {
        self.object(ObjectOutcome::Present);
    }

    pub(crate) fn object_failed(&self) {
        self.object(ObjectOutcome::Failed);
    }

    pub(crate) fn pass_restarted(&self) {
        self.pass_restarts.inc();
    }

    pub(crate) fn unit(&self, outcome: UnitOutcome) {
        signs::bump();
        let outcome = match outcome {
            UnitOutcome::Published => "published",
            UnitOutcome::Unchanged => "unchanged",
            UnitOutcome::HeldBack => "held_back",
            UnitOutcome::Unannounced => "unannounced",
            UnitOutcome::Waiting => "waiting",
        };
        self.units.get_or_create(&[("outcome", outcome)]).inc();
    }

    pub(crate) fn removed(&self, archives: u64) {
        self.cleaned.inc_by(archives);
    }

    pub(crate) fn archive_read(&self) {
        self.archives_read.inc();
    }

    /// Archives read since this process began.
    pub(crate) fn archives_read(&self) -> u64 {
        self.archives_read.get()
    }

    pub(crate) fn watched_folders(&self, count: usize) {
        self.watched_folders.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// A pass came to its end, and this is how all units stand.
    pub(crate) fn pass(&self, elapsed: Duration, counts: UnitCounts) {
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.pass_duration.observe(elapsed.as_secs_f64());
        self.last_pass.set(common::clock::now().as_second());
        self.units_held_back.set(gauge(counts.held_back));
        self.units_unannounced.set(gauge(counts.unannounced));
        self.units_waiting.set(gauge(counts.waiting));
    }
}
