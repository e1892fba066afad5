//! From a zip of the generator to columns: one deflated member, one pass over its text.

use ::tests::{Failure, Result};
use libdeflater::Decompressor;

/// Columns in the order of the archive's fields but the last; decimals in units of 1e-8.
#[derive(Default)]
pub(super) struct Rows {
    pub(super) open_time: Vec<i64>,
    /// Open, high, low, close.
    pub(super) prices: [Vec<i64>; 4],
    pub(super) close_time: Vec<i64>,
    /// Volume, quote volume, and the takers' of both.
    pub(super) volumes: [Vec<i128>; 4],
    pub(super) trades: Vec<u64>,
}

pub(super) struct Decoder {
    inflate: Decompressor,
    text: Vec<u8>,
}

impl Default for Decoder {
    fn default() -> Self {
        Decoder { inflate: Decompressor::new(), text: Vec::new() }
    }
}

impl Decoder {
    pub(super) fn rows(&mut self, zip: &[u8]) -> Result<Rows> {
        let (deflated, size, crc) = member(zip).ok_or_else(|| Failure::new("not a zip of the generator"))?;
        self.text.resize(size, 0);
        let inflated = self.inflate.deflate_decompress(deflated, &mut self.text);
        if inflated.ok() != Some(size) || libdeflater::crc32(&self.text) != crc {
            return Err(Failure::new("a damaged member"));
        }
        parse(&self.text).ok_or_else(|| Failure::new("not the generator's rows"))
    }
}

/// The one member's deflated bytes, and its size and CRC, by the central directory.
fn member(zip: &[u8]) -> Option<(&[u8], usize, u32)> {
    const END_BYTES: usize = 22;
    let end = zip.get(zip.len().checked_sub(END_BYTES)?..)?;
    let number = |bytes: &[u8], at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let short =
        |bytes: &[u8], at: usize| Some(usize::from(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?)));
    if !end.starts_with(b"PK\x05\x06") || short(end, 10)? != 1 {
        return None;
    }
    let entry = zip.get(number(end, 16)? as usize..)?;
    let local = zip.get(number(entry, 42)? as usize..)?;
    let begin = 30 + short(local, 26)? + short(local, 28)?;
    let deflated = local.get(begin..begin + number(entry, 20)? as usize)?;
    Some((deflated, number(entry, 24)? as usize, number(entry, 16)?))
}

fn parse(text: &[u8]) -> Option<Rows> {
    let mut rows = Rows::default();
    let mut fields = Fields { text, at: 0 };
    while fields.at < text.len() {
        rows.open_time.push(fields.whole()? as i64);
        for price in &mut rows.prices {
            price.push(i64::try_from(fields.decimal()?).ok()?);
        }
        rows.volumes[0].push(fields.decimal()?);
        rows.close_time.push(fields.whole()? as i64);
        rows.volumes[1].push(fields.decimal()?);
        rows.trades.push(fields.whole()?);
        rows.volumes[2].push(fields.decimal()?);
        rows.volumes[3].push(fields.decimal()?);
        fields.whole()?;
    }
    Some(rows)
}

struct Fields<'a> {
    text: &'a [u8],
    at: usize,
}

impl Fields<'_> {
    /// Digits up to the next byte that is none, which is taken too and returned.
    fn digits(&mut self) -> Option<(u64, u8)> {
        let mut value: u64 = 0;
        loop {
            let byte = *self.text.get(self.at)?;
            self.at += 1;
            let digit = byte.wrapping_sub(b'0');
            if digit > 9 {
                return Some((value, byte));
            }
            value = value.wrapping_mul(10).wrapping_add(u64::from(digit));
        }
    }

    fn whole(&mut self) -> Option<u64> {
        let (value, end) = self.digits()?;
        matches!(end, b',' | b'\n').then_some(value)
    }

    fn decimal(&mut self) -> Option<i128> {
        let (whole, point) = self.digits()?;
        let begin = self.at;
        let (fraction, end) = self.digits()?;
        let eight_decimals = self.at - begin == 9;
        (point == b'.' && end == b',' && eight_decimals).then(|| i128::from(whole) * 100_000_000 + i128::from(fraction))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::tests::data::{ArchiveSpec, Market};

    #[test]
    fn reads_what_the_generator_writes() {
        let spec = ArchiveSpec::new(Market::Spot, "PEPEUSDT", "1m", "2025-02-01");
        let rows = Decoder::default().rows(&spec.zip()).expect("a good archive");
        let records = spec.records();
        assert_eq!(rows.open_time.len(), records.len());
        for (number, record) in records.iter().enumerate() {
            let decimal = |value: i128| format!("{}.{:08}", value / 100_000_000, value % 100_000_000);
            assert_eq!(rows.open_time[number].to_string(), record[0]);
            assert_eq!(decimal(rows.prices[3][number].into()), record[4]);
            assert_eq!(decimal(rows.volumes[3][number]), record[10]);
            assert_eq!(rows.trades[number].to_string(), record[8]);
        }
        let mut zip = spec.zip();
        zip[100] ^= 1;
        assert!(Decoder::default().rows(&zip).is_err());
    }
}
