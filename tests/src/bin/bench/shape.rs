//! A body of archives of one interval, written to disk, and what all its rows add up to.

use std::{path::Path, thread};

use ::tests::{
    Failure, Result,
    data::{ArchiveSpec, Market, Record, mark},
};
use jiff::{ToSpan, civil::Date};

/// The columns that are summed, and where they are in an archive.
const SUMMED: [(&str, usize); 11] = [
    ("toUnixTimestamp64Micro(open_time)", 0),
    ("open", 1),
    ("high", 2),
    ("low", 3),
    ("close", 4),
    ("volume", 5),
    ("toUnixTimestamp64Micro(close_time)", 6),
    ("quote_volume", 7),
    ("trades", 8),
    ("taker_buy_volume", 9),
    ("taker_buy_quote_volume", 10),
];

#[derive(Clone)]
pub(crate) struct Shape {
    pub(crate) symbols: usize,
    pub(crate) interval: &'static str,
    pub(crate) periods: Periods,
}

#[derive(Clone)]
pub(crate) struct Periods(Vec<String>);

/// Exact totals over rows: their number, and per column the sum in units of 1e-8 (of 1 for whole numbers).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) rows: u64,
    sums: [i128; SUMMED.len()],
}

/// What was written.
#[derive(Default)]
pub(crate) struct Written {
    pub(crate) totals: Totals,
    pub(crate) zip_bytes: u64,
}

impl Periods {
    pub(crate) fn days(first: &str, count: usize) -> Periods {
        let first: Date = first.parse().expect("a day in the plan");
        let day = |number: usize| first.saturating_add((number as i64).days()).to_string();
        Periods((0..count).map(day).collect())
    }

    pub(crate) fn month(month: &str) -> Periods {
        Periods(vec![month.to_owned()])
    }

    pub(crate) fn list(&self) -> &[String] {
        &self.0
    }
}

impl Shape {
    pub(crate) fn units(&self) -> usize {
        self.periods.0.len()
    }

    pub(crate) fn archives(&self) -> usize {
        self.symbols * self.units()
    }

    pub(crate) fn symbols(&self) -> impl Iterator<Item = String> {
        (0..self.symbols).map(symbol_name)
    }

    /// All spot, and in today's form whatever the day: microseconds, eight decimals.
    pub(crate) fn spec(&self, symbol: usize, period: &str) -> ArchiveSpec {
        ArchiveSpec::new(Market::Spot, &symbol_name(symbol), self.interval, period).micros(true)
    }

    /// Writes archives and marks below `data_dir`, on all cores.
    pub(crate) fn write(&self, data_dir: &Path) -> Result<Written> {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let parts: Vec<Result<Written>> = thread::scope(|scope| {
            let workers: Vec<_> =
                (0..threads).map(|part| scope.spawn(move || self.write_part(data_dir, part, threads))).collect();
            let ended = |worker: thread::ScopedJoinHandle<'_, Result<Written>>| {
                worker.join().unwrap_or_else(|_| Err(Failure::new("a generating thread panicked")))
            };
            workers.into_iter().map(ended).collect()
        });
        let mut written = Written::default();
        for part in parts {
            let part = part?;
            written.totals.add(&part.totals);
            written.zip_bytes += part.zip_bytes;
        }
        for period in self.periods.list() {
            mark(data_dir, &self.spec(0, period).unit())?;
        }
        Ok(written)
    }

    fn write_part(&self, data_dir: &Path, part: usize, parts: usize) -> Result<Written> {
        let mut written = Written::default();
        for number in (part..self.archives()).step_by(parts) {
            let spec = self.spec(number % self.symbols, &self.periods.0[number / self.symbols]);
            let records = spec.records();
            records.iter().for_each(|record| written.totals.add_record(record));
            let zip = spec.zip_of(&spec.csv_of(&records));
            written.zip_bytes += zip.len() as u64;
            spec.write_unchecked(data_dir, &zip)?;
        }
        Ok(written)
    }
}

/// The first ones are symbols whose numbers are large and small; none begins like those of [`crate::growth`].
fn symbol_name(number: usize) -> String {
    match number {
        0 => "BTCUSDT".to_owned(),
        1 => "ETHUSDT".to_owned(),
        2 => "PEPEUSDT".to_owned(),
        _ => format!("S{number:04}USDT"),
    }
}

impl Totals {
    fn add_record(&mut self, record: &Record) {
        self.rows += 1;
        for (sum, (_, column)) in self.sums.iter_mut().zip(SUMMED) {
            *sum += scaled(&record[column]).expect("the generator writes spot numbers");
        }
    }

    fn add(&mut self, other: &Totals) {
        self.rows += other.rows;
        self.sums.iter_mut().zip(other.sums).for_each(|(sum, more)| *sum += more);
    }

    /// The question whose answer [`Totals::parse`] reads.
    pub(crate) fn query(table: &str, condition: &str) -> String {
        let sums: Vec<String> = SUMMED
            .iter()
            .map(|(column, _)| match *column {
                whole if whole.starts_with("to") || whole == "trades" => format!("sum(toInt256({whole}))"),
                decimal => format!("sum({decimal})"),
            })
            .collect();
        format!(
            "SELECT count(), {} FROM {table} WHERE {condition} \
             SETTINGS output_format_decimal_trailing_zeros = 1 FORMAT TabSeparated",
            sums.join(", ")
        )
    }

    pub(crate) fn parse(answer: &str) -> Result<Totals> {
        let mut fields = answer.trim_end().split('\t');
        let wrong = || Failure::new(format!("the totals read {answer:?}"));
        let mut totals =
            Totals { rows: fields.next().and_then(|rows| rows.parse().ok()).ok_or_else(wrong)?, ..Totals::default() };
        for sum in &mut totals.sums {
            *sum = fields.next().and_then(scaled).ok_or_else(wrong)?;
        }
        Ok(totals)
    }
}

/// `12.34500000` in units of 1e-8; whole numbers as they are.
fn scaled(text: &str) -> Option<i128> {
    match text.split_once('.') {
        Some((whole, fraction)) if fraction.len() == 8 => format!("{whole}{fraction}").parse().ok(),
        Some(_) => None,
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_read_as_they_are_written() {
        let mut totals = Totals::default();
        let shape = Shape { symbols: 3, interval: "1h", periods: Periods::days("2025-02-01", 1) };
        shape.spec(2, "2025-02-01").records().iter().for_each(|record| totals.add_record(record));
        let fields: Vec<String> = SUMMED
            .iter()
            .zip(totals.sums)
            .map(|((column, _), sum)| match *column {
                whole if whole.starts_with("to") || whole == "trades" => sum.to_string(),
                _ => format!("{}.{:08}", sum / 100_000_000, sum % 100_000_000),
            })
            .collect();
        let answer = format!("24\t{}\n", fields.join("\t"));
        assert_eq!(Totals::parse(&answer).expect("totals"), totals);
        assert!(Totals::parse("24\t1.5\n").is_err());
    }
}
