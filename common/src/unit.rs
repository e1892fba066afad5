//! The unit: what one marker covers.

use std::fmt;
use std::str::FromStr;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use serde::{Deserialize, Serialize};

use crate::text::shorten;

/// Longest token accepted, in bytes. Real ones have at most 18 (`premiumIndexKlines`).
const TOKEN_BYTES_MAX: usize = 64;

/// One segment of a unit's name: safe as a NATS subject token, as a path segment and in a message.
///
/// ASCII letters, digits, `_` and `-` only: no `.`, `*`, `>`, `/` or space.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Token(String);

impl Token {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Token {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let fits = |c: u8| c.is_ascii_alphanumeric() || c == b'_' || c == b'-';
        if text.is_empty() || text.len() > TOKEN_BYTES_MAX || !text.bytes().all(fits) {
            return Err(UnitError::Token(shorten(text)));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Token {
    type Error = UnitError;

    fn try_from(text: String) -> Result<Self, UnitError> {
        text.parse()
    }
}

impl From<Token> for String {
    fn from(token: Token) -> Self {
        token.0
    }
}

/// The UTC day or month an archive covers, written `2026-02-14` or `2026-02`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Period {
    Day(Date),
    /// Held as the first day of the month.
    Month(Date),
}

impl Period {
    /// First instant of the period.
    pub fn start(self) -> Timestamp {
        let (Self::Day(first) | Self::Month(first)) = self;
        utc(first)
    }

    /// First instant after the period.
    pub fn end(self) -> Timestamp {
        match self {
            Self::Day(day) => utc(day.saturating_add(1.day())),
            Self::Month(first) => utc(first.saturating_add(1.month())),
        }
    }

    /// First day of the period.
    pub fn first_day(self) -> Date {
        let (Self::Day(first) | Self::Month(first)) = self;
        first
    }

    /// Last day of the period.
    pub fn last_day(self) -> Date {
        match self {
            Self::Day(day) => day,
            Self::Month(first) => first.last_of_month(),
        }
    }

    pub fn is_month(self) -> bool {
        matches!(self, Self::Month(_))
    }
}

fn utc(day: Date) -> Timestamp {
    day.to_zoned(TimeZone::UTC).map_or(Timestamp::MAX, |zoned| zoned.timestamp())
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Day(day) => write!(f, "{day}"),
            Self::Month(first) => write!(f, "{:04}-{:02}", first.year(), first.month()),
        }
    }
}

impl FromStr for Period {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let bad = || UnitError::Period(shorten(text));
        let digits_and_dashes =
            text.bytes().enumerate().all(|(at, c)| if at == 4 || at == 7 { c == b'-' } else { c.is_ascii_digit() });
        if !digits_and_dashes {
            return Err(bad());
        }
        match text.len() {
            10 => text.parse().map(Self::Day).map_err(|_| bad()),
            7 => format!("{text}-01").parse().map(Self::Month).map_err(|_| bad()),
            _ => Err(bad()),
        }
    }
}

impl TryFrom<String> for Period {
    type Error = UnitError;

    fn try_from(text: String) -> Result<Self, UnitError> {
        text.parse()
    }
}

impl From<Period> for String {
    fn from(period: Period) -> Self {
        period.to_string()
    }
}

/// What one marker covers, over all its symbols; written `binance/um/klines/1h/2026-02-14`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Unit {
    pub exchange: Token,
    pub market: Token,
    pub dataset: Token,
    pub interval: Token,
    pub period: Period,
}

impl Unit {
    /// The five tokens as the tail of a NATS subject, e.g. `binance.um.klines.1h.2026-02-14`.
    pub fn subject_tokens(&self) -> String {
        format!("{}.{}.{}.{}.{}", self.exchange, self.market, self.dataset, self.interval, self.period)
    }

    /// Reads the five tokens back from the tail of a subject.
    pub fn from_subject_tokens(tokens: &str) -> Result<Self, UnitError> {
        Self::from_parts(tokens.split('.'), tokens)
    }

    fn from_parts<'a>(mut parts: impl Iterator<Item = &'a str>, whole: &str) -> Result<Self, UnitError> {
        let mut next = || parts.next().ok_or_else(|| UnitError::Shape(shorten(whole)));
        let unit = Self {
            exchange: next()?.parse()?,
            market: next()?.parse()?,
            dataset: next()?.parse()?,
            interval: next()?.parse()?,
            period: next()?.parse()?,
        };
        match parts.next() {
            None => Ok(unit),
            Some(_) => Err(UnitError::Shape(shorten(whole))),
        }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}/{}/{}", self.exchange, self.market, self.dataset, self.interval, self.period)
    }
}

impl FromStr for Unit {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        Self::from_parts(text.split('/'), text)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    #[error("'{0}' is not a name of 1 to {TOKEN_BYTES_MAX} ASCII letters, digits, '_' or '-'")]
    Token(String),
    #[error("'{0}' is not a period: write a day as 2026-02-14 or a month as 2026-02")]
    Period(String),
    #[error("'{0}' is not a unit: write exchange/market/dataset/interval/period, e.g. binance/um/klines/1h/2026-02-14")]
    Shape(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_written_and_read_back() {
        for text in ["binance/um/klines/1h/2026-02-14", "binance/spot/markPriceKlines/1mo/2026-02"] {
            let unit: Unit = text.parse().expect(text);
            assert_eq!(unit.to_string(), text);
            assert_eq!(Unit::from_subject_tokens(&unit.subject_tokens()), Ok(unit));
        }
    }

    #[test]
    fn what_is_no_unit_is_refused() {
        for text in [
            "",
            "binance/um/klines/1h",
            "binance/um/klines/1h/2026-02-14/x",
            "binance/um/kli nes/1h/2026-02-14",
            "binance/um/../1h/2026-02-14",
            "binance/um/klines/1h/2026-02-30",
            "binance/um/klines/1h/2026-13",
            "binance/um/klines/1h/26-02-14",
            "binance/um/klines/1h/+202-02-1",
            "binance/um/>/1h/2026-02-14",
        ] {
            assert!(text.parse::<Unit>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_period_knows_its_bounds() {
        let check = |text: &str, start: &str, end: &str| {
            let period: Period = text.parse().expect(text);
            assert_eq!(period.start().to_string(), start);
            assert_eq!(period.end().to_string(), end);
        };
        check("2024-02-29", "2024-02-29T00:00:00Z", "2024-03-01T00:00:00Z");
        check("2024-12", "2024-12-01T00:00:00Z", "2025-01-01T00:00:00Z");
    }
}
