//! Parses one line of a kline CSV in a single pass.

use crate::fault::{COLUMNS, CsvFaultKind};

/// Longest field accepted, in bytes; the widest value of a `Decimal(38, 8)` takes 40.
const FIELD_BYTES_MAX: usize = 64;

/// Longest line accepted, in bytes with its line end. Twelve longest fields fit, so that a longer line is a fault
/// within its first bytes, whatever follows.
pub(crate) const LINE_BYTES_MAX: usize = 1024;
const _: () = assert!(COLUMNS.len() * (FIELD_BYTES_MAX + 1) < LINE_BYTES_MAX);

/// One in each byte of a word.
const EACH_BYTE: u64 = 0x0101_0101_0101_0101;

const SCALE_DIGITS: usize = 8;
/// A scaled price is below it in magnitude.
pub(crate) const PRICE_LIMIT: u64 = 10_u64.pow(18);
const VOLUME_LIMIT: u128 = 10_u128.pow(38);
const POWERS_OF_10: [u64; SCALE_DIGITS + 1] = [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000];

/// A line as it stands: times in the file's own unit, prices and volumes scaled by 10^8.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) open_time: u64,
    pub(crate) close_time: u64,
    /// open, high, low, close
    pub(crate) prices: [i64; 4],
    pub(crate) volume: i128,
    pub(crate) quote_volume: i128,
    pub(crate) taker_buy_volume: i128,
    pub(crate) taker_buy_quote_volume: i128,
    pub(crate) trades: u64,
}

/// What is wrong, and in which column counted from 0; none where it is the line as a whole.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RowFault {
    pub(crate) column: Option<usize>,
    pub(crate) kind: CsvFaultKind,
}

/// Parses the line at the start of `bytes` and returns it with its length, line end included.
///
/// The end of `bytes` counts as a line end.
pub(crate) fn parse(bytes: &[u8]) -> Result<(Row, usize), RowFault> {
    let mut line = Line { bytes, at: 0, column: 0 };
    let row = line.row().map_err(|kind| {
        let of_line = matches!(kind, CsvFaultKind::ColumnCount { .. });
        RowFault { column: (!of_line).then_some(line.column), kind }
    })?;
    Ok((row, line.at))
}

struct Line<'a> {
    bytes: &'a [u8],
    at: usize,
    column: usize,
}

// `field`, `decimal` and `digits` are inlined by force: without it, parsing was measured a fifth slower.
impl Line<'_> {
    fn row(&mut self) -> Result<Row, CsvFaultKind> {
        let open_time = self.field(Self::integer)?;
        let mut prices = [0; 4];
        for price in &mut prices {
            *price = self.field(Self::price)?;
        }
        let volume = self.field(Self::volume)?;
        let close_time = self.field(Self::integer)?;
        let quote_volume = self.field(Self::volume)?;
        let trades = self.field(Self::integer)?;
        let taker_buy_volume = self.field(Self::volume)?;
        let taker_buy_quote_volume = self.field(Self::volume)?;
        self.number()?;
        self.end()?;
        Ok(Row {
            open_time,
            close_time,
            prices,
            volume,
            quote_volume,
            taker_buy_volume,
            taker_buy_quote_volume,
            trades,
        })
    }

    /// Next byte; the end of the input reads as a line end.
    fn peek(&self) -> u8 {
        self.bytes.get(self.at).copied().unwrap_or(b'\n')
    }

    /// A field and the comma behind it.
    #[inline(always)]
    fn field<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T, CsvFaultKind>) -> Result<T, CsvFaultKind> {
        let value = parse(self)?;
        if self.peek() != b',' {
            return Err(self.column_count());
        }
        self.at += 1;
        self.column += 1;
        Ok(value)
    }

    /// The line end behind the last field.
    fn end(&mut self) -> Result<(), CsvFaultKind> {
        if self.peek() == b',' {
            return Err(self.column_count());
        }
        self.at += usize::from(self.peek() == b'\r');
        self.at = (self.at + 1).min(self.bytes.len());
        Ok(())
    }

    /// Whether a field may end here. A carriage return counts only with the line feed behind it.
    fn at_field_end(&self) -> bool {
        match self.peek() {
            b',' | b'\n' => true,
            b'\r' => self.bytes.get(self.at + 1) == Some(&b'\n'),
            _ => false,
        }
    }

    /// Checks what every number must satisfy once its digits from `start` on are read.
    fn number_ends(&self, start: usize, well_formed: bool, kind: CsvFaultKind) -> Result<(), CsvFaultKind> {
        if !self.at_field_end() || !well_formed {
            let empty = self.at == start && self.at_field_end();
            return Err(if empty { CsvFaultKind::Empty } else { kind });
        }
        if self.at - start > FIELD_BYTES_MAX {
            return Err(CsvFaultKind::FieldLength);
        }
        Ok(())
    }

    /// Reads digits; the value is right only where they are at most 19.
    #[inline(always)]
    fn digits(&mut self) -> (u64, usize) {
        let start = self.at;
        let mut value = 0_u64;
        while let Some(&text) = self.bytes.get(self.at..).and_then(<[u8]>::first_chunk) {
            let text = u64::from_le_bytes(text) ^ (EACH_BYTE * 0x30);
            // A digit is now its value, anything else more than 9. Adding 0x76 then sets its top bit; what it carries
            // into later bytes does no harm, since only the first such byte counts.
            let others = (text.wrapping_add(EACH_BYTE * 0x76) | text) & (EACH_BYTE * 0x80);
            if others != 0 {
                let digits = others.trailing_zeros() / 8;
                self.at += digits as usize;
                // Shifted to the end of the word behind zeros, fewer digits read as eight; in two steps for no digit.
                let group = eight_digits(text << 8 << (56 - 8 * digits));
                value = value.wrapping_mul(POWERS_OF_10[digits as usize]).wrapping_add(group);
                return (value, self.at - start);
            }
            value = value.wrapping_mul(POWERS_OF_10[8]).wrapping_add(eight_digits(text));
            self.at += 8;
            if !self.peek().is_ascii_digit() {
                return (value, self.at - start);
            }
        }
        while let digit @ 0..=9 = self.peek().wrapping_sub(b'0') {
            value = value.wrapping_mul(10).wrapping_add(u64::from(digit));
            self.at += 1;
        }
        (value, self.at - start)
    }

    fn integer(&mut self) -> Result<u64, CsvFaultKind> {
        let start = self.at;
        let (value, digits) = self.digits();
        self.number_ends(start, digits > 0, CsvFaultKind::Integer)?;
        if digits <= 19 {
            return Ok(value);
        }
        let text = self.bytes.get(start..self.at).unwrap_or_default();
        let value = fold_digits(0, text).and_then(|value| u64::try_from(value).ok());
        value.ok_or(CsvFaultKind::TooLarge("UInt64"))
    }

    fn price(&mut self) -> Result<i64, CsvFaultKind> {
        let too_large = CsvFaultKind::TooLarge("Decimal(18, 8)");
        let (negative, magnitude) = self.decimal()?;
        match u64::try_from(magnitude.unwrap_or(u128::MAX)) {
            Ok(magnitude) if magnitude < PRICE_LIMIT => {
                let value = magnitude.cast_signed();
                Ok(if negative { -value } else { value })
            }
            _ => Err(too_large),
        }
    }

    fn volume(&mut self) -> Result<i128, CsvFaultKind> {
        let too_large = CsvFaultKind::TooLarge("Decimal(38, 8)");
        match self.decimal()? {
            (negative, Some(magnitude)) if magnitude < VOLUME_LIMIT => {
                let value = magnitude.cast_signed();
                Ok(if negative { -value } else { value })
            }
            _ => Err(too_large),
        }
    }

    /// Sign and magnitude scaled by 10^8; no magnitude where it does not fit.
    #[inline(always)]
    fn decimal(&mut self) -> Result<(bool, Option<u128>), CsvFaultKind> {
        let start = self.at;
        let negative = self.peek() == b'-';
        self.at += usize::from(negative);
        let whole_at = self.at;
        let (whole, whole_digits) = self.digits();
        let mut fraction = (0, 0);
        let pointed = self.peek() == b'.';
        if pointed {
            self.at += 1;
            fraction = self.digits();
        }
        let (fraction, fraction_digits) = fraction;
        let well_formed = whole_digits > 0 && pointed == (fraction_digits > 0);
        self.number_ends(start, well_formed, CsvFaultKind::Decimal)?;
        // Eleven and eight digits scaled stay below 10^19, which fits.
        if whole_digits <= 11
            && let Some(scale) = SCALE_DIGITS.checked_sub(fraction_digits).and_then(|zeros| POWERS_OF_10.get(zeros))
        {
            return Ok((negative, Some(u128::from(whole * 10_u64.pow(8) + fraction * scale))));
        }
        let text = self.bytes.get(whole_at..self.at).unwrap_or_default();
        Ok((negative, long_decimal(text, whole_digits)?))
    }

    /// Any plain number, whose value is of no interest.
    fn number(&mut self) -> Result<(), CsvFaultKind> {
        let start = self.at;
        self.at += usize::from(self.peek() == b'-');
        let (_, whole_digits) = self.digits();
        let mut well_formed = whole_digits > 0;
        if self.peek() == b'.' {
            self.at += 1;
            well_formed &= self.digits().1 > 0;
        }
        self.number_ends(start, well_formed, CsvFaultKind::Decimal)
    }

    #[cold]
    fn column_count(&self) -> CsvFaultKind {
        let line = self.bytes.split(|&byte| byte == b'\n').next().unwrap_or_default();
        CsvFaultKind::ColumnCount { found: 1 + line.iter().filter(|&&byte| byte == b',').count() }
    }
}

/// Number that eight bytes of one digit each make up, the first one in the lowest byte: pairs, fours, then all.
fn eight_digits(digits: u64) -> u64 {
    let pairs = (digits.wrapping_mul(10 << 8 | 1) >> 8) & 0x00ff_00ff_00ff_00ff;
    let fours = (pairs.wrapping_mul(100 << 16 | 1) >> 16) & 0x0000_ffff_0000_ffff;
    fours.wrapping_mul(10_000 << 32 | 1) >> 32
}

/// Scaled magnitude of unsigned decimal text, for what is too long for the fast way; `None` where it does not fit.
#[cold]
fn long_decimal(text: &[u8], whole_digits: usize) -> Result<Option<u128>, CsvFaultKind> {
    let (whole, fraction) = text.split_at_checked(whole_digits).unwrap_or_default();
    let fraction = fraction.strip_prefix(b".").unwrap_or_default();
    let (kept, excess) = fraction.split_at_checked(SCALE_DIGITS).unwrap_or((fraction, &[]));
    if excess.iter().any(|&digit| digit != b'0') {
        return Err(CsvFaultKind::Decimals);
    }
    let padding = &b"00000000"[kept.len()..];
    Ok([whole, kept, padding].into_iter().try_fold(0, fold_digits))
}

fn fold_digits(value: u128, digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(value, |value, &digit| value.checked_mul(10)?.checked_add(u128::from(digit - b'0')))
}
