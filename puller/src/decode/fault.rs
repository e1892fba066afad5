//! What can be wrong with an archive.

use std::fmt;

/// Characters of untrusted text quoted in a message.
const QUOTED_CHARS_MAX: usize = 40;
const NAME_CHARS_MAX: usize = 120;

/// Names of the twelve columns, as the exchange's header line spells them.
pub(super) const COLUMNS: [&str; 12] = [
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

/// What is wrong with the zip around the CSV.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArchiveFault {
    #[error("not a zip file, or its end is missing")]
    NotZip,
    #[error("damaged zip file: {0}")]
    Damaged(&'static str),
    #[error("the local header and the directory of the zip file disagree on the {0}")]
    HeadersDisagree(&'static str),
    #[error("the name of the archive is not that of a zip file: '{0}'")]
    FileName(String),
    #[error("exactly one member expected, found {0}")]
    MemberCount(u16),
    #[error("member '{expected}' expected, found '{found}'")]
    MemberName { expected: String, found: String },
    #[error("the member is encrypted")]
    Encrypted,
    #[error("compression method {0} is not supported: stored and deflate are")]
    Method(u16),
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    #[error("the member declares {declared_bytes} bytes, the limit is {limit_bytes}")]
    TooLarge { declared_bytes: u64, limit_bytes: u64 },
    #[error("the member inflates beyond the {declared_bytes} bytes it declares")]
    Overrun { declared_bytes: u64 },
    #[error("the member inflates to {actual_bytes} bytes, it declares {declared_bytes}")]
    Underrun { declared_bytes: u64, actual_bytes: u64 },
    #[error("CRC-32 of the member is {computed:08x}, the zip file says {stored:08x}")]
    Crc { stored: u32, computed: u32 },
}

impl ArchiveFault {
    fn class(&self) -> &'static str {
        match self {
            Self::NotZip | Self::Damaged(_) | Self::HeadersDisagree(_) | Self::Underrun { .. } => "zip",
            Self::FileName(_) | Self::MemberCount(_) | Self::MemberName { .. } => "member",
            Self::Encrypted | Self::Method(_) | Self::Unsupported(_) => "unsupported",
            Self::TooLarge { .. } | Self::Overrun { .. } => "bomb",
            Self::Crc { .. } => "crc",
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
pub struct Column(pub(super) usize);

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

/// Untrusted bytes made fit for a message: escaped, at most 40 characters.
pub(super) fn printable(bytes: &[u8]) -> String {
    shorten(bytes, QUOTED_CHARS_MAX)
}

/// The name of a file made fit for a message; real ones have some 30 characters.
pub(super) fn printable_name(file_name: &str) -> String {
    shorten(file_name.as_bytes(), NAME_CHARS_MAX)
}

fn shorten(bytes: &[u8], chars_max: usize) -> String {
    // A character takes at most four bytes; a cut through one falls behind what is quoted.
    let head = String::from_utf8_lossy(bytes.get(..4 * (chars_max + 1)).unwrap_or(bytes));
    let mut quoted: String = head.chars().take(chars_max).flat_map(char::escape_debug).collect();
    if head.chars().nth(chars_max).is_some() {
        quoted.push('…');
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_text_is_short_and_harmless() {
        let check = |bytes: &[u8], expected: &str| assert_eq!(printable(bytes), expected);
        check(b"1e5", "1e5");
        check(b"\x1b[2J\r\n", "\\u{1b}[2J\\r\\n");
        check("\u{202e}x".as_bytes(), "\\u{202e}x");
        check("币安".as_bytes(), "币安");
        check(b"\xff\xfe", "��");
        check(&[b'7'; 40], &"7".repeat(40));
        check(&[b'7'; 9000], &format!("{}…", "7".repeat(40)));
        check("币".repeat(9000).as_bytes(), &format!("{}…", "币".repeat(40)));
    }

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
