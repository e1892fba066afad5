//! Making streams and durable consumers, and bringing those that are there up to date.

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::{self, pull};
use async_nats::jetstream::context::{CreateStreamErrorKind, UpdateStreamErrorKind};
use async_nats::jetstream::stream::{Config, ConsumerErrorKind, Stream};
use jiff::Timestamp;

use super::check::QueueFault;
use super::compare::{consumer_differences, merged, merged_consumer, stream_differences};
use super::{
    ADVISORIES, ConsumerSettings, MARKERS, REPLAYS, SERVED_SINCE, SWEEPER, consumers, destination_of, is_missing,
    lanes, limit_of, served_since, streams, sweeper,
};
use crate::announced::readers;
use crate::connection::{Bus, BusError, BusErrorKind};
use crate::refusal::is_temporary;

/// A durable consumer with the stream it is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaleConsumer {
    pub name: String,
    stream: &'static str,
}

impl Bus {
    /// Creates the streams that are not there, and the consumers that read what is announced.
    pub async fn create_streams(&self) -> Result<(), BusError> {
        for want in streams(self.replicas, &self.limits) {
            if self.stream(&want.name).await?.is_none() {
                self.create_stream(&want).await?;
            }
        }
        for reader in readers() {
            self.create_missing(MARKERS, reader).await?;
        }
        Ok(())
    }

    /// Creates the streams that are not there and changes those that differ; returns what cannot be changed.
    ///
    /// No limit that somebody raised is lowered.
    pub async fn migrate_streams(&self) -> Result<Vec<QueueFault>, BusError> {
        let mut left = Vec::new();
        for want in streams(self.replicas, &self.limits) {
            let Some(stream) = self.stream(&want.name).await? else {
                self.create_stream(&want).await?;
                continue;
            };
            let is = &stream.cached_info().config;
            let differences = stream_differences(is, &want);
            if differences.iter().any(|difference| !difference.in_place) {
                left.extend(QueueFault::of_stream(&want.name, &differences));
            } else if !differences.is_empty() {
                self.update_stream(is, &want).await?;
                let changed: Vec<&str> = differences.iter().map(|difference| difference.text.as_str()).collect();
                tracing::info!(stream = want.name, was = changed.join("; "), "changed");
            }
        }
        for reader in readers() {
            self.migrate_consumer(MARKERS, reader).await?;
        }
        Ok(left)
    }

    /// Creates the durable consumers of a destination that are not there.
    pub async fn create_consumers(&self, settings: &ConsumerSettings) -> Result<(), BusError> {
        let since = self.served_since(settings).await?;
        for (stream, want) in consumers(settings) {
            self.create_missing(stream, with_served_since(want, since)).await?;
        }
        Ok(())
    }

    /// Creates the durable consumers of a destination that are not there, changes those that differ, and makes those
    /// anew that cannot be changed: all is delivered again then, and skipped where it is loaded.
    pub async fn migrate_consumers(&self, settings: &ConsumerSettings) -> Result<(), BusError> {
        let since = self.served_since(settings).await?;
        for (stream, want) in consumers(settings) {
            self.migrate_consumer(stream, with_served_since(want, since)).await?;
        }
        Ok(())
    }

    /// Since when a destination is served, by those of its durables that are there: a stream that was lost has taken only
    /// its own with it.
    async fn served_since(&self, settings: &ConsumerSettings) -> Result<Option<Timestamp>, BusError> {
        let mut all = Vec::new();
        for lane in lanes(&settings.destination) {
            if let Some(info) = self.consumer_info(lane.stream, &lane.name).await? {
                all.push(served_since(&info)?);
            }
        }
        Ok(all.into_iter().min())
    }

    /// Creates the consumer of the advisories if it is not there.
    pub async fn create_sweeper(&self) -> Result<(), BusError> {
        self.create_missing(ADVISORIES, sweeper()).await
    }

    /// The same as [`Bus::migrate_consumers`] for the consumer of the advisories.
    pub async fn migrate_sweeper(&self) -> Result<(), BusError> {
        self.migrate_consumer(ADVISORIES, sweeper()).await
    }

    async fn create_missing(&self, stream: &str, want: pull::Config) -> Result<(), BusError> {
        match self.consumer_on(stream, &name_of(&want)).await {
            Err(error) if error.kind == BusErrorKind::Missing => self.create_consumer(stream, want).await,
            found => found.map(drop),
        }
    }

    async fn migrate_consumer(&self, stream: &str, want: pull::Config) -> Result<(), BusError> {
        let name = name_of(&want);
        let Some(is) = self.consumer_config(stream, &name).await? else {
            return self.create_consumer(stream, want).await;
        };
        // An update without it would take it away.
        let metadata = is.metadata.clone().into_iter().chain(want.metadata).collect();
        let want = pull::Config { metadata, ..want };
        let differences = consumer_differences(&is, &want);
        if differences.is_empty() {
            return Ok(());
        }
        let was: Vec<&str> = differences.iter().map(|difference| difference.text.as_str()).collect();
        let was = was.join("; ");
        let want = if differences.iter().any(|difference| !difference.in_place) {
            self.delete_durable(stream, &name).await?;
            tracing::warn!(
                consumer = name,
                was,
                "made anew: everything is delivered again, and skipped where it is loaded"
            );
            pull::Config { pause_until: is.pause_until, ..want }
        } else {
            tracing::info!(consumer = name, was, "changed");
            merged_consumer(&is, want)
        };
        self.create_consumer(stream, want).await
    }

    /// An upsert: two processes that start together both succeed.
    async fn create_consumer(&self, stream: &str, want: pull::Config) -> Result<(), BusError> {
        let doing = format!("consumer {} of stream {stream}", name_of(&want));
        let created = self.context.create_consumer_on_stream(want, stream).await;
        created.map(drop).map_err(|error| {
            let kind = match error.kind() {
                ConsumerErrorKind::TimedOut | ConsumerErrorKind::Request => BusErrorKind::Unavailable,
                ConsumerErrorKind::JetStream(error) if super::is_gone(&error) => BusErrorKind::Missing,
                ConsumerErrorKind::JetStream(error) if is_temporary(&error) => BusErrorKind::Unavailable,
                _ => BusErrorKind::Refused,
            };
            BusError::new(kind, doing, &error)
        })
    }

    /// The settings of a consumer of whatever kind; `None` when it is not there.
    pub(super) async fn consumer_config(&self, stream: &str, name: &str) -> Result<Option<consumer::Config>, BusError> {
        Ok(self.consumer_info(stream, name).await?.map(|info| info.config))
    }

    async fn consumer_info(&self, stream: &str, name: &str) -> Result<Option<consumer::Info>, BusError> {
        use async_nats::jetstream::response::Response;
        let doing = || format!("consumer {name} of stream {stream}");
        let answer = self.context.request(format!("CONSUMER.INFO.{stream}.{name}"), &serde_json::json!({})).await;
        match answer.map_err(|error| BusError::unavailable(doing(), &error))? {
            Response::Ok(info) => Ok(Some(info)),
            Response::Err { error } if super::is_gone(&error) => Ok(None),
            Response::Err { error } => Err(BusError::unavailable(doing(), &error)),
        }
    }

    pub(crate) async fn stream(&self, name: &str) -> Result<Option<Stream>, BusError> {
        match self.context.get_stream(name).await {
            Ok(stream) => Ok(Some(stream)),
            Err(error) if is_missing(&error.kind()) => Ok(None),
            Err(error) => Err(BusError::unavailable(format!("stream {name}"), &error)),
        }
    }

    async fn create_stream(&self, want: &Config) -> Result<(), BusError> {
        let error = match self.context.create_stream(want).await {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        let doing = format!("creating stream {}", want.name);
        match error.kind() {
            CreateStreamErrorKind::JetStream(refusal) => match refusal.error_code() {
                // Another process, with other limits, was faster.
                ErrorCode::STREAM_NAME_EXIST => Ok(()),
                _ if is_temporary(&refusal) => Err(BusError::unavailable(doing, &refusal)),
                code => Err(self.refused(want, doing, code, &refusal).await),
            },
            CreateStreamErrorKind::TimedOut | CreateStreamErrorKind::JetStreamUnavailable => {
                Err(BusError::unavailable(doing, &error))
            }
            _ => Err(BusError::new(BusErrorKind::Refused, doing, &error)),
        }
    }

    async fn update_stream(&self, is: &Config, want: &Config) -> Result<(), BusError> {
        let Err(error) = self.context.update_stream(merged(is, want)).await else { return Ok(()) };
        let doing = format!("changing stream {}", want.name);
        match error.kind() {
            UpdateStreamErrorKind::JetStream(refusal) if is_temporary(&refusal) => {
                Err(BusError::unavailable(doing, &refusal))
            }
            UpdateStreamErrorKind::JetStream(refusal) => {
                Err(self.refused(want, doing, refusal.error_code(), &refusal).await)
            }
            UpdateStreamErrorKind::TimedOut => Err(BusError::unavailable(doing, &error)),
            _ => Err(BusError::new(BusErrorKind::Refused, doing, &error)),
        }
    }

    /// What the server's refusal of a stream means, and what to do about it.
    async fn refused(
        &self,
        want: &Config,
        doing: String,
        code: ErrorCode,
        refusal: &async_nats::jetstream::Error,
    ) -> BusError {
        let (key, bytes) = limit_of(&want.name, &self.limits);
        let advice = match code {
            ErrorCode::STREAM_SUBJECT_OVERLAP => match self.overlapping(want).await {
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
    async fn overlapping(&self, want: &Config) -> Option<String> {
        for subject in &want.subjects {
            match self.context.stream_by_subject(subject).await {
                Ok(name) if name != want.name => return Some(name),
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

/// A durable of a new destination needs no note: its own creation says the same.
fn with_served_since(want: pull::Config, since: Option<Timestamp>) -> pull::Config {
    let metadata = since.map(|since| (SERVED_SINCE.to_owned(), since.to_string())).into_iter().collect();
    pull::Config { metadata, ..want }
}

fn name_of(config: &pull::Config) -> String {
    config.durable_name.clone().unwrap_or_else(|| SWEEPER.to_owned())
}

/// Bytes for people, as configuration has them.
pub(super) fn gibibytes(bytes: u64) -> String {
    const UNITS: [(&str, u32); 3] = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let unit = UNITS.iter().find(|(_, shift)| bytes >> shift > 0);
    unit.map_or_else(
        || format!("{bytes} B"),
        |(name, shift)| {
            let tenths = (bytes * 10) >> shift;
            if tenths.is_multiple_of(10) {
                format!("{} {name}", tenths / 10)
            } else {
                format!("{}.{} {name}", tenths / 10, tenths % 10)
            }
        },
    )
}

#[cfg(test)]
mod tests {
    use super::gibibytes;

    #[test]
    fn sizes_are_written_as_they_are_configured() {
        let check = |bytes: u64, text| assert_eq!(gibibytes(bytes), text);
        check(2 << 30, "2 GiB");
        check(2560 << 20, "2.5 GiB");
        check(64 << 20, "64 MiB");
        check(100_000, "97.6 KiB");
        check(12, "12 B");
    }
}
