//! Blocks read back by a reader of the format written for the purpose.

use super::*;
use archive::Kline;

const UNIT: UnitColumns<'_> = UnitColumns { exchange: "binance", market: "um", dataset: "klines", interval: "1h" };
const NAMES_AND_TYPES: [(&str, &str); COLUMNS] = [
    ("exchange", LOW_CARDINALITY),
    ("market", LOW_CARDINALITY),
    ("dataset", LOW_CARDINALITY),
    ("interval", LOW_CARDINALITY),
    ("symbol", LOW_CARDINALITY),
    ("open_time", "DateTime64(6, 'UTC')"),
    ("close_time", "DateTime64(6, 'UTC')"),
    ("open", "Decimal(18, 8)"),
    ("high", "Decimal(18, 8)"),
    ("low", "Decimal(18, 8)"),
    ("close", "Decimal(18, 8)"),
    ("volume", "Decimal(38, 8)"),
    ("quote_volume", "Decimal(38, 8)"),
    ("taker_buy_volume", "Decimal(38, 8)"),
    ("taker_buy_quote_volume", "Decimal(38, 8)"),
    ("trades", "UInt64"),
    ("version", "UInt64"),
    ("is_deleted", "UInt8"),
];

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn next_bytes(&mut self, bytes: usize) -> &[u8] {
        let (taken, rest) = self.0.split_at(bytes);
        self.0 = rest;
        taken
    }

    fn word(&mut self) -> u64 {
        u64::from_le_bytes(self.next_bytes(8).try_into().expect("eight bytes"))
    }

    fn varint(&mut self) -> usize {
        let byte = usize::from(self.next_bytes(1)[0]);
        if byte < 0x80 { byte } else { byte - 0x80 + (self.varint() << 7) }
    }

    fn string(&mut self) -> String {
        let bytes = self.varint();
        String::from_utf8(self.next_bytes(bytes).to_vec()).expect("UTF-8")
    }

    fn low_cardinality(&mut self, rows: usize) -> Vec<String> {
        assert_eq!(self.word(), 1, "version");
        let flags = self.word();
        assert_eq!(flags >> 8, 0b110, "additional keys, dictionary to be updated");
        let keys: Vec<String> = (0..self.word()).map(|_| self.string()).collect();
        assert_eq!(self.word(), rows as u64);
        let index_bytes = 1 << (flags & 0xff);
        let index = |bytes: &[u8]| bytes.iter().rev().fold(0, |index, &byte| index << 8 | usize::from(byte));
        (0..rows).map(|_| keys[index(self.next_bytes(index_bytes))].clone()).collect()
    }

    fn integers(&mut self, rows: usize, column_type: &str) -> Vec<String> {
        let narrow = |bytes: &[u8]| i64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        let wide = |bytes: &[u8]| i128::from_le_bytes(bytes.try_into().expect("sixteen bytes"));
        let integer = |_| match column_type {
            "UInt8" => self.next_bytes(1)[0].to_string(),
            "UInt64" => self.word().to_string(),
            WIDE => wide(self.next_bytes(16)).to_string(),
            _ => narrow(self.next_bytes(8)).to_string(),
        };
        (0..rows).map(integer).collect()
    }

    /// Rows of a block, the columns joined by spaces.
    fn block(mut self) -> Vec<String> {
        assert_eq!(self.varint(), COLUMNS);
        let rows = self.varint();
        let columns = NAMES_AND_TYPES.map(|(name, column_type)| {
            assert_eq!(self.string(), name);
            let found = self.string();
            assert!(found == column_type || (found.as_str(), column_type) == (NARROW, WIDE), "{name} {found}");
            if column_type == LOW_CARDINALITY { self.low_cardinality(rows) } else { self.integers(rows, &found) }
        });
        assert!(self.0.is_empty(), "bytes left over");
        (0..rows).map(|row| columns.each_ref().map(|column| column[row].as_str()).join(" ")).collect()
    }
}

/// Rows that are told apart by `number`, which is their open_time too.
fn klines(numbers: Range<i64>) -> Klines {
    let mut klines = Klines::default();
    for number in numbers {
        klines.push(&Kline {
            open_time: number,
            close_time: number + 1,
            open: -1,
            high: 2,
            low: i64::MIN,
            close: 4,
            volume: -5,
            quote_volume: i128::MAX,
            taker_buy_volume: 7,
            taker_buy_quote_volume: 8,
            trades: u64::MAX,
        });
    }
    klines
}

fn row_text(symbol: &str, number: i64, version: u64) -> String {
    row_text_of("1h", symbol, number, version)
}

fn row_text_of(interval: &str, symbol: &str, number: i64, version: u64) -> String {
    format!(
        "binance um klines {interval} {symbol} {number} {} -1 2 {} 4 -5 {} 7 8 {} {version} 0",
        number + 1,
        i64::MIN,
        i128::MAX,
        u64::MAX
    )
}

fn tombstone_text(symbol: &str, open_time: i64, version: u64) -> String {
    format!("binance um klines 1h {symbol} {open_time} 0 0 0 0 0 0 0 0 0 0 {version} 1")
}

/// Expects these rows in blocks of at most `rows_max`.
#[track_caller]
fn check(slices: &[Slice<'_>], rows_max: usize, expected: &[String]) {
    let blocks = Blocks { rows_max, ..blocks(slices) };
    let read: Vec<Vec<String>> = blocks.map(|block| Reader(&block).block()).collect();
    let expected: Vec<Vec<String>> = expected.chunks(rows_max).map(<[String]>::to_vec).collect();
    assert_eq!(read, expected);
}

#[test]
fn blocks_hold_the_rows_of_all_slices_in_order() {
    let (first, second) = (klines(0..6), klines(100..101));
    let slices = [
        Slice { unit: UNIT, symbol: "AUSDT", version: 7, rows: Rows::Klines { klines: &first, range: 1..5 } },
        Slice { unit: UNIT, symbol: "AUSDT", version: 8, rows: Rows::Tombstones(&[50, 60, 70]) },
        Slice { unit: UNIT, symbol: "NONE", version: 9, rows: Rows::Klines { klines: &first, range: 6..6 } },
        Slice {
            unit: UNIT,
            symbol: "币安人生USDT",
            version: u64::MAX,
            rows: Rows::Klines { klines: &second, range: 0..1 },
        },
    ];
    let mut expected: Vec<String> = (1..5).map(|number| row_text("AUSDT", number, 7)).collect();
    expected.extend([50, 60, 70].map(|open_time| tombstone_text("AUSDT", open_time, 8)));
    expected.push(row_text("币安人生USDT", 100, u64::MAX));
    for rows_max in 1..=9 {
        check(&slices, rows_max, &expected);
    }
}

#[test]
fn volumes_are_as_wide_as_the_widest_of_the_block() {
    let rows = |volume: i128| {
        let mut klines = Klines::default();
        let [open_time, close_time, open, high, low, close] = [1, 2, 3, 4, 5, 6];
        let (quote_volume, taker_buy_volume, taker_buy_quote_volume, trades) = (7, 8, 9, 10);
        klines.push(&Kline {
            open_time,
            close_time,
            open,
            high,
            low,
            close,
            volume,
            quote_volume,
            taker_buy_volume,
            taker_buy_quote_volume,
            trades,
        });
        klines
    };
    let limit = 10_i128.pow(18);
    for (volumes, types) in [([limit - 1, 1 - limit], [0, 8]), ([-3, -limit], [1, 7])] {
        let both = volumes.map(rows);
        let slice = |klines| Slice { unit: UNIT, symbol: "A", version: 7, rows: Rows::Klines { klines, range: 0..1 } };
        let slices = [slice(&both[0]), slice(&both[1])];
        let text = |volume| format!("binance um klines 1h A 1 2 3 4 5 6 {volume} 7 8 9 10 7 0");
        check(&slices, 2, &volumes.map(text));
        let block = blocks(&slices).next().expect("a block");
        let count = |name: &str| block.windows(name.len()).filter(|bytes| *bytes == name.as_bytes()).count();
        assert_eq!([count(WIDE), count(NARROW)], types, "{volumes:?}");
    }
}

#[test]
fn a_block_may_hold_rows_of_several_units() {
    let rows = klines(0..2);
    let other = UnitColumns { interval: "1m", ..UNIT };
    let slices = [UNIT, other, UNIT].map(|unit| Slice {
        unit,
        symbol: "AUSDT",
        version: 1,
        rows: Rows::Klines { klines: &rows, range: 0..2 },
    });
    let expected: Vec<String> = ["1h", "1m", "1h"]
        .iter()
        .flat_map(|interval| (0..2).map(|number| row_text_of(interval, "AUSDT", number, 1)))
        .collect();
    for rows_max in 1..=6 {
        check(&slices, rows_max, &expected);
    }
}

#[test]
fn symbols_get_indexes_as_wide_as_needed() {
    for symbols in [1, 255, 256, 257, 600] {
        let rows = klines(0..symbols);
        let names: Vec<String> = (0..symbols).map(|number| format!("S{number}USDT")).collect();
        let slice = |(at, name)| Slice {
            unit: UNIT,
            symbol: name,
            version: 1,
            rows: Rows::Klines { klines: &rows, range: at..at + 1 },
        };
        let slices: Vec<Slice<'_>> = names.iter().map(String::as_str).enumerate().map(slice).collect();
        let expected: Vec<String> = names.iter().zip(0..).map(|(name, number)| row_text(name, number, 1)).collect();
        check(&slices, BLOCK_ROWS_MAX, &expected);
    }
}

#[test]
fn no_rows_make_no_block() {
    assert_eq!(blocks(&[]).count(), 0);
    let nothing = [Slice { unit: UNIT, symbol: "AUSDT", version: 1, rows: Rows::Tombstones(&[]) }];
    assert_eq!(blocks(&nothing).count(), 0);
}

#[test]
fn a_block_takes_the_memory_reserved_for_it() {
    let rows = klines(0..BLOCK_ROWS_MAX as i64 + 1);
    let slices =
        [Slice { unit: UNIT, symbol: "AUSDT", version: 1, rows: Rows::Klines { klines: &rows, range: 0..rows.len() } }];
    let blocks: Vec<Vec<u8>> = blocks(&slices).collect();
    assert_eq!(blocks.len(), 2);
    for block in blocks {
        assert!(block.capacity() < 9 << 20, "{} bytes", block.capacity());
        assert!(block.len() + 2 * HEADINGS_BYTES + BLOCK_ROWS_MAX >= block.capacity(), "reserved too much");
    }
}
