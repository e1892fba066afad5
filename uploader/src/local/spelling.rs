//! Reads names of archives that are spelt otherwise than the exchange spells them: what people, browsers and other
//! programs make of `BTCUSDT-1h-2026-02-14.zip`. Nothing is published by what is read here; it only tells where a file
//! would belong.

use common::catalogue::{DATASETS, INTERVALS};
use common::unit::{Period, Unit};

use crate::local::layout;

/// Endings of other containers, and of data that was unpacked.
const OTHER_FORMATS: [&str; 9] = ["csv", "rar", "7z", "gz", "tgz", "bz2", "xz", "zst", "tar"];
/// Endings that browsers and download programs give a file until it is whole.
const PARTIAL: [&str; 6] = ["part", "partial", "crdownload", "download", "filepart", "tmp"];
const SEPARATORS: [char; 4] = ['-', '_', '.', ' '];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Zip,
    /// Another container, or unpacked data.
    Other,
    /// A download that has not ended.
    Partial,
    /// The name does not tell.
    Unknown,
}

/// What the name of a file says of the archive that it is meant to be.
#[derive(Debug)]
pub(crate) struct Name<'a> {
    pub(crate) format: Format,
    /// The name says that it is a second copy: `… (1).zip`, `Copy of …`, `….zip.1`.
    pub(crate) is_copy: bool,
    pub(crate) date: Option<Date>,
    pub(crate) interval: Interval,
    symbol: &'a str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Date {
    Period(Period),
    /// Such as 2026-02-30.
    DoesNotExist,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interval {
    Known(&'static str),
    /// A number and a letter that could be an interval, such as 7h.
    DoesNotExist,
    None,
}

impl<'a> Name<'a> {
    pub(crate) fn of(file_name: &'a str) -> Self {
        let (stem, format, is_numbered) = cut_endings(file_name);
        let (stem, is_copy) = cut_copy(stem);
        let words: Vec<&str> = stem.split(SEPARATORS).filter(|word| !word.is_empty()).collect();
        let (date, date_words) = match date_at_end(&words) {
            Some((date, words)) => (Some(date), words),
            None => (None, 0),
        };
        let rest = (0..date_words).fold(stem, |rest, _| cut_word(rest).0);
        let (symbol, word) = cut_word(rest);
        let interval = Interval::of(word);
        Self { format, is_copy: is_copy || is_numbered, date, symbol: symbol.trim_matches(SEPARATORS), interval }
    }

    /// Where the archive belongs, by its name and by the folders of `path`, in which it lies.
    pub(crate) fn place(&self, path: &str) -> Option<String> {
        let (Some(Date::Period(period)), Interval::Known(interval)) = (self.date, self.interval) else { return None };
        let folders: Vec<&str> = path.rsplit('/').skip(1).collect();
        let has = |name: &str| folders.iter().any(|folder| folder.eq_ignore_ascii_case(name));
        let market = ["um", "cm", "spot"].into_iter().find(|market| has(market))?;
        let unit = Unit {
            exchange: layout::EXCHANGE.parse().ok()?,
            market: market.parse().ok()?,
            dataset: DATASETS.into_iter().find(|dataset| has(dataset)).unwrap_or(layout::DATASET).parse().ok()?,
            interval: interval.parse().ok()?,
            period,
        };
        // BTC_USDT in a folder BTCUSDT is that symbol; BTCUSD_PERP is a symbol of its own, and none has a dash.
        let symbol = self.symbol.to_uppercase().replace('-', "");
        let plain = symbol.replace(SEPARATORS, "");
        let symbol = if folders.contains(&plain.as_str()) { plain } else { symbol };
        layout::is_symbol(&symbol).then(|| layout::archive_path(&unit, &symbol))
    }
}

impl Interval {
    fn of(word: &str) -> Self {
        let number = word.bytes().take_while(u8::is_ascii_digit).count();
        match (interval(word), word.get(number..)) {
            (Some(interval), _) => Self::Known(interval),
            (None, Some("s" | "m" | "h" | "H" | "d" | "D" | "w" | "W" | "M" | "mo")) if (1..=3).contains(&number) => {
                Self::DoesNotExist
            }
            _ => Self::None,
        }
    }
}

/// An interval as the exchange spells it in names. Its API calls a month `1M`; elsewhere upper and lower case mean the same.
pub(crate) fn interval(word: &str) -> Option<&'static str> {
    let word = if word == "1M" { "1mo".to_owned() } else { word.to_lowercase() };
    INTERVALS.into_iter().find(|interval| *interval == word)
}

/// The date that these words end with, and how many of them it has: `2026-02-14`, `2026-2-14`, `20260214`, or a month.
pub(crate) fn date_at_end(words: &[&str]) -> Option<(Date, usize)> {
    let is_number = |word: &&&str| word.bytes().all(|byte| byte.is_ascii_digit());
    let numbers = words.iter().rev().take(3).take_while(is_number).count();
    let is_year = |word: &str| word.len() == 4 && word.starts_with("20");
    let (text, count) = match words[words.len() - numbers..] {
        [year, month, day] if is_year(year) => (format!("{year}-{month:0>2}-{day:0>2}"), 3),
        [.., year, month] if is_year(year) => (format!("{year}-{month:0>2}"), 2),
        [.., day] if day.len() == 8 && is_year(&day[..4]) => (format!("{}-{}-{}", &day[..4], &day[4..6], &day[6..]), 1),
        [.., month] if month.len() == 6 && is_year(&month[..4]) => (format!("{}-{}", &month[..4], &month[4..]), 1),
        _ => return None,
    };
    Some((text.parse().map_or(Date::DoesNotExist, Date::Period), count))
}

/// A name without its endings, what they say, and whether wget numbered it: `….zip.1`.
fn cut_endings(name: &str) -> (&str, Format, bool) {
    let (mut stem, mut format) = (name, Format::Unknown);
    let numbered = name.rsplit_once('.').filter(|(zip, number)| {
        format_of(zip.rsplit('.').next().unwrap_or_default()) == Format::Zip
            && !number.is_empty()
            && number.bytes().all(|byte| byte.is_ascii_digit())
    });
    if let Some((zip, _)) = numbered {
        stem = zip;
    }
    while let Some((before, ending)) = stem.rsplit_once('.') {
        match (format, format_of(ending)) {
            (_, Format::Unknown) => break,
            // The last ending is that of the file; those before it are of what was made into it.
            (Format::Unknown, found) => format = found,
            _ => {}
        }
        stem = before;
    }
    (stem, format, numbered.is_some())
}

fn format_of(ending: &str) -> Format {
    let is = |one: &&str| ending.eq_ignore_ascii_case(one);
    if is(&"zip") {
        Format::Zip
    } else if OTHER_FORMATS.iter().any(is) {
        Format::Other
    } else if PARTIAL.iter().any(is) {
        Format::Partial
    } else {
        Format::Unknown
    }
}

/// A name without what browsers and file managers add to that of a second copy, and whether there was such a thing.
fn cut_copy(stem: &str) -> (&str, bool) {
    let (mut name, mut is_copy) = (stem.trim(), false);
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    loop {
        let numbered = name.strip_suffix(')').and_then(|name| name.rsplit_once('('));
        let (before, word) = cut_word(name);
        if let Some((before, _)) = numbered.filter(|(_, number)| is_number(number)) {
            name = before.trim_end();
        } else if word.eq_ignore_ascii_case("copy") && !before.is_empty() {
            name = before;
        } else if name.get(..8).is_some_and(|start| start.eq_ignore_ascii_case("copy of ")) {
            name = name[8..].trim_start();
        } else {
            return (name, is_copy);
        }
        is_copy = true;
    }
}

/// The last word, and what stands before it.
fn cut_word(text: &str) -> (&str, &str) {
    let text = text.trim_end_matches(SEPARATORS);
    text.rsplit_once(SEPARATORS).unwrap_or(("", text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_spelt_otherwise_tell_where_their_archive_belongs() {
        let folder = "data/spot/daily/klines/BTCUSDT/1h";
        let check = |name: &str, format: Format, is_copy: bool| {
            let read = Name::of(name);
            assert_eq!((read.format, read.is_copy), (format, is_copy), "{name}");
            let place = read.place(&format!("{folder}/{name}"));
            assert_eq!(place, Some(format!("{folder}/BTCUSDT-1h-2025-03-01.zip")), "{name}");
        };
        for name in [
            "BTCUSDT-1h-2025-03-01.zip",
            "BTCUSDT-1h-2025-03-01.ZIP",
            "btcusdt-1H-2025-3-1.zip",
            "BTCUSDT_1h_2025-03-01.zip",
            "BTCUSDT 1h 2025_03_01.zip",
            "BTCUSDT - 1h - 2025-03-01.zip",
            "BTCUSDT.1h.2025.03.01.zip",
            "BTCUSDT-1h-20250301.zip",
            "BTC-USDT-1h-2025-03-01.zip",
            "BTC_USDT-1h-2025-03-01.zip",
            "BTCUSDT-1h-2025-03-01.zip.zip",
            "BTCUSDT-1h-2025-03-01.csv.zip",
            " BTCUSDT-1h-2025-03-01 .zip",
        ] {
            check(name, Format::Zip, false);
        }
        for name in [
            "BTCUSDT-1h-2025-03-01 (1).zip",
            "BTCUSDT-1h-2025-03-01(12).zip",
            "BTCUSDT-1h-2025-03-01 - Copy.zip",
            "BTCUSDT-1h-2025-03-01 copy (2).zip",
            "BTCUSDT-1h-2025-03-01_copy.zip",
            "Copy of BTCUSDT-1h-2025-03-01.zip",
            "copy of Copy of BTCUSDT-1h-2025-03-01.zip",
            "BTCUSDT-1h-2025-03-01.zip.1",
        ] {
            check(name, Format::Zip, true);
        }
        for ending in ["csv", "CSV", "csv.gz", "zip.gz", "rar", "7z", "tar.xz"] {
            check(&format!("BTCUSDT-1h-2025-03-01.{ending}"), Format::Other, false);
        }
        for ending in ["zip.part", "zip.crdownload", "zip.tmp", "zip.partial", "tmp"] {
            check(&format!("BTCUSDT-1h-2025-03-01.{ending}"), Format::Partial, false);
        }
        check("BTCUSDT-1h-2025-03-01", Format::Unknown, false);
    }

    #[test]
    fn symbols_keep_their_underscores_and_a_month_is_no_minute() {
        let check = |path: &str, place: &str| {
            let name = path.rsplit('/').next().expect("a name");
            assert_eq!(Name::of(name).place(path).as_deref(), Some(place), "{path}");
        };
        let cm = "data/futures/cm/monthly/klines";
        check(&format!("{cm}/BTCUSD_PERP_1h_2025-03.zip"), &format!("{cm}/BTCUSD_PERP/1h/BTCUSD_PERP-1h-2025-03.zip"));
        check(
            &format!("{cm}/BTCUSD_250328/1h/BTCUSD_250328-1h-202503.zip"),
            &format!("{cm}/BTCUSD_250328/1h/BTCUSD_250328-1h-2025-03.zip"),
        );
        check("spot/BTCUSDT-1M-2025-03.zip", "data/spot/monthly/klines/BTCUSDT/1mo/BTCUSDT-1mo-2025-03.zip");
        check(
            "data/futures/um/daily/markpriceklines/BTCUSDT-1m-2025-03-01.zip",
            "data/futures/um/daily/markPriceKlines/BTCUSDT/1m/BTCUSDT-1m-2025-03-01.zip",
        );
    }

    #[test]
    fn dates_and_intervals_that_do_not_exist_are_told_from_none() {
        let check = |name: &str, date: Option<bool>, interval: Interval| {
            let name = Name::of(name);
            let exists = name.date.map(|date| date != Date::DoesNotExist);
            assert_eq!((exists, name.interval), (date, interval), "{name:?}");
            assert_eq!(name.place("data/spot/x.zip"), None, "{name:?}");
        };
        check("BTCUSDT-1h-2024-02-30.zip", Some(false), Interval::Known("1h"));
        check("BTCUSDT-1h-20241301.zip", Some(false), Interval::Known("1h"));
        check("BTCUSDT-1h-2024-13.zip", Some(false), Interval::Known("1h"));
        check("BTCUSDT-7h-2025-03-01.zip", Some(true), Interval::DoesNotExist);
        check("BTCUSDT-trades-2025-03-01.zip", Some(true), Interval::None);
        check("BTCUSDT-1h.zip", None, Interval::Known("1h"));
        check("2025-03-01.zip", Some(true), Interval::None);
        check("币-1h-2025-02-29(1).zip", Some(false), Interval::Known("1h"));
        check("backup.zip", None, Interval::None);
        check(".zip", None, Interval::None);
        check("", None, Interval::None);
    }
}
