//! Pulling deliveries for one destination: live units first.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream;
use tokio::sync::mpsc;

use crate::connection::{Bus, BusError};
use crate::delivery::Delivery;
use crate::incarnation::OpenConsumer;
use crate::lease::Lease;
use crate::pull::{Ask, Pull};
use crate::topology::{ConsumerSettings, LaneConsumer, lanes};

/// How long an idle pull stays open at the server. A worker that is told to stop waits for its end.
const IDLE_PULL: Duration = Duration::from_secs(3);
/// How long it may take to note that a delivery is handed back.
const RECORD_MAX: Duration = Duration::from_secs(1);
/// For how long it is known before a pull that the consumer is the one that was opened.
const KNOWN_FOR: Duration = Duration::from_secs(10);

/// A delivery and the lease on it.
pub struct Leased {
    pub delivery: Arc<Delivery>,
    pub lease: Lease,
}

/// The durable consumers of one destination.
pub struct Intake {
    /// The one served first first.
    lanes: Vec<PullLane>,
}

impl Intake {
    /// Looks the consumers up, and whether what is announced can get through them; needs no right to create them.
    ///
    /// # Errors
    /// Those of [`Bus::check_destination`].
    pub async fn open(bus: &Bus, settings: &ConsumerSettings, stall_timeout: Duration) -> Result<Self, BusError> {
        bus.check_destination(settings).await?;
        let open = async |lane: LaneConsumer| OpenConsumer::open(bus, lane.stream, &lane.name).await;
        let opened = futures::future::try_join_all(lanes(&settings.destination).map(open)).await?;
        let served_since = opened.iter().map(|consumer| consumer.served_since).min();
        let pull_lane = |mut consumer: OpenConsumer| {
            // One of them may have been made anew by hand.
            consumer.served_since = served_since.unwrap_or(consumer.served_since);
            let consumer = Arc::new(consumer);
            // The server's lease, not the configured one: that may have changed since the consumer was made.
            let ack_wait = consumer.consumer.cached_info().config.ack_wait;
            let puller = Puller { bus: bus.clone(), consumer, ack_wait, stall_timeout };
            PullLane { puller, batch: None, idle: None }
        };
        Ok(Self { lanes: opened.into_iter().map(pull_lane).collect() })
    }

    /// Waits for a delivery, of a batch of at most `free` when there is a backlog. When idle, one of each lane may come.
    ///
    /// The first lane first; the next one is asked only when there are none. Returns nothing when none came for a while.
    /// Safe to drop at any await: pulls that are open go on, and what they bring is held under its lease until the next call.
    ///
    /// # Errors
    /// A pull failed or was not answered; what it brought before was returned before.
    pub async fn next(&mut self, free: usize) -> Result<Option<Leased>, BusError> {
        for lane in &mut self.lanes {
            if let Some(leased) = lane.batch().await {
                return leased.map(Some);
            }
        }
        for lane in &mut self.lanes {
            if let Some(leased) = lane.came_while_busy() {
                return leased.map(Some);
            }
            lane.batch = Some(lane.open(Ask::Now(free)));
            if let Some(leased) = lane.batch().await {
                return leased.map(Some);
            }
        }
        for lane in &mut self.lanes {
            if lane.idle.is_none() {
                lane.idle = Some(lane.open(Ask::Next(IDLE_PULL)));
            }
        }
        poll_fn(|context| {
            for lane in &mut self.lanes {
                let Some(idle) = &mut lane.idle else { continue };
                match idle.poll_recv(context) {
                    Poll::Ready(Some(leased)) => return Poll::Ready(leased.map(Some)),
                    Poll::Ready(None) => {
                        lane.idle = None;
                        return Poll::Ready(Ok(None));
                    }
                    Poll::Pending => {}
                }
            }
            Poll::Pending
        })
        .await
    }

    /// What pulls bring that are open already; waits as long as none does. Asks for nothing.
    ///
    /// # Errors
    /// As [`Intake::next`].
    pub async fn arrived(&mut self) -> Result<Leased, BusError> {
        poll_fn(|context| {
            for open in self.lanes.iter_mut().flat_map(|lane| [&mut lane.batch, &mut lane.idle]) {
                let Some(pull) = open else { continue };
                match pull.poll_recv(context) {
                    Poll::Ready(Some(leased)) => return Poll::Ready(leased),
                    Poll::Ready(None) => *open = None,
                    Poll::Pending => {}
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Whether the consumers are those that were opened.
    ///
    /// # Errors
    /// As [`OpenConsumer::is_same`]: `Missing` and `Refused` mean that they must be opened anew.
    pub async fn is_same(&self) -> Result<(), BusError> {
        for lane in &self.lanes {
            lane.puller.consumer.is_same().await?;
        }
        Ok(())
    }

    /// Waits for the end of open pulls and hands back what they bring; of idle ones only if `idle`.
    pub async fn close(mut self, idle: bool, within: Duration) {
        let ends: Vec<_> = self
            .lanes
            .iter_mut()
            .flat_map(|lane| {
                let bus = &lane.puller.bus;
                let pulls = [lane.batch.take(), lane.idle.take().filter(|_| idle)];
                pulls.into_iter().flatten().map(move |pull| hand_back_all(bus, pull))
            })
            .collect();
        if tokio::time::timeout(within, futures::future::join_all(ends)).await.is_err() {
            tracing::warn!("what was on its way here could not be handed back; it comes back when its lease ends");
        }
    }
}

/// Deliveries as they come, and the error that a pull ended with.
type Arrivals = mpsc::Receiver<Result<Leased, BusError>>;

/// One of the consumers, and the pulls that are open.
struct PullLane {
    puller: Puller,
    /// For what is there.
    batch: Option<Arrivals>,
    /// For one that comes.
    idle: Option<Arrivals>,
}

impl PullLane {
    /// In a task of its own, so that a lease begins when its message arrives, even if every slot is busy by then.
    fn open(&self, ask: Ask) -> Arrivals {
        let capacity = match ask {
            Ask::Now(count) | Ask::Unleased(count) => count + 1,
            Ask::Next(_) => 2,
        };
        let (sender, arrivals) = mpsc::channel(capacity);
        tokio::spawn(self.puller.clone().pull(ask, sender));
        arrivals
    }

    /// The next delivery of the open batch; `None` when there is no more.
    async fn batch(&mut self) -> Option<Result<Leased, BusError>> {
        // No timer: the task ends when the server is silent.
        let came = self.batch.as_mut()?.recv().await;
        if came.is_none() {
            self.batch = None;
        }
        came
    }

    /// What the idle pull brought while nobody looked.
    fn came_while_busy(&mut self) -> Option<Result<Leased, BusError>> {
        match self.idle.as_mut()?.try_recv() {
            Ok(leased) => Some(leased),
            Err(mpsc::error::TryRecvError::Empty) => None,
            Err(mpsc::error::TryRecvError::Disconnected) => {
                self.idle = None;
                None
            }
        }
    }
}

#[derive(Clone)]
struct Puller {
    bus: Bus,
    consumer: Arc<OpenConsumer>,
    ack_wait: Duration,
    stall_timeout: Duration,
}

impl Puller {
    /// Passes on what a pull brings; when nobody waits for it any more, hands it back.
    async fn pull(self, ask: Ask, arrivals: mpsc::Sender<Result<Leased, BusError>>) {
        if let Err(error) = self.try_pull(ask, &arrivals).await {
            // Nobody may be there to be told.
            drop(arrivals.send(Err(error)).await);
        }
    }

    async fn try_pull(&self, ask: Ask, arrivals: &mpsc::Sender<Result<Leased, BusError>>) -> Result<(), BusError> {
        // What a consumer delivers that was made anew is not of the one that was opened.
        self.consumer.is_same_since(KNOWN_FOR).await?;
        let mut pull = Pull::open(&self.bus, &self.consumer.consumer, ask).await?;
        while let Some(message) = pull.next().await? {
            let delivery = Arc::new(Delivery::new(message, &self.consumer, &self.bus)?);
            let lease = Lease::hold(delivery.clone(), self.ack_wait, self.stall_timeout);
            // There is room for all that was asked for, so this does not wait. Nobody may want it any more.
            if let Err(unsent) = arrivals.send(Ok(Leased { delivery, lease })).await
                && let Ok(leased) = unsent.0
            {
                hand_back(&self.bus, &leased.delivery).await;
            }
        }
        Ok(())
    }
}

/// Waits for the end of a pull and hands back what it brings, all at a time: there may be as many as a worker has slots.
async fn hand_back_all(bus: &Bus, mut pull: Arrivals) {
    let came = stream::poll_fn(move |context| pull.poll_recv(context));
    came.for_each_concurrent(None, |came| async {
        if let Ok(leased) = came {
            hand_back(bus, &leased.delivery).await;
        }
    })
    .await;
}

/// Hands back what came when nobody wanted it any more. It is noted first, or it would count as a delivery whose worker
/// crashed; a worker that ends gets what it has just handed back once more, while a pull of its own is open.
async fn hand_back(bus: &Bus, delivery: &Delivery) {
    let recording = async {
        let record = bus.delivery_record(delivery).await?;
        bus.put_delivery_record(delivery, record.with_hand_back()).await
    };
    match tokio::time::timeout(RECORD_MAX, recording).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, subject = delivery.subject, "handing back is not noted"),
        Err(_) => tracing::debug!(subject = delivery.subject, "handing back is not noted: no answer"),
    }
    if let Err(error) = delivery.nak(Duration::ZERO).await {
        tracing::debug!(%error, subject = delivery.subject, "handing back what came too late");
    }
}
