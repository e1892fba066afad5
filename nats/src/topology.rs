//! Streams and durable consumers: how they must be, and making them so.

use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::stream::{
    Compression, Config, ConsumerErrorKind, DiscardPolicy, RetentionPolicy, StorageType,
};

use crate::announced::{reader_differs, readers};
use crate::connection::{Bus, BusError, BusErrorKind};
use crate::subject::{backfill_filters, ready_filters};

pub(crate) const MARKERS: &str = "MARKERS";
pub(crate) const DEAD: &str = "DEAD";
pub(crate) const ADVISORIES: &str = "ADVISORIES";
pub(crate) const TASKS: &str = "TASKS";

/// Markers hold at most 256 KiB of objects; the rest is room for headers and later fields.
const MARKER_BYTES_MAX: i32 = 512 * 1024;
/// The server sets these aside when the stream is made, so they must fit a small disk.
const MARKERS_BYTES_MAX: i64 = 2 << 30;
const DEAD_BYTES_MAX: i64 = 512 << 20;
const DAY: Duration = Duration::from_secs(86_400);
/// A safety ceiling only: workers dead-letter after `retry.attempts`, which configuration caps below this.
const MAX_DELIVER: i64 = 25;
/// Parked retries count as ack-pending, so this bounds how many can be parked before live work is held up.
const MAX_ACK_PENDING: i64 = 4096;

/// What of a destination's consumers is configured.
#[derive(Debug, Clone)]
pub struct ConsumerSettings {
    pub destination: String,
    pub ack_wait: Duration,
}

/// What [`Bus::missing`] did not find or found different.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing(pub String);

impl Bus {
    /// Creates the streams that are not there, and changes those that differ, if `update`.
    pub async fn apply_streams(&self, replicas: usize, update: bool) -> Result<(), BusError> {
        for want in streams(replicas) {
            let doing = format!("stream {}", want.name);
            match self.context.get_stream(&want.name).await {
                Ok(stream) if update && differs(&stream.cached_info().config, &want) => {
                    let updated = self.context.update_stream(merged(&stream.cached_info().config, &want)).await;
                    updated.map_err(|error| BusError::new(BusErrorKind::Refused, doing, &error))?;
                }
                Ok(_) => {}
                Err(error) if is_missing(&error.kind()) => {
                    let created = self.context.create_stream(want).await;
                    created.map_err(|error| BusError::new(BusErrorKind::Refused, doing, &error))?;
                }
                Err(error) => return Err(BusError::unavailable(doing, &error)),
            }
        }
        self.apply_readers(update).await
    }

    /// Creates the two durable consumers of a destination if they are not there; changes them if `update`.
    pub async fn apply_consumers(&self, settings: &ConsumerSettings, update: bool) -> Result<(), BusError> {
        for mut want in consumers(settings) {
            let name = want.durable_name.clone().unwrap_or_default();
            let doing = format!("consumer {name}");
            let create = match self.durable(&name).await {
                Ok(found) => {
                    // An update without it would take a pause back.
                    want.pause_until = found.cached_info().config.pause_until;
                    update && consumer_differs(&found.cached_info().config, &want)
                }
                Err(error) if error.kind == BusErrorKind::Missing => true,
                Err(error) => return Err(error),
            };
            if create {
                // An upsert: two workers that start together both succeed.
                let created = self.context.create_consumer_on_stream(want, MARKERS).await;
                created.map_err(|error| BusError::new(BusErrorKind::Refused, doing, &error))?;
            }
        }
        Ok(())
    }

    /// Looks at streams and consumers without changing anything.
    pub async fn missing(&self, replicas: usize, settings: &[ConsumerSettings]) -> Result<Vec<Missing>, BusError> {
        let mut missing = Vec::new();
        for want in streams(replicas) {
            match self.context.get_stream(&want.name).await {
                Ok(stream) if differs(&stream.cached_info().config, &want) => {
                    missing.push(Missing(format!("stream {} has other settings than this version's", want.name)));
                }
                Ok(_) => {}
                Err(error) if is_missing(&error.kind()) => {
                    missing.push(Missing(format!("stream {} is not there", want.name)));
                }
                Err(error) => return Err(BusError::unavailable(format!("stream {}", want.name), &error)),
            }
        }
        for want in settings.iter().flat_map(consumers) {
            let name = want.durable_name.clone().unwrap_or_default();
            match self.durable(&name).await {
                Ok(found) if consumer_differs(&found.cached_info().config, &want) => {
                    missing.push(Missing(format!("consumer {name} has other settings than configured")));
                }
                Ok(_) => {}
                Err(error) if error.kind == BusErrorKind::Missing => {
                    missing.push(Missing(format!("consumer {name} is not there")));
                }
                Err(error) => return Err(error),
            }
        }
        for want in readers() {
            let name = want.durable_name.clone().unwrap_or_default();
            match self.consumer_on(MARKERS, &name).await {
                Ok(found) if reader_differs(&found.cached_info().config, &want) => {
                    missing.push(Missing(format!("consumer {name} has other settings than this version's")));
                }
                Ok(_) => {}
                Err(error) if error.kind == BusErrorKind::Missing => {
                    missing.push(Missing(format!("consumer {name} is not there")));
                }
                Err(error) => return Err(error),
            }
        }
        match self.sweeper().await {
            Ok(_) => {}
            Err(error) if error.kind == BusErrorKind::Missing => {
                missing.push(Missing("consumer sweeper of ADVISORIES is not there".into()));
            }
            Err(error) => return Err(error),
        }
        Ok(missing)
    }

    /// Looks a durable consumer of MARKERS up; needs no right but that to see it.
    pub(crate) async fn durable(&self, name: &str) -> Result<PullConsumer, BusError> {
        self.consumer_on(MARKERS, name).await
    }

    pub(crate) async fn consumer_on(&self, stream: &str, name: &str) -> Result<PullConsumer, BusError> {
        let found = self.context.get_consumer_from_stream::<pull::Config, _, _>(name, stream).await;
        found.map_err(|error| {
            let gone = [ErrorCode::CONSUMER_NOT_FOUND, ErrorCode::STREAM_NOT_FOUND];
            let kind = match error.kind() {
                ConsumerErrorKind::JetStream(error) if gone.contains(&error.error_code()) => BusErrorKind::Missing,
                _ => BusErrorKind::Unavailable,
            };
            BusError::new(kind, format!("consumer {name}"), &error)
        })
    }

    /// Durable consumers of destinations that are not among `configured`.
    pub async fn stale_consumers(&self, configured: &[String]) -> Result<Vec<String>, BusError> {
        use futures::TryStreamExt;
        let stream = self.context.get_stream_no_info(MARKERS).await;
        let stream = stream.map_err(|error| BusError::unavailable("stream MARKERS", &error))?;
        let names: Vec<String> = stream
            .consumer_names()
            .try_collect()
            .await
            .map_err(|error| BusError::unavailable("consumers of MARKERS", &error))?;
        let ours = |name: &str| {
            destination_of(name).is_some_and(|destination| !configured.iter().any(|known| known == destination))
        };
        Ok(names.into_iter().filter(|name| ours(name)).collect())
    }

    pub async fn delete_consumer(&self, name: &str) -> Result<(), BusError> {
        let deleted = self.context.delete_consumer_from_stream(name, MARKERS).await;
        deleted.map(drop).map_err(|error| BusError::new(BusErrorKind::Refused, format!("consumer {name}"), &error))
    }
}

pub(crate) fn ready_consumer(destination: &str) -> String {
    format!("ingest-{destination}")
}

pub(crate) fn backfill_consumer(destination: &str) -> String {
    format!("backfill-{destination}")
}

/// The destination a durable consumer of MARKERS belongs to.
pub(crate) fn destination_of(consumer: &str) -> Option<&str> {
    consumer.strip_prefix("ingest-").or_else(|| consumer.strip_prefix("backfill-"))
}

fn streams(replicas: usize) -> [Config; 4] {
    let base = Config {
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        num_replicas: replicas,
        compression: Some(Compression::S2),
        allow_direct: true,
        ..Config::default()
    };
    [
        Config {
            name: MARKERS.into(),
            description: Some("what is in the bucket, one message a revision of a unit".into()),
            subjects: vec![
                "marker.ready.*.*.*.*.*".into(),
                "marker.backfill.*.*.*.*.*".into(),
                "marker.replay.*.*.*.*.*.*".into(),
            ],
            // Refuse a marker loudly rather than drop one that nobody has read yet.
            discard: DiscardPolicy::New,
            max_bytes: MARKERS_BYTES_MAX,
            max_message_size: MARKER_BYTES_MAX,
            // A short history of revisions a subject; the newest contains what the older ones held.
            max_messages_per_subject: 10,
            duplicate_window: 2 * DAY,
            ..base.clone()
        },
        Config {
            name: DEAD.into(),
            description: Some("markers that need a person".into()),
            subjects: vec!["dead.*.*.*.*.*.*".into()],
            discard: DiscardPolicy::New,
            max_bytes: DEAD_BYTES_MAX,
            duplicate_window: DAY,
            ..base.clone()
        },
        Config {
            name: ADVISORIES.into(),
            description: Some("what only the server noticed: deliveries that ran out".into()),
            subjects: vec![
                format!("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{MARKERS}.>"),
                format!("$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.{MARKERS}.>"),
            ],
            discard: DiscardPolicy::Old,
            max_age: 30 * DAY,
            max_messages: 100_000,
            ..base.clone()
        },
        Config {
            name: TASKS.into(),
            description: Some("replays, and how far each of their units is".into()),
            subjects: vec!["task.*".into(), "task.*.*.*.*.*.*".into()],
            discard: DiscardPolicy::Old,
            max_age: 90 * DAY,
            max_messages_per_subject: 1,
            ..base
        },
    ]
}

/// What the server fills in by itself must not count as a difference (it writes -1 where we leave 0, no limit), so only
/// what matters is compared.
fn differs(is: &Config, want: &Config) -> bool {
    let mut subjects = [is.subjects.clone(), want.subjects.clone()];
    subjects.iter_mut().for_each(|list| list.sort());
    subjects[0] != subjects[1]
        || is.num_replicas != want.num_replicas
        || is.max_bytes.max(0) != want.max_bytes
        || is.max_message_size != want.max_message_size && want.max_message_size != 0
        || is.max_messages_per_subject != want.max_messages_per_subject && want.max_messages_per_subject != 0
        || is.discard != want.discard
        || is.allow_direct != want.allow_direct
}

/// The found configuration with ours laid over it: what an operator added (placement, deny_delete) stays.
fn merged(is: &Config, want: &Config) -> Config {
    Config {
        subjects: want.subjects.clone(),
        num_replicas: want.num_replicas,
        max_bytes: want.max_bytes,
        max_message_size: want.max_message_size,
        max_messages_per_subject: want.max_messages_per_subject,
        discard: want.discard,
        allow_direct: want.allow_direct,
        ..is.clone()
    }
}

fn consumers(settings: &ConsumerSettings) -> [pull::Config; 2] {
    let destination = settings.destination.as_str();
    let base = pull::Config {
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::Explicit,
        ack_wait: settings.ack_wait,
        // Empty on purpose: with a backoff list the server adds it to the delay of a nak.
        backoff: Vec::new(),
        max_deliver: MAX_DELIVER,
        max_ack_pending: MAX_ACK_PENDING,
        ..pull::Config::default()
    };
    [
        pull::Config {
            durable_name: Some(ready_consumer(destination)),
            filter_subjects: ready_filters(),
            ..base.clone()
        },
        pull::Config {
            durable_name: Some(backfill_consumer(destination)),
            filter_subjects: backfill_filters(destination),
            ..base
        },
    ]
}

fn consumer_differs(is: &async_nats::jetstream::consumer::Config, want: &pull::Config) -> bool {
    let found =
        if is.filter_subjects.is_empty() { vec![is.filter_subject.clone()] } else { is.filter_subjects.clone() };
    is.ack_wait != want.ack_wait
        || is.max_deliver != want.max_deliver
        || is.max_ack_pending != want.max_ack_pending
        || found != want.filter_subjects
}

pub(crate) fn is_missing(kind: &GetStreamErrorKind) -> bool {
    matches!(kind, GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND)
}
