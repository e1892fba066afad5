//! Several units of one series in one query: a series is all periods of (exchange, market, dataset, interval).

use std::collections::{BTreeMap, BTreeSet};

use common::unit::{Period, Unit};
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use crate::clickhouse::client::quoted;
use crate::clickhouse::ledger::unit_condition;

const DAY_US: i64 = 86_400_000_000;
/// Days that are named one by one at most; beyond, the range from the first to the last must do.
const DAYS_NAMED_MAX: usize = 1_000;

/// What units have in common whose rows one query can look at: the series, and that all are days or all are months.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct SeriesKey {
    exchange: String,
    market: String,
    dataset: String,
    interval: String,
    months: bool,
}

impl SeriesKey {
    fn of(unit: &Unit) -> Self {
        Self {
            exchange: unit.exchange.to_string(),
            market: unit.market.to_string(),
            dataset: unit.dataset.to_string(),
            interval: unit.interval.to_string(),
            months: unit.period.is_month(),
        }
    }
}

/// Sorts what belongs to units by series; each with its place in `items`.
pub(crate) fn by_series<'a, T>(items: &'a [T], unit: impl Fn(&'a T) -> &'a Unit) -> Vec<Vec<(usize, &'a T)>> {
    let mut series: BTreeMap<SeriesKey, Vec<(usize, &'a T)>> = BTreeMap::new();
    for (index, item) in items.iter().enumerate() {
        series.entry(SeriesKey::of(unit(item))).or_default().push((index, item));
    }
    series.into_values().collect()
}

/// The rows of some symbols of a series in some of its periods.
pub(crate) struct Window<'a> {
    unit: &'a Unit,
    symbols: BTreeSet<&'a str>,
    /// µs, both included.
    first: i64,
    last: i64,
    days: BTreeSet<i64>,
    units: usize,
}

impl<'a> Window<'a> {
    /// Of a series; `unit` is any of its units.
    pub(crate) fn new(unit: &'a Unit) -> Self {
        Self { unit, symbols: BTreeSet::new(), first: i64::MAX, last: i64::MIN, days: BTreeSet::new(), units: 0 }
    }

    /// Adds the rows of a unit's symbols from `first` to `last`, in µs.
    pub(crate) fn add(&mut self, symbols: impl Iterator<Item = &'a str>, first: i64, last: i64) {
        self.symbols.extend(symbols);
        self.first = self.first.min(first);
        self.last = self.last.max(last);
        self.units += 1;
        if self.days.len() <= DAYS_NAMED_MAX {
            self.days.extend((first.div_euclid(DAY_US)..=last.div_euclid(DAY_US)).take(DAYS_NAMED_MAX + 1));
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.units == 0
    }

    /// The condition on table `klines`.
    pub(crate) fn condition(&self) -> String {
        let symbols = self.symbols.iter().copied().map(quoted).collect::<Vec<_>>().join(", ");
        let range = between(self.first, self.last);
        let series = unit_condition(self.unit, false);
        // Single days of a long range are named, so that those between them are not read.
        let span = self.last.div_euclid(DAY_US) - self.first.div_euclid(DAY_US) + 1;
        let days = if self.days.len() <= DAYS_NAMED_MAX && span > 2 * self.days.len() as i64 {
            let day = |day: &i64| quoted(&date(day * DAY_US).to_string());
            let days = self.days.iter().map(day).collect::<Vec<_>>().join(", ");
            format!(" AND toDate(klines.open_time) IN ({days})")
        } else {
            String::new()
        };
        format!("{series} AND klines.symbol IN ({symbols}) AND {range}{days}")
    }

    /// An expression that is the same for the rows of one period, and another for those of another one.
    pub(crate) fn bucket(&self) -> &'static str {
        match (self.units, self.unit.period.is_month()) {
            (..=1, _) => "toUInt32(0)",
            (_, false) => "toUInt32(toDate(klines.open_time))",
            (_, true) => "toUInt32(toYYYYMM(klines.open_time))",
        }
    }

    /// What [`Window::bucket`] is for a row with this open_time (µs).
    pub(crate) fn bucket_of(&self, open_time: i64) -> u32 {
        match (self.units, self.unit.period.is_month()) {
            (..=1, _) => 0,
            (_, false) => u32::try_from(open_time.div_euclid(DAY_US)).unwrap_or_default(),
            (_, true) => {
                let date = date(open_time);
                u32::from(date.year().unsigned_abs()) * 100 + u32::from(date.month().unsigned_abs())
            }
        }
    }
}

fn date(us: i64) -> Date {
    Timestamp::from_microsecond(us).unwrap_or_default().to_zoned(TimeZone::UTC).date()
}

/// First and last µs of a period.
pub(crate) fn range_of(period: Period) -> (i64, i64) {
    (period.start().as_microsecond(), period.end().as_microsecond() - 1)
}

pub(crate) fn between(first: i64, last: i64) -> String {
    format!(
        "klines.open_time BETWEEN fromUnixTimestamp64Micro({first}, 'UTC') AND fromUnixTimestamp64Micro({last}, 'UTC')"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(text: &str) -> Unit {
        text.parse().expect(text)
    }

    #[test]
    fn days_and_months_of_a_series_are_apart() {
        let units =
            ["um/klines/1h/2026-02-14", "um/klines/1h/2026-02", "spot/klines/1h/2026-02-14", "um/klines/1h/2026-02-15"]
                .map(|rest| unit(&format!("binance/{rest}")));
        let places: Vec<Vec<usize>> = by_series(&units, |unit| unit)
            .iter()
            .map(|series| series.iter().map(|(index, _)| *index).collect())
            .collect();
        assert_eq!(places, [vec![2], vec![0, 3], vec![1]]);
    }

    #[test]
    fn buckets_distinguish_periods() {
        let (first, second) = (unit("binance/um/klines/1h/2026-02-14"), unit("binance/um/klines/1h/2026-03-14"));
        let mut window = Window::new(&first);
        for unit in [&first, &second] {
            let (start, end) = range_of(unit.period);
            window.add(["A", "B"].into_iter(), start, end);
        }
        assert_eq!(window.bucket_of(range_of(first.period).1), 20_498);
        assert!(
            window.condition().contains("toDate(klines.open_time) IN ('2026-02-14', '2026-03-14')"),
            "{}",
            window.condition()
        );
        let month = unit("binance/um/klines/1h/2026-02");
        let mut window = Window::new(&month);
        window.add(["A"].into_iter(), 0, 0);
        assert_eq!(window.bucket_of(range_of(month.period).0), 0, "a single unit needs no buckets");
        window.add(["A"].into_iter(), 0, 0);
        assert_eq!(window.bucket_of(range_of(month.period).0), 202_602);
    }
}
