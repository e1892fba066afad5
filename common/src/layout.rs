//! Binance's own tree: where the archive of a unit and symbol lies below `data_dir`, and so below the prefix in the bucket.

use crate::catalogue::{EXCHANGE, MARKET_FOLDERS};
use crate::unit::Unit;

/// The interval of units whose dataset has none.
const NO_INTERVAL: &str = "all";

/// A folder of the tree whose archives are not collected.
const OPTION: (&str, &str) = ("option", "option");

/// The folder of a market that is collected, below `data/`.
pub fn market_folder(market: &str) -> Option<&'static str> {
    MARKET_FOLDERS.into_iter().find(|(name, _)| *name == market).map(|(_, folder)| folder)
}

/// The folder of archives that cover a day, or a month.
pub fn span(monthly: bool) -> &'static str {
    if monthly { "monthly" } else { "daily" }
}

/// The folder that holds one folder a symbol, e.g. `data/futures/um/daily/klines`.
pub fn symbols_folder(unit: &Unit) -> String {
    let market = unit.market.as_str();
    // Of a market that nobody knows, a folder that is not there.
    let folder = folder_of(market).unwrap_or(market);
    format!("data/{folder}/{}/{}", span(unit.period.is_month()), unit.dataset)
}

/// The path of an archive below `data_dir`, with `/`.
pub fn archive_path(unit: &Unit, symbol: &str) -> String {
    let (folder, Unit { dataset, interval, period, .. }) = (symbols_folder(unit), unit);
    if interval.as_str() == NO_INTERVAL {
        return format!("{folder}/{symbol}/{symbol}-{dataset}-{period}.zip");
    }
    format!("{folder}/{symbol}/{interval}/{symbol}-{interval}-{period}.zip")
}

/// The same where the unit is one of this tree. `None`: its exchange or market has none that is known here.
pub fn place_of(unit: &Unit, symbol: &str) -> Option<String> {
    let is_known = unit.exchange.as_str() == EXCHANGE && folder_of(unit.market.as_str()).is_some();
    is_known.then(|| archive_path(unit, symbol))
}

fn folder_of(market: &str) -> Option<&'static str> {
    market_folder(market).or_else(|| (market == OPTION.0).then_some(OPTION.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_lie_where_binance_puts_them() {
        let check = |unit: &str, symbol: &str, path: &str| {
            let unit: Unit = unit.parse().expect(unit);
            assert_eq!(archive_path(&unit, symbol), path);
            assert_eq!(place_of(&unit, symbol).as_deref(), Some(path));
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
        check(
            "binance/um/fundingRate/all/2026-02",
            "BTCUSDT",
            "data/futures/um/monthly/fundingRate/BTCUSDT/BTCUSDT-fundingRate-2026-02.zip",
        );
        check(
            "binance/option/BVOLIndex/all/2023-06-20",
            "BTCBVOLUSDT",
            "data/option/daily/BVOLIndex/BTCBVOLUSDT/BTCBVOLUSDT-BVOLIndex-2023-06-20.zip",
        );
        for unknown in ["kraken/spot/klines/1h/2026-02-14", "binance/margin/klines/1h/2026-02-14"] {
            assert_eq!(place_of(&unknown.parse().expect("a unit"), "BTCUSDT"), None, "{unknown}");
        }
        assert_eq!(market_folder("option"), None, "nobody collects these");
    }
}
