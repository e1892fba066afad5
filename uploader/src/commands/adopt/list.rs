//! What the bucket holds under the prefix, by units.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use common::text::shorten;
use common::unit::Unit;
use common::unit_filter::UnitFilter;

use crate::error::PassError;
use crate::local::layout;
use crate::site::context::Site;

const CHECKSUM: &str = ".CHECKSUM";
/// So many keys that are no archives' are shown.
const EXAMPLES_MAX: usize = 10;

/// An archive of a unit. Its key follows from the unit, so that a million of them fit into memory.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ListedArchive {
    pub(super) symbol: Arc<str>,
    /// Whether a `.CHECKSUM` object lies beside it.
    pub(super) checksum: bool,
}

#[derive(Debug, Default)]
pub(super) struct Listed {
    /// Those of the newest period first; the archives of each sorted by symbol.
    pub(super) units: Vec<(Unit, Vec<ListedArchive>)>,
    /// Units that the filters do not take.
    pub(super) left_out: HashSet<Unit>,
    pub(super) others: Others,
}

impl Listed {
    /// Whether no archive lies under the prefix.
    pub(super) fn is_empty(&self) -> bool {
        self.units.is_empty() && self.left_out.is_empty()
    }
}

/// Objects under the prefix that are neither archives nor manifests.
#[derive(Debug, Default)]
pub(super) struct Others {
    pub(super) count: u64,
    /// `.CHECKSUM` objects, which are used where their archive is there too.
    pub(super) checksums: u64,
    pub(super) examples: Vec<String>,
}

/// Lists the bucket, page by page.
pub(super) async fn list(site: &Site, filter: &UnitFilter) -> Result<Listed, PassError> {
    let mut collector = Collector::default();
    let (prefix, manifests, mut next) = (site.prefix.archive_key(""), site.prefix.manifests(), None);
    loop {
        let page = site.store.list(&prefix, next).await.map_err(PassError::Bucket)?;
        let own = |key: &str| key.starts_with(&manifests) || site.prefix.is_probe(key);
        for key in page.keys.iter().filter(|key| !own(key)) {
            collector.add(key, site.prefix.archive_path(key).ok(), filter);
        }
        next = page.next;
        if next.is_none() {
            return Ok(collector.finish());
        }
        if site.shutdown.is_cancelled() {
            return Err(PassError::Stopped);
        }
    }
}

#[derive(Default)]
struct Collector {
    units: HashMap<Unit, Vec<ListedArchive>>,
    left_out: HashSet<Unit>,
    /// Keys come sorted, so a symbol's come one after another and share its name.
    symbol: Option<Arc<str>>,
    others: Others,
}

impl Collector {
    /// Takes the next key; `path` is the one below the prefix, if it is a sound one.
    fn add(&mut self, key: &str, path: Option<&str>, filter: &UnitFilter) {
        let archive = path.map(|path| path.strip_suffix(CHECKSUM).unwrap_or(path)).and_then(layout::parse);
        match archive {
            Some((unit, _)) if !filter.matches(&unit) => drop(self.left_out.insert(unit)),
            Some((unit, symbol)) if !key.ends_with(CHECKSUM) => {
                let shared = match &self.symbol {
                    Some(last) if **last == *symbol => Arc::clone(last),
                    _ => Arc::clone(self.symbol.insert(symbol.into())),
                };
                self.units.entry(unit).or_default().push(ListedArchive { symbol: shared, checksum: false });
            }
            // Its archive's key is shorter, and came right before it.
            Some((unit, symbol)) => {
                self.others.checksums += 1;
                let last = self.units.get_mut(&unit).and_then(|found| found.last_mut());
                if let Some(archive) = last.filter(|last| *last.symbol == *symbol) {
                    archive.checksum = true;
                }
            }
            None => {
                self.others.count += 1;
                if self.others.examples.len() < EXAMPLES_MAX {
                    self.others.examples.push(shorten(key));
                }
            }
        }
    }

    fn finish(self) -> Listed {
        let mut units: Vec<_> = self.units.into_iter().collect();
        units.sort_unstable_by(|(a, _), (b, _)| Reverse(a.period.end()).cmp(&Reverse(b.period.end())).then(a.cmp(b)));
        for (_, found) in &mut units {
            found.sort_unstable_by(|a, b| a.symbol.cmp(&b.symbol));
        }
        Listed { units, left_out: self.left_out, others: self.others }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_become_units() {
        let mut collector = Collector::default();
        let filter = UnitFilter { market: vec!["spot".into()], ..UnitFilter::default() };
        for path in [
            "_SUCCESS__2026-02-14__spot__1h",
            "data/futures/um/daily/klines/BTCUSDT/1h/BTCUSDT-1h-2026-02-14.zip",
            "data/spot/daily/aggTrades/BTCUSDT/BTCUSDT-aggTrades-2026-02-14.zip",
            "data/spot/daily/klines/BTCUSDT/1h/BTCUSDT-1h-2026-02-14.zip",
            "data/spot/daily/klines/BTCUSDT/1h/BTCUSDT-1h-2026-02-14.zip.CHECKSUM",
            "data/spot/daily/klines/BTCUSDT/1h/BTCUSDT-1h-2026-02-15.zip",
            "data/spot/daily/klines/BTCUSDT/1h/BTCUSDT-1h-2026-02.zip",
            "data/spot/daily/klines/BTCUSDT/1h/ETHUSDT-1h-2026-02-15.zip",
            "data/spot/daily/klines/ETHUSDT/1h/ETHUSDT-1h-2026-02-14.zip",
            "data/spot/daily/klines/ETHUSDT/1h/ETHUSDT-1h-2026-02-15.zip.CHECKSUM",
            "data/spot/monthly/klines/BTCUSDT/1h/BTCUSDT-1h-2026-02.zip",
        ] {
            collector.add(path, Some(path), &filter);
        }
        let listed = collector.finish();
        let units: Vec<String> = listed.units.iter().map(|(unit, _)| unit.to_string()).collect();
        assert_eq!(
            units,
            [
                "binance/spot/klines/1h/2026-02",
                "binance/spot/klines/1h/2026-02-15",
                "binance/spot/klines/1h/2026-02-14"
            ]
        );
        let (_, found) = &listed.units[2];
        let archive = |symbol: &str, checksum| ListedArchive { symbol: symbol.into(), checksum };
        assert_eq!(*found, [archive("BTCUSDT", true), archive("ETHUSDT", false)]);
        // The mark, another dataset, a month among days, and another symbol's archive.
        assert_eq!((listed.others.count, listed.others.checksums), (4, 2));
    }
}
