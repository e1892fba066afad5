//! Archives in the exact format of data.binance.vision, in its tree, with the completion marks of a downloader.
//!
//! Every value is a pure function of the seed, the series and the open time: the same specification gives the same
//! bytes, and a day and its month agree on each candle (unless their seeds differ, which is how to make a correction).
//! The market decides the format as at the exchange: see [`ArchiveSpec`].

mod bulk;
pub mod hostile;
mod numbers;
mod time;
mod tree;

pub use time::{Interval, period_bounds};
pub use tree::{Located, archives, locate, mark, mark_all};

use std::{
    collections::BTreeSet,
    fs,
    io::{Cursor, Write},
    path::{Path, PathBuf},
};

use jiff::{Timestamp, tz::TimeZone};
use sha2::{Digest, Sha256};
use zip::{CompressionMethod, System, ZipWriter, write::SimpleFileOptions};

use crate::{Context, Failure, Result};

pub const HEADER: &str = "open_time,open,high,low,close,volume,close_time,quote_volume,count,taker_buy_volume,\
                          taker_buy_quote_volume,ignore";

/// One line of an archive, as text.
pub type Record = [String; 12];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Market {
    Spot,
    Um,
    Cm,
}

impl Market {
    pub fn name(self) -> &'static str {
        match self {
            Market::Spot => "spot",
            Market::Um => "um",
            Market::Cm => "cm",
        }
    }

    /// Below `data/`.
    pub fn folder(self) -> &'static str {
        match self {
            Market::Spot => "spot",
            Market::Um => "futures/um",
            Market::Cm => "futures/cm",
        }
    }
}

/// One archive to be made. The defaults are what the exchange does today:
///
/// | | header | times | decimals |
/// |---|---|---|---|
/// | spot | none | ms before 2025-01-01, µs from then | always 8 |
/// | um | yes | ms | as many as needed |
/// | cm | yes | ms | as many as needed; volume in contracts, quote volume in the base asset |
#[derive(Clone, Debug)]
pub struct ArchiveSpec {
    market: Market,
    dataset: String,
    symbol: String,
    interval: String,
    period: String,
    generated_at: Timestamp,
    seed: u64,
    missing: BTreeSet<usize>,
    rows_at_most: usize,
    crlf: bool,
    header: bool,
    fixed_decimals: bool,
    micros: bool,
}

impl ArchiveSpec {
    /// # Panics
    /// When interval or period is none that the exchange has.
    pub fn new(market: Market, symbol: &str, interval: &str, period: &str) -> ArchiveSpec {
        let (start, end) = period_bounds(period).unwrap_or_else(|| panic!("{period:?} is no period"));
        assert!(Interval::parse(interval).is_some(), "{interval:?} is no interval");
        let micros_since: Timestamp = "2025-01-01T00:00:00Z".parse().expect("a valid time");
        ArchiveSpec {
            market,
            dataset: "klines".to_owned(),
            symbol: symbol.to_owned(),
            interval: interval.to_owned(),
            period: period.to_owned(),
            // The median of what was measured: three quarters of an hour after the period's end.
            generated_at: end + jiff::SignedDuration::from_mins(44),
            seed: 0,
            missing: BTreeSet::new(),
            rows_at_most: usize::MAX,
            crlf: false,
            header: market != Market::Spot,
            fixed_decimals: market == Market::Spot,
            micros: market == Market::Spot && start >= micros_since,
        }
    }

    /// `markPriceKlines`, `indexPriceKlines` or `premiumIndexKlines` instead of `klines`.
    pub fn dataset(mut self, dataset: &str) -> Self {
        self.dataset = dataset.to_owned();
        self
    }

    /// When the exchange made the archive, RFC 3339; the zip keeps even seconds only.
    ///
    /// # Panics
    /// When it is no time.
    pub fn generated_at(mut self, time: &str) -> Self {
        self.generated_at = time.parse().unwrap_or_else(|error| panic!("{time}: {error}"));
        self
    }

    /// Another seed, other values: a correction by the exchange.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Leaves out the rows at these places, as in an outage.
    pub fn missing(mut self, rows: impl IntoIterator<Item = usize>) -> Self {
        self.missing.extend(rows);
        self
    }

    /// Stops after so many rows: an archive published before its day was over.
    pub fn rows_at_most(mut self, rows: usize) -> Self {
        self.rows_at_most = rows;
        self
    }

    pub fn crlf(mut self) -> Self {
        self.crlf = true;
        self
    }

    pub fn header(mut self, header: bool) -> Self {
        self.header = header;
        self
    }

    pub fn natural_decimals(mut self) -> Self {
        self.fixed_decimals = false;
        self
    }

    pub fn micros(mut self, micros: bool) -> Self {
        self.micros = micros;
        self
    }

    pub fn market(&self) -> Market {
        self.market
    }

    pub fn symbol(&self) -> &str {
        &self.symbol
    }

    /// `binance/um/klines/1h/2026-02-14`, as on the command line.
    pub fn unit(&self) -> String {
        format!("binance/{}/{}/{}/{}", self.market.name(), self.dataset, self.interval, self.period)
    }

    /// `BTCUSDT-1h-2026-02-14`, the archive's name without an extension.
    pub fn stem(&self) -> String {
        format!("{}-{}-{}", self.symbol, self.interval, self.period)
    }

    /// Where the archive belongs, below data_dir; also the object key below the prefix.
    pub fn path(&self) -> String {
        format!(
            "data/{}/{}/{}/{}/{}/{}.zip",
            self.market.folder(),
            if self.period.len() == "2026-02".len() { "monthly" } else { "daily" },
            self.dataset,
            self.symbol,
            self.interval,
            self.stem()
        )
    }

    /// The rows as text, without the header.
    pub fn records(&self) -> Vec<Record> {
        let (start, end) = period_bounds(&self.period).expect("checked in new");
        let interval = Interval::parse(&self.interval).expect("checked in new");
        interval
            .opens(start, end)
            .enumerate()
            .filter(|(row, _)| !self.missing.contains(row))
            .take(self.rows_at_most)
            .map(|(_, (open_time, next_open_time))| numbers::record(self, open_time, next_open_time))
            .collect()
    }

    pub fn csv(&self) -> Vec<u8> {
        self.csv_of(&self.records())
    }

    /// The text of other rows in this archive's format.
    pub fn csv_of(&self, records: &[Record]) -> Vec<u8> {
        let end = if self.crlf { "\r\n" } else { "\n" };
        let header = self.header.then(|| HEADER.to_owned());
        let lines = header.into_iter().chain(records.iter().map(|record| record.join(",")));
        lines.map(|line| line + end).collect::<String>().into_bytes()
    }

    pub fn zip(&self) -> Vec<u8> {
        self.zip_of(&self.csv())
    }

    /// Another content in this archive's wrapping.
    pub fn zip_of(&self, csv: &[u8]) -> Vec<u8> {
        self.zip_with_members(&[(&format!("{}.csv", self.stem()), csv)])
    }

    pub(crate) fn zip_with_members(&self, members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
        for (name, content) in members {
            writer.start_file(*name, self.zip_options()).expect("a member can be started in memory");
            writer.write_all(content).expect("memory can be written");
        }
        writer.finish().expect("memory can be written").into_inner()
    }

    pub(crate) fn zip_options(&self) -> SimpleFileOptions {
        let time = TimeZone::UTC.to_datetime(self.generated_at);
        let year = u16::try_from(time.year()).expect("a year after 1980");
        let [month, day, hour, minute, second] =
            [time.month(), time.day(), time.hour(), time.minute(), time.second()].map(i8::unsigned_abs);
        let time = zip::DateTime::from_date_and_time(year, month, day, hour, minute, second)
            .expect("a time that zip can hold");
        SimpleFileOptions::default()
            .compression_method(CompressionMethod::Deflated)
            .system(System::Unix)
            .last_modified_time(time)
    }

    /// Writes the archive and its `.CHECKSUM` below `data_dir`; returns the archive's path.
    pub fn write(&self, data_dir: &Path) -> Result<PathBuf> {
        self.write_bytes(data_dir, &self.zip())
    }

    /// Writes these bytes in the archive's place, with the `.CHECKSUM` that belongs to them.
    pub fn write_bytes(&self, data_dir: &Path, bytes: &[u8]) -> Result<PathBuf> {
        let path = self.write_unchecked(data_dir, bytes)?;
        let checksum = format!("{}  {}.zip", sha256(bytes), self.stem());
        fs::write(path.with_added_extension("CHECKSUM"), checksum).context("writing a .CHECKSUM file")?;
        Ok(path)
    }

    /// Writes these bytes in the archive's place and touches no `.CHECKSUM`.
    pub fn write_unchecked(&self, data_dir: &Path, bytes: &[u8]) -> Result<PathBuf> {
        let path = data_dir.join(self.path());
        let folder = path.parent().ok_or_else(|| Failure::new("an archive has a folder"))?;
        fs::create_dir_all(folder).context(format!("making {}", folder.display()))?;
        fs::write(&path, bytes).context(format!("writing {}", path.display()))?;
        Ok(path)
    }
}

/// Lower-case hex.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
