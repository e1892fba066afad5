//! Archives in the exact format of data.binance.vision, in its tree, with the completion marks of a downloader.
//!
//! Every value is a pure function of the seed, the series and the open time: the same specification gives the same
//! bytes, and a day and its month agree on each candle (unless their seeds differ, which is how to make a correction).
//! The market decides the format as at the exchange: see [`ArchiveSpec`].

mod bulk;
pub mod hostile;
mod numbers;
mod spec;
mod time;
mod tree;

pub use spec::{ArchiveSpec, Market, Record};
pub use time::{Interval, period_bounds};
pub use tree::{Located, archives, locate, mark, mark_all};

use std::{
    fs,
    io::{Cursor, Write},
    path::{Path, PathBuf},
};

use jiff::tz::TimeZone;
use sha2::{Digest, Sha256};
use zip::{CompressionMethod, System, ZipWriter, write::SimpleFileOptions};

use crate::{Context, Failure, Result};

pub const HEADER: &str = "open_time,open,high,low,close,volume,close_time,quote_volume,count,taker_buy_volume,\
                          taker_buy_quote_volume,ignore";

impl ArchiveSpec {
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
