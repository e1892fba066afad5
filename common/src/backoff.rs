//! How long to wait before a retry.

use std::time::Duration;

/// Growth of the delay from one attempt to the next.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Growth {
    /// `initial * factor^(attempt-1)`
    Exponential { factor: f64 },
    /// `initial * attempt`
    Linear,
}

/// Delays between attempts: grows from `initial`, never above `max`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoff {
    pub initial: Duration,
    pub growth: Growth,
    pub max: Duration,
}

impl Backoff {
    /// For our own retries against a server that is away, inside one run.
    pub const RECONNECT: Self = Self {
        initial: Duration::from_millis(250),
        growth: Growth::Exponential { factor: 2.0 },
        max: Duration::from_secs(10),
    };

    /// The delay after the given attempt (from 1) failed, without jitter.
    pub fn base_delay(&self, attempt: u32) -> Duration {
        let attempt = attempt.max(1);
        let factor = match self.growth {
            Growth::Exponential { factor } => factor.powi(i32::try_from(attempt - 1).unwrap_or(i32::MAX)),
            Growth::Linear => f64::from(attempt),
        };
        let seconds = (self.initial.as_secs_f64() * factor).min(self.max.as_secs_f64());
        Duration::from_secs_f64(seconds)
    }

    /// The delay after the given attempt (from 1) failed, spread by ±20 % so that workers which failed
    /// together do not return together.
    pub fn delay(&self, attempt: u32) -> Duration {
        self.base_delay(attempt).mul_f64(rand::random_range(0.8..1.2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_their_cap() {
        let mut backoff = Backoff {
            initial: Duration::from_secs(15),
            growth: Growth::Exponential { factor: 2.0 },
            max: Duration::from_secs(100),
        };
        let seconds = |b: &Backoff| [1, 2, 3, 4, 5000].map(|attempt| b.base_delay(attempt).as_secs());
        assert_eq!(seconds(&backoff), [15, 30, 60, 100, 100]);
        backoff.growth = Growth::Linear;
        assert_eq!(seconds(&backoff), [15, 30, 45, 60, 100]);
    }

    #[test]
    fn jitter_stays_within_a_fifth() {
        for _ in 0..100 {
            let delay = Backoff::RECONNECT.delay(1).as_millis();
            assert!((200..=300).contains(&delay), "{delay}");
        }
    }
}
