//! Making streams and durable consumers, and bringing those that are there up to date.

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::context::{CreateStreamErrorKind, UpdateStreamErrorKind};
use async_nats::jetstream::stream::{Config, ConsumerErrorKind, Stream};
use jiff::Timestamp;

use super::check::QueueFault;
use super::compare::{Difference, consumer_differences, merged, merged_consumer, stream_differences};
use super::definitions::{
    ConsumerSettings, SERVED_SINCE, consumers, destination_of, is_gone, is_missing, lanes, limit_of, readers,
    served_since, streams, sweeper,
};
use super::sizes::gibibytes;
use crate::connection::{Bus, BusError, BusErrorKind};
use crate::refusal::is_temporary;
use crate::stream_names::{ADVISORIES, MARKERS, REPLAYS, SWEEPER};

/// A durable consumer with the stream it is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaleConsumer {
    pub name: String,
    stream: &'static str,
}

impl Bus {
    /// Creates the streams that are not there. The same for the consumers that read what is announced, of which those that
    /// differ are changed back, where the server lets it.
    pub async fn create_streams(&self) -> Result<(), BusError> {
        for expected in streams(self.replicas, &self.limits) {
            if self.stream(&expected.name).await?.is_none() {
                self.create_stream(&expected).await?;
            }
        }
        for reader in readers() {
            self.ensure_consumer(MARKERS, reader).await?;
        }
        Ok(())
    }

    /// Creates the streams that are not there and changes those that differ; returns what cannot be changed.
    ///
    /// No limit that somebody raised is lowered.
    pub async fn migrate_streams(&self) -> Result<Vec<QueueFault>, BusError> {
        let mut left = Vec::new();
        for expected in streams(self.replicas, &self.limits) {
            let Some(stream) = self.stream(&expected.name).await? else {
                self.create_stream(&expected).await?;
                continue;
            };
            let is = &stream.cached_info().config;
            let differences = stream_differences(is, &expected);
            if differences.iter().any(|difference| !difference.in_place) {
                left.extend(QueueFault::of_stream(&expected.name, &differences));
            } else if !differences.is_empty() {
                self.update_stream(is, &expected).await?;
                tracing::info!(stream = expected.name, was = texts(&differences), "changed");
            }
        }
        for reader in readers() {
            self.migrate_consumer(MARKERS, reader).await?;
        }
        Ok(left)
    }

    /// Creates the durable consumers of a destination that are not there, and changes those back that differ, where the server
    /// lets it.
    pub async fn create_consumers(&self, settings: &ConsumerSettings) -> Result<(), BusError> {
        let since = self.served_since(&settings.destination).await?;
        for (stream, expected) in consumers(settings) {
            self.ensure_consumer(stream, with_served_since(expected, since)).await?;
        }
        Ok(())
    }

    /// Creates the durable consumers of a destination that are not there, changes those that differ, and makes those
    /// anew that cannot be changed: all is delivered again then, and skipped where it is loaded.
    pub async fn migrate_consumers(&self, settings: &ConsumerSettings) -> Result<(), BusError> {
        let since = self.served_since(&settings.destination).await?;
        for (stream, expected) in consumers(settings) {
            self.migrate_consumer(stream, with_served_since(expected, since)).await?;
        }
        Ok(())
    }

    /// Since when a destination is served, by those of its durables that are there: a stream that was lost has taken only
    /// its own with it.
    pub async fn served_since(&self, destination: &str) -> Result<Option<Timestamp>, BusError> {
        let mut all = Vec::new();
        for lane in lanes(destination) {
            if let Some(info) = self.consumer_info(lane.stream, &lane.name).await? {
                all.push(served_since(&info)?);
            }
        }
        Ok(all.into_iter().min())
    }

    /// The same as [`Bus::create_consumers`] for the consumer of the advisories.
    pub async fn create_sweeper(&self) -> Result<(), BusError> {
        self.ensure_consumer(ADVISORIES, sweeper()).await
    }

    /// The same as [`Bus::migrate_consumers`] for the consumer of the advisories.
    pub async fn migrate_sweeper(&self) -> Result<(), BusError> {
        self.migrate_consumer(ADVISORIES, sweeper()).await
    }

    /// Creates a consumer that is not there, and changes back what the server lets it change.
    ///
    /// One that would have to be made anew stays as it is: all is delivered again then, which is for a person to begin. So
    /// does `ack_wait`, unless a list of backoffs has taken its place: workers that run extend their leases by the one they
    /// found.
    async fn ensure_consumer(&self, stream: &str, expected: pull::Config) -> Result<(), BusError> {
        let name = name_of(&expected);
        let Some(is) = self.consumer_config(stream, &name).await? else {
            return self.create_consumer(stream, expected).await;
        };
        let ack_wait = if is.backoff.is_empty() { is.ack_wait } else { expected.ack_wait };
        let expected = pull::Config { ack_wait, ..expected };
        let differences = consumer_differences(&is, &expected, self.replicas);
        if differences.is_empty() || differences.iter().any(|difference| !difference.in_place) {
            return Ok(());
        }
        tracing::warn!(consumer = name, was = texts(&differences), "changed back");
        self.create_consumer(stream, merged_consumer(&is, expected)).await
    }

    async fn migrate_consumer(&self, stream: &str, expected: pull::Config) -> Result<(), BusError> {
        let name = name_of(&expected);
        let Some(is) = self.consumer_config(stream, &name).await? else {
            return self.create_consumer(stream, expected).await;
        };
        let differences = consumer_differences(&is, &expected, self.replicas);
        if differences.is_empty() {
            return Ok(());
        }
        let was = texts(&differences);
        let expected = if differences.iter().any(|difference| !difference.in_place) {
            self.delete_durable(stream, &name).await?;
            tracing::warn!(
                consumer = name,
                was,
                "made anew: everything is delivered again, and skipped where it is loaded"
            );
            pull::Config { pause_until: is.pause_until, ..expected }
        } else {
            tracing::info!(consumer = name, was, "changed");
            merged_consumer(&is, expected)
        };
        self.create_consumer(stream, expected).await
    }

    /// An upsert: two processes that start together both succeed.
    async fn create_consumer(&self, stream: &str, expected: pull::Config) -> Result<(), BusError> {
        let doing = format!("consumer {} of stream {stream}", name_of(&expected));
        let created = self.context.create_consumer_on_stream(expected, stream).await;
        created.map(drop).map_err(|error| {
            let kind = match error.kind() {
                ConsumerErrorKind::TimedOut | ConsumerErrorKind::Request => BusErrorKind::Unavailable,
                ConsumerErrorKind::JetStream(error) if is_gone(&error) => BusErrorKind::Missing,
                ConsumerErrorKind::JetStream(error) if is_temporary(&error) => BusErrorKind::Unavailable,
                _ => BusErrorKind::Refused,
            };
            BusError::new(kind, doing, &error)
        })
    }

    pub(crate) async fn stream(&self, name: &str) -> Result<Option<Stream>, BusError> {
        match self.context.get_stream(name).await {
            Ok(stream) => Ok(Some(stream)),
            Err(error) if is_missing(&error.kind()) => Ok(None),
            Err(error) => Err(BusError::unavailable(format!("stream {name}"), &error)),
        }
    }

    async fn create_stream(&self, expected: &Config) -> Result<(), BusError> {
        let error = match self.context.create_stream(expected).await {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        let doing = format!("creating stream {}", expected.name);
        match error.kind() {
            CreateStreamErrorKind::JetStream(refusal) => match refusal.error_code() {
                // Another process, with other limits, was faster.
                ErrorCode::STREAM_NAME_EXIST => Ok(()),
                _ if is_temporary(&refusal) => Err(BusError::unavailable(doing, &refusal)),
                code => Err(self.refused(expected, doing, code, &refusal).await),
            },
            CreateStreamErrorKind::TimedOut | CreateStreamErrorKind::JetStreamUnavailable => {
                Err(BusError::unavailable(doing, &error))
            }
            _ => Err(BusError::new(BusErrorKind::Refused, doing, &error)),
        }
    }

    async fn update_stream(&self, is: &Config, expected: &Config) -> Result<(), BusError> {
        let Err(error) = self.context.update_stream(merged(is, expected)).await else { return Ok(()) };
        let doing = format!("changing stream {}", expected.name);
        match error.kind() {
            UpdateStreamErrorKind::JetStream(refusal) if is_temporary(&refusal) => {
                Err(BusError::unavailable(doing, &refusal))
            }
            UpdateStreamErrorKind::JetStream(refusal) => {
                Err(self.refused(expected, doing, refusal.error_code(), &refusal).await)
            }
            UpdateStreamErrorKind::TimedOut => Err(BusError::unavailable(doing, &error)),
            _ => Err(BusError::new(BusErrorKind::Refused, doing, &error)),
        }
    }

    /// What the server's refusal of a stream means, and what to do about it.
    async fn refused(
        &self,
        expected: &Config,
        doing: String,
        code: ErrorCode,
        refusal: &async_nats::jetstream::Error,
    ) -> BusError {
        let (key, bytes) = limit_of(&expected.name, &self.limits);
        let advice = match code {
            ErrorCode::STREAM_SUBJECT_OVERLAP => match self.overlapping(expected).await {
                Some(other) => format!(
                    "stream {other} has some of its subjects: delete it, or change its subjects, or give marketferry an \
                     account of its own"
                ),
                None => "another stream of the account has some of its subjects".to_owned(),
            },
            ErrorCode::MAXIMUM_STREAMS_LIMIT => {
                format!("marketferry needs {} streams: raise the account's max_streams", streams(1, &self.limits).len())
            }
            ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED => {
                format!("nats.replicas is {}, and this server has no others: set it to 1", self.replicas)
            }
            _ => {
                let all = streams(self.replicas, &self.limits).iter().map(|stream| stream.max_bytes).sum::<i64>();
                let all = gibibytes(u64::try_from(all).unwrap_or_default());
                format!(
                    "the stream sets {} aside, and all streams together {all}, on each of {} servers: give JetStream and \
                     the account that much (max_file_store, the account's limits), or set {key} lower",
                    gibibytes(bytes),
                    self.replicas
                )
            }
        };
        BusError::plain(BusErrorKind::Refused, doing, format!("{refusal}; {advice}"))
    }

    /// A stream that is not ours and has one of these subjects.
    async fn overlapping(&self, expected: &Config) -> Option<String> {
        for subject in &expected.subjects {
            match self.context.stream_by_subject(subject).await {
                Ok(name) if name != expected.name => return Some(name),
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, subject, "looking for the stream that has it"),
            }
        }
        None
    }

    /// Durable consumers of destinations that are not among `configured`.
    pub async fn stale_consumers(&self, configured: &[String]) -> Result<Vec<StaleConsumer>, BusError> {
        use futures::TryStreamExt;
        let mut stale = Vec::new();
        for stream in [MARKERS, REPLAYS] {
            let doing = || format!("consumers of {stream}");
            let found = self.context.get_stream_no_info(stream).await;
            let found = found.map_err(|error| BusError::unavailable(doing(), &error))?;
            let names: Vec<String> =
                found.consumer_names().try_collect().await.map_err(|error| BusError::unavailable(doing(), &error))?;
            stale.extend(names.into_iter().filter_map(|name| {
                let destination = destination_of(stream, &name)?;
                (!configured.iter().any(|known| known == destination)).then_some(StaleConsumer { name, stream })
            }));
        }
        Ok(stale)
    }

    pub async fn delete_consumer(&self, consumer: &StaleConsumer) -> Result<(), BusError> {
        self.delete_durable(consumer.stream, &consumer.name).await
    }

    async fn delete_durable(&self, stream: &str, name: &str) -> Result<(), BusError> {
        let deleted = self.context.delete_consumer_from_stream(name, stream).await;
        deleted.map(drop).map_err(|error| {
            BusError::new(BusErrorKind::Refused, format!("deleting consumer {name} of stream {stream}"), &error)
        })
    }
}

/// What is different, in one line.
fn texts(differences: &[Difference]) -> String {
    differences.iter().map(|difference| difference.text.as_str()).collect::<Vec<_>>().join("; ")
}

/// A durable of a new destination needs no note: its own creation says the same.
fn with_served_since(expected: pull::Config, since: Option<Timestamp>) -> pull::Config {
    let metadata = since.map(|since| (SERVED_SINCE.to_owned(), since.to_string())).into_iter().collect();
    pull::Config { metadata, ..expected }
}

fn name_of(config: &pull::Config) -> String {
    config.durable_name.clone().unwrap_or_else(|| SWEEPER.to_owned())
}
