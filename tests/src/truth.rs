//! What the archives say, read without any of the product's code, and the comparison with `klines_latest`.
//!
//! Values are text from end to end: a decimal is its digits without the zeros that say nothing, so `0.2510` and
//! `0.25100000` are one value, and `0.1 + 0.2` has no chance to be another. Anything odd in an archive is an error.

mod compare;
mod ledger;

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{Cursor, Read},
    path::Path,
};

use csv::StringRecord;
use jiff::{Timestamp, civil};
use zip::ZipArchive;

use crate::{
    Context, Failure, Result,
    data::{ArchiveSpec, Located, archives, locate, sha256},
};

/// More than any genuine archive unpacks to (a month of seconds is about 400 MB).
const CSV_BYTES_MAX: u64 = 600 << 20;

/// A symbol's candles of one kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Series {
    pub exchange: String,
    pub market: String,
    pub dataset: String,
    pub interval: String,
    pub symbol: String,
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Series { exchange, market, dataset, interval, symbol } = self;
        write!(f, "{exchange}/{market}/{dataset}/{interval}/{symbol}")
    }
}

/// One candle: what the archive generated last says of it.
#[derive(Clone, Debug)]
pub struct Row {
    /// The canonical text of all columns after the open time, tab separated, in the order of [`COLUMNS`].
    /// Several when archives of the same time stamp disagree; then either is right.
    pub values: Vec<String>,
    pub generated_at: Timestamp,
    /// The archive the first value is from.
    pub key: String,
}

/// The columns compared, after series and open time; times are µs since 1970.
pub const COLUMNS: [&str; 10] = [
    "close_time",
    "open",
    "high",
    "low",
    "close",
    "volume",
    "quote_volume",
    "trades",
    "taker_buy_volume",
    "taker_buy_quote_volume",
];

/// Rows by series and by open time in µs.
#[derive(Default, Debug)]
pub struct Truth {
    rows: BTreeMap<Series, BTreeMap<i64, Row>>,
    archives: BTreeMap<String, Archive>,
}

/// One archive as a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Archive {
    pub sha256: String,
    pub size: u64,
    pub rows: u64,
}

impl Truth {
    /// These archives, as they are written.
    pub fn of_specs<'a>(specs: impl IntoIterator<Item = &'a ArchiveSpec>) -> Result<Truth> {
        let mut truth = Truth::default();
        for spec in specs {
            truth.add_archive(&spec.path(), &spec.zip(), Timestamp::now())?;
        }
        Ok(truth)
    }

    /// All archives below `data_dir`.
    pub fn of_tree(data_dir: &Path) -> Result<Truth> {
        Truth::of_archives(&archives(data_dir)?)
    }

    /// These archives only, as when the others are known to be bad.
    pub fn of_archives(archives: &[Located]) -> Result<Truth> {
        let mut truth = Truth::default();
        for archive in archives {
            let doing = format!("reading {}", archive.path.display());
            let mut bytes = Vec::new();
            let mut file = File::open(&archive.path).context(&doing)?;
            file.read_to_end(&mut bytes).context(&doing)?;
            let modified = file.metadata().and_then(|metadata| metadata.modified()).context(&doing)?;
            let modified = Timestamp::try_from(modified).context(&doing)?;
            truth.add_archive(&archive.key, &bytes, modified)?;
        }
        Ok(truth)
    }

    /// Adds one archive by its path below data_dir; nothing is added when it is bad.
    pub fn add_archive(&mut self, key: &str, bytes: &[u8], modified: Timestamp) -> Result<()> {
        let located = locate(Path::new(""), key).ok_or_else(|| Failure::new(format!("{key} is no archive's path")))?;
        let (csv, stamp) = only_member(key, bytes)?;
        let generated_at = generated_at(stamp, modified);
        let rows = read_csv(key, &csv)?;
        if rows.is_empty() {
            return Err(Failure::new(format!("{key}: it has no rows")));
        }
        let series = Series {
            exchange: "binance".to_owned(),
            market: located.market,
            dataset: located.dataset,
            interval: located.interval,
            symbol: located.symbol,
        };
        let archive = Archive { sha256: sha256(bytes), size: bytes.len() as u64, rows: rows.len() as u64 };
        self.archives.insert(key.to_owned(), archive);
        let candles = self.rows.entry(series).or_default();
        for (open_time, values) in rows {
            let row = Row { values: vec![values], generated_at, key: key.to_owned() };
            decide(candles, open_time, row);
        }
        Ok(())
    }

    /// By path below data_dir.
    pub fn archives(&self) -> &BTreeMap<String, Archive> {
        &self.archives
    }

    /// How many candles there are, each counted once however many archives have it.
    pub fn rows(&self) -> usize {
        self.rows.values().map(BTreeMap::len).sum()
    }

    pub fn series(&self) -> impl Iterator<Item = (&Series, &BTreeMap<i64, Row>)> {
        self.rows.iter()
    }
}

/// The archive generated last decides.
fn decide(candles: &mut BTreeMap<i64, Row>, open_time: i64, mut new: Row) {
    match candles.get_mut(&open_time) {
        Some(old) if old.generated_at > new.generated_at => {}
        Some(old) if old.generated_at == new.generated_at => {
            new.values.retain(|values| !old.values.contains(values));
            old.values.append(&mut new.values);
        }
        Some(old) => *old = new,
        None => drop(candles.insert(open_time, new)),
    }
}

/// The CSV, and the time stamp as the zip has it.
fn only_member(key: &str, bytes: &[u8]) -> Result<(Vec<u8>, Option<zip::DateTime>)> {
    // The reader itself passes over what lies around the archive.
    let end = bytes.windows(22).rposition(|window| window.starts_with(b"PK\x05\x06"));
    let whole = end
        .is_some_and(|at| at + 22 + usize::from(u16::from_le_bytes([bytes[at + 20], bytes[at + 21]])) == bytes.len());
    if !bytes.starts_with(b"PK\x03\x04") || !whole {
        return Err(Failure::new(format!("{key}: there are bytes around the zip archive, or it is none")));
    }
    let mut archive = ZipArchive::new(Cursor::new(bytes)).context(key)?;
    if archive.len() != 1 {
        return Err(Failure::new(format!("{key}: {} members", archive.len())));
    }
    let member = archive.by_index(0).context(key)?;
    let name = member.name().context(key)?.into_owned();
    let stem = key.rsplit('/').next().and_then(|file| file.strip_suffix(".zip")).unwrap_or_default();
    if name != format!("{stem}.csv") {
        return Err(Failure::new(format!("{key}: its member is {name}")));
    }
    let (declared, stamp) = (member.size(), member.last_modified());
    let mut csv = Vec::new();
    member.take(CSV_BYTES_MAX).read_to_end(&mut csv).context(key)?;
    if csv.len() as u64 != declared {
        return Err(Failure::new(format!("{key}: its member has {} bytes and declares {declared}", csv.len())));
    }
    Ok((csv, stamp))
}

/// The member's stamp as UTC, or the file's where that one cannot be true.
fn generated_at(stamp: Option<zip::DateTime>, modified: Timestamp) -> Timestamp {
    let first: Timestamp = "2017-01-01T00:00:00Z".parse().expect("a valid time");
    stamp
        .and_then(|stamp| {
            let parts = [stamp.month(), stamp.day(), stamp.hour(), stamp.minute(), stamp.second()];
            let [month, day, hour, minute, second] = parts.map(|part| i8::try_from(part).ok());
            let time = civil::DateTime::new(stamp.year().try_into().ok()?, month?, day?, hour?, minute?, second?, 0);
            time.ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok()
        })
        .map(|zoned| zoned.timestamp())
        .filter(|time| (first..=Timestamp::now()).contains(time))
        .unwrap_or(modified)
}

fn read_csv(key: &str, csv: &[u8]) -> Result<Vec<(i64, String)>> {
    let mut reader = csv::ReaderBuilder::new().has_headers(false).quoting(false).from_reader(csv);
    let mut rows = Vec::new();
    let mut digits = None;
    for (number, record) in reader.records().enumerate() {
        let place = format!("{key}: line {}", number + 1);
        let record = record.context(&place)?;
        if number == 0 && record.get(0) == Some("open_time") {
            continue;
        }
        let open_digits = record.get(0).unwrap_or_default().len();
        if *digits.get_or_insert(open_digits) != open_digits {
            return Err(Failure::new(format!("{place}: another unit of time than above")));
        }
        rows.push(canonical_row(&record).context(place)?);
    }
    if rows.is_empty() {
        return Err(Failure::new(format!("{key}: no rows")));
    }
    Ok(rows)
}

fn canonical_row(record: &StringRecord) -> Result<(i64, String)> {
    if record.len() != 12 {
        return Err(Failure::new(format!("{} columns", record.len())));
    }
    let mut values = vec![micros(&record[6])?.to_string()];
    for column in [1, 2, 3, 4] {
        values.push(canonical_decimal(&record[column], PRICE_DIGITS)?);
    }
    for column in [5, 7] {
        values.push(canonical_decimal(&record[column], VOLUME_DIGITS)?);
    }
    let trades: u64 = record[8].parse().context(format!("trades {:?}", &record[8]))?;
    values.push(trades.to_string());
    for column in [9, 10] {
        values.push(canonical_decimal(&record[column], VOLUME_DIGITS)?);
    }
    Ok((micros(&record[0])?, values.join("\t")))
}

/// 13 digits are ms, 16 are µs: so it is from 2001 to 2286.
fn micros(text: &str) -> Result<i64> {
    let number: i64 = text.parse().context(format!("time {text:?}"))?;
    match text.len() {
        13 => Ok(number * 1000),
        16 => Ok(number),
        _ => Err(Failure::new(format!("time {text:?} is neither ms nor µs"))),
    }
}

/// What the tables hold: Decimal(18, 8) for prices and Decimal(38, 8) for volumes, as digits before the point.
const PRICE_DIGITS: usize = 10;
const VOLUME_DIGITS: usize = 30;
const DECIMALS: usize = 8;

/// A decimal without the zeros that say nothing: `-0.0010` is `-0.001`, `007.00` is `7`, `-0.0` is `0`.
fn canonical_decimal(text: &str, whole_digits: usize) -> Result<String> {
    let (sign, unsigned) = text.strip_prefix('-').map_or(("", text), |rest| ("-", rest));
    let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
    let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !all_digits(whole) || !all_digits(fraction) || unsigned.ends_with('.') {
        return Err(Failure::new(format!("{text:?} is no decimal")));
    }
    let whole = whole.trim_start_matches('0');
    let fraction = fraction.trim_end_matches('0');
    if whole.len() > whole_digits || fraction.len() > DECIMALS {
        return Err(Failure::new(format!("{text:?} does not fit the tables")));
    }
    Ok(match (whole, fraction) {
        ("", "") => "0".to_owned(),
        (whole, "") => format!("{sign}{whole}"),
        ("", fraction) => format!("{sign}0.{fraction}"),
        (whole, fraction) => format!("{sign}{whole}.{fraction}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{ArchiveSpec, Market};

    #[test]
    fn decimals_have_one_text_each() {
        let check = |text: &str, expect: &str| assert_eq!(canonical_decimal(text, 10).expect(text), expect);
        check("0", "0");
        check("-0.00", "0");
        check("0.25100000", "0.251");
        check("007.0", "7");
        check("-0.00012345", "-0.00012345");
        check("100", "100");
        for bad in ["", ".", "1.", ".5", "1e5", "+1", "1,0", " 1", "--1", "NaN", "12345678901", "0.123456789"] {
            assert!(canonical_decimal(bad, 10).is_err(), "{bad:?}");
        }
    }

    /// Reads back each kind of archive and compares it with the generator's own rows.
    #[test]
    fn reads_what_the_generator_writes() {
        use Market::{Cm, Spot, Um};
        let specs = [
            ArchiveSpec::new(Spot, "BTCUSDT", "1m", "2024-12-31"),
            ArchiveSpec::new(Spot, "BTCUSDT", "1m", "2025-01-01").missing([3, 700, 701]),
            ArchiveSpec::new(Spot, "PEPEUSDT", "1d", "2025-01"),
            ArchiveSpec::new(Spot, "币安人生USDT", "1h", "2025-11-02").crlf(),
            ArchiveSpec::new(Spot, "ETHUSDT", "1w", "2024-02").natural_decimals(),
            ArchiveSpec::new(Um, "ARBUSDT", "1m", "2026-02-14"),
            ArchiveSpec::new(Um, "BTCUSDT", "1h", "2021-01-02").header(false),
            ArchiveSpec::new(Um, "BTCUSDT", "5m", "2026-02-14").dataset("premiumIndexKlines"),
            ArchiveSpec::new(Um, "BTCUSDT", "5m", "2026-02-14").dataset("markPriceKlines"),
            ArchiveSpec::new(Cm, "BTCUSD_PERP", "15m", "2026-02-14").rows_at_most(40),
        ];
        let mut truth = Truth::default();
        for spec in &specs {
            truth.add_archive(&spec.path(), &spec.zip(), Timestamp::now()).expect("a good archive");
        }
        assert_eq!(truth.archives().len(), specs.len());
        assert_eq!(truth.rows(), 1440 + 1437 + 31 + 24 + 4 + 1440 + 24 + 288 + 288 + 40);

        let (_, premium) = truth.series().find(|(series, _)| series.dataset == "premiumIndexKlines").expect("added");
        assert!(premium.values().any(|row| row.values[0].contains("\t-0.")), "premiums are negative at times");
        let spot_pepe = specs[2].records();
        assert!(spot_pepe.iter().any(|record| record[5].len() > "100000000000.00000000".len()), "{:?}", spot_pepe[0]);
        let spot_micros = &specs[1].records()[0];
        assert_eq!((spot_micros[0].as_str(), spot_micros[6].as_str()), ("1735689600000000", "1735689659999999"));
        for spec in &specs {
            assert_eq!(spec.zip(), spec.clone().zip(), "the same specification, the same bytes");
        }
    }

    #[test]
    fn candles_are_whole_numbers_of_sense() {
        for spec in [
            ArchiveSpec::new(Market::Spot, "BTCUSDT", "1m", "2025-02-01"),
            ArchiveSpec::new(Market::Um, "ARBUSDT", "1h", "2025-02-01"),
        ] {
            let mut last_close: Option<f64> = None;
            for record in spec.records() {
                let value = |column: usize| record[column].parse::<f64>().expect("a number");
                let (open, high, low, close): (f64, f64, f64, f64) = (value(1), value(2), value(3), value(4));
                assert!(low > 0.0 && low <= open.min(close) && high >= open.max(close), "{record:?}");
                assert!(value(9) <= value(5) && value(10) <= value(7), "{record:?}");
                assert_eq!(value(5) == 0.0, value(8) == 0.0, "no volume, no trades: {record:?}");
                if let Some(last) = last_close
                    && value(5) > 0.0
                {
                    assert!((open / last - 1.0).abs() < 0.1, "{record:?} after {last}");
                }
                last_close = Some(close);
            }
        }
    }

    #[test]
    fn the_archive_generated_last_decides() {
        let day = ArchiveSpec::new(Market::Spot, "BTCUSDT", "1h", "2025-02-10").generated_at("2025-02-11T00:44:00Z");
        let month = ArchiveSpec::new(Market::Spot, "BTCUSDT", "1h", "2025-02").generated_at("2025-03-03T06:00:00Z");
        let corrected = day.clone().seed(7).generated_at("2025-03-10T00:00:00Z");
        let open_time = 1_739_145_600_000_000;
        let decided = |specs: [&ArchiveSpec; 2]| {
            let mut truth = Truth::default();
            for spec in specs {
                truth.add_archive(&spec.path(), &spec.zip(), Timestamp::now()).expect("a good archive");
            }
            assert_eq!(truth.rows(), 28 * 24);
            let candles = truth.rows.values().next().expect("one series");
            (candles[&open_time].values.clone(), candles[&open_time].key.clone())
        };
        let (values, key) = decided([&day, &month]);
        assert_eq!((values.len(), key), (1, month.path()));
        // The same in the other order, and the same values: a day and its month agree.
        assert_eq!(decided([&month, &day]), (values.clone(), month.path()));
        let (other, key) = decided([&corrected, &month]);
        assert_eq!(key, corrected.path());
        assert_ne!(other, values);
    }
}
