//! The queue, which may be away: work on the bucket goes on without it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use common::checksum::Sha256Sum;
use common::config::Nats;
use common::output::Failure;
use common::unit::Unit;
use nats::{Bus, BusError, BusErrorKind, Latest, Newest, Published, Stamp, within};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::local::signs;

/// Shortest pause between two tries to connect; as long as the last try took, if that was longer.
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);
/// How long connecting may take, with the streams made where that is ours to do.
const CONNECT_MAX: Duration = Duration::from_secs(40);
/// How long one question may take, which is a few requests of some seconds each.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// How long nothing is asked after a request that was not answered: a server that hangs would cost each unit a timeout.
const SILENCE_PAUSE: Duration = Duration::from_secs(5);

/// A connection that is made when it is first needed, and again until it works.
pub(crate) struct Queue {
    config: Nats,
    name: String,
    link: Mutex<Link>,
    unanswered: std::sync::Mutex<Option<(BusError, Instant)>>,
    /// For a dry run: nothing is made at the server.
    pub(crate) read_only: bool,
    /// Whether a dry run found that there is no stream yet, which a run would make: nothing is announced.
    is_to_be_made: AtomicBool,
}

enum Link {
    Untried,
    /// Not tried again before `until`.
    Away {
        why: BusError,
        until: Instant,
    },
    Up(Box<Bus>),
}

/// Why a unit is not announced now; it may be later.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum QueueError {
    #[error("{0}")]
    Away(BusError),
    #[error("NATS: the connection is lost")]
    Lost,
    #[error("{0}")]
    Refused(BusError),
}

impl From<BusError> for QueueError {
    fn from(error: BusError) -> Self {
        match error.kind {
            BusErrorKind::Unavailable | BusErrorKind::Missing => Self::Away(error),
            BusErrorKind::Denied | BusErrorKind::Refused | BusErrorKind::Full => Self::Refused(error),
        }
    }
}

impl From<QueueError> for Failure {
    fn from(error: QueueError) -> Self {
        match error {
            QueueError::Away(error) | QueueError::Refused(error) => error.into(),
            QueueError::Lost => Self::unreachable(error.to_string()),
        }
    }
}

impl Queue {
    pub(crate) fn new(config: Nats, name: String) -> Self {
        Self {
            config,
            name,
            link: Mutex::new(Link::Untried),
            unanswered: std::sync::Mutex::default(),
            read_only: false,
            is_to_be_made: AtomicBool::new(false),
        }
    }

    /// A working connection, with the streams there if we may create them.
    pub(crate) async fn bus(&self) -> Result<Bus, QueueError> {
        if let Some((why, since)) = &*self.unanswered()
            && since.elapsed() < SILENCE_PAUSE
        {
            return Err(why.clone().into());
        }
        // Whoever holds it connects, which has a time-out.
        let mut link = self.link.lock().await;
        match &*link {
            Link::Up(bus) if bus.is_connected() => return Ok(Bus::clone(bus)),
            // It comes back by itself.
            Link::Up(_) => return Err(QueueError::Lost),
            Link::Away { why, until } if Instant::now() < *until => return Err(why.clone().into()),
            Link::Away { .. } | Link::Untried => {}
        }
        let begun = Instant::now();
        match self.connect().await {
            Ok(bus) => {
                *link = Link::Up(Box::new(bus.clone()));
                Ok(bus)
            }
            Err(why) => {
                let until = Instant::now() + begun.elapsed().max(RECONNECT_PAUSE);
                *link = Link::Away { why: why.clone(), until };
                Err(why.into())
            }
        }
    }

    async fn connect(&self) -> Result<Bus, BusError> {
        let connecting = async {
            let bus = Bus::connect(&self.config, &self.name).await?;
            if self.config.manage && self.read_only && !bus.has_stream().await? {
                self.is_to_be_made.store(true, Ordering::Relaxed);
                return Ok(bus);
            }
            if self.config.manage && !self.read_only {
                bus.create_streams().await?;
            }
            // What is announced on a stream that drops it would be lost without a word.
            bus.check_markers().await?;
            Ok(bus)
        };
        within(CONNECT_MAX, "connecting", connecting).await
    }

    /// Whether there is a connection, as far as one was ever needed; one that could not be made is tried again.
    pub(crate) async fn is_connected(&self) -> bool {
        let is_untried = matches!(&*self.link.lock().await, Link::Untried);
        is_untried || self.bus().await.is_ok()
    }

    /// Longest message that may carry its list of objects.
    pub(crate) async fn inline_bytes_max(&self) -> Result<usize, QueueError> {
        Ok(self.bus().await?.inline_bytes_max())
    }

    /// Which message of the stream is the newest, of every unit.
    pub(crate) async fn stamps(&self) -> Result<HashMap<Unit, Stamp>, QueueError> {
        let bus = self.bus().await?;
        if self.is_to_be_made() {
            return Ok(HashMap::new());
        }
        // A message or an answer every few seconds, or an error: see nats/design.md. All of them together may take longer
        // than a pass may be silent.
        Ok(bus.stamps(signs::bump).await?)
    }

    pub(crate) async fn latest(&self, unit: &Unit) -> Result<Latest, QueueError> {
        let bus = self.bus().await?;
        if self.is_to_be_made() {
            return Ok(Latest::default());
        }
        self.answered(within(ANSWER_MAX, "asking for a marker", bus.latest_marker(unit)).await)
    }

    pub(crate) async fn publish(
        &self,
        subject: &str,
        revision: &Sha256Sum,
        payload: Vec<u8>,
        expected_last: u64,
    ) -> Result<Published, QueueError> {
        let bus = self.bus().await?;
        let published = bus.publish_marker(subject, revision, payload, expected_last);
        self.answered(within(ANSWER_MAX, "publishing", published).await)
    }

    pub(crate) async fn other_lane_moved(
        &self,
        unit: &Unit,
        backfill: bool,
        latest: &Latest,
    ) -> Result<bool, QueueError> {
        let bus = self.bus().await?;
        self.answered(
            within(ANSWER_MAX, "asking for the other lane", bus.other_lane_moved(unit, backfill, latest)).await,
        )
    }

    pub(crate) async fn newest(&self) -> Result<Option<Newest>, QueueError> {
        let bus = self.bus().await?;
        if self.is_to_be_made() {
            return Ok(None);
        }
        self.answered(within(ANSWER_MAX, "asking for the newest marker", bus.newest_announcement()).await)
    }

    fn is_to_be_made(&self) -> bool {
        self.is_to_be_made.load(Ordering::Relaxed)
    }

    fn answered<T>(&self, answer: Result<T, BusError>) -> Result<T, QueueError> {
        signs::bump();
        if let Err(error) = &answer
            && error.kind == BusErrorKind::Unavailable
        {
            *self.unanswered() = Some((error.clone(), Instant::now()));
        }
        Ok(answer?)
    }

    fn unanswered(&self) -> MutexGuard<'_, Option<(BusError, Instant)>> {
        self.unanswered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) async fn close(&self) {
        if let Link::Up(bus) = &*self.link.lock().await {
            bus.close().await;
        }
    }
}
