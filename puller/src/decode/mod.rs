//! Turns one archive into exact rows: zip bytes in, columns out.
//!
//! No I/O, and no panic on any input. Decimals go from text to scaled integers, never through floating point; nothing
//! is skipped, filled in or invented: an archive decodes as a whole or is refused with the place of the first fault.
//! Formats are those measured on the exchange's files: header or none, ms or µs, LF or CRLF, told per file.

mod archive;
mod csv;
mod directory;
mod fault;
mod interval;
mod klines;
mod row;
mod row_hash;

use jiff::Timestamp;

use archive::Archive;
use csv::{Parsed, Parser};

pub use csv::TimeUnit;
pub use fault::{ArchiveFault, Column, CsvFault, CsvFaultKind, DecodeError};
pub use interval::{Interval, IntervalError};
pub use klines::{Kline, Klines, ROW_BYTES};

/// Bytes of the shortest row there can be: two times of 13 digits, ten other columns and their separators.
const ROW_TEXT_BYTES_MIN: u64 = 2 * 13 + 10 + 12;

/// What the caller knows about an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spec {
    pub interval: Interval,
    /// First instant of the archive's period.
    pub period_start: Timestamp,
    /// First instant after it.
    pub period_end: Timestamp,
    /// Largest CSV to accept, in bytes. It bounds the memory too: a row takes at least 48 bytes of CSV and becomes
    /// [`ROW_BYTES`].
    pub csv_bytes_max: u64,
}

/// What an archive held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    pub klines: Klines,
    pub csv_bytes: u64,
    /// Rows the interval implies for the period; for information, see [`Interval::expected_rows`].
    pub expected_rows: u64,
    /// How many of them are not there; 0 where there are more, as in early files with misaligned rows.
    pub missing_rows: u64,
    pub time_unit: TimeUnit,
    /// Whether the CSV starts with a header line.
    pub header: bool,
    /// When the exchange generated the archive: the member's time stamp read as UTC, where it is a valid date.
    pub member_time: Option<Timestamp>,
}

/// Decodes the archive called `file_name` (e.g. `BTCUSDT-1h-2026-02-14.zip`, without directories).
///
/// An open_time must be inside the period, except that a candle of three days, a week or a month may have begun before
/// it. Rows come out in ascending order of open_time, however they stood in the file; two of one open_time are a
/// fault.
pub fn decode(file_name: &str, zip: &[u8], spec: &Spec) -> Result<Decoded, DecodeError> {
    parse(file_name, zip, spec).map_err(|fault| match fault {
        Fault::Archive(fault) => DecodeError::Archive { file: fault::printable_name(file_name), fault },
        Fault::Csv(fault) => DecodeError::Csv { file: fault::printable_name(file_name), fault },
    })
}

enum Fault {
    Archive(ArchiveFault),
    Csv(CsvFault),
}

impl From<ArchiveFault> for Fault {
    fn from(fault: ArchiveFault) -> Self {
        Self::Archive(fault)
    }
}

impl From<CsvFault> for Fault {
    fn from(fault: CsvFault) -> Self {
        Self::Csv(fault)
    }
}

fn parse(file_name: &str, zip: &[u8], spec: &Spec) -> Result<Decoded, Fault> {
    let archive = Archive::open(file_name, zip, spec.csv_bytes_max)?;
    let csv_bytes = archive.csv_bytes();
    let expected_rows = spec.interval.expected_rows(spec.period_start, spec.period_end);

    let mut open_first = spec.period_start.as_microsecond();
    if spec.interval.may_open_before_period() {
        open_first = open_first.saturating_sub(spec.interval.length_us() - 1);
    }
    let rows_hint = expected_rows.min(csv_bytes / ROW_TEXT_BYTES_MIN) as usize;
    let mut parser = Parser::new(open_first, spec.period_end.as_microsecond(), rows_hint);
    archive.inflate(|chunk| parser.push(chunk).map_err(Fault::from))?;
    let Parsed { klines, time_unit, header } = parser.finish()?;

    let missing_rows = expected_rows.saturating_sub(klines.len() as u64);
    let member_time = archive.member_time();
    Ok(Decoded { klines, csv_bytes, expected_rows, missing_rows, time_unit, header, member_time })
}

#[cfg(test)]
mod tests;
