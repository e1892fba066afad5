//! A block of table `klines` in ClickHouse's Native format.

use super::decode::Rows;

/// Whole archives that go into one block.
#[derive(Default)]
pub(super) struct Block {
    symbols: Vec<String>,
    parts: Vec<Rows>,
    rows: usize,
}

impl Block {
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn add(&mut self, symbol: &str, rows: Rows) {
        self.rows += rows.open_time.len();
        self.symbols.push(symbol.to_owned());
        self.parts.push(rows);
    }

    pub(super) fn encode(&self, interval: &str) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(1024 + self.rows * 140);
        varint(&mut bytes, 18);
        varint(&mut bytes, self.rows);
        for (name, value) in
            [("exchange", "binance"), ("market", "spot"), ("dataset", "klines"), ("interval", interval)]
        {
            self.dictionary(&mut bytes, name, &[value.to_owned()], |_| 0);
        }
        self.dictionary(&mut bytes, "symbol", &self.symbols, |part| part);
        const TIME: &str = "DateTime64(6, 'UTC')";
        self.column(&mut bytes, "open_time", TIME, |rows| &rows.open_time, i64::to_le_bytes);
        self.column(&mut bytes, "close_time", TIME, |rows| &rows.close_time, i64::to_le_bytes);
        for (number, name) in ["open", "high", "low", "close"].into_iter().enumerate() {
            self.column(&mut bytes, name, "Decimal(18, 8)", |rows| &rows.prices[number], i64::to_le_bytes);
        }
        let volumes = ["volume", "quote_volume", "taker_buy_volume", "taker_buy_quote_volume"];
        for (number, name) in volumes.into_iter().enumerate() {
            self.column(&mut bytes, name, "Decimal(38, 8)", |rows| &rows.volumes[number], i128::to_le_bytes);
        }
        self.column(&mut bytes, "trades", "UInt64", |rows| &rows.trades, u64::to_le_bytes);
        heading(&mut bytes, "version", "UInt64");
        bytes.extend(std::iter::repeat_n(1_u64.to_le_bytes(), self.rows).flatten());
        heading(&mut bytes, "is_deleted", "UInt8");
        bytes.resize(bytes.len() + self.rows, 0);
        bytes
    }

    fn column<T: Copy, const N: usize>(
        &self,
        bytes: &mut Vec<u8>,
        name: &str,
        kind: &str,
        values: impl Fn(&Rows) -> &Vec<T>,
        to_le_bytes: fn(T) -> [u8; N],
    ) {
        heading(bytes, name, kind);
        for part in &self.parts {
            bytes.extend(values(part).iter().flat_map(|&value| to_le_bytes(value)));
        }
    }

    /// A `LowCardinality(String)`: its keys, then two bytes of index a row.
    fn dictionary(&self, bytes: &mut Vec<u8>, name: &str, keys: &[String], key_of_part: impl Fn(usize) -> usize) {
        heading(bytes, name, "LowCardinality(String)");
        // Version; then the type of the indexes (UInt16), own keys, a dictionary of this block alone.
        for word in [1, 1 | 1 << 9 | 1 << 10, keys.len() as u64] {
            bytes.extend(u64::to_le_bytes(word));
        }
        for key in keys {
            varint(bytes, key.len());
            bytes.extend_from_slice(key.as_bytes());
        }
        bytes.extend((self.rows as u64).to_le_bytes());
        for (number, part) in self.parts.iter().enumerate() {
            let index = (key_of_part(number) as u16).to_le_bytes();
            bytes.extend(std::iter::repeat_n(index, part.open_time.len()).flatten());
        }
    }
}

fn heading(bytes: &mut Vec<u8>, name: &str, kind: &str) {
    for text in [name, kind] {
        varint(bytes, text.len());
        bytes.extend_from_slice(text.as_bytes());
    }
}

fn varint(bytes: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}
