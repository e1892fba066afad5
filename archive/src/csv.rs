//! Incremental parser of a kline CSV: takes it in chunks cut anywhere.
//!
//! One row is a line of twelve comma separated columns without quoting, ended by LF or CRLF; the last line end may be
//! missing. The first line may be the exchange's header. Whether times are ms or µs is told by the first row.

use crate::zip::printable;

use crate::fault::{COLUMNS, Column, CsvFault, CsvFaultKind};
use crate::klines::{Kline, Klines};
use crate::row::{self, LINE_BYTES_MAX, Row, RowFault};

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Unit of the times in a CSV.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeUnit {
    Milliseconds,
    Microseconds,
}

impl TimeUnit {
    /// Tells the unit from a time: 13 digits are ms and 16 are µs, each from 2001-09-09 to 2286-11-20.
    fn of(time: u64) -> Option<Self> {
        match time {
            1_000_000_000_000..10_000_000_000_000 => Some(Self::Milliseconds),
            1_000_000_000_000_000..10_000_000_000_000_000 => Some(Self::Microseconds),
            _ => None,
        }
    }

    fn us(self) -> u64 {
        match self {
            Self::Milliseconds => 1_000,
            Self::Microseconds => 1,
        }
    }
}

/// What a CSV held.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Parsed {
    /// Those that were not taken before, in the order of the file.
    pub(crate) klines: Klines,
    pub(crate) time_unit: TimeUnit,
    pub(crate) header: bool,
    /// Whether the open_times of the whole file rise from row to row.
    pub(crate) ascending: bool,
}

pub(crate) struct Parser {
    /// First and last µs an open_time may have.
    open_first: i64,
    open_last: i64,
    rows_max: u64,
    /// Rows so far, also those that were taken.
    rows_seen: u64,
    klines: Klines,
    time_unit: Option<TimeUnit>,
    header: bool,
    lines: u64,
    ascending: bool,
    /// open_time of the last row, also when it was taken.
    previous: Option<i64>,
    /// Start of a line whose end has not come yet; shorter than [`LINE_BYTES_MAX`].
    carry: Vec<u8>,
}

impl Parser {
    /// Accepts open_times from `open_first` to before `open_end`, in µs; `rows_hint` only saves reallocation.
    pub(crate) fn new(open_first: i64, open_end: i64, rows_max: u64, rows_hint: usize) -> Self {
        Self {
            open_first,
            open_last: open_end.saturating_sub(1),
            rows_max,
            rows_seen: 0,
            klines: Klines::with_capacity(rows_hint),
            time_unit: None,
            header: false,
            lines: 0,
            ascending: true,
            previous: None,
            carry: Vec::new(),
        }
    }

    /// Takes the next bytes of the CSV. After a fault the parser is of no more use.
    pub(crate) fn push(&mut self, mut chunk: &[u8]) -> Result<(), CsvFault> {
        if !self.carry.is_empty() {
            let line_end = chunk.iter().position(|&byte| byte == b'\n');
            let (head, rest) = chunk.split_at(line_end.map_or(chunk.len(), |at| at + 1));
            self.carry(head)?;
            if line_end.is_none() {
                return Ok(());
            }
            let mut line = std::mem::take(&mut self.carry);
            self.complete_lines(&line)?;
            line.clear();
            self.carry = line;
            chunk = rest;
        }
        let complete = chunk.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let (lines, tail) = chunk.split_at(complete);
        self.complete_lines(lines)?;
        self.carry(tail)
    }

    /// Rows parsed and not taken.
    pub(crate) fn rows(&self) -> usize {
        self.klines.len()
    }

    /// Takes the rows parsed so far, in the order of the file.
    pub(crate) fn read_rows(&mut self) -> Klines {
        let capacity = self.klines.len();
        std::mem::replace(&mut self.klines, Klines::with_capacity(capacity))
    }

    /// Ends the CSV.
    pub(crate) fn finish(mut self) -> Result<Parsed, CsvFault> {
        let last = std::mem::take(&mut self.carry);
        self.complete_lines(&last)?;
        let Some(time_unit) = self.time_unit else { return Err(CsvFault::NoRows) };
        Ok(Parsed { klines: self.klines, time_unit, header: self.header, ascending: self.ascending })
    }

    fn carry(&mut self, part: &[u8]) -> Result<(), CsvFault> {
        let space = (LINE_BYTES_MAX + 1).saturating_sub(self.carry.len());
        self.carry.extend_from_slice(part.get(..space).unwrap_or(part));
        if self.carry.len() < LINE_BYTES_MAX || self.carry.ends_with(b"\n") {
            return Ok(());
        }
        Err(self.fault(None, CsvFaultKind::LineLength, &self.carry))
    }

    /// Parses lines of which only the very last of the file may lack its end.
    fn complete_lines(&mut self, mut lines: &[u8]) -> Result<(), CsvFault> {
        if self.lines == 0 && !lines.is_empty() {
            lines = self.first_line(lines)?;
        }
        while !lines.is_empty() {
            let window = lines.get(..LINE_BYTES_MAX).unwrap_or(lines);
            let (row, bytes) = row::parse(window).map_err(|fault| self.explain(fault, lines))?;
            self.accept(&row).map_err(|fault| self.explain(fault, lines))?;
            self.lines += 1;
            lines = lines.get(bytes..).unwrap_or_default();
        }
        Ok(())
    }

    /// Steps over the header if there is one.
    fn first_line<'a>(&mut self, lines: &'a [u8]) -> Result<&'a [u8], CsvFault> {
        let (line, rest) = split_line(lines);
        match line.first() {
            Some(b'0'..=b'9') | None => Ok(lines),
            Some(_) if is_header(line) => {
                self.header = true;
                self.lines = 1;
                Ok(rest)
            }
            Some(_) => {
                let marked = line.starts_with(BYTE_ORDER_MARK);
                let kind = if marked { CsvFaultKind::ByteOrderMark } else { CsvFaultKind::Header };
                Err(self.explain(RowFault { column: None, kind }, lines))
            }
        }
    }

    fn accept(&mut self, row: &Row) -> Result<(), RowFault> {
        if self.rows_seen >= self.rows_max {
            return Err(RowFault { column: None, kind: CsvFaultKind::RowCount { limit: self.rows_max } });
        }
        self.rows_seen += 1;
        let unit = match self.time_unit {
            Some(unit) => unit,
            None => TimeUnit::of(row.open_time).ok_or(of_column(0, CsvFaultKind::Time))?,
        };
        let open_time = time(row.open_time, unit).map_err(|kind| of_column(0, kind))?;
        let close_time = time(row.close_time, unit).map_err(|kind| of_column(6, kind))?;
        if !(self.open_first..=self.open_last).contains(&open_time) {
            return Err(of_column(0, CsvFaultKind::OutsidePeriod));
        }
        // Not compared with close_time: early monthly files were published with close times before their opens.
        if let Some(previous) = self.previous {
            if open_time == previous {
                return Err(of_column(0, CsvFaultKind::Duplicate { first_line: self.lines }));
            }
            self.ascending &= open_time > previous;
        }
        self.previous = Some(open_time);
        self.time_unit = Some(unit);
        let [open, high, low, close] = row.prices;
        self.klines.push(&Kline {
            open_time,
            close_time,
            open,
            high,
            low,
            close,
            volume: row.volume,
            quote_volume: row.quote_volume,
            taker_buy_volume: row.taker_buy_volume,
            taker_buy_quote_volume: row.taker_buy_quote_volume,
            trades: row.trades,
        });
        Ok(())
    }

    /// Turns what is wrong with the first of `lines` into a fault with line number and text.
    #[cold]
    fn explain(&self, fault: RowFault, lines: &[u8]) -> CsvFault {
        let (line, rest) = split_line(lines);
        let RowFault { column, kind } = match fault {
            _ if lines.len() - rest.len() > LINE_BYTES_MAX => RowFault { column: None, kind: CsvFaultKind::LineLength },
            _ if line.is_empty() => RowFault { column: None, kind: CsvFaultKind::Blank },
            _ if is_header(line) => RowFault { column: None, kind: CsvFaultKind::HeaderAgain },
            fault => fault,
        };
        let field = column.and_then(|column| line.split(|&byte| byte == b',').nth(column));
        self.fault(column.map(Column), kind, field.unwrap_or(line))
    }

    /// A fault in the line after those that are done.
    fn fault(&self, column: Option<Column>, kind: CsvFaultKind, text: &[u8]) -> CsvFault {
        CsvFault::Line { line: self.lines + 1, column, kind, text: printable(text) }
    }
}

impl Parsed {
    /// The order that rows which came unordered must be brought into; `times` are the open_times (µs) of all rows of the
    /// file. No row is lost or invented by it, and refusing the archive would keep all of them from the table; only two
    /// rows of one open_time cannot both be kept.
    pub(crate) fn ascending_order(&self, times: &[i64]) -> Result<Vec<usize>, CsvFault> {
        let mut order: Vec<usize> = (0..times.len()).collect();
        order.sort_by_key(|&index| times.get(index));
        let line_of = |index: usize| 1 + u64::from(self.header) + index as u64;
        let duplicates = order.windows(2).filter_map(|pair| match *pair {
            [first, second] if times.get(first) == times.get(second) => Some((second, first)),
            _ => None,
        });
        if let Some((second, first)) = duplicates.min() {
            let kind = CsvFaultKind::Duplicate { first_line: line_of(first) };
            let us = times.get(second).copied().unwrap_or_default();
            let text = (us / self.time_unit.us().cast_signed()).to_string();
            return Err(CsvFault::Line { line: line_of(second), column: Some(Column(0)), kind, text });
        }
        Ok(order)
    }
}

fn of_column(column: usize, kind: CsvFaultKind) -> RowFault {
    RowFault { column: Some(column), kind }
}

/// A time in µs. A close_time in ms names the last ms of its candle and is only multiplied: adding the 999 µs that
/// are left of that ms would invent what the exchange did not write.
fn time(value: u64, unit: TimeUnit) -> Result<i64, CsvFaultKind> {
    match TimeUnit::of(value) {
        Some(found) if found == unit => Ok((value * unit.us()).cast_signed()),
        Some(_) => Err(CsvFaultKind::MixedUnits),
        None => Err(CsvFaultKind::Time),
    }
}

/// The first line without its end, and what follows.
fn split_line(lines: &[u8]) -> (&[u8], &[u8]) {
    let end = lines.iter().position(|&byte| byte == b'\n');
    let (line, rest) = lines.split_at(end.map_or(lines.len(), |at| at + 1));
    match line.strip_suffix(b"\n") {
        Some(line) => (line.strip_suffix(b"\r").unwrap_or(line), rest),
        None => (line, rest),
    }
}

fn is_header(line: &[u8]) -> bool {
    let mut names = line.split(|&byte| byte == b',');
    COLUMNS.iter().all(|name| names.next().is_some_and(|found| found.eq_ignore_ascii_case(name.as_bytes())))
        && names.next().is_none()
}
