//! Turns one archive into exact rows: zip bytes in, columns out.
//!
//! No I/O, and no panic on any input. Decimals go from text to scaled integers, never through floating point; nothing
//! is skipped, filled in or invented: an archive decodes as a whole or is refused with the place of the first fault.
//! Formats are those measured on the exchange's files: header or none, ms or µs, LF or CRLF, told per file.

use jiff::Timestamp;

use crate::csv::{Parsed, Parser, TimeUnit};
use crate::fault::{CsvFault, DecodeError};
use crate::interval::Interval;
use crate::klines::Klines;
use crate::zip::{Archive, ArchiveFault, printable_name};

/// Bytes of the shortest row there can be: two times of 13 digits, ten other columns and their separators.
const ROW_TEXT_BYTES_MIN: u64 = 2 * 13 + 10 + 12;

/// Rows that [`chunks`] hands out at once: a little more at most, since it looks only between two pieces of text.
pub const CHUNK_ROWS: usize = 65_536;

/// What the caller knows about an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spec {
    pub interval: Interval,
    /// First instant of the archive's period.
    pub period_start: Timestamp,
    /// First instant after it.
    pub period_end: Timestamp,
    /// Largest CSV to accept, in bytes.
    pub csv_bytes_max: u64,
    /// Most rows to accept. It bounds the memory: short rows make many of a CSV that is not large.
    pub rows_max: u64,
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

/// What tells the rows of an archive apart, for an archive whose rows do not fit into memory together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outline {
    /// µs, ascending.
    pub open_times: Vec<i64>,
    /// Of each row, see [`Klines::row_hash`].
    pub row_hashes: Vec<u64>,
    /// As in [`Decoded`].
    pub expected_rows: u64,
    pub missing_rows: u64,
}

impl Outline {
    /// As [`Klines::hash`] of all rows.
    pub fn hash(&self) -> u64 {
        self.row_hashes.iter().fold(0, |sum, hash| sum.wrapping_add(*hash))
    }
}

/// Decodes the archive called `file_name` (e.g. `BTCUSDT-1h-2026-02-14.zip`, without directories).
///
/// An open_time must be inside the period, except that a candle of three days, a week or a month may have begun before
/// it. Rows come out in ascending order of open_time, however they stood in the file; two of one open_time are a
/// fault.
pub fn decode(file_name: &str, zip: &[u8], spec: &Spec) -> Result<Decoded, DecodeError> {
    decode_whole(file_name, zip, spec).map_err(|fault| fault.of_file(file_name))
}

/// Checks an archive as [`decode`] does, and keeps of its rows only what tells them apart: 16 bytes each.
pub fn outline(file_name: &str, zip: &[u8], spec: &Spec) -> Result<Outline, DecodeError> {
    outline_whole(file_name, zip, spec).map_err(|fault| fault.of_file(file_name))
}

/// Decodes an archive that [`outline`] has found whole, and hands its rows to `sink` in the order of the file, about
/// [`CHUNK_ROWS`] at a time.
pub fn chunks(file_name: &str, zip: &[u8], spec: &Spec, mut sink: impl FnMut(Klines)) -> Result<(), DecodeError> {
    let (_, parsed) = pass(file_name, zip, spec, CHUNK_ROWS, &mut sink).map_err(|fault| fault.of_file(file_name))?;
    sink(parsed.klines);
    Ok(())
}

enum Fault {
    Archive(ArchiveFault),
    Csv(CsvFault),
}

impl Fault {
    fn of_file(self, file_name: &str) -> DecodeError {
        let file = printable_name(file_name);
        match self {
            Self::Archive(fault) => DecodeError::Archive { file, fault },
            Self::Csv(fault) => DecodeError::Csv { file, fault },
        }
    }
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

/// What is known of an archive beside its rows.
struct Facts {
    csv_bytes: u64,
    expected_rows: u64,
    member_time: Option<Timestamp>,
}

/// Reads an archive once from its start to its end. Whenever there are more than `rows_max` rows they go to `sink`; what
/// is left at the end is in what is returned.
fn pass(
    file_name: &str,
    zip: &[u8],
    spec: &Spec,
    rows_max: usize,
    mut sink: impl FnMut(Klines),
) -> Result<(Facts, Parsed), Fault> {
    let archive = Archive::open(file_name, zip, spec.csv_bytes_max)?;
    let csv_bytes = archive.csv_bytes();
    let expected_rows = spec.interval.expected_rows(spec.period_start, spec.period_end);

    let mut open_first = spec.period_start.as_microsecond();
    if spec.interval.may_open_before_period() {
        open_first = open_first.saturating_sub(spec.interval.length_us() - 1);
    }
    let rows_hint = spec.rows_max.min(csv_bytes / ROW_TEXT_BYTES_MIN).min(rows_max as u64) as usize;
    let mut parser = Parser::new(open_first, spec.period_end.as_microsecond(), spec.rows_max, rows_hint);
    archive.inflate(|text| {
        parser.push(text)?;
        if parser.rows() > rows_max {
            sink(parser.read_rows());
        }
        Ok::<_, Fault>(())
    })?;
    Ok((Facts { csv_bytes, expected_rows, member_time: archive.member_time() }, parser.finish()?))
}

fn decode_whole(file_name: &str, zip: &[u8], spec: &Spec) -> Result<Decoded, Fault> {
    let (facts, mut parsed) = pass(file_name, zip, spec, usize::MAX, |_| ())?;
    if !parsed.ascending {
        let order = parsed.ascending_order(&parsed.klines.open_time)?;
        parsed.klines = parsed.klines.permuted(&order);
    }
    let Parsed { klines, time_unit, header, .. } = parsed;
    let Facts { csv_bytes, expected_rows, member_time } = facts;
    let missing_rows = expected_rows.saturating_sub(klines.len() as u64);
    Ok(Decoded { klines, csv_bytes, expected_rows, missing_rows, time_unit, header, member_time })
}

fn outline_whole(file_name: &str, zip: &[u8], spec: &Spec) -> Result<Outline, Fault> {
    let (mut open_times, mut row_hashes) = (Vec::new(), Vec::new());
    let mut collect = |klines: &Klines| {
        row_hashes.extend((0..klines.len()).map(|row| klines.row_hash(row)));
        open_times.extend(&klines.open_time);
    };
    let (facts, parsed) = pass(file_name, zip, spec, CHUNK_ROWS, |klines| collect(&klines))?;
    collect(&parsed.klines);
    if !parsed.ascending {
        let order = parsed.ascending_order(&open_times)?;
        open_times = order.iter().filter_map(|&row| open_times.get(row).copied()).collect();
        row_hashes = order.iter().filter_map(|&row| row_hashes.get(row).copied()).collect();
    }
    let missing_rows = facts.expected_rows.saturating_sub(open_times.len() as u64);
    Ok(Outline { open_times, row_hashes, expected_rows: facts.expected_rows, missing_rows })
}

#[cfg(test)]
mod tests;
