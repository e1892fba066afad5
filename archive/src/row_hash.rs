//! The hash ClickHouse's `cityHash64` gives a row, so that what was stored can be compared with what was decoded.
//!
//! From ClickHouse's `FunctionsHashing.h`: integers of up to 64 bits are hashed by `intHash64`; decimals, to which
//! `DateTime64` belongs, by CityHash64 1.0.2 over their little-endian bytes; the hashes of the arguments are combined
//! from left to right by `Hash128to64` of that CityHash. The values in the tests are those of a server.

use crate::klines::{Kline, Klines};
use crate::volumes::Volumes;

impl Klines {
    /// What ClickHouse computes for row `index` as `cityHash64` over the columns from `open_time` to `trades` in the
    /// order of [`Kline`]'s fields; 0 beyond the last row.
    pub fn row_hash(&self, index: usize) -> u64 {
        self.get(index).as_ref().map_or(0, hash_of)
    }

    /// Wrapping sum of all row hashes, as ClickHouse's `sum(cityHash64(…))`; independent of the order of rows.
    pub fn hash(&self) -> u64 {
        sum(self)
    }
}

/// Multiplier of CityHash's `Hash128to64`.
const K_MUL: u64 = 0x9ddf_ea08_eb38_2d69;

/// `cityHash64(open_time, close_time, open, high, low, close, volume, quote_volume, taker_buy_volume,
/// taker_buy_quote_volume, trades)`.
fn hash_of(row: &Kline) -> u64 {
    let arguments = [
        city_hash64_narrow(row.open_time),
        city_hash64_narrow(row.close_time),
        city_hash64_narrow(row.open),
        city_hash64_narrow(row.high),
        city_hash64_narrow(row.low),
        city_hash64_narrow(row.close),
        city_hash64_wide(row.volume),
        city_hash64_wide(row.quote_volume),
        city_hash64_wide(row.taker_buy_volume),
        city_hash64_wide(row.taker_buy_quote_volume),
        int_hash64(row.trades),
    ];
    let [first, rest @ ..] = arguments;
    rest.into_iter().fold(first, hash_128_to_64)
}

/// Rows that [`sum`] hashes side by side.
const LANES: usize = 32;

/// Sum of [`hash_of`] over all rows, wrapping.
///
/// Column by column, for some rows at a time: the steps of one row wait for each other, those of several do not.
fn sum(klines: &Klines) -> u64 {
    let narrow = [&klines.close_time, &klines.open, &klines.high, &klines.low, &klines.close];
    let wide = [&klines.volume, &klines.quote_volume, &klines.taker_buy_volume, &klines.taker_buy_quote_volume];
    let mut sum = 0_u64;
    for start in (0..klines.len()).step_by(LANES) {
        let rows = start..klines.len().min(start + LANES);
        let mut hashes = [0; LANES];
        let hashes = &mut hashes[..rows.len()];
        for (hash, value) in hashes.iter_mut().zip(&klines.open_time[rows.clone()]) {
            *hash = city_hash64_narrow(*value);
        }
        for column in narrow {
            combine(hashes, &column[rows.clone()], city_hash64_narrow);
        }
        for column in wide {
            match column {
                Volumes::Narrow(values) => {
                    combine(hashes, &values[rows.clone()], |value| city_hash64_wide(value.into()));
                }
                Volumes::Wide(values) => combine(hashes, &values[rows.clone()], city_hash64_wide),
            }
        }
        combine(hashes, &klines.trades[rows], int_hash64);
        sum = hashes.iter().fold(sum, |sum, hash| sum.wrapping_add(*hash));
    }
    sum
}

#[inline(always)]
fn combine<T: Copy>(hashes: &mut [u64], values: &[T], hash_of: impl Fn(T) -> u64) {
    for (hash, value) in hashes.iter_mut().zip(values) {
        *hash = hash_128_to_64(*hash, hash_of(*value));
    }
}

/// ClickHouse's `intHash64`: the finaliser of MurmurHash3 after a constant.
fn int_hash64(value: u64) -> u64 {
    let mut hash = value ^ 0x4cf2_d2ba_ae6d_a887;
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

/// CityHash64 of the 8 bytes of a narrow decimal or a time: its `HashLen0to16` for a length of 8.
fn city_hash64_narrow(value: i64) -> u64 {
    let bits = value.cast_unsigned();
    let (low, high) = (bits & 0xffff_ffff, bits >> 32);
    hash_128_to_64(8 + (low << 3), high)
}

/// CityHash64 of the 16 bytes of a wide decimal: its `HashLen0to16` for a length of 16.
fn city_hash64_wide(value: i128) -> u64 {
    let bits = value.cast_unsigned();
    let (low, high) = (bits as u64, (bits >> 64) as u64);
    hash_128_to_64(low, high.wrapping_add(16).rotate_right(16)) ^ high
}

fn hash_128_to_64(low: u64, high: u64) -> u64 {
    let mut a = (low ^ high).wrapping_mul(K_MUL);
    a ^= a >> 47;
    let mut b = (high ^ a).wrapping_mul(K_MUL);
    b ^= b >> 47;
    b.wrapping_mul(K_MUL)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values are what ClickHouse 26.9.2.1 answered for `cityHash64` of the row.
    #[test]
    fn many_rows_hash_as_each_of_them() {
        for rows in [0, 1, LANES - 1, LANES, LANES + 1, 3 * LANES + 7] {
            let mut klines = Klines::default();
            for row in 0..rows as i64 {
                klines.push(&Kline {
                    open_time: row * 60_000_000,
                    close_time: row * 60_000_000 + 59_999_999,
                    open: row,
                    high: row * 3 + 1,
                    low: -row,
                    close: row ^ 0x5555,
                    volume: i128::from(row) << 70,
                    quote_volume: -i128::from(row),
                    taker_buy_volume: 1,
                    taker_buy_quote_volume: i128::from(row) * 77,
                    trades: row as u64 * 5,
                });
            }
            let each = klines.iter().fold(0_u64, |sum, row| sum.wrapping_add(hash_of(&row)));
            assert_eq!(sum(&klines), each, "{rows} rows");
        }
    }

    #[test]
    fn rows_hash_as_in_clickhouse() {
        let check = |times: [i64; 2], prices: [i64; 4], volumes: [i128; 4], trades: u64, expected: u64| {
            let [open_time, close_time] = times;
            let [open, high, low, close] = prices;
            let [volume, quote_volume, taker_buy_volume, taker_buy_quote_volume] = volumes;
            let row = Kline {
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
            };
            assert_eq!(hash_of(&row), expected, "{row:?}");
        };
        check([0; 2], [0; 4], [0; 4], 0, 15_400_621_625_468_723_323);
        check(
            [1_704_067_200_000_000, 1_704_067_259_999_000],
            [4_228_358_000_000, 4_229_820_000_000, 4_226_102_000_000, 4_229_820_000_000],
            [3_592_724_000, 151_914_195_590_920, 1_984_262_000, 83_906_139_087_480],
            1_327,
            14_465_220_879_633_119_988,
        );
        let largest = 10_i128.pow(38) - 1;
        check(
            [1_609_459_200_000_000, 1_609_459_259_999_999],
            [-1, -999_999_999_999_999_999, 999_999_999_999_999_999, -12_345_678_901],
            [-1, largest, -largest, 123_456_789_012_345_678_901_234_567_890],
            u64::MAX,
            7_719_086_442_609_629_509,
        );
    }
}
