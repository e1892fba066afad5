//! Sending a marker to one destination again, and what may be asked of the worker besides.

use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::DirectGetErrorKind;
use async_nats::{HeaderMap, header};

use crate::connection::{Bus, BusError};
use crate::refusal::publish_error;
use crate::stream_names::REPLAYS;

const FORCE: &str = "Ferry-Force";
const ACCEPT_SHRINK: &str = "Ferry-Accept-Shrink";
const SYMBOLS: &str = "Ferry-Symbols";
const TASK: &str = "Ferry-Task";
const FAILURES: &str = "Ferry-Failures";

/// What is asked of the worker that gets a marker again. All of it travels in headers, so that the payload stays the
/// marker as it was published.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplayOptions {
    /// Load also what the ledger says is loaded and verified.
    pub force: bool,
    /// Let a correction through that takes more rows away than `corrections.shrink_limit` allows.
    pub accept_shrink: bool,
    /// Only these symbols; empty: all.
    pub symbols: BTreeSet<String>,
    /// The replay task this message belongs to.
    pub task: Option<String>,
    /// How often the marker was given up before, if it is sent again from a dead letter.
    pub failures: u32,
}

impl ReplayOptions {
    pub(crate) fn from_headers(headers: Option<&HeaderMap>) -> Self {
        let text = |name: &str| headers.and_then(|headers| headers.get(name)).map(ToString::to_string);
        let flag = |name: &str| text(name).as_deref() == Some("true");
        let symbols = text(SYMBOLS).unwrap_or_default();
        Self {
            force: flag(FORCE),
            accept_shrink: flag(ACCEPT_SHRINK),
            symbols: symbols.split(',').filter(|symbol| !symbol.is_empty()).map(str::to_owned).collect(),
            task: text(TASK),
            failures: text(FAILURES).and_then(|count| count.parse().ok()).unwrap_or_default(),
        }
    }

    pub(crate) fn to_headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if self.force {
            headers.insert(FORCE, "true");
        }
        if self.accept_shrink {
            headers.insert(ACCEPT_SHRINK, "true");
        }
        if !self.symbols.is_empty() {
            headers.insert(SYMBOLS, self.symbols.iter().cloned().collect::<Vec<_>>().join(",").as_str());
        }
        if let Some(task) = &self.task {
            headers.insert(TASK, task.as_str());
        }
        if self.failures > 0 {
            headers.insert(FAILURES, self.failures.to_string().as_str());
        }
        headers
    }
}

impl Bus {
    /// Publishes a marker on `marker.replay.<destination>.<unit tokens>`; returns its sequence when it is stored.
    ///
    /// `id` makes the publish safe to repeat: the same id within two days is stored once.
    pub async fn publish_replay(
        &self,
        destination: &str,
        unit_tokens: &str,
        payload: Vec<u8>,
        options: &ReplayOptions,
        id: &str,
    ) -> Result<u64, BusError> {
        let subject = replay_subject(destination, unit_tokens);
        let message = PublishMessage::build()
            .headers(options.to_headers())
            .payload(payload.into())
            .message_id(format!("{subject}@{id}"))
            .expected_stream(REPLAYS);
        let sent = async { self.context.send_publish(subject.clone(), message).await?.await };
        match tokio::time::timeout(Duration::from_secs(10), sent).await {
            Ok(Ok(ack)) => Ok(ack.sequence),
            Ok(Err(error)) => Err(publish_error(REPLAYS, format!("publishing {subject}"), &error)),
            Err(elapsed) => Err(BusError::unavailable(format!("publishing {subject}"), &elapsed)),
        }
    }

    /// The same, unless a replay with this `purpose` waits already; returns the sequence of the one that waits.
    pub async fn publish_replay_once(
        &self,
        destination: &str,
        unit_tokens: &str,
        payload: Vec<u8>,
        options: &ReplayOptions,
        purpose: &str,
    ) -> Result<u64, BusError> {
        let subject = replay_subject(destination, unit_tokens);
        let doing = || format!("looking for {subject}");
        let stream = self.context.get_stream_no_info(REPLAYS).await;
        let stream = stream.map_err(|error| BusError::unavailable(doing(), &error))?;
        let waits = format!("{subject}@{purpose}@");
        let mut next = 1;
        // The stream keeps a few messages a subject, and none that is acknowledged.
        loop {
            match stream.direct_get_next_for_subject(&subject, Some(next)).await {
                Ok(message) => {
                    let id = message.headers.get(header::NATS_MESSAGE_ID);
                    if id.is_some_and(|id| id.as_str().starts_with(&waits)) {
                        return Ok(message.sequence);
                    }
                    next = message.sequence + 1;
                }
                Err(error) if error.kind() == DirectGetErrorKind::NotFound => break,
                Err(error) => return Err(BusError::unavailable(doing(), &error)),
            }
        }
        // Unlike every earlier one, or the stream would take it for a copy of what is acknowledged.
        let id = format!("{purpose}@{}-{}", self.worker, common::clock::now().as_nanosecond());
        self.publish_replay(destination, unit_tokens, payload, options, &id).await
    }
}

fn replay_subject(destination: &str, unit_tokens: &str) -> String {
    format!("marker.replay.{destination}.{unit_tokens}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_survive_the_headers() {
        let options = ReplayOptions {
            force: true,
            accept_shrink: true,
            symbols: ["BTCUSDT", "币安人生USDT"].map(String::from).into(),
            task: Some("t1".into()),
            failures: 3,
        };
        assert_eq!(ReplayOptions::from_headers(Some(&options.to_headers())), options);
        assert_eq!(ReplayOptions::from_headers(None), ReplayOptions::default());
    }
}
