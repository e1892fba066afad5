//! What each rsync process may fetch in a second.
//!
//! A process keeps to the limit it was started with and knows of no other. So the one limit is given out in shares, never
//! more than there is: a process alone has all of it. One whose share has become wrong, because others came or went or the
//! timetable's hour struck, is started anew with another; it goes on with what has arrived.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::bandwidth::{Bandwidth, Direction};

/// Who comes within this time shares from the beginning: fetches come in bursts, and a login takes longer than this.
const GATHER: Duration = Duration::from_millis(100);
/// How often it is looked whether others have given something back.
const POLL: Duration = Duration::from_millis(50);
/// After so long a share is taken though others have not given theirs back: nobody may be looking after them.
const PATIENCE: Duration = Duration::from_secs(3);
/// A process gets more only when it has run for so long: most are done before.
const STABLE_AFTER: Duration = Duration::from_secs(2);

pub(super) struct Shares {
    bandwidth: Bandwidth,
    state: Mutex<State>,
}

/// Rates are in KiB a second, as rsync takes them.
#[derive(Debug, Default)]
struct State {
    /// Who has a share or waits for one.
    running: u64,
    waiting: u64,
    given: u64,
}

/// A share of the limit; given back when dropped.
pub(super) struct Share {
    shares: Arc<Shares>,
    /// `None`: as fast as it goes.
    rate: Option<u64>,
    waits: bool,
    since: Instant,
}

impl Shares {
    pub(super) fn new(bandwidth: Bandwidth) -> Arc<Self> {
        Arc::new(Self { bandwidth, state: Mutex::default() })
    }

    /// Waits for a share.
    pub(super) async fn acquire(self: &Arc<Self>) -> Share {
        self.state().running += 1;
        let mut share = Share { shares: Arc::clone(self), rate: None, waits: false, since: Instant::now() };
        if self.bandwidth.is_off() {
            return share;
        }
        self.state().waiting += 1;
        share.waits = true;
        tokio::time::sleep(GATHER).await;
        while share.waits {
            let rate = self.state().first(self.limit(), share.since.elapsed() > PATIENCE);
            if let Some(rate) = rate {
                (share.rate, share.waits, share.since) = (rate, false, Instant::now());
            } else {
                tokio::time::sleep(POLL).await;
            }
        }
        share
    }

    fn limit(&self) -> Option<u64> {
        self.bandwidth.now(Direction::Down).map(|bytes| (bytes / 1024).max(1))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    /// For `--bwlimit`.
    pub(super) fn rate(&self) -> Option<u64> {
        self.rate
    }

    /// Whether it is another one from now on, with which the process must be started anew.
    pub(super) fn has_changed(&mut self) -> bool {
        if self.shares.bandwidth.is_off() {
            return false;
        }
        let limit = self.shares.limit();
        let next = self.shares.state().next(limit, self.rate, self.since.elapsed() > STABLE_AFTER);
        let changed = next != self.rate;
        if changed {
            (self.rate, self.since) = (next, Instant::now());
        }
        changed
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut state = self.shares.state();
        state.running -= 1;
        state.waiting -= u64::from(self.waits);
        state.given -= self.rate.unwrap_or_default();
    }
}

impl State {
    fn fair(&self, limit: u64) -> u64 {
        (limit / self.running.max(1)).max(1)
    }

    /// The share of one that has none; `None`: too little is left. In the end it takes what is fair.
    fn first(&mut self, limit: Option<u64>, at_last: bool) -> Option<Option<u64>> {
        let rate = match limit {
            None => None,
            Some(limit) => {
                let (fair, left) = (self.fair(limit), limit.saturating_sub(self.given));
                if left < fair.div_ceil(2) && !at_last {
                    return None;
                }
                Some(if at_last { fair } else { fair.min(left) })
            }
        };
        self.waiting -= 1;
        self.given += rate.unwrap_or_default();
        Some(rate)
    }

    /// What the share of one that runs becomes.
    fn next(&mut self, limit: Option<u64>, rate: Option<u64>, is_stable: bool) -> Option<u64> {
        let next = limit.map(|limit| {
            let (fair, left) = (self.fair(limit), limit.saturating_sub(self.given));
            let Some(rate) = rate else { return fair };
            let least = fair.div_ceil(2);
            if self.given > limit {
                rate.min(fair)
            } else if self.waiting > 0 && left < least && rate > fair {
                // As much as they lack, so that the others need not be started anew as well.
                rate.saturating_sub(self.waiting * fair - left).max(least)
            } else if self.waiting == 0 && is_stable && fair.min(rate + left) >= 2 * rate {
                fair.min(rate + left)
            } else {
                rate
            }
        });
        self.given = self.given - rate.unwrap_or_default() + next.unwrap_or_default();
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rates after everybody looked once.
    fn read_shares(state: &mut State, limit: Option<u64>, rates: &mut [Option<u64>]) {
        rates.iter_mut().for_each(|rate| *rate = state.next(limit, *rate, true));
    }

    #[test]
    fn one_has_everything_until_others_come() {
        let mut state = State { running: 1, waiting: 1, given: 0 };
        let first = state.first(Some(800), false).expect("alone");
        assert_eq!(first, Some(800));
        (state.running, state.waiting) = (8, 7);
        assert_eq!(state.first(Some(800), false), None);
        let mut rates = vec![first];
        read_shares(&mut state, Some(800), &mut rates);
        assert_eq!(rates, [Some(100)]);
        rates.extend((0..7).map(|_| state.first(Some(800), false).expect("enough is left")));
        assert_eq!((rates.clone(), state.given), (vec![Some(100); 8], 800));
        // Nothing is done for one more or less.
        rates.pop();
        (state.running, state.given) = (7, 700);
        read_shares(&mut state, Some(800), &mut rates);
        assert_eq!(rates, [Some(100); 7]);
        // Half of them are gone.
        rates.truncate(4);
        (state.running, state.given) = (4, 400);
        read_shares(&mut state, Some(800), &mut rates);
        assert_eq!((rates.clone(), state.given), (vec![Some(200); 4], 800));
        // One of them gives what the next one needs.
        (state.running, state.waiting) = (5, 1);
        read_shares(&mut state, Some(800), &mut rates);
        assert_eq!(rates, [Some(80), Some(200), Some(200), Some(200)]);
        assert_eq!(state.first(Some(800), false), Some(Some(120)));
    }

    #[test]
    fn the_hour_changes_every_share() {
        let mut state = State { running: 2, waiting: 0, given: 0 };
        let mut rates = vec![None, None];
        for (limit, expected) in [(Some(800), Some(400)), (Some(100), Some(50)), (None, None), (Some(1), Some(1))] {
            read_shares(&mut state, limit, &mut rates);
            assert_eq!(rates, [expected; 2], "{limit:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_not_looked_after_holds_nobody_up_for_long() {
        let shares = Shares::new(Bandwidth::new("1M".parse().expect("a limit")));
        let (first, begun) = (shares.acquire().await, Instant::now());
        assert_eq!(first.rate(), Some(1024));
        let second = shares.acquire().await;
        assert_eq!(second.rate(), Some(512));
        assert!(begun.elapsed() < PATIENCE + Duration::from_secs(1));
        drop((first, second));
        // One that gave up waiting is not waited for.
        assert!(tokio::time::timeout(GATHER / 2, shares.acquire()).await.is_err());
        assert_eq!(shares.acquire().await.rate(), Some(1024));
    }
}
