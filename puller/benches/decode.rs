//! Decoding alone, on one core: archives to rows, and archives to the blocks that are sent to ClickHouse.
//!
//! Throughput is in rows. Archives are those of the tests: spot, microseconds, eight decimals.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use puller::decode::{Decoded, Interval, Spec, decode};
use puller::native::{Rows, Slice, UnitColumns, blocks};
use tests::data::{ArchiveSpec, Market, period_bounds};

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
        let (period_start, period_end) = period_bounds(DAY).expect("a day");
        let interval_of_rows: Interval = interval.parse().expect("an interval of the exchange");
        Self {
            name: format!("{SYMBOL}-{interval}-{DAY}.zip"),
            zip: ArchiveSpec::new(Market::Spot, SYMBOL, interval, DAY).zip(),
            spec: Spec { interval: interval_of_rows, period_start, period_end, csv_bytes_max: 64 << 20 },
        }
    }

    fn rows(&self) -> Decoded {
        decode(&self.name, &self.zip, &self.spec).expect("the generator writes what the exchange does")
    }
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
