//! Kline intervals and how many candles a period holds.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;

use crate::zip::printable;

const SECOND_US: i64 = 1_000_000;
const DAY_US: i64 = 86_400 * SECOND_US;

/// 1970-01-05 was the first Monday of the epoch; weekly candles open on Mondays 00:00 UTC.
const FIRST_MONDAY_US: i64 = 4 * DAY_US;

/// Length of a kline, as Binance names it in paths and files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Interval {
    Second1,
    Minute1,
    Minute3,
    Minute5,
    Minute15,
    Minute30,
    Hour1,
    Hour2,
    Hour4,
    Hour6,
    Hour8,
    Hour12,
    Day1,
    Day3,
    Week1,
    Month1,
}

impl Interval {
    pub const ALL: [Self; 16] = [
        Self::Second1,
        Self::Minute1,
        Self::Minute3,
        Self::Minute5,
        Self::Minute15,
        Self::Minute30,
        Self::Hour1,
        Self::Hour2,
        Self::Hour4,
        Self::Hour6,
        Self::Hour8,
        Self::Hour12,
        Self::Day1,
        Self::Day3,
        Self::Week1,
        Self::Month1,
    ];

    /// The token in paths and file names, e.g. `15m`.
    pub fn token(self) -> &'static str {
        match self {
            Self::Second1 => "1s",
            Self::Minute1 => "1m",
            Self::Minute3 => "3m",
            Self::Minute5 => "5m",
            Self::Minute15 => "15m",
            Self::Minute30 => "30m",
            Self::Hour1 => "1h",
            Self::Hour2 => "2h",
            Self::Hour4 => "4h",
            Self::Hour6 => "6h",
            Self::Hour8 => "8h",
            Self::Hour12 => "12h",
            Self::Day1 => "1d",
            Self::Day3 => "3d",
            Self::Week1 => "1w",
            Self::Month1 => "1mo",
        }
    }

    /// Length in µs; of a month, the longest one (31 days).
    pub fn length_us(self) -> i64 {
        let seconds = match self {
            Self::Second1 => 1,
            Self::Minute1 => 60,
            Self::Minute3 => 180,
            Self::Minute5 => 300,
            Self::Minute15 => 900,
            Self::Minute30 => 1_800,
            Self::Hour1 => 3_600,
            Self::Hour2 => 7_200,
            Self::Hour4 => 14_400,
            Self::Hour6 => 21_600,
            Self::Hour8 => 28_800,
            Self::Hour12 => 43_200,
            Self::Day1 => 86_400,
            Self::Day3 => 3 * 86_400,
            Self::Week1 => 7 * 86_400,
            Self::Month1 => 31 * 86_400,
        };
        seconds * SECOND_US
    }

    /// Whether a candle of the period may open before the period does: a week rarely starts on the first of a month.
    pub fn may_open_before_period(self) -> bool {
        matches!(self, Self::Day3 | Self::Week1 | Self::Month1)
    }

    /// Number of candles that open within `[start, end)`, for information only: exchanges list and delist symbols,
    /// and go down.
    ///
    /// Candles are aligned to the epoch, weeks to Monday. For `3d` the alignment is an assumption (the epoch's days in
    /// threes): no archive of that interval was at hand, and a month can be one candle off.
    pub fn expected_rows(self, start: Timestamp, end: Timestamp) -> u64 {
        if self == Self::Month1 {
            return u64::from(start < end);
        }
        let origin = if self == Self::Week1 { FIRST_MONDAY_US } else { 0 };
        let opens_before = |bound: Timestamp| {
            let since_origin = bound.as_microsecond() - origin;
            since_origin.div_euclid(self.length_us()) + i64::from(since_origin.rem_euclid(self.length_us()) != 0)
        };
        (opens_before(end) - opens_before(start)).try_into().unwrap_or(0)
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.token())
    }
}

impl FromStr for Interval {
    type Err = IntervalError;

    fn from_str(text: &str) -> Result<Self, IntervalError> {
        Self::ALL
            .into_iter()
            .find(|interval| interval.token() == text)
            .ok_or_else(|| IntervalError(printable(text.as_bytes())))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a kline interval: known are 1s 1m 3m 5m 15m 30m 1h 2h 4h 6h 8h 12h 1d 3d 1w 1mo")]
pub struct IntervalError(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_back() {
        for interval in Interval::ALL {
            assert_eq!(interval.token().parse(), Ok(interval));
        }
        for text in ["", "1M", "1mon", "60m", " 1h", "1H"] {
            assert!(text.parse::<Interval>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_period_holds_so_many_candles() {
        let check = |token: &str, start: &str, end: &str, expected: u64| {
            let interval: Interval = token.parse().expect(token);
            let at = |day: &str| format!("{day}T00:00:00Z").parse().expect(day);
            assert_eq!(interval.expected_rows(at(start), at(end)), expected, "{token} {start}..{end}");
        };
        check("1s", "2024-01-01", "2024-01-02", 86_400);
        check("1m", "2024-01-01", "2024-01-02", 1_440);
        check("1m", "2024-02-01", "2024-03-01", 41_760);
        check("15m", "2024-01-01", "2024-01-02", 96);
        check("1h", "2024-01-01", "2024-01-02", 24);
        check("12h", "2024-01-01", "2024-01-02", 2);
        check("1d", "2024-01-01", "2024-01-02", 1);
        check("1d", "2023-02-01", "2023-03-01", 28);
        // Mondays of January 2024: 1, 8, 15, 22, 29; of February: 5, 12, 19, 26.
        check("1w", "2024-01-01", "2024-02-01", 5);
        check("1w", "2024-02-01", "2024-03-01", 4);
        check("3d", "2024-01-01", "2024-02-01", 10);
        check("1mo", "2024-01-01", "2024-02-01", 1);
        check("1mo", "2024-01-01", "2024-01-01", 0);
        check("1h", "2024-01-02", "2024-01-01", 0);
    }
}
