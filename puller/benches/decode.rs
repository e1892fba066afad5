//! Decoding alone, on one core: archives to rows, and archives to the blocks that are sent to ClickHouse.
//!
//! Throughput is in rows. Archives are made here as the exchange makes those of spot: microseconds, eight decimals.

use std::fmt::Write as _;
use std::hint::black_box;
use std::io::{Cursor, Write as _};
use std::time::Duration;

use archive::{Decoded, Interval, Spec, decode};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use jiff::SignedDuration;
use puller::native::{Rows, Slice, UnitColumns, blocks};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

const SYMBOL: &str = "BTCUSDT";
const DAY: &str = "2026-02-14";
const UNIT: UnitColumns<'_> = UnitColumns { exchange: "binance", market: "spot", dataset: "klines", interval: "1m" };

struct Archive {
    name: String,
    zip: Vec<u8>,
    spec: Spec,
}

impl Archive {
    fn day(interval: &str) -> Self {
        let interval_of_rows: Interval = interval.parse().expect("an interval of the exchange");
        let period_start = format!("{DAY}T00:00:00Z").parse().expect("a time");
        let spec = Spec {
            interval: interval_of_rows,
            period_start,
            period_end: period_start + SignedDuration::from_hours(24),
            csv_bytes_max: 64 << 20,
            rows_max: 1 << 20,
        };
        let stem = format!("{SYMBOL}-{interval}-{DAY}");
        let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
        writer.start_file(format!("{stem}.csv"), SimpleFileOptions::default()).expect("a member");
        writer.write_all(csv(&spec).as_bytes()).expect("memory is written");
        let zip = writer.finish().expect("a directory").into_inner();
        Self { name: format!("{stem}.zip"), zip, spec }
    }

    fn rows(&self) -> Decoded {
        decode(&self.name, &self.zip, &self.spec).expect("the generator writes what the exchange does")
    }
}

/// A price that goes up and down, and amounts without a pattern.
fn csv(spec: &Spec) -> String {
    let rows = spec.interval.expected_rows(spec.period_start, spec.period_end) as i64;
    let (start, end) = (spec.period_start.as_microsecond(), spec.period_end.as_microsecond());
    let length = (end - start) / rows;
    // xorshift: noise that can be made again.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = |limit: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % limit
    };
    let decimal = |value: u64, scale: u64| format!("{}.{:08}", value / scale, value % scale * (100_000_000 / scale));
    let (mut text, mut close) = (String::new(), 6_425_000_u64);
    for row in 0..rows {
        let open_time = start + row * length;
        let (open, volume) = (close, below(2_500_000));
        close = open + below(2_001) - 1_000;
        let (high, low) = (open.max(close) + below(500), open.min(close) - below(500));
        let [open, high, low, close] = [open, high, low, close].map(|price| decimal(price, 100));
        let (taker, trades) = (below(volume + 1), below(9_000));
        let (quote, taker_quote) = (below(100_000_000_000), below(50_000_000_000));
        writeln!(
            text,
            "{open_time},{open},{high},{low},{close},{},{},{},{trades},{},{},0",
            decimal(volume, 100_000),
            open_time + length - 1,
            decimal(quote, 10_000_000),
            decimal(taker, 100_000),
            decimal(taker_quote, 10_000_000),
        )
        .expect("a text takes everything");
    }
    text
}

fn block_bytes(decoded: &Decoded) -> usize {
    let rows = Rows::Klines { klines: &decoded.klines, range: 0..decoded.klines.len() };
    let slices = [Slice { unit: UNIT, symbol: SYMBOL, version: 1_771_116_240_000, rows }];
    blocks(&slices).map(|block| black_box(block).len()).sum()
}

fn days(criterion: &mut Criterion) {
    for interval in ["1h", "1m", "1s"] {
        let archive = Archive::day(interval);
        let mut group = criterion.benchmark_group(format!("day of {interval}"));
        group.throughput(Throughput::Elements(archive.rows().klines.len() as u64));
        group.bench_function("zip to rows", |bencher| bencher.iter(|| archive.rows()));
        group.bench_function("zip to rows and their hash", |bencher| bencher.iter(|| archive.rows().klines.hash()));
        group.bench_function("zip to native blocks", |bencher| bencher.iter(|| block_bytes(&archive.rows())));
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(2));
    targets = days
}
criterion_main!(benches);
