//! The streams, durable consumers and their names, as this version needs them.

use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::{self, AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::stream::{
    Compression, Config, ConsumerErrorKind, DiscardPolicy, RetentionPolicy, StorageType,
};
use common::config::StreamLimits;
use jiff::Timestamp;

use crate::connection::{Bus, BusError, BusErrorKind};
use crate::stream_names::{ADVISORIES, DEAD, MARKERS, REPLAYS, SWEEPER, TASKS};

/// Markers hold at most 256 KiB of objects; the rest is room for headers and later fields.
pub(super) const MARKER_BYTES_MAX: i32 = 512 * 1024;
/// Sequences of REPLAYS begin here, so that a sequence in `ingest_log` or in a dead letter says which stream it is of.
pub(super) const FIRST_REPLAY: u64 = 1_000_000_000_000;
/// Replays of one unit to one destination that wait; a further one takes the place of the oldest.
pub(super) const REPLAYS_PER_UNIT_MAX: i64 = 5;
pub(super) const DAY: Duration = Duration::from_secs(86_400);
/// A safety ceiling only. Deliveries are no failures: each orderly restart of a worker makes one more, and a supervisor may
/// restart one every minute for weeks while a server is away. Workers count failures and crashes themselves.
pub(super) const MAX_DELIVER: i64 = 100_000;
/// No limit. Deliveries that wait for a retry count as pending, so with one they would use up the room of live work; what
/// is in flight is bounded by the workers' slots.
pub(super) const MAX_ACK_PENDING: i64 = -1;
/// Under this lease the sweeper does nothing but some reads and one publish.
pub(super) const SWEEPER_ACK_WAIT: Duration = Duration::from_secs(60);

/// What of a destination's consumers is configured.
#[derive(Debug, Clone)]
pub struct ConsumerSettings {
    pub destination: String,
    pub ack_wait: Duration,
}

/// A durable consumer of a destination: one of its lanes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LaneConsumer {
    pub(crate) stream: &'static str,
    pub(crate) name: String,
    pub(crate) filter: String,
}

/// The lanes of a destination; each is served only while those before it have nothing.
pub(crate) fn lanes(destination: &str) -> [LaneConsumer; 3] {
    let lane = |stream, prefix: &str, filter| LaneConsumer { stream, name: format!("{prefix}{destination}"), filter };
    [
        lane(MARKERS, INGEST, "marker.ready.>".to_owned()),
        lane(MARKERS, BACKFILL, "marker.backfill.>".to_owned()),
        replay_lane(destination),
    ]
}

/// The lane of replays to a destination.
pub(crate) fn replay_lane(destination: &str) -> LaneConsumer {
    LaneConsumer {
        stream: REPLAYS,
        name: format!("{REPLAY}{destination}"),
        filter: format!("marker.replay.{destination}.>"),
    }
}

/// In the metadata of a durable: since when its destination is served. The durable may be younger: it is made anew where the
/// server cannot change it, where its stream was lost, and by whoever deletes it.
pub(super) const SERVED_SINCE: &str = "ferry-since";

/// Since when the destination of a durable is served, by this durable alone.
pub(crate) fn served_since(info: &consumer::Info) -> Result<Timestamp, BusError> {
    let created_at = created_at(&info.created)?;
    let recorded = info.config.metadata.get(SERVED_SINCE).and_then(|recorded| recorded.parse::<Timestamp>().ok());
    Ok(recorded.map_or(created_at, |recorded| recorded.min(created_at)))
}

pub(super) const INGEST: &str = "ingest-";
pub(super) const BACKFILL: &str = "backfill-";
pub(super) const REPLAY: &str = "replay-";

/// The destination that a durable consumer of a stream belongs to.
pub(crate) fn destination_of<'c>(stream: &str, consumer: &'c str) -> Option<&'c str> {
    match stream {
        MARKERS => consumer.strip_prefix(INGEST).or_else(|| consumer.strip_prefix(BACKFILL)),
        REPLAYS => consumer.strip_prefix(REPLAY),
        _ => None,
    }
}

impl Bus {
    /// Looks a durable consumer up; needs no right but that to see it.
    pub(crate) async fn durable(&self, lane: &LaneConsumer) -> Result<PullConsumer, BusError> {
        self.consumer_on(lane.stream, &lane.name).await
    }

    pub(crate) async fn consumer_on(&self, stream: &str, name: &str) -> Result<PullConsumer, BusError> {
        let found = self.context.get_consumer_from_stream::<pull::Config, _, _>(name, stream).await;
        found.map_err(|error| {
            let kind = match error.kind() {
                ConsumerErrorKind::JetStream(error) if is_gone(&error) => BusErrorKind::Missing,
                // The library reads only pull consumers as such.
                ConsumerErrorKind::InvalidConsumerType => BusErrorKind::Refused,
                _ => BusErrorKind::Unavailable,
            };
            BusError::new(kind, format!("consumer {name} of stream {stream}"), &error)
        })
    }
}

/// Whether the server says that a consumer, or its stream, is not there.
pub(crate) fn is_gone(error: &async_nats::jetstream::Error) -> bool {
    [ErrorCode::CONSUMER_NOT_FOUND, ErrorCode::STREAM_NOT_FOUND].contains(&error.error_code())
}

pub(crate) fn is_missing(kind: &GetStreamErrorKind) -> bool {
    matches!(kind, GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

/// The configured size of a stream, and its key.
pub(super) fn limit_of(name: &str, limits: &StreamLimits) -> (&'static str, u64) {
    match name {
        MARKERS => ("nats.limits.markers", limits.markers),
        REPLAYS => ("nats.limits.replays", limits.replays),
        DEAD => ("nats.limits.dead", limits.dead),
        ADVISORIES => ("nats.limits.advisories", limits.advisories),
        _ => ("nats.limits.tasks", limits.tasks),
    }
}

pub(super) fn streams(replicas: usize, limits: &StreamLimits) -> [Config; 5] {
    let stream = |name: &str, description: &str, subjects: &[&str]| Config {
        name: name.to_owned(),
        description: Some(description.to_owned()),
        subjects: subjects.iter().map(ToString::to_string).collect(),
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        num_replicas: replicas,
        compression: Some(Compression::S2),
        allow_direct: true,
        // The server sets these bytes aside when the stream is made.
        max_bytes: i64::try_from(limit_of(name, limits).1).unwrap_or(i64::MAX),
        // Refuse a message loudly rather than drop one that nobody has read yet.
        discard: DiscardPolicy::New,
        ..Config::default()
    };
    let advisories: Vec<String> = [MARKERS, REPLAYS].iter().flat_map(|stream| advisories_of(stream)).collect();
    let advisories: Vec<&str> = advisories.iter().map(String::as_str).collect();
    [
        Config {
            max_message_size: MARKER_BYTES_MAX,
            // A short history of revisions a subject; the newest contains what the older ones held.
            max_messages_per_subject: 10,
            duplicate_window: 2 * DAY,
            ..stream(
                MARKERS,
                "what is in the bucket, one message a revision of a unit",
                &["marker.ready.*.*.*.*.*", "marker.backfill.*.*.*.*.*"],
            )
        },
        Config {
            // What is acked leaves the stream: a consumer made anew repeats no replay that was done.
            retention: RetentionPolicy::WorkQueue,
            max_age: 7 * DAY,
            max_message_size: MARKER_BYTES_MAX,
            max_messages_per_subject: REPLAYS_PER_UNIT_MAX,
            duplicate_window: 2 * DAY,
            first_sequence: Some(FIRST_REPLAY),
            ..stream(REPLAYS, "markers sent to one destination again", &["marker.replay.*.*.*.*.*.*"])
        },
        stream(DEAD, "markers that need a person", &["dead.*.*.*.*.*.*"]),
        Config {
            discard: DiscardPolicy::Old,
            max_age: 30 * DAY,
            max_messages: 100_000,
            ..stream(ADVISORIES, "what only the server noticed: deliveries that ran out", &advisories)
        },
        Config {
            discard: DiscardPolicy::Old,
            max_age: 90 * DAY,
            max_messages_per_subject: 1,
            ..stream(TASKS, "replays, and how far each of their units is", &["task.*", "task.*.*.*.*.*.*"])
        },
    ]
}

pub(super) fn advisories_of(stream: &str) -> [String; 2] {
    [max_deliveries_of(stream), format!("$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.{stream}.>")]
}

pub(super) fn max_deliveries_of(stream: &str) -> String {
    format!("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{stream}.>")
}

/// The durable consumers of a destination, each with the stream it is of.
pub(super) fn consumers(settings: &ConsumerSettings) -> [(&'static str, pull::Config); 3] {
    lanes(&settings.destination).map(|lane| {
        let config = pull::Config {
            durable_name: Some(lane.name),
            filter_subjects: vec![lane.filter],
            deliver_policy: DeliverPolicy::All,
            ack_policy: AckPolicy::Explicit,
            ack_wait: settings.ack_wait,
            // Empty on purpose: with a backoff list the server adds it to the delay of a nak.
            backoff: Vec::new(),
            max_deliver: MAX_DELIVER,
            max_ack_pending: MAX_ACK_PENDING,
            ..pull::Config::default()
        };
        (lane.stream, config)
    })
}

/// The durable consumer of the advisories.
pub(super) fn sweeper() -> pull::Config {
    pull::Config {
        durable_name: Some(SWEEPER.into()),
        description: Some("makes dead letters of markers whose deliveries ran out".into()),
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::Explicit,
        ack_wait: SWEEPER_ACK_WAIT,
        filter_subjects: [MARKERS, REPLAYS].map(max_deliveries_of).into(),
        ..pull::Config::default()
    }
}

/// So many may read at the same time without disturbing each other.
pub(crate) const READERS: u32 = 3;
/// The durable consumers that read what is announced. They deliver no work, and acknowledge nothing.
pub(crate) fn readers() -> impl Iterator<Item = pull::Config> {
    (1..=READERS).map(|number| pull::Config {
        durable_name: Some(format!("reader-{number}")),
        description: Some("reads what is announced, each time from the start".into()),
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::None,
        filter_subjects: vec!["marker.ready.>".into(), "marker.backfill.>".into()],
        headers_only: true,
        ..pull::Config::default()
    })
}

pub(crate) fn created_at(at: &async_nats::datetime::DateTime) -> Result<Timestamp, BusError> {
    let at = Timestamp::from_nanosecond(at.unix_timestamp_nanos());
    at.map_err(|error| BusError::new(BusErrorKind::Refused, "reading a consumer's settings", &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_consumers_name_tells_its_destination() {
        for lane in lanes("backup") {
            assert_eq!(destination_of(lane.stream, &lane.name), Some("backup"), "{}", lane.name);
        }
        assert_eq!(destination_of(MARKERS, "replay-backup"), None);
        assert_eq!(destination_of(MARKERS, "reader-uploader-1"), None);
    }

    #[test]
    fn every_stream_is_bounded_in_bytes() {
        let limits = StreamLimits { markers: 5, replays: 4, dead: 3, advisories: 2, tasks: 1 };
        assert_eq!(streams(1, &limits).map(|stream| stream.max_bytes), [5, 4, 3, 2, 1]);
    }
}
