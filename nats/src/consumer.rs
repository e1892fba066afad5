//! Pulling deliveries for one destination: live units first.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::consumer::pull::Batch;
use futures::StreamExt;
use tokio::task::JoinHandle;

use crate::connection::{Bus, BusError};
use crate::delivery::Delivery;
use crate::lease::Lease;
use crate::topology::{ConsumerSettings, LaneConsumer, lanes};

/// How long an idle pull stays open at the server.
const IDLE_PULL: Duration = Duration::from_secs(10);

/// A delivery and the lease on it.
pub struct Held {
    pub delivery: Arc<Delivery>,
    pub lease: Lease,
}

/// The durable consumers of one destination.
pub struct Intake {
    /// The one served first first.
    lanes: Vec<Puller>,
}

impl Intake {
    /// Looks the consumers up, and whether what is announced can get through them; needs no right to create them.
    ///
    /// # Errors
    /// Those of [`Bus::check_destination`].
    pub async fn open(bus: &Bus, settings: &ConsumerSettings, stall_timeout: Duration) -> Result<Self, BusError> {
        bus.check_destination(settings).await?;
        let puller = async |lane: LaneConsumer| {
            let consumer = bus.durable(&lane).await?;
            // The server's lease, not the configured one: that may have changed since the consumer was made.
            let ack_wait = consumer.cached_info().config.ack_wait;
            let pull = Pull { consumer, client: bus.client.clone(), ack_wait, stall_timeout };
            Ok::<_, BusError>(Puller { pull, idle: None })
        };
        let lanes = futures::future::try_join_all(lanes(&settings.destination).map(puller)).await?;
        Ok(Self { lanes })
    }

    /// Waits for deliveries, at most `free` when there is a backlog. When idle, one of each lane may come.
    ///
    /// Ready ones first, then backfill, then replays; a lane is asked only when those before it have nothing. May return nothing after a while. Safe to drop
    /// at any await: pulls that are open go on, and what they bring is held under its lease until the next call.
    pub async fn next(&mut self, free: usize) -> Result<Vec<Held>, BusError> {
        for puller in &mut self.lanes {
            if puller.idle.as_ref().is_some_and(JoinHandle::is_finished) {
                return puller.idle().await;
            }
            let held = puller.pull.now(free).await?;
            if !held.is_empty() {
                return Ok(held);
            }
        }
        let idle = self.lanes.iter_mut().map(|puller| Box::pin(puller.idle()));
        futures::future::select_all(idle).await.0
    }

    /// Whatever is there right now, at most `free`.
    pub async fn now(&mut self, free: usize) -> Result<Vec<Held>, BusError> {
        for puller in &self.lanes {
            let held = puller.pull.now(free).await?;
            if !held.is_empty() {
                return Ok(held);
            }
        }
        Ok(Vec::new())
    }
}

struct Puller {
    pull: Pull,
    /// An open pull for one message. In a task of its own, so that the lease starts when the message arrives, even
    /// if every slot is busy by then.
    idle: Option<JoinHandle<Result<Vec<Held>, BusError>>>,
}

impl Puller {
    async fn idle(&mut self) -> Result<Vec<Held>, BusError> {
        let pull = &self.pull;
        let task = self.idle.get_or_insert_with(|| tokio::spawn(pull.clone().wait()));
        let ended = task.await;
        self.idle = None;
        ended.unwrap_or_else(|error| Err(BusError::unavailable("pulling", &error)))
    }
}

impl Drop for Puller {
    fn drop(&mut self) {
        if let Some(task) = &self.idle {
            task.abort();
        }
    }
}

#[derive(Clone)]
struct Pull {
    consumer: PullConsumer,
    client: async_nats::Client,
    ack_wait: Duration,
    stall_timeout: Duration,
}

impl Pull {
    async fn now(&self, count: usize) -> Result<Vec<Held>, BusError> {
        let batch = self.consumer.fetch().max_messages(count).messages().await;
        self.hold(batch.map_err(|error| BusError::unavailable("pulling", &error))?).await
    }

    async fn wait(self) -> Result<Vec<Held>, BusError> {
        // No heartbeats: async-nats 0.51 goes to sleep for good on the first one, and a message that comes later is
        // lost to this pull. A lost pull is noticed when its time is over.
        let pull = self.consumer.batch().max_messages(1).expires(IDLE_PULL);
        self.hold(pull.messages().await.map_err(|error| BusError::unavailable("pulling", &error))?).await
    }

    async fn hold(&self, mut batch: Batch) -> Result<Vec<Held>, BusError> {
        let mut held = Vec::new();
        while let Some(message) = batch.next().await {
            match message {
                Ok(message) => {
                    let delivery = Arc::new(Delivery::new(message, &self.client, &self.consumer)?);
                    let lease = Lease::hold(delivery.clone(), self.ack_wait, self.stall_timeout);
                    held.push(Held { delivery, lease });
                }
                // What came before the error is in hand and must not be dropped with it.
                Err(error) if held.is_empty() => {
                    return Err(BusError::unavailable("pulling", error.as_ref()));
                }
                Err(error) => {
                    tracing::debug!(%error, "a pull ended early");
                    break;
                }
            }
        }
        Ok(held)
    }
}
