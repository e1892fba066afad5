//! Candles that look like a market: exact integers, in units of 1e-8, from smooth noise.

use super::spec::{ArchiveSpec, Market, Record};

/// 1.0 in the units used here.
const ONE: i128 = 100_000_000;
const MINUTE_US: i64 = 60_000_000;

/// What tells one symbol's numbers from another's.
struct Character {
    price: f64,
    /// Smallest step of the price and of the amount, as a number of decimals.
    price_decimals: u32,
    amount_decimals: u32,
    /// Traded in a usual minute.
    amount: f64,
    /// Out of 100 minutes, this many see no trade.
    idle_percent: u64,
}

fn character(symbol: &str) -> Character {
    let (price, price_decimals, amount_decimals, amount, idle_percent) = match symbol {
        _ if symbol.starts_with("BTC") => (64_250.0, 2, 5, 21.5, 0),
        _ if symbol.starts_with("ETH") => (3_120.0, 2, 4, 340.0, 0),
        _ if symbol.starts_with("SOL") => (148.0, 2, 3, 4_100.0, 1),
        // Billions a minute at a price of eight decimals: past what 64 bits hold at that scale within a day.
        _ if symbol.starts_with("PEPE") => (0.000_011_37, 8, 0, 9.0e9, 2),
        _ => (0.8431, 4, 1, 52_000.0, 12),
    };
    Character { price, price_decimals, amount_decimals, amount, idle_percent }
}

pub(super) fn record(spec: &ArchiveSpec, open_time: i64, next_open_time: i64) -> Record {
    let noise = Noise::new(spec, open_time);
    let mut character = character(&spec.symbol);
    if spec.market != Market::Spot {
        // Futures have coarser steps.
        character.price_decimals = character.price_decimals.saturating_sub(1).max(1);
        character.amount_decimals = character.amount_decimals.min(3);
    }
    let values = match spec.dataset.as_str() {
        "klines" => traded(spec.market, &character, &noise, open_time, next_open_time),
        "premiumIndexKlines" => index(premium_prices(&noise, open_time, next_open_time)),
        _ => index(prices(&character, &noise, open_time, next_open_time)),
    };
    let (per_unit, tick) = if spec.micros { (1, 1) } else { (1000, 1000) };
    let fixed = |value: i128| decimal(value, 8, 8);
    let natural = |value: i128, least: u32| {
        // The exchange drops the decimals of a round number in some rows and not in others.
        let least = if noise.pick(20).is_multiple_of(3) { 0 } else { least };
        decimal(value, 8, least)
    };
    let text = |value: i128, least: u32| if spec.fixed_decimals { fixed(value) } else { natural(value, least) };
    let price = |value: i128| text(value, character.price_decimals);
    [
        (open_time / per_unit).to_string(),
        price(values.open),
        price(values.high),
        price(values.low),
        price(values.close),
        text(values.volume, character.amount_decimals),
        ((next_open_time - tick) / per_unit).to_string(),
        text(values.quote_volume, 5),
        values.count.to_string(),
        text(values.taker_volume, character.amount_decimals),
        text(values.taker_quote_volume, 5),
        "0".to_owned(),
    ]
}

#[derive(Default)]
struct Values {
    open: i128,
    high: i128,
    low: i128,
    close: i128,
    volume: i128,
    quote_volume: i128,
    taker_volume: i128,
    taker_quote_volume: i128,
    count: u64,
}

fn traded(market: Market, character: &Character, noise: &Noise, open_time: i64, next: i64) -> Values {
    let prices = prices(character, noise, open_time, next);
    let minutes = (next - open_time).max(MINUTE_US) / MINUTE_US;
    if minutes < 60 && noise.pick(1) % 100 < character.idle_percent {
        // Nobody traded: the last price carried on, and zeros.
        let last = prices.open;
        return Values { open: last, high: last, low: last, close: last, ..Values::default() };
    }
    // Most minutes are below the usual, some far above.
    let swing = 0.05 + 8.0 * noise.fraction(2).powi(4);
    let amount = character.amount * swing * minutes as f64;
    let taker_share = (noise.fraction(3) * 1000.0) as i128;
    let middle = (prices.open + prices.close) / 2;
    let count = 1 + (amount.sqrt() as u64) % 900_000;
    if market == Market::Cm {
        let contracts = (amount / 10.0).ceil() as i128 * ONE;
        let contract_value = if character.price > 10_000.0 { 100 } else { 10 };
        let in_base = |contracts: i128| contracts * contract_value * ONE / middle;
        let taker = contracts / ONE * taker_share / 1000 * ONE;
        return Values {
            volume: contracts,
            quote_volume: in_base(contracts),
            taker_volume: taker,
            taker_quote_volume: in_base(taker),
            count,
            ..prices
        };
    }
    let lot = 10i128.pow(8 - character.amount_decimals);
    let volume = ((amount * ONE as f64) as i128 / lot).max(1) * lot;
    let taker_volume = volume / lot * taker_share / 1000 * lot;
    Values {
        volume,
        quote_volume: volume * middle / ONE,
        taker_volume,
        taker_quote_volume: taker_volume * middle / ONE,
        count,
        ..prices
    }
}

/// Mark and index prices: nothing is traded, but observations are counted.
fn index(prices: Values) -> Values {
    Values { count: 60, ..prices }
}

fn prices(character: &Character, noise: &Noise, open_time: i64, next: i64) -> Values {
    let step = 10i128.pow(8 - character.price_decimals);
    let at = |time: i64| {
        let price = character.price * (1.0 + 0.2 * noise.smooth(time));
        ((price * ONE as f64) as i128 / step).max(1) * step
    };
    let (open, close) = (at(open_time), at(next));
    let wick = |which: u64| (open / 2000) * i128::from(noise.pick(which) % 10) / 10 / step * step;
    Values {
        open,
        close,
        high: open.max(close) + wick(4),
        low: (open.min(close) - wick(5)).max(step),
        ..Values::default()
    }
}

/// A premium is a small number on either side of zero.
fn premium_prices(noise: &Noise, open_time: i64, next: i64) -> Values {
    let at = |time: i64| ((noise.smooth(time) + noise.jump(time)) * 0.001 * ONE as f64) as i128;
    let (open, close) = (at(open_time), at(next));
    Values { open, close, high: open.max(close) + 731, low: open.min(close) - 1_009, ..Values::default() }
}

struct Noise {
    series: u64,
    row: u64,
}

impl Noise {
    fn new(spec: &ArchiveSpec, open_time: i64) -> Noise {
        let name = [spec.market.name(), &spec.dataset, &spec.symbol].join("/");
        let series = name.bytes().fold(spec.seed, |hash, byte| mix(hash ^ u64::from(byte)));
        Noise { series, row: mix(series ^ mix(open_time.unsigned_abs())) }
    }

    fn pick(&self, which: u64) -> u64 {
        mix(self.row ^ mix(which))
    }

    /// 0 up to 1.
    fn fraction(&self, which: u64) -> f64 {
        unit(self.pick(which))
    }

    /// -1 to 1, another at each time.
    fn jump(&self, time_us: i64) -> f64 {
        2.0 * unit(mix(self.series ^ mix(time_us.unsigned_abs()))) - 1.0
    }

    /// -1 to 1, continuous in time: the sum of ramps between random points, at three scales.
    fn smooth(&self, time_us: i64) -> f64 {
        [(30 * 1440, 0.6), (1440, 0.3), (60, 0.1)]
            .into_iter()
            .map(|(minutes, weight)| {
                let scale = minutes * MINUTE_US;
                let (knot, rest) = (time_us.div_euclid(scale), time_us.rem_euclid(scale));
                let point = |knot: i64| unit(mix(self.series ^ mix(knot.unsigned_abs() ^ scale.unsigned_abs())));
                let (left, right) = (point(knot), point(knot + 1));
                weight * (2.0 * (left + (right - left) * rest as f64 / scale as f64) - 1.0)
            })
            .sum()
    }
}

fn unit(random: u64) -> f64 {
    (random >> 11) as f64 / (1u64 << 53) as f64
}

/// The finaliser of SplitMix64: every bit of the input changes half of the output's.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// `value`, of `scale` decimals, with at least `least` of them and no more than it needs.
fn decimal(value: i128, scale: usize, least: u32) -> String {
    let digits = format!("{:0>width$}", value.unsigned_abs(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    let needed = fraction.trim_end_matches('0').len();
    let fraction = &fraction[..needed.max(least as usize)];
    let sign = if value < 0 { "-" } else { "" };
    let point = if fraction.is_empty() { "" } else { "." };
    format!("{sign}{whole}{point}{fraction}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_decimals_as_the_exchange_does() {
        let check = |value, least, expect: &str| assert_eq!(decimal(value, 8, least), expect);
        check(0, 8, "0.00000000");
        check(0, 0, "0");
        check(156_130_000, 8, "1.56130000");
        check(156_130_000, 0, "1.5613");
        check(25_100_000, 4, "0.2510");
        check(-12_345, 0, "-0.00012345");
        check(28_397_100_000_000, 1, "283971.0");
    }
}
