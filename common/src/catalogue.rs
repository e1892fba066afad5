//! The words of Binance's archives: closed sets, which the command line checks.

/// The exchange whose tree [`crate::layout`] knows.
pub const EXCHANGE: &str = "binance";
pub const EXCHANGES: [&str; 1] = [EXCHANGE];
/// Spot, USD-margined and coin-margined futures, each with its folder below `data/`.
pub const MARKET_FOLDERS: [(&str, &str); 3] = [("spot", "spot"), ("um", "futures/um"), ("cm", "futures/cm")];
pub const MARKETS: [&str; 3] = [MARKET_FOLDERS[0].0, MARKET_FOLDERS[1].0, MARKET_FOLDERS[2].0];
/// All of them are klines: archives of the same twelve columns.
pub const DATASETS: [&str; 4] = ["klines", "markPriceKlines", "indexPriceKlines", "premiumIndexKlines"];
/// By their length. All of them exist by month, those before `3d` by day too.
pub const INTERVALS: [&str; 16] =
    ["1s", "1m", "3m", "5m", "15m", "30m", "1h", "2h", "4h", "6h", "8h", "12h", "1d", "3d", "1w", "1mo"];

/// The place of an interval among all by length; unknown ones come last.
pub fn interval_rank(interval: &str) -> usize {
    INTERVALS.iter().position(|known| *known == interval).unwrap_or(INTERVALS.len())
}

/// A word of a closed set, as it stands there.
///
/// # Errors
/// It is none of them: what there is, and the nearest.
pub fn one_of(text: &str, values: &[&str]) -> Result<String, String> {
    if values.contains(&text) {
        return Ok(text.to_owned());
    }
    let lower = text.to_lowercase();
    let nearest = match (text, values.first()) {
        ("futures" | "usdm" | "usd-m" | "swap", Some(&"spot")) => Some(&"um"),
        ("coinm" | "coin-m" | "delivery", Some(&"spot")) => Some(&"cm"),
        _ => values.iter().min_by_key(|value| strsim::damerau_levenshtein(&value.to_lowercase(), &lower)),
    };
    let nearest = nearest.map(|nearest| format!("; did you mean {nearest}?")).unwrap_or_default();
    Err(format!("it is none of {}{nearest}", values.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_outside_a_closed_set_is_answered_with_the_nearest() {
        assert_eq!(one_of("um", &MARKETS), Ok("um".to_owned()));
        let check = |text: &str, values: &[&str], nearest: &str| {
            let refused = one_of(text, values).expect_err(text);
            assert!(refused.ends_with(&format!("did you mean {nearest}?")), "{text}: {refused}");
        };
        check("futures", &MARKETS, "um");
        check("SPOT", &MARKETS, "spot");
        check("1H", &INTERVALS, "1h");
        check("7h", &INTERVALS, "1h");
        check("kline", &DATASETS, "klines");
        check("markprice", &DATASETS, "markPriceKlines");
    }
}
