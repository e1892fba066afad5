//! Decoded rows, one vector per column.

use std::mem::size_of;

use crate::volumes::Volumes;

/// Most memory one row takes in [`Klines`], in bytes.
pub const ROW_BYTES: usize = 6 * size_of::<i64>() + 4 * size_of::<i128>() + size_of::<u64>();

/// Rows of one archive, in ascending order of open_time; all columns have the same length.
///
/// Times are µs since the epoch (`DateTime64(6, 'UTC')`); prices are scaled by 10^8 and below 10^18 in magnitude
/// (`Decimal(18, 8)`), for volumes see [`Volumes`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Klines {
    pub open_time: Vec<i64>,
    pub close_time: Vec<i64>,
    pub open: Vec<i64>,
    pub high: Vec<i64>,
    pub low: Vec<i64>,
    pub close: Vec<i64>,
    pub volume: Volumes,
    pub quote_volume: Volumes,
    pub taker_buy_volume: Volumes,
    pub taker_buy_quote_volume: Volumes,
    pub trades: Vec<u64>,
}

/// One row, in the units of [`Klines`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kline {
    pub open_time: i64,
    pub close_time: i64,
    pub open: i64,
    pub high: i64,
    pub low: i64,
    pub close: i64,
    pub volume: i128,
    pub quote_volume: i128,
    pub taker_buy_volume: i128,
    pub taker_buy_quote_volume: i128,
    pub trades: u64,
}

impl Klines {
    pub fn with_capacity(rows: usize) -> Self {
        Self {
            open_time: Vec::with_capacity(rows),
            close_time: Vec::with_capacity(rows),
            open: Vec::with_capacity(rows),
            high: Vec::with_capacity(rows),
            low: Vec::with_capacity(rows),
            close: Vec::with_capacity(rows),
            volume: Volumes::with_capacity(rows),
            quote_volume: Volumes::with_capacity(rows),
            taker_buy_volume: Volumes::with_capacity(rows),
            taker_buy_quote_volume: Volumes::with_capacity(rows),
            trades: Vec::with_capacity(rows),
        }
    }

    pub fn len(&self) -> usize {
        self.open_time.len()
    }

    pub fn is_empty(&self) -> bool {
        self.open_time.is_empty()
    }

    pub fn first_open_time(&self) -> Option<i64> {
        self.open_time.first().copied()
    }

    pub fn last_open_time(&self) -> Option<i64> {
        self.open_time.last().copied()
    }

    /// Memory held by the columns, in bytes.
    pub fn heap_bytes(&self) -> usize {
        let narrow = [&self.open_time, &self.close_time, &self.open, &self.high, &self.low, &self.close];
        let wide = [&self.volume, &self.quote_volume, &self.taker_buy_volume, &self.taker_buy_quote_volume];
        narrow.iter().map(|column| column.capacity() * size_of::<i64>()).sum::<usize>()
            + wide.iter().map(|column| column.heap_bytes()).sum::<usize>()
            + self.trades.capacity() * size_of::<u64>()
    }

    pub fn push(&mut self, row: &Kline) {
        self.open_time.push(row.open_time);
        self.close_time.push(row.close_time);
        self.open.push(row.open);
        self.high.push(row.high);
        self.low.push(row.low);
        self.close.push(row.close);
        self.volume.push(row.volume);
        self.quote_volume.push(row.quote_volume);
        self.taker_buy_volume.push(row.taker_buy_volume);
        self.taker_buy_quote_volume.push(row.taker_buy_quote_volume);
        self.trades.push(row.trades);
    }

    /// Row `index`, counted from 0; none beyond the last.
    pub fn get(&self, index: usize) -> Option<Kline> {
        Some(Kline {
            open_time: *self.open_time.get(index)?,
            close_time: *self.close_time.get(index)?,
            open: *self.open.get(index)?,
            high: *self.high.get(index)?,
            low: *self.low.get(index)?,
            close: *self.close.get(index)?,
            volume: self.volume.get(index)?,
            quote_volume: self.quote_volume.get(index)?,
            taker_buy_volume: self.taker_buy_volume.get(index)?,
            taker_buy_quote_volume: self.taker_buy_quote_volume.get(index)?,
            trades: *self.trades.get(index)?,
        })
    }

    pub fn iter(&self) -> impl Iterator<Item = Kline> + '_ {
        (0..self.len()).filter_map(|index| self.get(index))
    }

    /// Rows in the order of `permutation`, which holds every index once.
    pub(crate) fn permuted(&self, permutation: &[usize]) -> Self {
        let mut klines = Self::with_capacity(permutation.len());
        for row in permutation.iter().filter_map(|&index| self.get(index)) {
            klines.push(&row);
        }
        klines
    }
}
