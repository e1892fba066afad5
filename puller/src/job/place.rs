//! Whether an object may be an archive of its unit, told before it is fetched.

use common::layout;
use common::marker::Object;
use common::object_key::Prefix;
use common::unit::Unit;

use crate::error::work::ObjectFault;
use crate::job::memory::MemoryBudget;
use crate::job::resolve::Job;

/// What can be said of an object before it is fetched. A key is of one unit and symbol: all of its path says which, for the
/// same file name stands under every market and dataset.
pub(crate) fn acceptable(
    job: &Job,
    object: &Object,
    prefix: &Prefix,
    memory: &MemoryBudget,
) -> Result<(), ObjectFault> {
    in_its_place(&job.unit, object, prefix)?;
    if object.size > memory.total_bytes() / 2 {
        return Err(ObjectFault::Refused(format!(
            "it has {} bytes, more than fit into puller.memory; raise puller.memory, then retry",
            object.size
        )));
    }
    Ok(())
}

fn in_its_place(unit: &Unit, object: &Object, prefix: &Prefix) -> Result<(), ObjectFault> {
    let refused = |why: String| Err(ObjectFault::Refused(why));
    let path = match prefix.archive_path(&object.key) {
        Ok(path) => path,
        Err(error) => return refused(error.to_string()),
    };
    match layout::place_of(unit, &object.symbol) {
        Some(place) if place == path => Ok(()),
        Some(place) => refused(format!("its key is not that of the unit's archive of this symbol, …/{place}")),
        None => refused(format!(
            "where archives of {}/{} lie is not known here: update the workers, then retry",
            unit.exchange, unit.market
        )),
    }
}

#[cfg(test)]
mod tests {
    use common::checksum::Sha256Sum;

    use super::*;

    fn placed(unit: &str, symbol: &str, key: &str) -> Result<(), ObjectFault> {
        let object = Object {
            key: key.into(),
            symbol: symbol.into(),
            size: 3,
            sha256: Sha256Sum::of(b"abc"),
            generated_at: jiff::Timestamp::UNIX_EPOCH,
        };
        in_its_place(&unit.parse().expect(unit), &object, &Prefix::new("download"))
    }

    #[test]
    fn a_key_is_of_its_unit_and_symbol() {
        let good = [
            ("binance/spot/klines/1h/2025-03-01", "data/spot/daily/klines/ABC/1h/ABC-1h-2025-03-01.zip"),
            ("binance/um/klines/1h/2025-03-01", "data/futures/um/daily/klines/ABC/1h/ABC-1h-2025-03-01.zip"),
            ("binance/cm/klines/1mo/2025-03", "data/futures/cm/monthly/klines/ABC/1mo/ABC-1mo-2025-03.zip"),
            (
                "binance/um/markPriceKlines/1m/2025-03",
                "data/futures/um/monthly/markPriceKlines/ABC/1m/ABC-1m-2025-03.zip",
            ),
            ("binance/um/metrics/all/2025-03-01", "data/futures/um/daily/metrics/ABC/ABC-metrics-2025-03-01.zip"),
        ];
        for (unit, path) in good {
            assert_eq!(placed(unit, "ABC", &format!("download/{path}")), Ok(()), "{unit}");
        }
        let bad = [
            // Another market, span, dataset, symbol, interval, period.
            ("ABC", "download/data/spot/daily/klines/ABC/1h/ABC-1h-2025-03-01.zip"),
            ("ABC", "download/data/futures/um/monthly/klines/ABC/1h/ABC-1h-2025-03-01.zip"),
            ("ABC", "download/data/futures/um/daily/markPriceKlines/ABC/1h/ABC-1h-2025-03-01.zip"),
            ("ABC", "download/data/futures/um/daily/klines/ABD/1h/ABC-1h-2025-03-01.zip"),
            ("ABD", "download/data/futures/um/daily/klines/ABC/1h/ABC-1h-2025-03-01.zip"),
            ("ABC", "download/data/futures/um/daily/klines/ABC/1m/ABC-1h-2025-03-01.zip"),
            ("ABC", "download/data/futures/um/daily/klines/ABC/1h/ABC-1m-2025-03-01.zip"),
            ("ABC", "download/data/futures/um/daily/klines/ABC/1h/ABC-1h-2025-03-02.zip"),
            // Elsewhere in the bucket, deeper, and as it is spelt nowhere.
            ("ABC", "data/futures/um/daily/klines/ABC/1h/ABC-1h-2025-03-01.zip"),
            ("ABC", "download/x/data/futures/um/daily/klines/ABC/1h/ABC-1h-2025-03-01.zip"),
            ("ABC", "download/data/futures/um/daily/klines/ABC/1h/x/ABC-1h-2025-03-01.zip"),
            ("ABC", "download/data/futures/UM/daily/klines/ABC/1h/ABC-1h-2025-03-01.zip"),
            ("ABC", "download/data/futures/um/daily/klines/ABC/1h/ABC-1h-2025-03-01.zip.tmp"),
            ("../ABC", "download/data/futures/um/daily/klines/../ABC/1h/../ABC-1h-2025-03-01.zip"),
        ];
        let unit = "binance/um/klines/1h/2025-03-01";
        assert_eq!(placed(unit, "ABC", "download/data/futures/um/daily/klines/ABC/1h/ABC-1h-2025-03-01.zip"), Ok(()));
        for (symbol, key) in bad {
            assert!(matches!(placed(unit, symbol, key), Err(ObjectFault::Refused(_))), "{symbol} {key}");
        }
        let unknown = placed("kraken/spot/klines/1h/2025-03-01", "ABC", "download/data/spot/ABC-1h-2025-03-01.zip");
        assert!(unknown.expect_err("refused").to_string().contains("kraken/spot lie is not known here"));
    }
}
