//! Completion marks: the `_SUCCESS__` files in the root of `data_dir`. Their names say all; their content is ignored.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use common::catalogue::DATASETS;
use common::text::shorten;
use common::unit::{Token, Unit};

use crate::local::layout::{DATASET, EXCHANGE, MARKET_FOLDERS, market_folder};
use crate::local::spelling;
use crate::local::spelling::Date;

/// What the name of every mark begins with.
pub(crate) const MARK: &str = "_SUCCESS";
const SEPARATOR: &str = "__";

/// What a mark's name looks like, for messages.
pub(crate) const SHAPE: &str =
    "_SUCCESS__<period>__<market>__<interval>[__<dataset>], e.g. _SUCCESS__2026-02-14__um__1h";

/// What the marks in a `data_dir` say.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    /// Marked units, those of the newest period first.
    pub(crate) units: Vec<Unit>,
    /// Names that begin like a mark and are none, shortened.
    pub(crate) bad: Vec<String>,
}

/// Reads the marks in `data_dir`.
pub(crate) fn read(data_dir: &Path) -> io::Result<Marks> {
    let mut units = BTreeSet::new();
    let mut bad = BTreeSet::new();
    for entry in std::fs::read_dir(data_dir)? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with(MARK) {
            continue;
        }
        match parse(&name) {
            Some(unit) => drop(units.insert(unit)),
            None => drop(bad.insert(shorten(&name))),
        }
    }
    let mut units: Vec<Unit> = units.into_iter().collect();
    units.sort_by_key(|unit| std::cmp::Reverse(unit.period.end()));
    Ok(Marks { units, bad: bad.into_iter().collect() })
}

/// Whether a unit has its mark.
pub(crate) fn is_marked(data_dir: &Path, unit: &Unit) -> bool {
    let is_there = |name: &str| std::fs::symlink_metadata(data_dir.join(name)).is_ok();
    is_there(&long_name(unit)) || unit.dataset.as_str() == DATASET && is_there(&short_name(unit))
}

/// The name of a unit's mark; `None` where marks cannot be about it.
pub(crate) fn name_of(unit: &Unit) -> Option<String> {
    let name = if unit.dataset.as_str() == DATASET { short_name(unit) } else { long_name(unit) };
    (parse(&name).as_ref() == Some(unit)).then_some(name)
}

fn short_name(unit: &Unit) -> String {
    let Unit { market, interval, period, .. } = unit;
    format!("{MARK}{SEPARATOR}{period}{SEPARATOR}{market}{SEPARATOR}{interval}")
}

fn long_name(unit: &Unit) -> String {
    format!("{}{SEPARATOR}{}", short_name(unit), unit.dataset)
}

/// The unit that a mark of this name is about.
pub(crate) fn parse(name: &str) -> Option<Unit> {
    let mut parts = name.strip_prefix(MARK)?.strip_prefix(SEPARATOR)?.split(SEPARATOR);
    let period = parts.next()?.parse().ok()?;
    let market = parts.next().filter(|market| market_folder(market).is_some())?;
    let interval = parts.next()?.parse().ok()?;
    let dataset = parts.next().unwrap_or(DATASET).parse().ok()?;
    if parts.next().is_some() {
        return None;
    }
    let token = |text: &str| text.parse::<Token>().ok();
    Some(Unit { exchange: token(EXCHANGE)?, market: token(market)?, dataset, interval, period })
}

/// Whether a name begins like a mark's and says more than the `_SUCCESS` that other programs leave in their folders.
pub(crate) fn begins_like_a_mark(name: &str) -> bool {
    name.len() > MARK.len() && name.starts_with(MARK)
}

/// The unit that a name is meant to mark, however it is spelt: `_success_2026-2-14_UM_1h`, `SUCCESS um 1h 20260214.txt`.
/// `None`: the name does not say all of a period, a market and an interval, or says more than a dataset beside them.
pub(crate) fn meant(name: &str) -> Option<Unit> {
    if let Some(unit) = parse(name) {
        return Some(unit);
    }
    let mut words = name.split('.').next()?.split(['_', ' ']).filter(|word| !word.is_empty());
    // Also SUCCES and SUCESS.
    if !words.next()?.to_lowercase().starts_with("suc") {
        return None;
    }
    let (mut period, mut market, mut interval, mut dataset) = (None, None, None, None);
    for word in words {
        let numbers: Vec<&str> = word.split('-').collect();
        let is_word = |known: &&str| known.eq_ignore_ascii_case(word);
        if let Some((Date::Period(date), _)) = spelling::date_at_end(&numbers).filter(|(_, all)| *all == numbers.len())
        {
            period = Some(date);
        } else if let Some((known, _)) = MARKET_FOLDERS.into_iter().find(|(known, _)| is_word(known)) {
            market = Some(known);
        } else if let Some(known) = DATASETS.into_iter().find(is_word) {
            dataset = Some(known);
        } else {
            interval = Some(spelling::interval(word)?);
        }
    }
    let token = |text: &str| text.parse::<Token>().ok();
    Some(Unit {
        exchange: token(EXCHANGE)?,
        market: token(market?)?,
        dataset: token(dataset.unwrap_or(DATASET))?,
        interval: token(interval?)?,
        period: period?,
    })
}

/// What a name that is no mark would be called, for messages.
pub(crate) fn right_name(name: &str) -> String {
    meant(name).and_then(|unit| name_of(&unit)).unwrap_or_else(|| SHAPE.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_names_a_unit() {
        let check = |name: &str, unit: &str| assert_eq!(parse(name).map(|u| u.to_string()).as_deref(), Some(unit));
        check("_SUCCESS__2026-02-14__um__1h", "binance/um/klines/1h/2026-02-14");
        check("_SUCCESS__2026-02__spot__1mo", "binance/spot/klines/1mo/2026-02");
        check("_SUCCESS__2026-02-14__cm__1m__markPriceKlines", "binance/cm/markPriceKlines/1m/2026-02-14");
        let name = |unit: &str| name_of(&unit.parse().expect("a unit"));
        assert_eq!(name("binance/spot/klines/1mo/2026-02").as_deref(), Some("_SUCCESS__2026-02__spot__1mo"));
        let named = name("binance/cm/markPriceKlines/1m/2026-02-14");
        assert_eq!(named.as_deref(), Some("_SUCCESS__2026-02-14__cm__1m__markPriceKlines"));
        assert_eq!(name("kraken/spot/klines/1h/2026-02-14"), None);
    }

    #[test]
    fn what_is_no_mark_is_told() {
        for name in [
            "_SUCCESS",
            "_SUCCESS_2026-02-14_um_1h",
            "_SUCCESS__2026-02-14__um",
            "_SUCCESS__2026-02-30__um__1h",
            "_SUCCESS__2026-02-14__usdm__1h",
            "_SUCCESS__2026-02-14__um__1h__klines__x",
            "_SUCCESS__2026-02-14__um__1h__",
            "_SUCCESS__2026-02-14__um__1h.tmp",
            "_SUCCESS__2026-02-14__um__..",
        ] {
            assert_eq!(parse(name), None, "{name}");
        }
    }

    #[test]
    fn marks_that_are_spelt_otherwise_tell_their_unit() {
        let check = |name: &str, right: Option<&str>| {
            assert_eq!(meant(name).and_then(|unit| name_of(&unit)).as_deref(), right, "{name}");
        };
        for name in [
            "_SUCCESS__2026-02-14__um__1h",
            "_SUCCESS_2026-02-14_um_1h",
            "__SUCCESS__2026-02-14__um__1h",
            "_success__2026-2-14__UM__1H",
            "SUCCESS um 1h 20260214.txt",
            "_SUCESS__2026-02-14__um__1h__klines",
        ] {
            check(name, Some("_SUCCESS__2026-02-14__um__1h"));
        }
        check("_SUCCESS_2026-02_spot_1M", Some("_SUCCESS__2026-02__spot__1mo"));
        check("_SUCCESS_2026-02-14_um_1m_markpriceklines", Some("_SUCCESS__2026-02-14__um__1m__markPriceKlines"));
        for name in [
            "_SUCCESS",
            "_SUCCESS__2026-02-30__um__1h",
            "_SUCCESS__2026-02-14__um",
            "_SUCCESS_2026-02-14_um_7h",
            "_SUCCESS__2026-02-14__usdm__1h",
            "SUCUSDT_1h_2026-02-14.zip",
            "success stories 2026-02-14.txt",
            "notes_2026-02-14_um_1h",
        ] {
            check(name, None);
        }
    }

    #[test]
    fn the_newest_period_comes_first() {
        let dir = tempfile::tempdir().expect("a folder");
        for name in ["_SUCCESS__2026-02-13__um__1h", "_SUCCESS__2026-02-14__spot__1h", "_SUCCESS__x", "config.yaml"] {
            std::fs::write(dir.path().join(name), "anything").expect("written");
        }
        let marks = read(dir.path()).expect("reads");
        let units: Vec<String> = marks.units.iter().map(Unit::to_string).collect();
        assert_eq!(units, ["binance/spot/klines/1h/2026-02-14", "binance/um/klines/1h/2026-02-13"]);
        assert_eq!(marks.bad, ["_SUCCESS__x"]);
        assert!(marks.units.iter().all(|unit| is_marked(dir.path(), unit)));
        assert!(!is_marked(dir.path(), &"binance/um/markPriceKlines/1h/2026-02-13".parse().expect("a unit")));
    }
}
