//! What the names in an `_ingested/` folder hint at. Their content is ignored.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::{fs, io};

use common::catalogue::MARKETS;
use common::text::shorten;
use common::unit::{Period, Token, Unit};

/// Binance's tree has seven levels; what lies deeper is none of it.
const DEPTH_MAX: usize = 12;
const EXCHANGE: &str = "binance";

/// What a worker writes beside the archives of a directory destination, and `pull --no-ingest` in local.data_dir.
const OURS: &str = ".ferry";

/// What a hint is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum HintedUnits {
    Whole,
    Symbols(BTreeSet<String>),
}

#[derive(Debug, Default)]
pub(super) struct Hints {
    pub(super) files: u64,
    pub(super) units: BTreeMap<Unit, HintedUnits>,
    /// Archives whose name does not say of which market they are: the units they may be of.
    pub(super) flat: Vec<Flat>,
    /// Shortened.
    pub(super) not_understood: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Flat {
    pub(super) name: String,
    pub(super) symbol: String,
    pub(super) units: Vec<Unit>,
}

/// Reads the names below a folder. Links are not followed.
pub(super) fn read(folder: &Path) -> io::Result<Hints> {
    let mut hints = Hints::default();
    walk(folder, "", 0, &mut hints)?;
    hints.not_understood.sort_unstable();
    Ok(hints)
}

fn walk(folder: &Path, above: &str, depth: usize, hints: &mut Hints) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.as_encoded_bytes().starts_with(OURS.as_bytes()) {
            continue;
        }
        let path = format!("{above}{}", name.to_string_lossy());
        let kind = entry.file_type()?;
        if kind.is_dir() && depth < DEPTH_MAX {
            walk(&entry.path(), &format!("{path}/"), depth + 1, hints)?;
        } else {
            hints.read_name(&path);
        }
    }
    Ok(())
}

impl Hints {
    fn read_name(&mut self, path: &str) {
        self.files += 1;
        let name = path.rsplit('/').next().unwrap_or(path);
        if let Some(unit) = mark(name) {
            self.units.insert(unit, HintedUnits::Whole);
            return;
        }
        let name = name.strip_suffix(".CHECKSUM").unwrap_or(name);
        let Some((symbol, interval, period)) = archive(name) else {
            self.not_understood.push(shorten(path));
            return;
        };
        let unit = |market: &str, dataset: &str| -> Option<Unit> {
            let token = |text: &str| text.parse::<Token>().ok();
            Some(Unit {
                exchange: token(EXCHANGE)?,
                market: token(market)?,
                dataset: token(dataset)?,
                interval: token(interval)?,
                period,
            })
        };
        let folders: Vec<&str> = path.split('/').rev().skip(1).collect();
        match folders.as_slice() {
            [] => {
                let units = MARKETS.iter().filter_map(|market| unit(market, "klines")).collect();
                let flat = Flat { name: shorten(path), symbol: symbol.to_owned(), units };
                self.flat.push(flat);
            }
            [in_interval, in_symbol, dataset, span, market, ..]
                if *in_interval == interval
                    && *in_symbol == symbol
                    && *span == (if period.is_month() { "monthly" } else { "daily" })
                    && MARKETS.contains(market) =>
            {
                match unit(market, dataset) {
                    Some(unit) => self.add(unit, symbol),
                    None => self.not_understood.push(shorten(path)),
                }
            }
            _ => self.not_understood.push(shorten(path)),
        }
    }

    /// One archive more of a unit.
    pub(super) fn add(&mut self, unit: Unit, symbol: &str) {
        if let HintedUnits::Symbols(symbols) =
            self.units.entry(unit).or_insert_with(|| HintedUnits::Symbols(BTreeSet::new()))
        {
            symbols.insert(symbol.to_owned());
        }
    }
}

/// `_SUCCESS__<period>__<market>__<interval>[__<dataset>]`.
fn mark(name: &str) -> Option<Unit> {
    let mut parts = name.strip_prefix("_SUCCESS__")?.split("__");
    let period = parts.next()?.parse().ok()?;
    let market = parts.next().filter(|market| MARKETS.contains(market))?.parse().ok()?;
    let interval = parts.next()?.parse().ok()?;
    let dataset = parts.next().unwrap_or("klines").parse().ok()?;
    if parts.next().is_some() {
        return None;
    }
    Some(Unit { exchange: EXCHANGE.parse().ok()?, market, dataset, interval, period })
}

/// `<symbol>-<interval>-<period>.zip`.
fn archive(name: &str) -> Option<(&str, &str, Period)> {
    let stem = name.strip_suffix(".zip")?;
    let (rest, period) = ["2026-02-14".len(), "2026-02".len()].into_iter().find_map(|length| {
        let (rest, period) = stem.split_at_checked(stem.len().checked_sub(length)?)?;
        Some((rest.strip_suffix('-')?, period.parse::<Period>().ok()?))
    })?;
    let (symbol, interval) = rest.rsplit_once('-')?;
    (!symbol.is_empty() && !interval.is_empty()).then_some((symbol, interval, period))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_hints() {
        let dir = tempfile::tempdir().expect("a folder");
        for path in [
            "_SUCCESS__2026-02-14__um__1h",
            "_SUCCESS__2026-02__cm__1d__markPriceKlines",
            "data/futures/um/daily/klines/BTCUSDT/1h/BTCUSDT-1h-2026-02-13.zip",
            "spot/daily/klines/币安人生USDT/1h/币安人生USDT-1h-2026-02-13.zip.CHECKSUM",
            "spot/monthly/klines/ETHUSDT/1h/ETHUSDT-1h-2026-02.zip",
            "BTCUSDT_260626-1m-2026-02-14.zip",
            "spot/daily/klines/ETHUSDT/1h/ETHUSDT-1h-2026-02.zip",
            "klines/ETHUSDT-1h-2026-02-14.zip",
            "_SUCCESS__2026-02-14__usdm__1h",
            "2026-02-14.done",
            ".ferry/delivered/data/spot/daily/klines/ETHUSDT/1h/ETHUSDT-1h-2026-02-14.zip",
            "data/spot/daily/klines/ETHUSDT/1h/.ferry-a1b2c3.tmp",
        ] {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, "").expect("written");
        }
        let hints = read(dir.path()).expect("reads");
        assert_eq!(hints.files, 10);
        let some = |symbol: &str| HintedUnits::Symbols([symbol.to_owned()].into());
        let units: Vec<(String, HintedUnits)> = hints.units.iter().map(|(u, w)| (u.to_string(), w.clone())).collect();
        assert_eq!(
            units,
            [
                ("binance/cm/markPriceKlines/1d/2026-02".into(), HintedUnits::Whole),
                ("binance/spot/klines/1h/2026-02-13".into(), some("币安人生USDT")),
                ("binance/spot/klines/1h/2026-02".into(), some("ETHUSDT")),
                ("binance/um/klines/1h/2026-02-13".into(), some("BTCUSDT")),
                ("binance/um/klines/1h/2026-02-14".into(), HintedUnits::Whole),
            ]
        );
        let [flat] = hints.flat.as_slice() else { panic!("{:?}", hints.flat) };
        assert_eq!((flat.symbol.as_str(), flat.units.len()), ("BTCUSDT_260626", 3));
        assert_eq!(
            hints.not_understood,
            [
                "2026-02-14.done",
                "_SUCCESS__2026-02-14__usdm__1h",
                "klines/ETHUSDT-1h-2026-02-14.zip",
                "spot/daily/klines/ETHUSDT/1h/ETHUSDT-1h-2026-02.zip"
            ]
        );
    }
}
