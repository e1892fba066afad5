//! A durable consumer that was opened, and whether it is still the same one.
//!
//! Acknowledgements name stream, consumer and sequence, and nothing that tells a stream from one that was made later under
//! the same name: there the same sequence is another unit, and the server takes the acknowledgement for that one's. A
//! stream takes its consumers with it, so their time of creation tells the two apart.

use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::context::ConsumerInfoErrorKind;
use jiff::Timestamp;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::connection::{Bus, BusError, BusErrorKind};

/// For how long the answer of the server holds. All deliveries of a consumer share it, so it costs one request a second
/// however many units are acknowledged. A stream that is made anew, filled, and has handed another unit to a worker within
/// this time could still be mistaken for the former one.
const ANSWER_HOLDS: Duration = Duration::from_secs(1);
/// How long the server is waited for.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// A durable consumer, as it was when it was opened.
pub(crate) struct OpenConsumer {
    pub(crate) consumer: PullConsumer,
    pub(crate) created_at: Timestamp,
    bus: Bus,
    checked: Mutex<Checked>,
    replaced: CancellationToken,
}

/// What the server last said.
struct Checked {
    /// When it confirmed the consumer, and over which connection.
    at: Instant,
    connects: u64,
    /// When a question failed after that, and why.
    failed: Option<(Instant, BusError)>,
}

impl Checked {
    fn now(bus: &Bus) -> Self {
        Self { at: Instant::now(), connects: bus.connects(), failed: None }
    }
}

impl OpenConsumer {
    /// Looks the consumer up; needs no right to create it.
    pub(crate) async fn open(bus: &Bus, stream: &str, name: &str) -> Result<Self, BusError> {
        let checked = Mutex::new(Checked::now(bus));
        let consumer = bus.consumer_on(stream, name).await?;
        let created_at = created_at(&consumer.cached_info().created)?;
        Ok(Self { consumer, created_at, bus: bus.clone(), checked, replaced: CancellationToken::new() })
    }

    /// Whether it is the consumer that was opened.
    ///
    /// # Errors
    /// `Refused`: another one has its name; whoever holds deliveries is told by [`OpenConsumer::replaced`]. `Missing`: there
    /// is none. `Unavailable`: the server did not say.
    pub(crate) async fn is_same(&self) -> Result<(), BusError> {
        self.is_same_since(ANSWER_HOLDS).await
    }

    /// The same, where an answer of so long ago will do.
    ///
    /// # Errors
    /// As [`OpenConsumer::is_same`].
    pub(crate) async fn is_same_since(&self, answer_holds: Duration) -> Result<(), BusError> {
        let doing = || format!("consumer {}", self.consumer.cached_info().name);
        if self.replaced.is_cancelled() {
            return Err(BusError::plain(BusErrorKind::Refused, doing(), REPLACED));
        }
        // Held while one asks, for ANSWER_MAX at most. The others use its answer, and its error too: if each of them asked a
        // server that is silent after the other, the last one would wait for as many times ANSWER_MAX as there are
        // deliveries, and would not notice in time that its lease is lost.
        let waits_from = Instant::now();
        let mut checked = self.checked.lock().await;
        if let Some((failed_at, error)) = &checked.failed
            && *failed_at >= waits_from
        {
            return Err(error.clone());
        }
        let now = Checked::now(&self.bus);
        if checked.connects == now.connects && checked.at.elapsed() < answer_holds {
            return Ok(());
        }
        let asked = tokio::time::timeout(ANSWER_MAX, self.consumer.get_info()).await;
        let answer = asked.map_err(|elapsed| BusError::unavailable(doing(), &elapsed)).and_then(|answer| {
            answer.map_err(|error| {
                let kind = match error.kind() {
                    ConsumerInfoErrorKind::NotFound | ConsumerInfoErrorKind::StreamNotFound => BusErrorKind::Missing,
                    _ => BusErrorKind::Unavailable,
                };
                BusError::new(kind, doing(), &error)
            })
        });
        let info = match answer {
            Ok(info) => info,
            Err(error) => {
                checked.failed = Some((Instant::now(), error.clone()));
                return Err(error);
            }
        };
        if created_at(&info.created)? != self.created_at {
            self.replaced.cancel();
            return Err(BusError::plain(BusErrorKind::Refused, doing(), REPLACED));
        }
        *checked = now;
        Ok(())
    }

    /// Returns when it is known that another consumer has its name: its deliveries are nobody's any more.
    pub(crate) async fn replaced(&self) {
        self.replaced.cancelled().await;
    }
}

const REPLACED: &str = "it was made anew, and its former deliveries are none of its own";

fn created_at(at: &async_nats::datetime::DateTime) -> Result<Timestamp, BusError> {
    let at = Timestamp::from_nanosecond(at.unix_timestamp_nanos());
    at.map_err(|error| BusError::new(BusErrorKind::Refused, "reading a consumer's settings", &error))
}
