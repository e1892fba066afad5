//! Limits how fast bytes go (`storage.bwlimit`, `--bwlimit`): one bucket of tokens for all transfers of a process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::tz::TimeZone;
use tokio::sync::Mutex;
use tokio::time::Instant;

use common::bwlimit::BwLimit;

pub use common::bwlimit::Direction;

/// Most bytes granted at once: few enough that a slow link is not given a whole file in one go.
const PIECE_BYTES: usize = 16 * 1024;
/// What may be saved up while nobody asks, or while the machine is too busy to wake us in time. Over ten seconds this
/// is 2.5 %.
const SAVED: Duration = Duration::from_millis(250);
/// How often the timetable is looked at.
const POLL: Duration = Duration::from_secs(1);

/// The limit of a process, shared by cloning.
#[derive(Clone)]
pub struct Bandwidth {
    shared: Arc<Shared>,
}

struct Shared {
    limit: BwLimit,
    up: Mutex<Bucket>,
    down: Mutex<Bucket>,
    grants: AtomicU64,
}

/// Tokens, one a byte. Whoever waits for some holds the lock, so they are served in the order they came.
struct Bucket {
    tokens: f64,
    filled: Instant,
    /// Bytes a second; `None`: no limit.
    rate: Option<f64>,
    checked_at: Option<Instant>,
}

impl Bandwidth {
    pub fn new(limit: BwLimit) -> Self {
        let bucket = || Mutex::new(Bucket { tokens: 0.0, filled: Instant::now(), rate: None, checked_at: None });
        Self { shared: Arc::new(Shared { limit, up: bucket(), down: bucket(), grants: AtomicU64::new(0) }) }
    }

    pub fn is_off(&self) -> bool {
        self.shared.limit.is_off()
    }

    /// The limit as it is now, in bytes a second, for a program that keeps to it by itself.
    pub fn now(&self, direction: Direction) -> Option<u64> {
        let local = common::clock::now().to_zoned(TimeZone::system()).datetime();
        self.shared.limit.at(local, direction).map(std::num::NonZero::get)
    }

    /// How often bytes were let through so far: as long as this grows, something moves.
    pub fn grants(&self) -> u64 {
        self.shared.grants.load(Ordering::Relaxed)
    }

    /// Waits until some of these bytes may go, and says how many: at least one, unless none are wanted.
    pub async fn acquire(&self, direction: Direction, requested: usize) -> usize {
        let granted = self.wait_for(direction, requested).await;
        self.shared.grants.fetch_add(1, Ordering::Relaxed);
        granted
    }

    // No time-out: a limit of a byte a second is to be waited for, and whoever holds the lock waits for nothing else.
    async fn wait_for(&self, direction: Direction, requested: usize) -> usize {
        if self.shared.limit.is_off() || requested == 0 {
            return requested;
        }
        let mut bucket = match direction {
            Direction::Up => self.shared.up.lock().await,
            Direction::Down => self.shared.down.lock().await,
        };
        loop {
            let now = Instant::now();
            bucket.refresh(&self.shared.limit, direction, now);
            let Some(rate) = bucket.rate else { return requested };
            bucket.fill(rate, now);
            // A piece is never more than what can be saved up.
            let piece = requested.min(PIECE_BYTES).min((rate * SAVED.as_secs_f64()).max(1.0) as usize);
            let lacking = piece as f64 - bucket.tokens;
            if lacking <= 0.0 {
                bucket.tokens -= piece as f64;
                return piece;
            }
            tokio::time::sleep(Duration::from_secs_f64(lacking / rate).min(POLL)).await;
        }
    }
}

impl Bucket {
    fn refresh(&mut self, limit: &BwLimit, direction: Direction, now: Instant) {
        if self.checked_at.is_some_and(|checked_at| now.duration_since(checked_at) < POLL) {
            return;
        }
        let local = common::clock::now().to_zoned(TimeZone::system()).datetime();
        self.rate = limit.at(local, direction).map(|bytes| bytes.get() as f64);
        self.checked_at = Some(now);
    }

    fn fill(&mut self, rate: f64, now: Instant) {
        let saved_max = (rate * SAVED.as_secs_f64()).max(1.0);
        self.tokens = (self.tokens + rate * now.duration_since(self.filled).as_secs_f64()).min(saved_max);
        self.filled = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bandwidth(limit: &str) -> Bandwidth {
        Bandwidth::new(limit.parse().expect(limit))
    }

    async fn spend(bandwidth: &Bandwidth, direction: Direction, mut bytes: usize) {
        while bytes > 0 {
            bytes -= bandwidth.acquire(direction, bytes).await;
        }
    }

    /// Time is the test's own: what is checked is the arithmetic.
    #[tokio::test(start_paused = true)]
    async fn all_who_take_share_one_rate() {
        let bandwidth = bandwidth("1M:2M");
        let begun = Instant::now();
        let takers = (0..4).map(|_| {
            let bandwidth = bandwidth.clone();
            tokio::spawn(async move { spend(&bandwidth, Direction::Up, 2_621_440).await })
        });
        for taker in takers.collect::<Vec<_>>() {
            taker.await.expect("ends");
        }
        let seconds = begun.elapsed().as_secs_f64();
        assert!((9.5..10.5).contains(&seconds), "10 MiB at 1 MiB/s took {seconds} s");

        let begun = Instant::now();
        spend(&bandwidth, Direction::Down, 20 << 20).await;
        let seconds = begun.elapsed().as_secs_f64();
        assert!((9.5..10.5).contains(&seconds), "20 MiB at 2 MiB/s took {seconds} s");
    }

    #[tokio::test(start_paused = true)]
    async fn no_limit_waits_for_nothing() {
        let begun = Instant::now();
        assert_eq!(bandwidth("off").acquire(Direction::Up, 1 << 30).await, 1 << 30);
        assert_eq!(bandwidth("off:1K").acquire(Direction::Up, 1 << 30).await, 1 << 30);
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn even_a_byte_a_second_moves() {
        let begun = Instant::now();
        spend(&bandwidth("1B"), Direction::Up, 3).await;
        assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    }
}
