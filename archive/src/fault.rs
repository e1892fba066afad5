//! What can be wrong with an archive.

use std::fmt;

use crate::zip::ArchiveFault;

/// Names of the twelve columns, as the exchange's header line spells them.
pub(crate) const COLUMNS: [&str; 12] = [
    "open_time",
    "open",
    "high",
    "low",
    "close",
    "volume",
    "close_time",
    "quote_volume",
    "count",
    "taker_buy_volume",
    "taker_buy_quote_volume",
    "ignore",
];

/// Why an archive was refused; no row of it is to be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("{file}: {fault}")]
    Archive { file: String, fault: ArchiveFault },
    #[error("{file}: {fault}")]
    Csv { file: String, fault: CsvFault },
}

impl DecodeError {
    /// Short stable name, one of `zip`, `member`, `unsupported`, `bomb`, `crc`, `csv`.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Archive { fault, .. } => fault.class(),
            Self::Csv { .. } => "csv",
        }
    }
}

/// What is wrong with the CSV, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CsvFault {
    #[error("no rows")]
    NoRows,
    /// `line` counts from 1; `text` is the field where `column` is known, else the line, shortened and escaped.
    #[error("line {line}{}: {kind}: '{text}'", in_column(*column))]
    Line { line: u64, column: Option<Column>, kind: CsvFaultKind, text: String },
}

fn in_column(column: Option<Column>) -> String {
    column.map(|column| format!(", column {column}")).unwrap_or_default()
}

/// One of the twelve columns; written with its number, counted from 1, and its name: `6 (volume)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column(pub(crate) usize);

impl Column {
    pub fn number(self) -> usize {
        self.0 + 1
    }

    pub fn name(self) -> &'static str {
        COLUMNS.get(self.0).copied().unwrap_or("unknown")
    }
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.number(), self.name())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CsvFaultKind {
    #[error("byte order mark")]
    ByteOrderMark,
    #[error("neither a row nor the known header")]
    Header,
    #[error("header line among the rows")]
    HeaderAgain,
    #[error("blank line")]
    Blank,
    #[error("{} columns expected, found {found}", COLUMNS.len())]
    ColumnCount { found: usize },
    #[error("more than {limit} rows, the most that its period can have")]
    RowCount { limit: u64 },
    #[error("line too long")]
    LineLength,
    #[error("field too long")]
    FieldLength,
    #[error("empty field")]
    Empty,
    #[error("not a plain whole number")]
    Integer,
    #[error("not a plain decimal number")]
    Decimal,
    #[error("more than 8 decimals")]
    Decimals,
    #[error("too large for {0}")]
    TooLarge(&'static str),
    #[error("not a time in ms (13 digits) or µs (16 digits)")]
    Time,
    #[error("time in another unit than the first row's")]
    MixedUnits,
    #[error("open_time is outside the archive's period")]
    OutsidePeriod,
    #[error("open_time was already in line {first_line}")]
    Duplicate { first_line: u64 },
}

#[cfg(test)]
mod tests {
    use crate::zip::printable;

    use super::*;

    #[test]
    fn a_message_names_file_line_column_and_text() {
        let fault =
            CsvFault::Line { line: 17, column: Some(Column(5)), kind: CsvFaultKind::Decimal, text: printable(b"1e5") };
        let error = DecodeError::Csv { file: "BTCUSDT-1h-2026-02-14.zip".to_owned(), fault };
        assert_eq!(
            error.to_string(),
            "BTCUSDT-1h-2026-02-14.zip: line 17, column 6 (volume): not a plain decimal number: '1e5'"
        );
        assert_eq!(error.class(), "csv");
    }
}
