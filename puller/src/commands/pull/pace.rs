//! What stands beside the progress bar of `puller pull`: how fast it goes, or what it waits for.

use std::time::{Duration, Instant};

use common::output::{count, short_duration};
use common::text::printable;
use indicatif::{HumanBytes, HumanCount, ProgressBar};

use crate::worker::stats::{Totals, WorkerStats};

/// Counts only the time in which units were in flight: how long a retry or a server is waited for says nothing of speed.
#[derive(Default)]
pub(crate) struct Pace {
    asked_at: Option<Instant>,
    busy: Duration,
    units_max: u64,
}

impl Pace {
    /// Redraws the bar. `left` counts what the queue has not finished, in this process's hands or in others'.
    pub(crate) fn show(
        &mut self,
        bar: &ProgressBar,
        stats: &WorkerStats,
        totals: Totals,
        left: u64,
        away: Option<&str>,
    ) {
        let in_flight = stats.in_flight_count();
        let now = Instant::now();
        if let Some(before) = self.asked_at.replace(now)
            && in_flight > 0
            && away.is_none()
        {
            self.busy += now - before;
        }
        // What other workers did is done too: the total never shrinks, the position is what is not left of it.
        self.units_max = self.units_max.max(totals.units + left);
        bar.set_length(self.units_max);
        bar.set_position(self.units_max.saturating_sub(left));
        bar.set_message(self.message(stats, totals, left, in_flight, away));
    }

    fn message(&self, stats: &WorkerStats, totals: Totals, left: u64, in_flight: usize, away: Option<&str>) -> String {
        if let Some(reason) = away {
            return format!("waiting: {}", printable(reason));
        }
        if in_flight == 0 {
            if let Some(retry) = stats.next_retry() {
                let others = left.saturating_sub(1);
                let more = if others > 0 { format!(" and {others} more") } else { String::new() };
                let wait = short_duration(retry.in_seconds);
                return format!("retry in {wait}: {}{more}: {}", printable(&retry.unit), printable(&retry.why));
            }
            return format!("waiting for {}: not delivered yet, or with others", count(left, "unit"));
        }
        let eta = self.eta_seconds(totals.units, left).map(|eta| format!(", {} left", short_duration(eta)));
        format!("{} rows, {}{}", HumanCount(totals.rows), HumanBytes(totals.bytes), eta.unwrap_or_default())
    }

    fn eta_seconds(&self, units: u64, left: u64) -> Option<u64> {
        const ENOUGH: Duration = Duration::from_secs(2);
        (units > 0 && self.busy >= ENOUGH).then(|| (self.busy.as_secs_f64() / units as f64 * left as f64).ceil() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(
        pace: &mut Pace,
        stats: &WorkerStats,
        totals: Totals,
        left: u64,
        away: Option<&str>,
    ) -> (u64, u64, String) {
        let bar = ProgressBar::hidden();
        pace.show(&bar, stats, totals, left, away);
        (bar.position(), bar.length().unwrap_or_default(), bar.message())
    }

    #[test]
    fn a_bar_says_what_it_waits_for_and_its_total_stays() {
        let (mut pace, stats) = (Pace::default(), WorkerStats::default());
        let (at, of, text) = shown(&mut pace, &stats, Totals::default(), 10, None);
        assert_eq!((at, of), (0, 10));
        assert!(text.starts_with("waiting for 10 units: "), "{text}");
        // Another worker did four of them.
        let totals = Totals { units: 2, ..Totals::default() };
        let (at, of, _) = shown(&mut pace, &stats, totals, 4, None);
        assert_eq!((at, of), (6, 10));
        stats.schedule_retry("binance/um/klines/1h/2026-02-14", "missing: not in the bucket", Duration::from_secs(90));
        let (_, _, text) = shown(&mut pace, &stats, totals, 1, None);
        assert!(text.starts_with("retry in 1m 30s: binance/um/klines/1h/2026-02-14: "), "{text}");
        assert!(text.ends_with("missing: not in the bucket") && !text.contains("left"), "{text}");
        let (_, _, text) = shown(&mut pace, &stats, totals, 1, Some("ClickHouse is away"));
        assert_eq!(text, "waiting: ClickHouse is away");
        assert_eq!(pace.eta_seconds(2, 4), None, "nobody worked");
    }
}
