//! Is `klines_latest` what the archives say, no more and no less?

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

use jiff::Timestamp;

use super::{COLUMNS, Row, Series, Truth, VOLUME_DIGITS, canonical_decimal};
use crate::{Context, Failure, Result, servers::SqlClient};

/// Of each kind of difference, as many are shown; all are counted.
const SHOWN: usize = 5;

impl Truth {
    /// Fails with the first differences of each kind unless the view has exactly these rows, each once, and at least
    /// `rows_min` of them.
    pub fn compare_rows(&self, sql: &SqlClient, database: &str, rows_min: usize) -> Result<()> {
        let mut comparison = Comparison::new(self);
        let columns = COLUMNS.map(|column| match column {
            "close_time" => "toUnixTimestamp64Micro(close_time)",
            other => other,
        });
        let query = format!(
            "SELECT exchange, market, dataset, interval, symbol, toUnixTimestamp64Micro(open_time), {} \
             FROM `{database}`.klines_latest FORMAT TabSeparatedRaw",
            columns.join(", ")
        );
        sql.query_lines(&query, |line| comparison.table_row(line))?;
        comparison.finish()?;
        if self.rows() < rows_min {
            return Err(Failure::new(format!(
                "the archives have {} rows, expected are {rows_min} or more",
                self.rows()
            )));
        }
        Ok(())
    }
}

struct Comparison<'a> {
    truth: &'a Truth,
    seen: BTreeMap<&'a Series, BTreeSet<i64>>,
    rows: usize,
    extra: Differences,
    repeated: Differences,
    other_values: Differences,
}

#[derive(Default)]
struct Differences {
    count: usize,
    shown: Vec<String>,
}

impl Differences {
    fn add(&mut self, text: impl FnOnce() -> String) {
        self.count += 1;
        if self.shown.len() < SHOWN {
            self.shown.push(text());
        }
    }

    fn describe(&self, what: &str, report: &mut String) {
        if self.count > 0 {
            let shown = self.shown.iter().map(|line| format!("\n    {line}")).collect::<String>();
            writeln!(report, "  {} rows {what}:{shown}", self.count).expect("writing to a string cannot fail");
        }
    }
}

impl<'a> Comparison<'a> {
    fn new(truth: &'a Truth) -> Comparison<'a> {
        Comparison {
            truth,
            seen: BTreeMap::new(),
            rows: 0,
            extra: Differences::default(),
            repeated: Differences::default(),
            other_values: Differences::default(),
        }
    }

    /// Takes one line of the view.
    fn table_row(&mut self, line: &str) -> Result<()> {
        self.rows += 1;
        let (series, open_time, values) = parse(line).context(format!("row {line:?} of klines_latest"))?;
        let known = self.truth.rows.get_key_value(&series);
        let found = known.and_then(|(series, candles)| Some((series, candles.get(&open_time)?)));
        let Some((series, row)) = found else {
            self.extra.add(|| format!("{series} {} {values}", readable(open_time)));
            return Ok(());
        };
        if !self.seen.entry(series).or_default().insert(open_time) {
            self.repeated.add(|| format!("{series} {}", readable(open_time)));
        }
        if !row.values.contains(&values) {
            self.other_values.add(|| describe_other(series, open_time, row, &values));
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        let mut missing = Differences::default();
        for (series, candles) in self.truth.series() {
            let seen = self.seen.get(series);
            for (open_time, row) in candles {
                if !seen.is_some_and(|seen| seen.contains(open_time)) {
                    missing.add(|| format!("{series} {} of {}", readable(*open_time), row.key));
                }
            }
        }
        let mut report = String::new();
        missing.describe("are missing from the view", &mut report);
        self.extra.describe("are in no archive", &mut report);
        self.repeated.describe("are there more than once", &mut report);
        self.other_values.describe("have other values", &mut report);
        if report.is_empty() {
            return Ok(());
        }
        Err(Failure::new(format!(
            "klines_latest has {} rows, the archives have {}:\n{report}",
            self.rows,
            self.truth.rows()
        )))
    }
}

fn parse(line: &str) -> Result<(Series, i64, String)> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [exchange, market, dataset, interval, symbol, open_time, values @ ..] = fields.as_slice() else {
        return Err(Failure::new("too few columns"));
    };
    let series = Series {
        exchange: (*exchange).to_owned(),
        market: (*market).to_owned(),
        dataset: (*dataset).to_owned(),
        interval: (*interval).to_owned(),
        symbol: (*symbol).to_owned(),
    };
    // Whole numbers are decimals too, and canonical as they are.
    let values: Vec<String> =
        values.iter().map(|value| canonical_decimal(value, VOLUME_DIGITS)).collect::<Result<_>>()?;
    Ok((series, open_time.parse().context("open_time")?, values.join("\t")))
}

fn describe_other(series: &Series, open_time: i64, row: &Row, values: &str) -> String {
    let expected = &row.values[0];
    let differing: Vec<String> = COLUMNS
        .iter()
        .zip(expected.split('\t').zip(values.split('\t')))
        .filter(|(_, (expected, found))| expected != found)
        .map(|(column, (expected, found))| format!("{column} is {found}, should be {expected}"))
        .collect();
    format!("{series} {} of {}: {}", readable(open_time), row.key, differing.join("; "))
}

fn readable(open_time: i64) -> String {
    Timestamp::from_microsecond(open_time).map_or_else(|_| open_time.to_string(), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        data::{ArchiveSpec, Market},
        servers::Stack,
    };

    /// A table of the right shape, filled from the truth itself, and then spoiled in each of the four ways.
    #[test]
    fn finds_each_kind_of_difference() -> Result<()> {
        let mut truth = Truth::default();
        for spec in [
            ArchiveSpec::new(Market::Spot, "币安人生USDT", "1h", "2025-11-02"),
            ArchiveSpec::new(Market::Um, "BTCUSDT", "1h", "2025-11-02").dataset("premiumIndexKlines"),
        ] {
            truth.add_archive(&spec.path(), &spec.zip(), Timestamp::now())?;
        }
        let clickhouse = &Stack::shared().clickhouse;
        fill(clickhouse.sql(), &truth)?;
        let rows = truth.rows();
        let compare = || truth.compare_rows(clickhouse.sql(), "compared", rows);
        compare()?;

        let spoil = |sql: &str, expect: &[&str]| -> Result<()> {
            clickhouse.query(sql)?;
            let report = compare().expect_err(sql).to_string();
            for text in expect {
                assert!(report.contains(text), "{text:?} is not in:\n{report}");
            }
            Ok(())
        };
        let table = "compared.klines_latest";
        let first = format!("SELECT * FROM {table} WHERE market = 'um' ORDER BY open_time LIMIT 1");
        spoil(&format!("INSERT INTO {table} {first}"), &["1 rows are there more than once"])?;
        fill(clickhouse.sql(), &truth)?;
        spoil(
            &format!("INSERT INTO {table} SELECT * REPLACE ('ETHUSDT' AS symbol) FROM ({first})"),
            &["1 rows are in no archive", "binance/um/premiumIndexKlines/1h/ETHUSDT 2025-11-02T00:00:00Z"],
        )?;
        fill(clickhouse.sql(), &truth)?;
        spoil(
            &format!("DELETE FROM {table} WHERE market = 'spot' AND toHour(open_time) < 7"),
            &["7 rows are missing from the view", "klines/1h/币安人生USDT 2025-11-02T00:00:00Z of data/spot/daily"],
        )?;
        fill(clickhouse.sql(), &truth)?;
        // The last digit of one value.
        spoil(
            &format!(
                "ALTER TABLE {table} UPDATE high = high + toDecimal64('0.00000001', 8) \
                 WHERE market = 'um' AND toHour(open_time) = 5 SETTINGS mutations_sync = 1"
            ),
            &["1 rows have other values", "T05:00:00Z", "high is "],
        )
    }

    fn fill(sql: &SqlClient, truth: &Truth) -> Result<()> {
        sql.query("CREATE DATABASE IF NOT EXISTS compared")?;
        sql.query(
            "CREATE OR REPLACE TABLE compared.klines_latest (exchange String, market String, dataset String, \
             interval String, symbol LowCardinality(String), open_time DateTime64(6, 'UTC'), \
             close_time DateTime64(6, 'UTC'), open Decimal(18, 8), high Decimal(18, 8), low Decimal(18, 8), \
             close Decimal(18, 8), volume Decimal(38, 8), quote_volume Decimal(38, 8), trades UInt64, \
             taker_buy_volume Decimal(38, 8), taker_buy_quote_volume Decimal(38, 8)) \
             ENGINE = MergeTree ORDER BY (market, symbol, open_time)",
        )?;
        let seconds = |micros: i64| format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
        let mut insert = "INSERT INTO compared.klines_latest FORMAT TabSeparated\n".to_owned();
        for (series, candles) in truth.series() {
            for (open_time, row) in candles {
                let (close_time, values) = row.values[0].split_once('\t').expect("a row has columns");
                let close_time = seconds(close_time.parse().context("close time")?);
                let key = series.to_string().replace('/', "\t");
                writeln!(insert, "{key}\t{}\t{close_time}\t{values}", seconds(*open_time)).context("writing")?;
            }
        }
        sql.query(&insert).map(drop)
    }
}
