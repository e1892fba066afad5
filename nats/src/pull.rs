//! One pull: a request for messages, and all that the server answers to it.
//!
//! The server answers a pull by core NATS: at most once, and not at all where the connection was cut or the consumer's
//! leader was lost in between. So each wait has a timer of ours; `Batch` of async-nats 0.51 has none for `no_wait`.
//!
//! A pull is never given up before its end: the server knows no way to take one back but that nobody listens any more, and
//! what it has sent by then is lost until its lease ends (async-nats 0.51 drops it also in `Subscriber::drain`).

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::message::Message;
use async_nats::{StatusCode, Subscriber};
use futures::StreamExt;
use serde::Serialize;
use tokio::time::Instant;

use crate::connection::{Bus, BusError, BusErrorKind, Link};

/// How long the server may be silent when it owes us something: a first answer, the next message, or the end of a pull. A
/// marker may have 256 KiB, which a line of 0.4 Mbit/s brings in 5 s.
pub(crate) const ANSWER_MAX: Duration = Duration::from_secs(7);
/// The most that a slow line is given: where a message took long, the next one may take longer.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Bytes that may be on their way under a lease which nobody extends yet, and before the answer to a ping. It must be more
/// than the largest message (512 KiB and its headers): that would never come otherwise.
const LEASED_BYTES_MAX: usize = 528 << 10;
/// The end of a pull whose next message would be more than was asked for.
const BYTES_REACHED: &str = "message size exceeds maxbytes";
/// The end of a pull that had all messages it asked for, and not as many bytes.
const BATCH_SENT: &str = "batch completed";

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Ask {
    /// So many messages, if they are there, and [`LEASED_BYTES_MAX`] at most.
    Now(usize),
    /// So many messages, if they are there, where none is under a lease.
    Unleased(usize),
    /// One message, if it comes in this time.
    Next(Duration),
}

#[derive(Serialize)]
struct Request {
    batch: usize,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    no_wait: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_bytes: Option<usize>,
    /// In nanoseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<u64>,
}

/// A pull that is open at the server.
pub(crate) struct Pull {
    doing: String,
    subscriber: Subscriber,
    context: Context,
    link: Link,
    /// Connections made when it was sent: the server owes the next one nothing.
    connects: u64,
    /// Messages that may still come.
    left: usize,
    heard_at: Instant,
    silent_from: Instant,
    ended: bool,
}

impl Pull {
    /// Sends the request; does not wait for an answer.
    ///
    /// # Errors
    /// There is no connection: a request that waits for one would be sent long after whoever asked has gone.
    pub(crate) async fn open(bus: &Bus, consumer: &PullConsumer, ask: Ask) -> Result<Self, BusError> {
        let info = consumer.cached_info();
        let doing = format!("pulling from {}", info.name);
        if !bus.is_connected() {
            return Err(BusError::plain(BusErrorKind::Unavailable, doing, "the connection is lost"));
        }
        let (left, max_bytes, expires) = match ask {
            Ask::Now(count) => (count, Some(LEASED_BYTES_MAX), None),
            Ask::Unleased(count) => (count, None, None),
            Ask::Next(time) => (1, None, Some(time)),
        };
        let nanoseconds = expires.map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        let request = Request { batch: left, no_wait: expires.is_none(), max_bytes, expires: nanoseconds };
        let body = serde_json::to_vec(&request).expect("numbers always serialise");
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", info.stream_name, info.name);
        let connects = bus.connects();
        let inbox = bus.client.new_inbox();
        // Both only hand a command over; that waits where the connection takes none.
        let sent = async {
            let subscriber = bus.client.subscribe(inbox.clone()).await?;
            bus.client.publish_with_reply(subject, inbox, body.into()).await?;
            Ok::<_, async_nats::Error>(subscriber)
        };
        let subscriber = match tokio::time::timeout(ANSWER_MAX, sent).await {
            Ok(Ok(subscriber)) => subscriber,
            Ok(Err(error)) => return Err(BusError::unavailable(doing, error.as_ref())),
            Err(elapsed) => return Err(BusError::unavailable(doing, &elapsed)),
        };
        Ok(Self {
            doing,
            subscriber,
            context: bus.context.clone(),
            link: bus.link.clone(),
            connects,
            left,
            heard_at: Instant::now(),
            silent_from: Instant::now() + expires.unwrap_or_default() + ANSWER_MAX,
            ended: false,
        })
    }

    /// The next message; `None`: the pull has ended as it should. Safe to drop.
    ///
    /// # Errors
    /// `Unavailable`: the server said nothing for [`ANSWER_MAX`] (more on a slow line), or was connected to anew, or has no
    /// leader. Messages that came before are not touched by that.
    pub(crate) async fn next(&mut self) -> Result<Option<Message>, BusError> {
        if self.ended || self.left == 0 {
            return Ok(None);
        }
        let silence = tokio::time::sleep_until(self.silent_from);
        let answer = tokio::select! {
            // First what has come: it is there whatever else happened.
            biased;
            answer = self.subscriber.next() => answer,
            () = self.link.other_than(self.connects) => return Err(self.fail("connected anew before it was answered")),
            () = silence => {
                let silent_for = self.silent_from.duration_since(self.heard_at).as_secs();
                return Err(self.fail(&format!("no answer for {silent_for} s")));
            }
        };
        let Some(message) = answer else {
            return Err(self.fail("the client has ended"));
        };
        match message.status.unwrap_or(StatusCode::OK) {
            StatusCode::OK => {
                self.left -= 1;
                let now = Instant::now();
                self.silent_from = now + silence_after(now.duration_since(self.heard_at));
                self.heard_at = now;
                Ok(Some(Message { message, context: self.context.clone() }))
            }
            StatusCode::NOT_FOUND | StatusCode::TIMEOUT => {
                self.ended = true;
                Ok(None)
            }
            StatusCode::NO_RESPONDERS => Err(self.fail("the consumer has no leader or is gone")),
            status => {
                let description = message.description.unwrap_or_default();
                if [BYTES_REACHED, BATCH_SENT].iter().any(|end| description.eq_ignore_ascii_case(end)) {
                    // In a cluster it overtakes messages of the pull, which wait for the other servers.
                    let unsent = message.headers.as_ref().and_then(|headers| headers.get("Nats-Pending-Messages"));
                    let unsent = unsent.and_then(|unsent| unsent.as_str().parse::<usize>().ok());
                    self.left = self.left.saturating_sub(unsent.unwrap_or_default());
                    return Box::pin(self.next()).await;
                }
                let gone = description.eq_ignore_ascii_case("consumer deleted");
                let kind = if gone { BusErrorKind::Missing } else { BusErrorKind::Unavailable };
                self.ended = true;
                Err(BusError::plain(kind, self.doing.clone(), format!("{status} {description}")))
            }
        }
    }

    fn fail(&mut self, why: &str) -> BusError {
        self.ended = true;
        BusError::plain(BusErrorKind::Unavailable, self.doing.clone(), why)
    }
}

/// How long the next message is waited for when the last one took so long. Only as long as that on a line that is fast: a
/// server that is gone must be noticed.
fn silence_after(elapsed: Duration) -> Duration {
    (ANSWER_MAX + 2 * elapsed).min(SILENCE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_line_is_given_longer() {
        assert_eq!(silence_after(Duration::ZERO), ANSWER_MAX);
        assert_eq!(silence_after(Duration::from_secs(6)), Duration::from_secs(19));
        assert_eq!(silence_after(Duration::from_secs(60)), SILENCE_MAX);
    }
}
