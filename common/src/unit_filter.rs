//! Which units a command is about: one set of options for all commands.

use std::str::FromStr;

use clap::Args;
use jiff::civil::Date;

use crate::catalogue::{DATASETS, EXCHANGES, INTERVALS, MARKETS, one_of};
use crate::output::Failure;
use crate::text::shorten;
use crate::unit::{Period, Token, Unit, UnitError};

/// Only units that every given option takes; of several values of one option any will do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct UnitFilter {
    /// Only this unit, or all units below a prefix such as binance/um/klines/1h
    #[arg(long, value_name = "UNIT")]
    pub unit: Option<UnitPrefix>,

    /// Only units of these markets: spot, um, cm
    #[arg(long, value_name = "MARKET", value_delimiter = ',', value_parser = market)]
    pub market: Vec<String>,

    /// Only units of these datasets, e.g. klines
    #[arg(long, value_name = "DATASET", value_delimiter = ',', value_parser = dataset)]
    pub dataset: Vec<String>,

    /// Only units of these intervals, e.g. 1h
    #[arg(long, value_name = "INTERVAL", value_delimiter = ',', value_parser = interval)]
    pub interval: Vec<String>,

    /// Only units whose period ends on this day or later, e.g. 2026-02-14 or 2026-02
    #[arg(long, value_name = "DATE")]
    pub from: Option<Period>,

    /// Only units whose period begins on this day or earlier
    #[arg(long, value_name = "DATE")]
    pub to: Option<Period>,
}

/// Which archives of units: by symbol.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct SymbolFilter {
    /// Only archives of these symbols, e.g. BTCUSDT,ETHUSDT
    #[arg(long, value_name = "SYMBOL", value_delimiter = ',', value_parser = symbol)]
    pub symbol: Vec<String>,
}

impl SymbolFilter {
    /// The option as it was given; none where it was not.
    pub fn describe(&self) -> Option<String> {
        (!self.symbol.is_empty()).then(|| format!("symbol {}", self.symbol.join(",")))
    }
}

fn market(text: &str) -> Result<String, String> {
    one_of(text, &MARKETS)
}

fn dataset(text: &str) -> Result<String, String> {
    one_of(text, &DATASETS)
}

fn interval(text: &str) -> Result<String, String> {
    one_of(text, &INTERVALS)
}

/// Symbols are no closed set, but have a pattern: no lower case and nothing that is neither letter nor digit but `_-`.
///
/// # Errors
/// It cannot be one.
pub fn symbol(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-');
    if text.is_empty() || !text.chars().all(fits) {
        return Err("a symbol is letters and digits, e.g. BTCUSDT or BTCUSD_PERP".into());
    }
    if text.chars().any(char::is_lowercase) {
        return Err(format!("symbols are written in capitals; did you mean {}?", text.to_uppercase()));
    }
    Ok(text.to_owned())
}

impl UnitFilter {
    /// # Errors
    /// The dates are the wrong way round.
    pub fn check(&self) -> Result<(), Failure> {
        match (self.from, self.to) {
            (Some(from), Some(to)) if from.first_day() > to.last_day() => {
                Err(Failure::usage(format!("--from {from} lies after --to {to}")))
            }
            _ => Ok(()),
        }
    }

    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub fn matches(&self, unit: &Unit) -> bool {
        self.allows_market(unit.market.as_str())
            && self.allows_interval(unit.interval.as_str())
            && self.allows_dataset(unit.dataset.as_str())
            && self.allows_period(unit.period)
            && self.unit.as_ref().is_none_or(|prefix| prefix.matches(&unit.subject_tokens()))
    }

    pub fn allows_market(&self, market: &str) -> bool {
        allows(&self.market, market)
    }

    pub fn allows_dataset(&self, dataset: &str) -> bool {
        allows(&self.dataset, dataset)
    }

    pub fn allows_interval(&self, interval: &str) -> bool {
        allows(&self.interval, interval)
    }

    pub fn allows_period(&self, period: Period) -> bool {
        let (from, to) = self.days();
        from.is_none_or(|from| period.last_day() >= from) && to.is_none_or(|to| period.first_day() <= to)
    }

    /// First and last day.
    pub fn days(&self) -> (Option<Date>, Option<Date>) {
        (self.from.map(Period::first_day), self.to.map(Period::last_day))
    }

    /// The options as they were given, for people.
    pub fn describe(&self) -> String {
        let mut words = Vec::new();
        let mut add = |name: &str, value: String| {
            if !value.is_empty() {
                words.push(format!("{name} {value}"));
            }
        };
        add("unit", self.unit.as_ref().map(ToString::to_string).unwrap_or_default());
        add("market", self.market.join(","));
        add("dataset", self.dataset.join(","));
        add("interval", self.interval.join(","));
        add("from", self.from.map(|period| period.to_string()).unwrap_or_default());
        add("to", self.to.map(|period| period.to_string()).unwrap_or_default());
        words.join(", ")
    }

    /// That these filters and `others`, e.g. `class missing`, leave none of `all` there are of `what`, e.g. `announced unit`;
    /// `None`: it is not known how many there are.
    pub fn none_of(&self, all: Option<u64>, what: &str, others: &[String]) -> Failure {
        if let Some(Err(problem)) = self.unit.as_ref().map(UnitPrefix::check_words) {
            return Failure::usage(format!("--unit: {problem}"));
        }
        let own = Some(self.describe()).filter(|own| !own.is_empty());
        let filters: Vec<&str> = own.iter().chain(others).map(String::as_str).collect();
        Failure::no_match(match all {
            None => format!("no {what} matches the filters: {}", filters.join(", ")),
            Some(0) => format!("there is no {what}, whatever the filters"),
            Some(1) => format!("the only {what} does not match the filters: {}", filters.join(", ")),
            Some(all) => format!("none of the {all} {what}s matches the filters: {}", filters.join(", ")),
        })
    }
}

fn allows(allowed: &[String], word: &str) -> bool {
    allowed.is_empty() || allowed.iter().any(|allowed| allowed == word)
}

/// `binance/um/klines/1h/2026-02-14`, or fewer segments; `2026-02` stands for the month and for its days.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitPrefix(Vec<String>);

impl FromStr for UnitPrefix {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let segments: Vec<String> = text.trim_end_matches('/').split('/').map(str::to_owned).collect();
        if segments.len() > 5 {
            return Err(UnitError::Shape(shorten(text)));
        }
        // So that none of them is a wildcard.
        segments.iter().try_for_each(|segment| segment.parse::<Token>().map(drop))?;
        Ok(Self(segments))
    }
}

impl std::fmt::Display for UnitPrefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join("/"))
    }
}

impl From<&Unit> for UnitPrefix {
    fn from(unit: &Unit) -> Self {
        Self(unit.to_string().split('/').map(str::to_owned).collect())
    }
}

impl UnitPrefix {
    /// The segments.
    pub fn segments(&self) -> &[String] {
        &self.0
    }

    /// The segments that must be equal, for a subject filter.
    pub fn exact(&self) -> Vec<&str> {
        self.0.iter().take(4).map(String::as_str).collect()
    }

    /// Whether five subject tokens are within.
    pub fn matches(&self, unit_tokens: &str) -> bool {
        let tokens: Vec<&str> = unit_tokens.split('.').collect();
        self.0.iter().enumerate().all(|(at, segment)| match tokens.get(at) {
            Some(period) if at == 4 => period.starts_with(segment.as_str()),
            Some(token) => token == segment,
            None => false,
        })
    }

    /// Whether its words are those of closed sets. A stream may hold units that this version does not know, so this is
    /// asked only where nothing was found.
    ///
    /// # Errors
    /// The first word that is none.
    pub fn check_words(&self) -> Result<(), String> {
        let sets: [(&str, &[&str]); 4] =
            [("exchange", &EXCHANGES), ("market", &MARKETS), ("dataset", &DATASETS), ("interval", &INTERVALS)];
        for ((name, values), word) in sets.iter().zip(&self.0) {
            one_of(word, values).map_err(|problem| format!("'{word}' is no {name}: {problem}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        filter: UnitFilter,
        #[command(flatten)]
        symbols: SymbolFilter,
    }

    fn filter(args: &[&str]) -> UnitFilter {
        Command::try_parse_from([&["command"], args].concat()).expect("sound arguments").filter
    }

    #[test]
    fn words_outside_a_closed_set_are_refused() {
        for args in [
            ["--market", "futures"],
            ["--interval", "7h"],
            ["--interval", "1H"],
            ["--dataset", "candles"],
            ["--symbol", "btcusdt"],
            ["--symbol", "BTC/USDT"],
            ["--symbol", "BTC\u{202e}"],
            ["--unit", "binance/*"],
            ["--from", "yesterday"],
        ] {
            let refused = Command::try_parse_from([&["command"], &args[..]].concat());
            assert!(refused.is_err(), "{args:?}");
        }
        assert_eq!(symbol("币安人生USDT").as_deref(), Ok("币安人生USDT"));
        assert!(filter(&["--from", "2026-02-02", "--to", "2026-02-01"]).check().is_err());
        assert!(filter(&["--from", "2026-02-02", "--to", "2026-02"]).check().is_ok());
    }

    #[test]
    fn every_option_must_take_a_unit() {
        let unit: Unit = "binance/um/klines/1h/2026-02-14".parse().expect("a unit");
        let check = |args: &[&str], expected: bool| assert_eq!(filter(args).matches(&unit), expected, "{args:?}");
        check(&[], true);
        check(&["--market", "spot,um", "--interval", "1h", "--interval", "1d"], true);
        check(&["--market", "um", "--dataset", "markPriceKlines"], false);
        check(&["--unit", "binance/um", "--from", "2026-02-14", "--to", "2026-02-14"], true);
        check(&["--unit", "binance/um/klines/1h/2026-02"], true);
        check(&["--unit", "binance/spot"], false);
        check(&["--from", "2026-02-15"], false);
        check(&["--to", "2026-01"], false);
    }

    #[test]
    fn what_matches_nothing_is_wrong_usage_only_where_a_word_is() {
        let code = |args: &[&str]| filter(args).none_of(Some(3), "unit", &[]).exit_code();
        assert_eq!(code(&["--unit", "binance/um/klines/1h"]), crate::output::exit::DIFFERENCES);
        assert_eq!(code(&["--unit", "binance/futures"]), crate::output::exit::USAGE);
    }

    #[test]
    fn a_filter_that_leaves_nothing_says_of_how_many() {
        let check = |all, args: &[&str], others: &[&str], expected: &str| {
            let others: Vec<String> = others.iter().map(|&other| other.to_owned()).collect();
            assert_eq!(filter(args).none_of(Some(all), "dead letter", &others).text, expected);
        };
        check(0, &["--market", "um"], &[], "there is no dead letter, whatever the filters");
        check(1, &[], &["class missing"], "the only dead letter does not match the filters: class missing");
        check(
            12,
            &["--market", "um", "--from", "2026-02"],
            &["class missing"],
            "none of the 12 dead letters matches the filters: market um, from 2026-02, class missing",
        );
    }

    #[test]
    fn a_prefix_of_a_unit_matches_what_is_below_it() {
        let check = |filter: &str, tokens: &str, expected: bool| {
            let filter: UnitPrefix = filter.parse().expect(filter);
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
            assert!(text.parse::<UnitPrefix>().is_err(), "{text}");
        }
    }
}
