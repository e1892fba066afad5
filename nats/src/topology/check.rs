//! Looking at streams and durable consumers without changing anything.

use std::borrow::Cow;

use async_nats::jetstream::stream::DiscardPolicy;
use serde::Serialize;

use super::compare::{Difference, consumer_differences, stream_differences};
use super::definitions::{ConsumerSettings, consumers, limit_of, readers, streams, sweeper};
use super::sizes::gibibytes;
use crate::connection::{Bus, BusError, BusErrorKind};
use crate::stream_names::{ADVISORIES, DEAD, MARKERS, REPLAYS, STREAMS, SWEEPER, relief_of};

const MIGRATE: &str = "run `puller migrate`";
/// From this share of its limit on, a stream that refuses what does not fit is worth a warning.
const NEARLY_FULL_PERCENT: u64 = 80;

/// What is wrong with a stream or a consumer, and the way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueFault {
    pub what: String,
    pub advice: Cow<'static, str>,
    /// Whether markers or dead letters could be lost, or never delivered: no worker works with it.
    pub breaks: bool,
}

/// How full a stream is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StreamUsage {
    pub stream: &'static str,
    pub messages: u64,
    pub bytes: u64,
    /// `None`: unlimited.
    pub limit_bytes: Option<u64>,
    /// Whether it refuses what does not fit, rather than drop its oldest.
    #[serde(skip)]
    refuses: bool,
}

impl QueueFault {
    /// `None` without a difference.
    pub(super) fn of_stream(name: &str, differences: &[Difference]) -> Option<Self> {
        let changed: Cow<'static, str> = match name {
            _ if differences.iter().all(|difference| difference.in_place) => MIGRATE.into(),
            MARKERS => "the server cannot change that: `nats stream rm MARKERS`, then `puller migrate` and `uploader \
                        reconcile --fix`, which publishes all units again from the bucket"
                .into(),
            DEAD => {
                "the server cannot change that: keep what `puller dead ls --json` lists, then `nats stream rm DEAD` \
                     and `puller migrate`; `puller verify --fix` sends again what is not loaded"
                    .into()
            }
            _ => format!("the server cannot change that: `nats stream rm {name}`, then `puller migrate`").into(),
        };
        Self::of(format!("stream {name}"), differences, changed)
    }

    fn of_consumer(stream: &str, name: &str, differences: &[Difference]) -> Option<Self> {
        let in_place = differences.iter().all(|difference| difference.in_place);
        let advice = if in_place {
            MIGRATE
        } else {
            "`puller migrate` makes it anew; everything is delivered again then, and skipped where it is loaded"
        };
        Self::of(format!("consumer {name} of stream {stream}"), differences, advice.into())
    }

    fn of(which: String, differences: &[Difference], advice: Cow<'static, str>) -> Option<Self> {
        let texts: Vec<&str> = differences.iter().map(|difference| difference.text.as_str()).collect();
        let breaks = differences.iter().any(|difference| difference.breaks);
        (!texts.is_empty()).then(|| Self { what: format!("{which}: {}", texts.join("; ")), advice, breaks })
    }

    fn absent(which: String) -> Self {
        Self { what: format!("{which} is not there"), advice: MIGRATE.into(), breaks: true }
    }
}

impl From<&QueueFault> for BusError {
    fn from(fault: &QueueFault) -> Self {
        Self::plain(BusErrorKind::Refused, fault.what.clone(), fault.advice.clone())
    }
}

impl StreamUsage {
    /// A sentence when it is close to its limit, or at it, and with what to do.
    pub fn warning(&self) -> Option<String> {
        let limit = self.limit_bytes.filter(|limit| self.refuses && self.bytes * 100 >= limit * NEARLY_FULL_PERCENT)?;
        let (used, limit) = (gibibytes(self.bytes), gibibytes(limit));
        Some(format!("stream {} holds {used} of {limit}: {}", self.stream, relief_of(self.stream)))
    }
}

impl Bus {
    /// All that is not as this version and the configuration need it.
    pub async fn queue_faults(&self, settings: &[ConsumerSettings]) -> Result<Vec<QueueFault>, BusError> {
        let mut faults = Vec::new();
        for expected in streams(self.replicas, &self.limits) {
            match self.stream(&expected.name).await? {
                Some(stream) => {
                    let differences = stream_differences(&stream.cached_info().config, &expected);
                    faults.extend(QueueFault::of_stream(&expected.name, &differences));
                }
                None => faults.push(QueueFault::absent(format!("stream {}", expected.name))),
            }
        }
        let durables = settings
            .iter()
            .flat_map(consumers)
            .chain(readers().map(|reader| (MARKERS, reader)))
            .chain([(ADVISORIES, sweeper())]);
        for (stream, expected) in durables {
            let name = expected.durable_name.clone().unwrap_or_else(|| SWEEPER.to_owned());
            match self.consumer_config(stream, &name).await? {
                Some(is) => faults.extend(QueueFault::of_consumer(
                    stream,
                    &name,
                    &consumer_differences(&is, &expected, self.replicas),
                )),
                None => faults.push(QueueFault::absent(format!("consumer {name} of stream {stream}"))),
            }
        }
        Ok(faults)
    }

    /// Makes sure that nothing announced to a destination can be lost, skipped or left undelivered; returns what is not as it
    /// should be and does no such harm.
    ///
    /// # Errors
    /// `Missing`: a stream or consumer is not there. `Refused`: one has a setting that breaks the promise.
    pub async fn check_destination(&self, settings: &ConsumerSettings) -> Result<Vec<QueueFault>, BusError> {
        let mut harmless = Vec::new();
        for name in [MARKERS, REPLAYS, DEAD] {
            harmless.extend(self.check_stream(name).await?);
        }
        for (stream, expected) in consumers(settings) {
            let name = expected.durable_name.clone().unwrap_or_default();
            let Some(is) = self.consumer_config(stream, &name).await? else {
                let doing = format!("consumer {name} of stream {stream}");
                return Err(BusError::plain(BusErrorKind::Missing, doing, "it is not there"));
            };
            let fault = QueueFault::of_consumer(stream, &name, &consumer_differences(&is, &expected, self.replicas));
            harmless.extend(refuse(fault)?);
        }
        Ok(harmless)
    }

    /// Makes sure that what is published on MARKERS stays there until it is delivered.
    ///
    /// # Errors
    /// As for [`Bus::check_destination`].
    pub async fn check_markers(&self) -> Result<(), BusError> {
        self.check_stream(MARKERS).await.map(drop)
    }

    async fn check_stream(&self, name: &str) -> Result<Option<QueueFault>, BusError> {
        let Some(stream) = self.stream(name).await? else {
            return Err(BusError::plain(BusErrorKind::Missing, format!("stream {name}"), "it is not there"));
        };
        let expected = streams(self.replicas, &self.limits).into_iter().find(|expected| expected.name == name);
        let differences =
            expected.map(|expected| stream_differences(&stream.cached_info().config, &expected)).unwrap_or_default();
        refuse(QueueFault::of_stream(name, &differences))
    }

    /// How full the streams are; those that are not there are left out.
    pub async fn stream_usage(&self) -> Result<Vec<StreamUsage>, BusError> {
        let mut usage = Vec::new();
        for name in STREAMS {
            let Some(stream) = self.stream(name).await? else { continue };
            let info = stream.cached_info();
            usage.push(StreamUsage {
                stream: name,
                messages: info.state.messages,
                bytes: info.state.bytes,
                limit_bytes: u64::try_from(info.config.max_bytes).ok().filter(|limit| *limit > 0),
                refuses: info.config.discard == DiscardPolicy::New,
            });
        }
        Ok(usage)
    }

    /// What the streams set aside on each server, for people.
    pub fn storage_needed(&self) -> String {
        let each = streams(self.replicas, &self.limits).map(|expected| limit_of(&expected.name, &self.limits).1);
        gibibytes(each.iter().sum())
    }
}

/// The fault, unless nothing may work with it.
fn refuse(fault: Option<QueueFault>) -> Result<Option<QueueFault>, BusError> {
    match fault {
        Some(fault) if fault.breaks => Err(BusError::from(&fault)),
        fault => Ok(fault),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_refuses_is_warned_of_before_it_is_full() {
        let usage = |stream, bytes, limit, refuses| {
            let limit_bytes = (limit > 0).then_some(limit);
            StreamUsage { stream, messages: 1, bytes, limit_bytes, refuses }
        };
        assert_eq!(usage(MARKERS, 79, 100, true).warning(), None);
        assert_eq!(usage(MARKERS, 800, 0, true).warning(), None);
        assert_eq!(usage(ADVISORIES, 100, 100, false).warning(), None);
        let text = usage(REPLAYS, 80 << 20, 100 << 20, true).warning().expect("80 % are worth a warning");
        assert!(
            text.contains("stream REPLAYS holds 80 MiB of 100 MiB") && text.contains("nats.limits.replays"),
            "{text}"
        );
    }
}
