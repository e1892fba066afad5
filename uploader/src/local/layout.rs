//! What the names in Binance's own tree say: the reverse of [`common::layout`].

use common::catalogue::{DATASETS, INTERVALS, one_of};
use common::text::{is_seen, shorten};
use common::unit::{Period, Unit};

pub(crate) use common::catalogue::{EXCHANGE, MARKET_FOLDERS};
pub(crate) use common::layout::{archive_path, market_folder, span, symbols_folder};

/// The dataset of a mark that names none.
pub(crate) const DATASET: &str = "klines";

const SYMBOL_BYTES_MAX: usize = 64;

/// The unit and symbol of an archive by its path below `data_dir`; `None` for any other file.
pub(crate) fn parse(path: &str) -> Option<(Unit, &str)> {
    let below = path.strip_prefix("data/")?;
    let (market, rest) = MARKET_FOLDERS
        .into_iter()
        .find_map(|(market, folder)| Some((market, below.strip_prefix(folder)?.strip_prefix('/')?)))?;
    let mut parts = rest.split('/').skip(1);
    let (dataset, symbol, interval, name) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let unit = Unit {
        exchange: EXCHANGE.parse().ok()?,
        market: market.parse().ok()?,
        dataset: dataset.parse().ok()?,
        interval: interval.parse().ok()?,
        period: period_of(name, symbol, interval)?,
    };
    // Also says no to a month among the days, and to whatever follows the name.
    (is_symbol(symbol) && archive_path(&unit, symbol) == path).then_some((unit, symbol))
}

/// The period in the name of an archive of this symbol and interval; `None` for any other file.
pub(crate) fn period_of(file_name: &str, symbol: &str, interval: &str) -> Option<Period> {
    let rest = file_name.strip_prefix(symbol)?.strip_prefix('-')?;
    rest.strip_prefix(interval)?.strip_prefix('-')?.strip_suffix(".zip")?.parse().ok()
}

/// The unit of a file in the folder of a symbol's interval: an archive, or its `.CHECKSUM`.
pub(crate) fn unit_of(folder: &str, file_name: &str) -> Option<Unit> {
    let archive = file_name.strip_suffix(".CHECKSUM").unwrap_or(file_name);
    parse(&format!("{folder}/{archive}")).map(|(unit, _)| unit)
}

/// Whether a folder's name can be a symbol: what a marker would not carry is none.
pub(crate) fn is_symbol(name: &str) -> bool {
    let refused = |c: char| !is_seen(c) || c.is_whitespace() || matches!(c, '/' | '\\' | '\'' | '"');
    !name.is_empty() && name.len() <= SYMBOL_BYTES_MAX && !name.starts_with('.') && !name.chars().any(refused)
}

/// Candles of an interval that does not exist would be a dead letter at every destination, and stay announced.
pub(crate) fn is_no_series(unit: &Unit) -> Option<String> {
    if !DATASETS.contains(&unit.dataset.as_str()) {
        return None;
    }
    let why = one_of(unit.interval.as_str(), &INTERVALS).err()?;
    Some(format!("'{}' is no interval of {}: {why}", shorten(unit.interval.as_str()), unit.dataset))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_lie_where_binance_puts_them() {
        let check = |unit: &str, symbol: &str, path: &str| {
            let unit: Unit = unit.parse().expect(unit);
            assert_eq!(archive_path(&unit, symbol), path);
            assert_eq!(parse(path), Some((unit.clone(), symbol)));
            let name = path.rsplit('/').next().expect("a file name");
            assert_eq!(period_of(name, symbol, unit.interval.as_str()), Some(unit.period));
            let folder = path.strip_suffix(name).and_then(|folder| folder.strip_suffix('/')).expect("a folder");
            assert_eq!(unit_of(folder, name), Some(unit.clone()));
            assert_eq!(unit_of(folder, &format!("{name}.CHECKSUM")), Some(unit));
            assert_eq!(unit_of(folder, &format!("{name}.tmp")), None);
        };
        check(
            "binance/um/klines/1h/2026-02-14",
            "BTCUSDT",
            "data/futures/um/daily/klines/BTCUSDT/1h/BTCUSDT-1h-2026-02-14.zip",
        );
        check(
            "binance/cm/markPriceKlines/1m/2026-02",
            "BTCUSD_PERP",
            "data/futures/cm/monthly/markPriceKlines/BTCUSD_PERP/1m/BTCUSD_PERP-1m-2026-02.zip",
        );
        check(
            "binance/spot/klines/1d/2026-02-14",
            "币安人生USDT",
            "data/spot/daily/klines/币安人生USDT/1d/币安人生USDT-1d-2026-02-14.zip",
        );
    }

    #[test]
    fn other_files_are_no_archives() {
        for name in [
            "BTCUSDT-1h-2026-02-14.zip.CHECKSUM",
            "BTCUSDT-1h-2026-02-14.zip.tmp",
            "BTCUSDT-1h-2026-02-14 (1).zip",
            "BTCUSDT-1h-2026-02-30.zip",
            "BTCUSDT-1m-2026-02-14.zip",
            "BTCUSDT2-1h-2026-02-14.zip",
            "BTCUSDT-1h-.zip",
            "",
        ] {
            assert_eq!(period_of(name, "BTCUSDT", "1h"), None, "{name}");
        }
    }

    #[test]
    fn a_symbol_is_what_a_marker_carries() {
        for name in ["BTCUSDT", "BTCUSDT_240628", "币安人生USDT"] {
            assert!(is_symbol(name), "{name}");
        }
        for name in ["", "BTC USDT", ".hidden", "A'B", "A\nB", &"A".repeat(65)] {
            assert!(!is_symbol(name), "{name}");
        }
    }

    #[test]
    fn units_of_an_interval_that_does_not_exist_are_held_back() {
        let why = |unit: &str| is_no_series(&unit.parse().expect(unit));
        for unit in ["binance/um/klines/1mo/2025-03", "binance/um/markPriceKlines/1h/2025-03-01"] {
            assert_eq!(why(unit), None);
        }
        assert!(
            why("binance/spot/klines/7h/2025-03-01").is_some_and(|why| why.contains("'7h' is no interval of klines"))
        );
        assert!(why("binance/spot/klines/1H/2025-03-01").is_some_and(|why| why.ends_with("did you mean 1h?")));
        // What is known of these is for the workers to say.
        assert_eq!(why("binance/um/fundingRate/all/2025-03"), None);
    }
}
