//! Requests that wait together become one statement.
//!
//! Units are worked on one by one, each in a task of its own that knows nothing of the others. What they ask of a server
//! goes through a [`Batcher`]: while a statement is under way the requests that come queue up, and the next statement
//! answers all of them. An idle system waits for nobody; the busier it is, the more units share a statement.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use nats::Activity;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use crate::error::clickhouse::{WarehouseError, WarehouseErrorKind};

/// Requests that are taken from their senders and wait for a statement; beyond, the senders wait.
const QUEUE_MAX: usize = 1024;

/// How requests are put together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// For the log.
    pub what: &'static str,
    /// Requests one statement answers.
    pub requests: usize,
    /// Sum of the weights of one statement's requests, unless it is a single one.
    pub weight: u64,
    /// Statements under way at once.
    pub statements: usize,
    /// How long the first of them waits for others at most, while there are units in flight that may still come. It waits
    /// as long as a statement usually takes: then sharing costs each unit no more than standing in line would.
    pub linger: Duration,
}

/// Counts units that may send requests.
#[derive(Debug, Clone, Default)]
pub(crate) struct InFlightCount(Arc<AtomicUsize>);

/// One unit in flight, until dropped.
pub(crate) struct InFlightGuard(InFlightCount);

impl InFlightCount {
    pub(crate) fn enter(&self) -> InFlightGuard {
        self.0.fetch_add(1, Ordering::Relaxed);
        InFlightGuard(self.clone())
    }

    fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Runs one statement for several requests; answers in their order.
type Run<I, O> = Arc<dyn Fn(Vec<I>) -> BoxFuture<'static, Result<Vec<O>, WarehouseError>> + Send + Sync>;

/// The sender's side. The work ends with the last sender.
pub(crate) struct Batcher<I, O> {
    requests: mpsc::Sender<Request<I, O>>,
}

struct Request<I, O> {
    input: I,
    weight: u64,
    /// Of the unit that asks. It waits for others' statements, of which each has its own time-out: as long as they come to
    /// their ends, that is no stall.
    activity: Activity,
    answer: oneshot::Sender<Result<O, WarehouseError>>,
}

impl<I: Clone + Send + 'static, O: Send + 'static> Batcher<I, O> {
    /// Starts the task that puts requests together.
    pub(crate) fn start<F>(
        limits: Limits,
        in_flight: InFlightCount,
        run: impl Fn(Vec<I>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<Vec<O>, WarehouseError>> + Send + 'static,
    {
        let (requests, received) = mpsc::channel(QUEUE_MAX);
        let run: Run<I, O> = Arc::new(move |inputs| Box::pin(run(inputs)));
        let queue = RequestQueue { limits, in_flight, run, received, waiting: VecDeque::new(), usual: Duration::ZERO };
        tokio::spawn(queue.work());
        Self { requests }
    }

    /// Asks, and waits for the answer. Where the caller goes away, because its lease is lost, what waits is not carried out
    /// any more: rows that come long after their time would find nobody who looks after them.
    pub(crate) async fn ask(&self, input: I, weight: u64, activity: &Activity) -> Result<O, WarehouseError> {
        let lost = |_| WarehouseError::wrong("a statement was lost to a defect of this worker");
        let (answer, answered) = oneshot::channel();
        let sent = self.requests.send(Request { input, weight, activity: activity.clone(), answer }).await;
        sent.map_err(|_| lost(()))?;
        answered.await.map_err(|_| lost(()))?
    }
}

struct RequestQueue<I, O> {
    limits: Limits,
    in_flight: InFlightCount,
    run: Run<I, O>,
    received: mpsc::Receiver<Request<I, O>>,
    waiting: VecDeque<Request<I, O>>,
    /// How long statements took of late.
    usual: Duration,
}

impl<I: Clone + Send + 'static, O: Send + 'static> RequestQueue<I, O> {
    async fn work(mut self) {
        let mut statements: JoinSet<Duration> = JoinSet::new();
        loop {
            if self.waiting.is_empty() {
                let Some(request) = self.received.recv().await else { break };
                self.waiting.push_back(request);
            }
            self.collect_waiting();
            if statements.len() >= self.limits.statements {
                self.record_end(statements.join_next().await);
                continue;
            }
            self.linger().await;
            let requests = self.next_statement();
            if requests.is_empty() {
                continue;
            }
            statements.spawn(answer(self.limits.what, Arc::clone(&self.run), requests));
            while let Some(ended) = statements.try_join_next() {
                self.record_end(Some(ended));
            }
        }
        while statements.join_next().await.is_some() {}
    }

    /// A statement has ended. One that was lost to a defect has no time; whoever asked is told.
    fn record_end(&mut self, ended: Option<Result<Duration, JoinError>>) {
        self.waiting.iter().for_each(|request| request.activity.bump());
        if let Some(Ok(elapsed)) = ended {
            self.usual = (3 * self.usual + elapsed) / 4;
        }
    }

    fn collect_waiting(&mut self) {
        while self.waiting.len() < QUEUE_MAX
            && let Ok(request) = self.received.try_recv()
        {
            self.waiting.push_back(request);
        }
    }

    /// Waits for others that may come, up to the time that is set for it.
    async fn linger(&mut self) {
        let linger = self.limits.linger.min(self.usual);
        if linger.is_zero() {
            return;
        }
        let enough = |queue: &Self| {
            let weight: u64 = queue.waiting.iter().map(|request| request.weight).sum();
            queue.waiting.len() >= queue.in_flight.count().min(queue.limits.requests) || weight >= queue.limits.weight
        };
        let end = tokio::time::sleep(linger);
        tokio::pin!(end);
        while !enough(self) {
            tokio::select! {
                request = self.received.recv() => match request {
                    Some(request) => self.waiting.push_back(request),
                    None => return,
                },
                () = &mut end => return,
            }
        }
    }

    fn next_statement(&mut self) -> Vec<Request<I, O>> {
        let mut weight = 0;
        let mut requests = Vec::new();
        self.waiting.retain(|request| !request.answer.is_closed());
        while let Some(request) = self.waiting.front() {
            let fits = weight + request.weight <= self.limits.weight && requests.len() < self.limits.requests;
            if !requests.is_empty() && !fits {
                break;
            }
            weight += request.weight;
            requests.extend(self.waiting.pop_front());
        }
        requests
    }
}

/// Runs the statement and hands out the answers. What the server refuses for several is tried for each, so that a bad one
/// hurts no other.
async fn answer<I: Clone, O>(what: &'static str, run: Run<I, O>, requests: Vec<Request<I, O>>) -> Duration {
    let inputs: Vec<I> = requests.iter().map(|request| request.input.clone()).collect();
    let started = Instant::now();
    match run(inputs).await {
        Ok(answers) => {
            tracing::debug!(what, requests = requests.len(), duration_ms = started.elapsed().as_millis(), "statement");
            for (request, answer) in requests.into_iter().zip(answers) {
                // Whoever asked may have lost its lease meanwhile.
                drop(request.answer.send(Ok(answer)));
            }
        }
        Err(error) if is_of_one(&error) && requests.len() > 1 => {
            tracing::warn!(%error, requests = requests.len(), "refused together, trying one by one");
            let mut waiting = VecDeque::from(requests);
            while let Some(request) = waiting.pop_front() {
                if request.answer.is_closed() {
                    continue;
                }
                let answer = run(vec![request.input]).await.and_then(|answers| {
                    answers.into_iter().next().ok_or_else(|| WarehouseError::wrong("a statement gave no answer"))
                });
                drop(request.answer.send(answer));
                waiting.iter().for_each(|request| request.activity.bump());
            }
        }
        Err(error) => {
            for request in requests {
                drop(request.answer.send(Err(error.clone())));
            }
        }
    }
    started.elapsed()
}

/// Whether what one of the requests asks may be what the statement failed at, and the server has said so: one that is
/// silent would be waited for as often as there are requests.
fn is_of_one(error: &WarehouseError) -> bool {
    match error.kind {
        // A limit may be reached by all of them together only.
        WarehouseErrorKind::Other
        | WarehouseErrorKind::Inconsistent
        | WarehouseErrorKind::TooHeavy
        | WarehouseErrorKind::AccountLimit => !error.unanswered,
        WarehouseErrorKind::Unavailable | WarehouseErrorKind::Denied | WarehouseErrorKind::MissingSchema => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    const LIMITS: Limits = Limits { what: "doubles", requests: 3, weight: 100, statements: 1, linger: Duration::ZERO };

    type Ran = Arc<Mutex<Vec<Vec<u64>>>>;

    /// A batcher that answers each number with its double and refuses odd ones; what it ran is written down.
    fn doubling(limits: Limits, in_flight: InFlightCount) -> (Arc<Batcher<u64, u64>>, Ran) {
        let ran = Ran::default();
        let log = Arc::clone(&ran);
        let batcher = Batcher::start(limits, in_flight, move |numbers: Vec<u64>| {
            log.lock().expect("not poisoned").push(numbers.clone());
            async move {
                tokio::time::sleep(Duration::from_millis(10)).await;
                if numbers.iter().any(|number| number % 2 == 1) {
                    return Err(WarehouseError::wrong("odd"));
                }
                Ok(numbers.into_iter().map(|number| 2 * number).collect())
            }
        });
        (Arc::new(batcher), ran)
    }

    async fn ask_all(batcher: &Arc<Batcher<u64, u64>>, numbers: &[u64], weight: u64) -> Vec<Option<u64>> {
        let asked = numbers.iter().map(|&number| {
            let batcher = Arc::clone(batcher);
            async move { batcher.ask(number, weight, &Activity::default()).await.ok() }
        });
        futures::future::join_all(asked).await
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_together_is_answered_together() {
        let (batcher, ran) = doubling(LIMITS, InFlightCount::default());
        assert_eq!(ask_all(&batcher, &[2, 4, 6, 8, 10, 12], 1).await, [4, 8, 12, 16, 20, 24].map(Some));
        let ran = ran.lock().expect("not poisoned");
        assert_eq!(ran.concat(), [2, 4, 6, 8, 10, 12]);
        assert!(ran.iter().all(|numbers| numbers.len() <= 3) && ran.len() < 6, "{ran:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn weight_is_limited_too() {
        let (batcher, ran) = doubling(LIMITS, InFlightCount::default());
        ask_all(&batcher, &[2, 4, 6], 101).await;
        assert_eq!(*ran.lock().expect("not poisoned"), [[2], [4], [6]]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_bad_one_hurts_no_other() {
        let (batcher, _) = doubling(LIMITS, InFlightCount::default());
        assert_eq!(ask_all(&batcher, &[2, 3, 4, 5, 6], 1).await, [Some(4), None, Some(8), None, Some(12)]);
    }

    #[tokio::test(start_paused = true)]
    async fn statements_that_end_are_signs_of_progress_for_those_that_wait() {
        let (batcher, _) = doubling(LIMITS, InFlightCount::default());
        let activities: Vec<Activity> = (0..6).map(|_| Activity::default()).collect();
        // Refused together, so they are tried one by one; the second three wait for the first.
        let asked = activities.iter().map(|activity| batcher.ask(3, 1, activity));
        futures::future::join_all(asked).await;
        let signs: Vec<u64> = activities.iter().map(Activity::count).collect();
        assert!(signs.iter().skip(1).all(|signs| *signs > 0), "{signs:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_waits_for_any_more_is_not_carried_out() {
        let (batcher, ran) = doubling(LIMITS, InFlightCount::default());
        let ask = |number| {
            let batcher = Arc::clone(&batcher);
            tokio::spawn(async move { batcher.ask(number, 1, &Activity::default()).await.ok() })
        };
        let under_way = ask(2);
        tokio::time::sleep(Duration::from_millis(5)).await;
        let gone = ask(4);
        tokio::time::sleep(Duration::from_millis(1)).await;
        gone.abort();
        assert!(gone.await.is_err());
        assert_eq!(ask(6).await.ok().flatten(), Some(12));
        assert_eq!(under_way.await.ok().flatten(), Some(4));
        assert_eq!(*ran.lock().expect("not poisoned"), [[2], [6]]);
    }

    #[tokio::test(start_paused = true)]
    async fn only_those_in_flight_are_waited_for() {
        let limits = Limits { linger: Duration::from_secs(3600), ..LIMITS };
        let in_flight = InFlightCount::default();
        let (batcher, ran) = doubling(limits, in_flight.clone());
        let _one = in_flight.enter();
        for _ in 0..20 {
            let started = Instant::now();
            assert_eq!(batcher.ask(2, 1, &Activity::default()).await.ok(), Some(4));
            assert_eq!(started.elapsed(), Duration::from_millis(10), "nobody else could come");
        }
        let _two = in_flight.enter();
        ask_all(&batcher, &[4, 6], 1).await;
        assert_eq!(ran.lock().expect("not poisoned").last(), Some(&vec![4, 6]));
        let started = Instant::now();
        assert_eq!(batcher.ask(8, 1, &Activity::default()).await.ok(), Some(16));
        // As long as a statement takes, and the statement.
        assert!((15..=25).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
    }
}
