//! A unit on the command line, or the leading part of one.

use std::str::FromStr;

use common::unit::{Token, UnitError};

use crate::warehouse::quoted;

/// `binance/um/klines/1h/2026-02-14`, or fewer segments; `2026-02` stands for the month and for its days.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UnitFilter(Vec<String>);

impl FromStr for UnitFilter {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let segments: Vec<String> = text.trim_end_matches('/').split('/').map(str::to_owned).collect();
        if segments.len() > 5 {
            return Err(UnitError::Shape(common::unit::shorten(text)));
        }
        // So that none of them is a wildcard.
        segments.iter().try_for_each(|segment| segment.parse::<Token>().map(drop))?;
        Ok(Self(segments))
    }
}

impl UnitFilter {
    /// The segments that must be equal, for a subject filter.
    pub(crate) fn exact(&self) -> Vec<&str> {
        self.0.iter().take(4).map(String::as_str).collect()
    }

    /// Whether five subject tokens are within.
    pub(crate) fn matches(&self, unit_tokens: &str) -> bool {
        let tokens: Vec<&str> = unit_tokens.split('.').collect();
        self.0.iter().enumerate().all(|(at, segment)| match tokens.get(at) {
            Some(period) if at == 4 => period.starts_with(segment.as_str()),
            Some(token) => token == segment,
            None => false,
        })
    }

    /// The same as a condition on the unit's columns.
    pub(crate) fn condition(&self) -> String {
        let columns = ["exchange", "market", "dataset", "interval", "period"];
        let conditions = columns.iter().zip(&self.0).map(|(column, segment)| match *column {
            "period" => format!("startsWith(period, {})", quoted(segment)),
            column => format!("{column} = {}", quoted(segment)),
        });
        conditions.collect::<Vec<_>>().join(" AND ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_of_a_unit_matches_what_is_below_it() {
        let check = |filter: &str, tokens: &str, expected: bool| {
            let filter: UnitFilter = filter.parse().expect(filter);
            assert_eq!(filter.matches(tokens), expected, "{filter:?} {tokens}");
        };
        let day = "binance.um.klines.1m.2026-02-14";
        check("binance", day, true);
        check("binance/um/klines/1m", day, true);
        check("binance/um/klines/1m/", day, true);
        check("binance/um/klines/1m/2026-02", day, true);
        check("binance/um/klines/1m/2026-02-14", day, true);
        check("binance/um/klines/1m/2026-02-15", day, false);
        check("binance/um/klines/1", day, false);
        check("binance/spot", day, false);
        check("binance/um/klines/1m/2026-02", "binance.um.klines.1mo.2026-02", false);
        for text in ["", "binance/*/klines", "binance/>", "a/b/c/d/e/f", "binance//klines", "a.b"] {
            assert!(text.parse::<UnitFilter>().is_err(), "{text}");
        }
    }
}
