//! Periods and intervals of the exchange.

use jiff::{SignedDuration, Timestamp, ToSpan, Zoned, civil::Date, tz::TimeZone};

/// First instant of a period (`2026-02-14` or `2026-02`) and of the one after it.
pub fn period_bounds(period: &str) -> Option<(Timestamp, Timestamp)> {
    let (first, next) = match period.len() {
        10 => {
            let day: Date = period.parse().ok()?;
            (day, day.tomorrow().ok()?)
        }
        7 => {
            let first: Date = format!("{period}-01").parse().ok()?;
            (first, first.checked_add(1.month()).ok()?)
        }
        _ => return None,
    };
    let midnight = |date: Date| date.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp());
    Some((midnight(first)?, midnight(next)?))
}

/// The length of a candle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interval {
    Fixed(SignedDuration),
    Month,
}

impl Interval {
    pub fn parse(name: &str) -> Option<Interval> {
        if name == "1mo" {
            return Some(Interval::Month);
        }
        let (count, unit) = name.split_at_checked(name.len().checked_sub(1)?)?;
        let unit_s = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 86_400,
            "w" => 604_800,
            _ => return None,
        };
        Some(Interval::Fixed(SignedDuration::from_secs(count.parse::<i64>().ok()? * unit_s)))
    }

    /// The open times from `start` up to `end`, each with the next one, in µs.
    pub(super) fn opens(self, start: Timestamp, end: Timestamp) -> impl Iterator<Item = (i64, i64)> {
        let mut open = self.first_open(start);
        std::iter::from_fn(move || {
            let this = open;
            open = self.after(this);
            (this < end).then(|| (this.as_microsecond(), open.as_microsecond()))
        })
    }

    fn first_open(self, start: Timestamp) -> Timestamp {
        // Weeks begin on a Monday; the epoch was a Thursday.
        const EPOCH_TO_MONDAY_S: i64 = 4 * 86_400;
        match self {
            Interval::Month => start,
            Interval::Fixed(step) => {
                let step_s = step.as_secs();
                let origin_s = if step_s == 604_800 { EPOCH_TO_MONDAY_S } else { 0 };
                let late_s = (start.as_second() - origin_s).rem_euclid(step_s);
                start + SignedDuration::from_secs((step_s - late_s) % step_s)
            }
        }
    }

    fn after(self, open: Timestamp) -> Timestamp {
        match self {
            Interval::Fixed(step) => open + step,
            Interval::Month => {
                let next: Zoned = open.to_zoned(TimeZone::UTC).saturating_add(1.month());
                next.timestamp()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_candles_as_the_exchange_does() {
        let count = |interval: &str, period: &str| {
            let (start, end) = period_bounds(period).expect("a period");
            Interval::parse(interval).expect("an interval").opens(start, end).count()
        };
        assert_eq!(count("1s", "2024-02-29"), 86_400);
        assert_eq!(count("1m", "2024-02-29"), 1_440);
        assert_eq!(count("4h", "2024-02-29"), 6);
        assert_eq!(count("1h", "2024-02"), 29 * 24);
        assert_eq!(count("1mo", "2024-02"), 1);
        // Mondays of February 2024: 5, 12, 19, 26.
        assert_eq!(count("1w", "2024-02"), 4);
    }

    #[test]
    fn refuses_what_is_no_period_or_interval() {
        for period in ["", "2024", "2024-13", "2024-02-30", "2024-2-3", "../../etc"] {
            assert!(period_bounds(period).is_none(), "{period}");
        }
        for interval in ["", "m", "1x", "1M", "时"] {
            assert!(Interval::parse(interval).is_none(), "{interval}");
        }
    }
}
