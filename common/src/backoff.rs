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

    /// Runs an operation until it succeeds or its error does not pass. `passes` gets the error and the attempt (from 1).
    ///
    /// There is no time-out here: each operation has its own, `passes` ends the attempts, and whoever waits may drop the future.
    ///
    /// # Errors
    /// The first error that does not pass.
    pub async fn retry<T, E, F>(
        &self,
        mut operation: impl FnMut() -> F,
        mut passes: impl FnMut(&E, u32) -> bool,
    ) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>>,
    {
        let mut attempt = 1;
        loop {
            match operation().await {
                Err(error) if passes(&error, attempt) => tokio::time::sleep(self.delay(attempt)).await,
                ended => return ended,
            }
            attempt += 1;
        }
    }

    /// The same for as long as it takes; `failed` gets each error. For services, which drop the future when they are to stop.
    pub async fn retry_forever<T, E, F>(&self, mut operation: impl FnMut() -> F, mut failed: impl FnMut(E)) -> T
    where
        F: Future<Output = Result<T, E>>,
    {
        let mut attempt = 1;
        loop {
            match operation().await {
                Ok(done) => return done,
                Err(error) => failed(error),
            }
            tokio::time::sleep(self.delay(attempt)).await;
            attempt += 1;
        }
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

    #[tokio::test(start_paused = true)]
    async fn an_operation_is_retried_while_its_errors_pass() {
        let attempts = std::cell::Cell::new(0);
        let fails_twice = || async {
            attempts.set(attempts.get() + 1);
            if attempts.get() < 3 { Err(attempts.get()) } else { Ok("done") }
        };
        assert_eq!(Backoff::RECONNECT.retry(fails_twice, |_, attempt| attempt < 5).await, Ok("done"));
        attempts.set(0);
        assert_eq!(Backoff::RECONNECT.retry(fails_twice, |error, _| *error < 2).await, Err(2));
        attempts.set(0);
        let mut errors = Vec::new();
        assert_eq!(Backoff::RECONNECT.retry_forever(fails_twice, |error| errors.push(error)).await, "done");
        assert_eq!(errors, [1, 2]);
    }
}
