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
use crate::topology::{created_at, served_since};

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
    /// Since when its destination is served: see [`served_since`].
    pub(crate) served_since: Timestamp,
    bus: Bus,
    checked: Mutex<Checked>,
    replaced: CancellationToken,
}

/// The last answer of the server: when it was asked and over which connection, and what became of that.
struct Checked {
    at: Instant,
    connects: u64,
    /// When and how a later question failed, if one did.
    failed: Option<(Instant, BusError)>,
}

impl Checked {
    fn now(bus: &Bus) -> Self {
        Self { at: Instant::now(), connects: bus.connects(), failed: None }
    }

    /// What this says to somebody who began to wait for an answer then; `None`: he must ask himself.
    fn answer(&self, connects: u64, answer_holds: Duration, waited_from: Instant) -> Option<Result<(), BusError>> {
        if self.connects == connects && self.at.elapsed() < answer_holds {
            return Some(Ok(()));
        }
        // The question that failed was under way for all who waited. Each asking again would wait as long, one after the
        // other.
        let (failed_at, error) = self.failed.as_ref()?;
        (waited_from < *failed_at).then(|| Err(error.clone()))
    }
}

impl OpenConsumer {
    /// Looks the consumer up; needs no right to create it.
    pub(crate) async fn open(bus: &Bus, stream: &str, name: &str) -> Result<Self, BusError> {
        let checked = Mutex::new(Checked::now(bus));
        let consumer = bus.consumer_on(stream, name).await?;
        let created_at = created_at(&consumer.cached_info().created)?;
        let served_since = served_since(consumer.cached_info())?;
        Ok(Self { consumer, created_at, served_since, bus: bus.clone(), checked, replaced: CancellationToken::new() })
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
        let waited_from = Instant::now();
        // Held while one asks: the others use its answer, or its failure.
        let mut checked = self.checked.lock().await;
        let now = Checked::now(&self.bus);
        if let Some(answer) = checked.answer(now.connects, answer_holds, waited_from) {
            return answer;
        }
        match self.ask().await {
            Ok(()) => {
                *checked = now;
                Ok(())
            }
            Err(error) => {
                checked.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    async fn ask(&self) -> Result<(), BusError> {
        let doing = || format!("consumer {}", self.consumer.cached_info().name);
        let info = match tokio::time::timeout(ANSWER_MAX, self.consumer.get_info()).await {
            Ok(Ok(info)) => info,
            Ok(Err(error)) => {
                let kind = match error.kind() {
                    ConsumerInfoErrorKind::NotFound | ConsumerInfoErrorKind::StreamNotFound => BusErrorKind::Missing,
                    _ => BusErrorKind::Unavailable,
                };
                return Err(BusError::new(kind, doing(), &error));
            }
            Err(elapsed) => return Err(BusError::unavailable(doing(), &elapsed)),
        };
        if created_at(&info.created)? != self.created_at {
            self.replaced.cancel();
            return Err(BusError::plain(BusErrorKind::Refused, doing(), REPLACED));
        }
        Ok(())
    }

    /// Returns when it is known that another consumer has its name: its deliveries are nobody's any more.
    pub(crate) async fn replaced(&self) {
        self.replaced.cancelled().await;
    }
}

const REPLACED: &str = "another consumer has its name now, which knows nothing of the deliveries of the former one";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_answers_all_who_waited_for_the_same_question() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let error = BusError::unanswered("a consumer", ANSWER_MAX);
        let long_ago = start.checked_sub(60 * second).expect("the machine is up for a minute");
        let checked = Checked { at: long_ago, connects: 1, failed: Some((start, error)) };
        let kind =
            |waited_from| checked.answer(1, second, waited_from).map(|answer| answer.expect_err("it failed").kind);
        assert_eq!(kind(start.checked_sub(second).expect("as above")), Some(BusErrorKind::Unavailable));
        // Who comes later asks himself.
        assert_eq!(kind(start + second), None);
        let fresh = Checked { at: start, connects: 1, failed: None };
        assert!(fresh.answer(1, 60 * second, start).is_some_and(|answer| answer.is_ok()));
        assert!(fresh.answer(2, 60 * second, start).is_none());
    }
}
