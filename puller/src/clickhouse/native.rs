//! Encodes rows of table `klines` as blocks of ClickHouse's Native format, for `INSERT … FORMAT Native` over HTTP.
//!
//! Wire format from ClickHouse's `NativeWriter` and `SerializationLowCardinality`. A block is the number of columns
//! and of rows (varints), then per column its name, its type and its values one after the other, little-endian. No
//! block info precedes it: over HTTP the client revision is 0. A `LowCardinality` column is the version of its
//! serialization (1), a word of flags, the number of keys, the keys, the number of rows, and one index per row.
//!
//! The server takes the types from the block and converts where its table differs. It does not check the precision of
//! decimals: [`Klines`] must keep to it.

use std::ops::Range;

use archive::{Klines, ROW_BYTES, Volumes};

/// A row takes about this much of a block, in bytes.
pub const ROW_BYTES_ON_WIRE: u64 = ROW_BYTES as u64 + 14;

/// Rows of a full block. The server puts blocks together before it writes them; half a megabyte comes from memory that the
/// block before has left, where a larger one is given back to the system and taken anew, page by page.
pub const BLOCK_ROWS_MAX: usize = 4_096;

const COLUMNS: usize = 18;
const DATE_TIME: &str = "DateTime64(6, 'UTC')";
const NARROW: &str = "Decimal(18, 8)";
/// What the table has for volumes; a block whose volumes are all narrow has them like prices.
const WIDE: &str = "Decimal(38, 8)";
const LOW_CARDINALITY: &str = "LowCardinality(String)";

type VolumesOf = fn(&Klines) -> &Volumes;
const VOLUMES: [(&str, VolumesOf); 4] = [
    ("volume", |klines| &klines.volume),
    ("quote_volume", |klines| &klines.quote_volume),
    ("taker_buy_volume", |klines| &klines.taker_buy_volume),
    ("taker_buy_quote_volume", |klines| &klines.taker_buy_quote_volume),
];

/// Names and types take about this much of a block, in bytes.
const HEADINGS_BYTES: usize = 1024;

/// `SharedDictionariesWithAdditionalKeys`, the one version there is.
const LOW_CARDINALITY_VERSION: u64 = 1;
/// `HasAdditionalKeysBit | NeedUpdateDictionary`: the keys follow and belong to this block alone.
const LOW_CARDINALITY_FLAGS: u64 = 1 << 9 | 1 << 10;

/// The columns that are the same in every row of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnitColumns<'a> {
    pub exchange: &'a str,
    pub market: &'a str,
    pub dataset: &'a str,
    pub interval: &'a str,
}

/// Consecutive rows of one unit, symbol and version.
#[derive(Debug, Clone)]
pub struct Slice<'a> {
    pub unit: UnitColumns<'a>,
    pub symbol: &'a str,
    pub version: u64,
    pub rows: Rows<'a>,
}

#[derive(Debug, Clone)]
pub enum Rows<'a> {
    /// Rows `range` of what was decoded, with `is_deleted` 0.
    Klines { klines: &'a Klines, range: Range<usize> },
    /// Rows with `is_deleted` 1 for these open_times (µs); zero in every other column.
    Tombstones(&'a [i64]),
}

impl Rows<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Klines { range, .. } => range.len(),
            Self::Tombstones(open_times) => open_times.len(),
        }
    }

    fn are_narrow(&self, column: VolumesOf) -> bool {
        match self {
            Self::Klines { klines, .. } => matches!(column(klines), Volumes::Narrow(_)),
            Self::Tombstones(_) => true,
        }
    }
}

/// Blocks of the rows of `slices`, in their order, each of [`BLOCK_ROWS_MAX`] rows but the last; none for no rows.
///
/// The insert takes less work where slices are in the order of the table's key, that is by unit columns and symbol. Only
/// one block is in memory at a time: at most some 9 MiB.
///
/// # Panics
///
/// The iterator panics where a range is not within its klines.
pub fn blocks<'a>(slices: &'a [Slice<'a>]) -> Blocks<'a> {
    Blocks { slices, slice: 0, row: 0, rows_max: BLOCK_ROWS_MAX }
}

/// Iterator of encoded blocks, see [`blocks`].
#[derive(Debug)]
pub struct Blocks<'a> {
    slices: &'a [Slice<'a>],
    /// The next row to encode: `row` of `slices[slice]`.
    slice: usize,
    row: usize,
    rows_max: usize,
}

impl Iterator for Blocks<'_> {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        let parts = self.next_rows();
        (!parts.is_empty()).then(|| encode(&parts))
    }
}

impl<'a> Blocks<'a> {
    /// The parts of slices that make up the next block.
    fn next_rows(&mut self) -> Vec<Slice<'a>> {
        let mut parts = Vec::new();
        let mut capacity = self.rows_max;
        while capacity > 0
            && let Some(slice) = self.slices.get(self.slice)
        {
            let consumed = capacity.min(slice.rows.len() - self.row);
            let end = self.row + consumed;
            if consumed > 0 {
                let rows = match slice.rows {
                    Rows::Klines { klines, ref range } => {
                        Rows::Klines { klines, range: range.start + self.row..range.start + end }
                    }
                    Rows::Tombstones(open_times) => Rows::Tombstones(&open_times[self.row..end]),
                };
                parts.push(Slice { rows, ..slice.clone() });
            }
            capacity -= consumed;
            self.row = end;
            if end == slice.rows.len() {
                self.slice += 1;
                self.row = 0;
            }
        }
        parts
    }
}

fn encode(parts: &[Slice<'_>]) -> Vec<u8> {
    let rows = parts.iter().map(|part| part.rows.len()).sum();
    let narrow = VOLUMES.map(|(_, column)| parts.iter().all(|part| part.rows.are_narrow(column)));
    let saved = 8 * narrow.iter().filter(|narrow| **narrow).count();
    // Beside the klines a row has five dictionary indexes (usually one byte each), version and is_deleted.
    let bytes = HEADINGS_BYTES
        + rows * (ROW_BYTES - saved + 15)
        + parts.iter().map(|part| part.symbol.len() + 2).sum::<usize>();
    let mut block = Block { bytes: Vec::with_capacity(bytes), rows, parts };
    block.varint(COLUMNS);
    block.varint(rows);
    block.labels("exchange", |part| part.unit.exchange);
    block.labels("market", |part| part.unit.market);
    block.labels("dataset", |part| part.unit.dataset);
    block.labels("interval", |part| part.unit.interval);
    block.labels("symbol", |part| part.symbol);
    block.column("open_time", DATE_TIME);
    for part in parts {
        match &part.rows {
            Rows::Klines { klines, range } => block.values(&klines.open_time[range.clone()], i64::to_le_bytes),
            Rows::Tombstones(open_times) => block.values(open_times, i64::to_le_bytes),
        }
    }
    block.klines("close_time", DATE_TIME, |klines| &klines.close_time, i64::to_le_bytes);
    block.klines("open", NARROW, |klines| &klines.open, i64::to_le_bytes);
    block.klines("high", NARROW, |klines| &klines.high, i64::to_le_bytes);
    block.klines("low", NARROW, |klines| &klines.low, i64::to_le_bytes);
    block.klines("close", NARROW, |klines| &klines.close, i64::to_le_bytes);
    for ((name, column), narrow) in VOLUMES.into_iter().zip(narrow) {
        block.volumes(name, column, narrow);
    }
    block.klines("trades", "UInt64", |klines| &klines.trades, u64::to_le_bytes);
    block.column("version", "UInt64");
    for part in parts {
        block.repeat(&part.version.to_le_bytes(), part.rows.len());
    }
    block.column("is_deleted", "UInt8");
    for part in parts {
        block.repeat(&[u8::from(matches!(part.rows, Rows::Tombstones(_)))], part.rows.len());
    }
    block.bytes
}

struct Block<'a> {
    bytes: Vec<u8>,
    rows: usize,
    parts: &'a [Slice<'a>],
}

impl Block<'_> {
    fn varint(&mut self, mut value: usize) {
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }

    fn string(&mut self, text: &str) {
        self.varint(text.len());
        self.bytes.extend_from_slice(text.as_bytes());
    }

    fn column(&mut self, name: &str, column_type: &str) {
        self.string(name);
        self.string(column_type);
    }

    fn repeat(&mut self, value: &[u8], times: usize) {
        if let &[byte] = value {
            self.bytes.resize(self.bytes.len() + times, byte);
            return;
        }
        for _ in 0..times {
            self.bytes.extend_from_slice(value);
        }
    }

    fn values<T: Copy, const N: usize>(&mut self, values: &[T], to_le_bytes: impl Fn(T) -> [u8; N]) {
        let start = self.bytes.len();
        self.bytes.resize(start + values.len() * N, 0);
        let (places, _) = self.bytes[start..].as_chunks_mut();
        for (place, &value) in places.iter_mut().zip(values) {
            *place = to_le_bytes(value);
        }
    }

    /// A column of klines; zeros for tombstones.
    fn klines<T: Copy, const N: usize>(
        &mut self,
        name: &str,
        column_type: &str,
        column: fn(&Klines) -> &Vec<T>,
        to_le_bytes: impl Fn(T) -> [u8; N] + Copy,
    ) {
        self.column(name, column_type);
        for part in self.parts {
            match &part.rows {
                Rows::Klines { klines, range } => self.values(&column(klines)[range.clone()], to_le_bytes),
                Rows::Tombstones(open_times) => self.repeat(&[0; N], open_times.len()),
            }
        }
    }

    /// A column of volumes; zeros for tombstones.
    fn volumes(&mut self, name: &str, column: VolumesOf, narrow: bool) {
        self.column(name, if narrow { NARROW } else { WIDE });
        for part in self.parts {
            match &part.rows {
                Rows::Klines { klines, range } => match column(klines) {
                    Volumes::Narrow(values) if narrow => self.values(&values[range.clone()], i64::to_le_bytes),
                    Volumes::Narrow(values) => {
                        self.values(&values[range.clone()], |value| i128::from(value).to_le_bytes());
                    }
                    Volumes::Wide(values) => self.values(&values[range.clone()], i128::to_le_bytes),
                },
                Rows::Tombstones(open_times) if narrow => self.repeat(&[0; 8], open_times.len()),
                Rows::Tombstones(open_times) => self.repeat(&[0; 16], open_times.len()),
            }
        }
    }

    /// Everything of a `LowCardinality` column before its indexes, the width of which is that of [`index_bytes`].
    fn dictionary(&mut self, keys: &[&str]) {
        self.bytes.extend(LOW_CARDINALITY_VERSION.to_le_bytes());
        // The flags' low byte names the type of the indexes: 0 UInt8, 1 UInt16, 2 UInt32.
        let index_type = u64::from(index_bytes(keys.len()).trailing_zeros());
        self.bytes.extend((LOW_CARDINALITY_FLAGS | index_type).to_le_bytes());
        self.bytes.extend((keys.len() as u64).to_le_bytes());
        for key in keys {
            self.string(key);
        }
        self.bytes.extend((self.rows as u64).to_le_bytes());
    }

    /// A `LowCardinality` column of one text a part.
    fn labels(&mut self, name: &str, label: for<'s> fn(&Slice<'s>) -> &'s str) {
        // Parts of one label mostly follow each other; a key that appears twice does no harm but costs bytes.
        let mut keys: Vec<&str> = Vec::new();
        let mut key_of_part = Vec::with_capacity(self.parts.len());
        for part in self.parts {
            let label = label(part);
            if keys.last() != Some(&label) {
                keys.push(label);
            }
            key_of_part.push(keys.len() - 1);
        }
        self.column(name, LOW_CARDINALITY);
        self.dictionary(&keys);
        let index_bytes = index_bytes(keys.len());
        for (part, key) in self.parts.iter().zip(key_of_part) {
            self.repeat(&key.to_le_bytes()[..index_bytes], part.rows.len());
        }
    }
}

/// Width of the indexes into so many keys. There is at most one key per row, so that two bytes do for a block.
fn index_bytes(keys: usize) -> usize {
    if keys <= 1 << 8 { 1 } else { 2 }
}

#[cfg(test)]
mod tests;
