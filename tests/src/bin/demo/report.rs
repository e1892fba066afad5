//! What was done, for a person.

use std::cmp::Reverse;
use std::time::Duration;

use ::tests::{
    Failure, Result,
    project::Project,
    servers::SqlClient,
    truth::{Series, Truth},
};
use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};

const DAYS_SHOWN: usize = 7;
const UNITS_SHOWN: usize = 30;

const GO_ON: &str = "\
To go on:
  make demo DATA=/path/to/tree   your own archives; the tree is only read
  make stack                     the servers stay up for `uploader` and `puller`
  README.md, \"Reading candles\"   the same rows from SQL, pandas and polars";

pub(crate) struct Outcome {
    pub(crate) units: usize,
    pub(crate) truth: Truth,
    pub(crate) upload: Duration,
    pub(crate) load: Duration,
}

pub(crate) fn print(project: &Project, outcome: &Outcome) -> Result<()> {
    let truth = &outcome.truth;
    let archives = truth.archives().len() as u64;
    let rows = truth.archives().values().map(|archive| archive.rows).sum::<u64>();
    let bytes: u64 = truth.archives().values().map(|archive| archive.size).sum();
    let (upload_s, load_s) = (outcome.upload.as_secs_f64(), outcome.load.as_secs_f64());

    let mut table = table();
    table.add_row(["units", &grouped(outcome.units as u64)]);
    table.add_row(["archives", &grouped(archives)]);
    table.add_row(["size of the archives", &format!("{:.1} MB", bytes as f64 / 1e6)]);
    table.add_row(["rows in them", &grouped(rows)]);
    table.add_row(["uploaded and announced in", &format!("{upload_s:.1} s")]);
    table.add_row(["loaded by 2 workers in", &format!("{load_s:.1} s")]);
    table.add_row(["rows a second, start of the workers included", &grouped((rows as f64 / load_s) as u64)]);
    table.add_row(["archives whose hash, size and row count were compared", &format!("{0} of {0}", grouped(archives))]);
    let candles = grouped(truth.rows() as u64);
    table.add_row(["candles whose 11 values were read back and compared", &format!("{candles} of {candles}")]);
    align_right(&mut table, 1..2);
    println!("\n{table}\n");

    let series =
        truth.series().max_by_key(|&(series, candles)| (candles.len(), Reverse(series))).map(|(series, _)| series);
    let series = series.ok_or_else(|| Failure::new("there are no rows"))?;
    println!("{}", daily(project.sql(), project.database(), series)?);
    println!("\n{GO_ON}");
    Ok(())
}

/// How much of each unit is loaded, the last ones.
pub(crate) fn units(sql: &SqlClient, database: &str) -> Result<Table> {
    let answer = sql.query(&format!(
        "SELECT market, dataset, interval, period, count(), sum(rows) FROM `{database}`.archives FINAL \
         GROUP BY ALL ORDER BY period DESC, market, dataset, interval LIMIT {UNITS_SHOWN} FORMAT TabSeparatedRaw"
    ))?;
    let mut table = table();
    table.set_header(["market", "dataset", "interval", "period", "archives", "rows"]);
    for line in answer.lines() {
        table.add_row(line.split('\t'));
    }
    align_right(&mut table, 4..6);
    Ok(table)
}

/// The last days of a series: the query, and its answer.
pub(crate) fn daily(sql: &SqlClient, database: &str, series: &Series) -> Result<String> {
    let Series { exchange, market, dataset, interval, symbol } = series;
    let text = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
    let query = format!(
        "SELECT toDate(open_time) AS day, argMin(open, open_time), max(high), min(low),\n       \
         argMax(close, open_time), sum(trades), count()\n\
         FROM `{database}`.klines_latest\n\
         WHERE exchange = {} AND market = {} AND dataset = {}\n  \
         AND interval = {} AND symbol = {}\n\
         GROUP BY day ORDER BY day DESC LIMIT {DAYS_SHOWN}",
        text(exchange),
        text(market),
        text(dataset),
        text(interval),
        text(symbol)
    );
    let answer = sql.query(&format!("{query} FORMAT TabSeparatedRaw"))?;
    let mut table = table();
    table.set_header(["day", "open", "high", "low", "close", "trades", "candles"]);
    for line in answer.lines() {
        table.add_row(line.split('\t'));
    }
    align_right(&mut table, 1..7);
    Ok(format!("{query}\n{table}"))
}

fn table() -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table
}

fn align_right(table: &mut Table, columns: std::ops::Range<usize>) {
    for column in columns {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

/// 1234567 as `1,234,567`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn groups_thousands() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(super::grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
