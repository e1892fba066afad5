//! What an archive is to be like.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::time::{Interval, period_bounds};

/// One line of an archive, as text.
pub type Record = [String; 12];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Market {
    Spot,
    Um,
    Cm,
}

impl Market {
    pub fn name(self) -> &'static str {
        match self {
            Market::Spot => "spot",
            Market::Um => "um",
            Market::Cm => "cm",
        }
    }

    /// Below `data/`.
    pub fn folder(self) -> &'static str {
        match self {
            Market::Spot => "spot",
            Market::Um => "futures/um",
            Market::Cm => "futures/cm",
        }
    }
}

/// One archive to be made. The defaults are what the exchange does today:
///
/// | | header | times | decimals |
/// |---|---|---|---|
/// | spot | none | ms before 2025-01-01, µs from then | always 8 |
/// | um | yes | ms | as many as needed |
/// | cm | yes | ms | as many as needed; volume in contracts, quote volume in the base asset |
#[derive(Clone, Debug)]
pub struct ArchiveSpec {
    pub(super) market: Market,
    pub(super) dataset: String,
    pub(super) symbol: String,
    pub(super) interval: String,
    pub(super) period: String,
    pub(super) generated_at: Timestamp,
    pub(super) seed: u64,
    pub(super) missing: BTreeSet<usize>,
    pub(super) rows_at_most: usize,
    pub(super) crlf: bool,
    pub(super) header: bool,
    pub(super) fixed_decimals: bool,
    pub(super) micros: bool,
}

impl ArchiveSpec {
    /// # Panics
    /// When interval or period is none that the exchange has.
    pub fn new(market: Market, symbol: &str, interval: &str, period: &str) -> ArchiveSpec {
        let (start, end) = period_bounds(period).unwrap_or_else(|| panic!("{period:?} is no period"));
        assert!(Interval::parse(interval).is_some(), "{interval:?} is no interval");
        let micros_since: Timestamp = "2025-01-01T00:00:00Z".parse().expect("a valid time");
        ArchiveSpec {
            market,
            dataset: "klines".to_owned(),
            symbol: symbol.to_owned(),
            interval: interval.to_owned(),
            period: period.to_owned(),
            // The median of what was measured: three quarters of an hour after the period's end.
            generated_at: end + jiff::SignedDuration::from_mins(44),
            seed: 0,
            missing: BTreeSet::new(),
            rows_at_most: usize::MAX,
            crlf: false,
            header: market != Market::Spot,
            fixed_decimals: market == Market::Spot,
            micros: market == Market::Spot && start >= micros_since,
        }
    }

    /// `markPriceKlines`, `indexPriceKlines` or `premiumIndexKlines` instead of `klines`.
    pub fn dataset(mut self, dataset: &str) -> Self {
        self.dataset = dataset.to_owned();
        self
    }

    /// When the exchange made the archive, RFC 3339; the zip keeps even seconds only.
    ///
    /// # Panics
    /// When it is no time.
    pub fn generated_at(mut self, time: &str) -> Self {
        self.generated_at = time.parse().unwrap_or_else(|error| panic!("{time}: {error}"));
        self
    }

    /// Another seed, other values: a correction by the exchange.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Leaves out the rows at these places, as in an outage.
    pub fn missing(mut self, rows: impl IntoIterator<Item = usize>) -> Self {
        self.missing.extend(rows);
        self
    }

    /// Stops after so many rows: an archive published before its day was over.
    pub fn rows_at_most(mut self, rows: usize) -> Self {
        self.rows_at_most = rows;
        self
    }

    pub fn crlf(mut self) -> Self {
        self.crlf = true;
        self
    }

    pub fn header(mut self, header: bool) -> Self {
        self.header = header;
        self
    }

    pub fn natural_decimals(mut self) -> Self {
        self.fixed_decimals = false;
        self
    }

    pub fn micros(mut self, micros: bool) -> Self {
        self.micros = micros;
        self
    }

    pub fn market(&self) -> Market {
        self.market
    }

    pub fn symbol(&self) -> &str {
        &self.symbol
    }

    /// `binance/um/klines/1h/2026-02-14`, as on the command line.
    pub fn unit(&self) -> String {
        format!("binance/{}/{}/{}/{}", self.market.name(), self.dataset, self.interval, self.period)
    }

    /// `BTCUSDT-1h-2026-02-14`, the archive's name without an extension.
    pub fn stem(&self) -> String {
        format!("{}-{}-{}", self.symbol, self.interval, self.period)
    }

    /// Where the archive belongs, below data_dir; also the object key below the prefix.
    pub fn path(&self) -> String {
        format!(
            "data/{}/{}/{}/{}/{}/{}.zip",
            self.market.folder(),
            if self.period.len() == "2026-02".len() { "monthly" } else { "daily" },
            self.dataset,
            self.symbol,
            self.interval,
            self.stem()
        )
    }
}
