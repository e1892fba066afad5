//! The symbols the exchange has archives of: the folders in a listing of its bucket.

use serde::Deserialize;

use super::exchange::Exchange;
use super::fault::DownloadFault;
use crate::local::layout;

/// A page has at most 1000 folders.
const PAGE_BYTES_MAX: u64 = 8 << 20;
const PAGES_MAX: usize = 200;
/// What a unit may have.
const SYMBOLS_MAX: usize = 20_000;

/// The part of S3's answer that is read.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListBucketResult {
    #[serde(default)]
    is_truncated: bool,
    next_continuation_token: Option<String>,
    #[serde(default)]
    common_prefixes: Vec<CommonPrefix>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CommonPrefix {
    prefix: String,
}

/// Lists the symbols that have a folder below this one, e.g. `data/spot/daily/klines`; sorted.
pub(crate) async fn symbols(exchange: &Exchange, folder: &str) -> Result<Vec<String>, DownloadFault> {
    let prefix = format!("{folder}/");
    let mut symbols = Vec::new();
    let mut token: Option<String> = None;
    for _ in 0..PAGES_MAX {
        let mut query = vec![("list-type", "2"), ("delimiter", "/"), ("prefix", prefix.as_str())];
        if let Some(token) = &token {
            query.push(("continuation-token", token));
        }
        let page = parse(&exchange.list(&query, PAGE_BYTES_MAX).await?)?;
        symbols.extend(page.common_prefixes.iter().filter_map(|folder| symbol(&folder.prefix, &prefix)));
        if symbols.len() > SYMBOLS_MAX {
            return Err(DownloadFault::Odd(format!("it lists more than {SYMBOLS_MAX} symbols")));
        }
        match page.next_continuation_token {
            Some(next) if page.is_truncated => token = Some(next),
            None if page.is_truncated => {
                return Err(DownloadFault::Odd("a listing that is cut and has no token".to_owned()));
            }
            _ => {
                symbols.sort_unstable();
                symbols.dedup();
                return Ok(symbols);
            }
        }
    }
    Err(DownloadFault::Odd(format!("its listing has more than {PAGES_MAX} pages")))
}

fn parse(page: &[u8]) -> Result<ListBucketResult, DownloadFault> {
    let text = std::str::from_utf8(page).map_err(|_| DownloadFault::Odd("a listing that is not UTF-8".to_owned()))?;
    if !text.contains("<ListBucketResult") {
        return Err(DownloadFault::Odd("it does not answer as an S3 bucket does".to_owned()));
    }
    quick_xml::de::from_str(text).map_err(|error| DownloadFault::Odd(format!("a listing that cannot be read: {error}")))
}

fn symbol(listed: &str, prefix: &str) -> Option<String> {
    let name = listed.strip_prefix(prefix)?.strip_suffix('/')?;
    // It becomes a folder below data_dir and part of a marker.
    layout::is_symbol(name).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_a_listing_are_symbols() {
        let page = r#"<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>data.binance.vision</Name>
<Prefix>data/spot/daily/klines/</Prefix><NextContinuationToken>t=/+</NextContinuationToken><MaxKeys>1000</MaxKeys>
<Delimiter>/</Delimiter><IsTruncated>true</IsTruncated><Contents><Key>data/spot/daily/klines/index.html</Key></Contents>
<CommonPrefixes><Prefix>data/spot/daily/klines/BTCUSDT/</Prefix></CommonPrefixes>
<CommonPrefixes><Prefix>data/spot/daily/klines/币安人生USDT/</Prefix></CommonPrefixes>
<CommonPrefixes><Prefix>data/spot/daily/klines/../</Prefix></CommonPrefixes>
<CommonPrefixes><Prefix>elsewhere/A/</Prefix></CommonPrefixes></ListBucketResult>"#;
        let page = parse(page.as_bytes()).expect("a listing");
        assert!(page.is_truncated);
        assert_eq!(page.next_continuation_token.as_deref(), Some("t=/+"));
        let prefix = "data/spot/daily/klines/";
        let symbols: Vec<_> = page.common_prefixes.iter().filter_map(|folder| symbol(&folder.prefix, prefix)).collect();
        assert_eq!(symbols, ["BTCUSDT", "币安人生USDT"]);
    }

    #[test]
    fn what_is_no_listing_is_told() {
        for page in ["", "<html>welcome</html>", "<ListBucketResult><CommonPrefixes>", "<ListBucketResult"] {
            assert!(parse(page.as_bytes()).is_err(), "{page}");
        }
    }
}
