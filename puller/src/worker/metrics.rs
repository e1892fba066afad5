//! What `/metrics` shows. Names and labels are listed, with the question each answers, in docs/OPERATING.md.

use std::time::Duration;

use nats::{STREAMS, StreamUsage};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::job::work::StageTimes;

/// Destinations come from the configuration, outcomes and stages from this file: all are closed sets.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    destination: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Stage {
    destination: String,
    stage: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Place {
    destination: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfStream {
    stream: &'static str,
}

#[derive(Clone)]
pub(crate) struct Metrics {
    deliveries: Family<Outcome, Counter>,
    archives: Family<Outcome, Counter>,
    rows: Family<Place, Counter>,
    bytes: Family<Place, Counter>,
    stages: Family<Stage, Histogram>,
    in_flight: Family<Place, Gauge>,
    leases_lost: Family<Place, Counter>,
    stream_bytes: Family<OfStream, Gauge>,
    stream_limit_bytes: Family<OfStream, Gauge>,
    pull_restarts: Family<Place, Counter>,
    lost_units: Family<Place, Gauge>,
}

impl Metrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        // 1 ms to about a minute.
        let stages = || Histogram::new(exponential_buckets(0.001, 2.0, 17));
        let metrics = Self {
            deliveries: Family::default(),
            archives: Family::default(),
            rows: Family::default(),
            bytes: Family::default(),
            stages: Family::new_with_constructor(stages),
            in_flight: Family::default(),
            leases_lost: Family::default(),
            stream_bytes: Family::default(),
            stream_limit_bytes: Family::default(),
            pull_restarts: Family::default(),
            lost_units: Family::default(),
        };
        registry.register(
            "marketferry_puller_deliveries",
            "Deliveries that ended, by outcome",
            metrics.deliveries.clone(),
        );
        registry.register(
            "marketferry_puller_archives",
            "Archives worked through, by outcome",
            metrics.archives.clone(),
        );
        registry.register("marketferry_puller_rows_inserted", "Rows inserted and read back", metrics.rows.clone());
        registry.register(
            "marketferry_puller_fetched_bytes",
            "Bytes fetched from the bucket and verified",
            metrics.bytes.clone(),
        );
        registry.register(
            "marketferry_puller_stage_duration_seconds",
            "Time of one attempt by stage",
            metrics.stages.clone(),
        );
        registry.register("marketferry_puller_in_flight_jobs", "Deliveries in flight", metrics.in_flight.clone());
        registry.register(
            "marketferry_puller_leases_lost",
            "Deliveries whose lease was lost",
            metrics.leases_lost.clone(),
        );
        registry.register("marketferry_puller_stream_bytes", "Bytes a NATS stream holds", metrics.stream_bytes.clone());
        let limit = metrics.stream_limit_bytes.clone();
        registry.register(
            "marketferry_puller_stream_limit_bytes",
            "Bytes a NATS stream may hold; 0 without a limit",
            limit,
        );
        for stream in STREAMS {
            metrics.stream_bytes.get_or_create(&OfStream { stream }).set(0);
            metrics.stream_limit_bytes.get_or_create(&OfStream { stream }).set(0);
        }
        registry.register(
            "marketferry_puller_pull_restarts",
            "Times that consumers were opened anew because no pull was answered",
            metrics.pull_restarts.clone(),
        );
        registry.register(
            "marketferry_puller_lost_units",
            "Units loaded from a stream that was lost, and not announced on the present one; at least",
            metrics.lost_units.clone(),
        );
        metrics
    }

    pub(crate) fn stream(&self, usage: &StreamUsage) {
        let gauge = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let stream = OfStream { stream: usage.stream };
        self.stream_bytes.get_or_create(&stream).set(gauge(usage.bytes));
        self.stream_limit_bytes.get_or_create(&stream).set(gauge(usage.limit_bytes.unwrap_or_default()));
    }

    pub(crate) fn ended(&self, destination: &str, outcome: &'static str) {
        self.deliveries.get_or_create(&Outcome { destination: destination.into(), outcome }).inc();
    }

    pub(crate) fn archives(&self, destination: &str, outcome: &'static str, count: u64) {
        self.archives.get_or_create(&Outcome { destination: destination.into(), outcome }).inc_by(count);
    }

    pub(crate) fn volume(&self, destination: &str, rows: u64, bytes: u64) {
        let place = Place { destination: destination.into() };
        self.rows.get_or_create(&place).inc_by(rows);
        self.bytes.get_or_create(&place).inc_by(bytes);
    }

    pub(crate) fn stages(&self, destination: &str, times: &StageTimes) {
        for (stage, time) in
            [("fetch", times.fetch), ("decode", times.decode), ("insert", times.insert), ("read_back", times.read_back)]
        {
            if time > Duration::ZERO {
                let stage = Stage { destination: destination.into(), stage };
                self.stages.get_or_create(&stage).observe(time.as_secs_f64());
            }
        }
    }

    pub(crate) fn in_flight(&self, destination: &str, count: usize) {
        let place = Place { destination: destination.into() };
        self.in_flight.get_or_create(&place).set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// A destination is worked for: its series are there from now on.
    pub(crate) fn serves(&self, destination: &str) {
        self.pull_restarts.get_or_create(&Place { destination: destination.into() }).inc_by(0);
        self.lost_units.get_or_create(&Place { destination: destination.into() }).set(0);
    }

    pub(crate) fn lost_units(&self, destination: &str, count: u64) {
        let place = Place { destination: destination.into() };
        self.lost_units.get_or_create(&place).set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(crate) fn pulls_restarted(&self, destination: &str) {
        self.pull_restarts.get_or_create(&Place { destination: destination.into() }).inc();
    }

    pub(crate) fn lease_lost(&self, destination: &str) {
        self.leases_lost.get_or_create(&Place { destination: destination.into() }).inc();
    }
}
