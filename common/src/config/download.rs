//! The section `download`: what `uploader download` fetches from the exchange.

use std::fmt;
use std::time::Duration;

use super::address::check_http;
use super::reader::Reader;
use crate::catalogue::{DATASETS, INTERVALS, MARKETS};
use crate::text::shorten;

/// Where the exchange serves its archives.
const BASE_URL: &str = "https://data.binance.vision";
/// The bucket behind [`BASE_URL`], which answers listings; the site in front of it does not.
const LIST_URL: &str = "https://s3-ap-northeast-1.amazonaws.com/data.binance.vision";

/// Whose archives are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Symbols {
    /// Whatever the exchange lists.
    All,
    /// In upper case, each once; empty: not configured.
    Listed(Vec<String>),
}

#[derive(Debug, Clone)]
pub struct Download {
    pub symbols: Symbols,
    pub intervals: Vec<String>,
    pub markets: Vec<String>,
    pub datasets: Vec<String>,
    /// Binance's tree lies below it.
    pub base_url: String,
    /// Answers the listings of an S3 bucket with the same tree.
    pub list_url: String,
    /// How often `uploader watch` looks for new archives; `None`: never.
    pub every: Option<Duration>,
    /// Archives of periods that ended no longer ago than this are asked for again.
    pub recheck_days: u32,
    /// How far back `uploader watch` looks for archives that never came.
    pub catch_up_days: u32,
    /// How long a connection may bring nothing.
    pub timeout: Duration,
}

impl Symbols {
    /// `all`, or names.
    pub fn parse(names: &[String]) -> Self {
        if names.iter().any(|name| name.eq_ignore_ascii_case("all")) {
            return Self::All;
        }
        let mut names: Vec<String> = names.iter().map(|name| name.to_ascii_uppercase()).collect();
        names.sort_unstable();
        names.dedup();
        Self::Listed(names)
    }

    pub fn is_set(&self) -> bool {
        *self != Self::Listed(Vec::new())
    }
}

impl Download {
    pub(super) fn read(r: &mut Reader) -> Self {
        let mut known = |key: &str, names: &[&str], default: &[&str]| {
            let found = r.strings(key);
            for name in &found {
                if !names.contains(&name.as_str()) {
                    r.problem(key, &format!("'{}' is not one of: {}", shorten(name), names.join(", ")));
                }
            }
            if found.is_empty() { default.iter().map(|&name| name.to_owned()).collect() } else { found }
        };
        let markets = known("download.market", &MARKETS, &[]);
        let datasets = known("download.datasets", &DATASETS, &DATASETS[..1]);
        let intervals = known("download.intervals", &INTERVALS, &[]);
        let base_url = url(r, "download.base_url").unwrap_or_else(|| BASE_URL.to_owned());
        let listed = url(r, "download.list_url");
        let every = r.is_set("download.every").then(|| r.duration("download.every", Duration::ZERO));
        if every.is_some_and(|every| every < Duration::from_secs(1)) {
            r.problem("download.every", "must be at least 1s");
        }
        let download = Self {
            symbols: symbols(r),
            intervals,
            markets,
            datasets,
            list_url: listed.unwrap_or_else(|| list_url(&base_url).to_owned()),
            base_url,
            every,
            recheck_days: r.integer("download.recheck_days", 3, 0, 36_500),
            catch_up_days: r.integer("download.catch_up_days", 30, 0, 366),
            timeout: r.duration("download.timeout", Duration::from_secs(30)),
        };
        if every.is_some() {
            for problem in download.missing() {
                r.problem(problem.key, problem.text);
            }
        }
        download
    }

    /// Asks another server; the one that lists goes with it, unless `download.list_url` said otherwise.
    pub fn set_base_url(&mut self, base_url: &str) -> Result<(), String> {
        check_http(base_url, BASE_URL)?;
        if self.list_url == list_url(&self.base_url) {
            self.list_url = list_url(base_url).to_owned();
        }
        self.base_url = base_url.to_owned();
        Ok(())
    }

    /// What must be set before anything can be fetched, and is not.
    pub fn missing(&self) -> Vec<Missing> {
        [
            (self.symbols.is_set(), "download.symbols", "is not set (a list of symbols, or all)"),
            (!self.markets.is_empty(), "download.market", "is not set (spot, um, cm: one or several)"),
            (!self.intervals.is_empty(), "download.intervals", "is not set (e.g. [1m, 1h])"),
        ]
        .into_iter()
        .filter(|(set, ..)| !set)
        .map(|(_, key, text)| Missing { key, text })
        .collect()
    }
}

fn symbols(r: &mut Reader) -> Symbols {
    const KEY: &str = "download.symbols";
    let names = r.strings(KEY);
    // What is no list is one long name, for which everybody would wait.
    let is_separator = |c: char| c.is_whitespace() || c.is_control() || "[](){};,|/\\\"'".contains(c);
    for name in names.iter().filter(|name| name.is_empty() || name.contains(is_separator)) {
        r.problem(KEY, &format!("'{}' is no symbol; write [BTCUSDT, ETHUSDT], or BTCUSDT,ETHUSDT", shorten(name)));
    }
    Symbols::parse(&names)
}

/// A key without which nothing can be fetched.
#[derive(Debug)]
pub struct Missing {
    key: &'static str,
    text: &'static str,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.text)
    }
}

/// A mirror is taken to be a bucket that answers listings itself.
fn list_url(base_url: &str) -> &str {
    if base_url.trim_end_matches('/') == BASE_URL { LIST_URL } else { base_url }
}

fn url(r: &mut Reader, key: &str) -> Option<String> {
    let url = r.text(key)?;
    if let Err(problem) = check_http(&url, BASE_URL) {
        r.problem(key, &problem);
    }
    Some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbols_are_all_or_names() {
        let parse = |names: &[&str]| Symbols::parse(&names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>());
        assert_eq!(parse(&["all"]), Symbols::All);
        assert!(!parse(&[]).is_set());
        let expected = ["BTCUSDT", "币安人生USDT"].map(str::to_owned).to_vec();
        assert_eq!(parse(&["币安人生usdt", "BTCUSDT", "btcusdt"]), Symbols::Listed(expected));
    }

    #[test]
    fn what_is_no_list_is_not_taken_for_one_symbol() {
        let problems = |symbols: &str| {
            let mut reader = Reader::new(serde_json::json!({"download": {"symbols": symbols}}));
            Download::read(&mut reader);
            reader.finish(&[]).expect_err(symbols).to_string()
        };
        for symbols in ["[BTCUSDT, ETHUSDT]", "BTCUSDT ETHUSDT", "BTCUSDT;ETHUSDT", "BTC/USDT"] {
            assert!(problems(symbols).contains("is no symbol; write [BTCUSDT, ETHUSDT]"), "{symbols}");
        }
    }

    #[test]
    fn the_server_that_lists_goes_with_the_one_that_serves() {
        let read = |json: serde_json::Value| Download::read(&mut Reader::new(json));
        assert_eq!(read(serde_json::json!({})).list_url, LIST_URL);
        let mut mirror = read(serde_json::json!({"download": {"base_url": "http://mirror.example"}}));
        assert_eq!(mirror.list_url, "http://mirror.example");
        mirror.set_base_url("http://other.example/binance").expect("an address");
        assert_eq!(mirror.list_url, "http://other.example/binance");
        let fixed = serde_json::json!({"download": {"list_url": "http://list.example"}});
        let mut fixed = read(fixed);
        fixed.set_base_url("http://mirror.example").expect("an address");
        assert_eq!(fixed.list_url, "http://list.example");
    }
}
