//! The data_dir: generated, or a user's tree with marks added.

use std::{
    fs,
    path::{Path, PathBuf},
};

use jiff::{Timestamp, ToSpan, civil::Date, tz::TimeZone};
use tests::{
    Context, Failure, Result,
    data::{ArchiveSpec, Market, archives, mark_all, sha256},
};

const INTERVALS: [&str; 3] = ["1m", "1h", "1d"];
const SPOT: [&str; 4] = ["BTCUSDT", "ETHUSDT", "SOLUSDT", "PEPEUSDT"];
const UM: [&str; 4] = ["BTCUSDT", "ETHUSDT", "SOLUSDT", "1000PEPEUSDT"];
/// The youngest day, counted back from today: one that the exchange has published for certain.
const YOUNGEST_DAYS_AGO: u16 = 2;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=3660))]
    days: u16,
    /// Of each of the markets spot and um
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=2000))]
    symbols: u16,
    #[arg(long, default_values = INTERVALS, value_delimiter = ',', value_parser = ["1s", "1m", "5m", "15m", "1h", "4h", "1d"])]
    interval: Vec<String>,
    /// The first day
    #[arg(long, value_name = "YYYY-MM-DD")]
    from: Option<Date>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut written = 0;
    let specs = specs(args.from.unwrap_or_else(|| first_of(args.days)), args.days, args.symbols, &args.interval);
    for spec in &specs {
        written += u64::from(land(spec, &args.data_dir)?);
    }
    let units = mark_all(&args.data_dir)?.len();
    println!("{} archives, of which {written} were not there; {units} units are marked", specs.len());
    Ok(())
}

pub(crate) fn generate(data_dir: &Path, days: u8) -> Result<()> {
    let days = u16::from(days);
    let specs = specs(first_of(days), days, 4, &INTERVALS.map(str::to_owned));
    specs.iter().try_for_each(|spec| spec.write(data_dir).map(drop))
}

/// The first of so many days up to the youngest.
fn first_of(days: u16) -> Date {
    let today = TimeZone::UTC.to_datetime(Timestamp::now()).date();
    today.saturating_sub(i32::from(YOUNGEST_DAYS_AGO + days - 1).days())
}

fn specs(first: Date, days: u16, symbols: u16, intervals: &[String]) -> Vec<ArchiveSpec> {
    let mut specs = Vec::new();
    for day in first.series(1.day()).take(days.into()) {
        for interval in intervals {
            for (market, known) in [(Market::Spot, SPOT), (Market::Um, UM)] {
                for number in 0..usize::from(symbols) {
                    let symbol = known.get(number).map_or_else(|| format!("COIN{number}USDT"), |&name| name.to_owned());
                    // Spot alone has candles of a second.
                    if interval != "1s" || market == Market::Spot {
                        specs.push(ArchiveSpec::new(market, &symbol, interval, &day.to_string()));
                    }
                }
            }
        }
    }
    specs
}

/// Writes an archive and its `.CHECKSUM` unless it is there; whoever looks sees all of it or nothing.
fn land(spec: &ArchiveSpec, data_dir: &Path) -> Result<bool> {
    let (path, bytes) = (data_dir.join(spec.path()), spec.zip());
    if fs::read(&path).is_ok_and(|there| there == bytes) && path.with_added_extension("CHECKSUM").exists() {
        return Ok(false);
    }
    let folder = path.parent().ok_or_else(|| Failure::new("an archive has a folder"))?;
    fs::create_dir_all(folder).context(folder.display())?;
    let checksum = format!("{}  {}.zip", sha256(&bytes), spec.stem());
    for (path, bytes) in
        [(path.clone(), bytes.as_slice()), (path.with_added_extension("CHECKSUM"), checksum.as_bytes())]
    {
        let part = path.with_added_extension("part");
        fs::write(&part, bytes).context(part.display())?;
        fs::rename(&part, &path).context(path.display())?;
    }
    Ok(true)
}

/// Makes `data_dir` look like `tree`, so that marks can be put beside without writing to it.
///
/// With hard links, or copies where the file system has none across: a scanner need not follow symbolic links.
pub(crate) fn mirror(tree: &Path, data_dir: &Path) -> Result<()> {
    if !tree.join("data").is_dir() {
        return Err(Failure::new(format!(
            "{} has no folder `data`: give the one that holds data/spot/… or data/futures/…",
            tree.display()
        )));
    }
    let found = archives(tree)?;
    if found.is_empty() {
        return Err(Failure::new(format!(
            "no archive of the form data/spot/daily/klines/BTCUSDT/1h/BTCUSDT-1h-2026-02-14.zip below {}",
            tree.display()
        )));
    }
    for archive in found {
        let target = data_dir.join(&archive.key);
        let folder = target.parent().ok_or_else(|| Failure::new("an archive has a folder"))?;
        fs::create_dir_all(folder).context(format!("making {}", folder.display()))?;
        let checksum = "CHECKSUM";
        link_or_copy(&archive.path, &target)?;
        let source = archive.path.with_added_extension(checksum);
        if source.exists() {
            link_or_copy(&source, &target.with_added_extension(checksum))?;
        }
    }
    Ok(())
}

fn link_or_copy(from: &Path, to: &Path) -> Result<()> {
    // A link to a symbolic link would be one more, relative to another folder.
    let from = from.canonicalize().context(from.display())?;
    fs::hard_link(&from, to).or_else(|_| fs::copy(&from, to).map(drop)).context(format!("copying {}", from.display()))
}

#[cfg(test)]
mod generated {
    use super::*;

    #[test]
    fn a_second_run_changes_nothing() {
        let dir = tests::servers::RunDir::new("generate").expect("a folder");
        let args = Args {
            data_dir: dir.path().to_owned(),
            days: 2,
            symbols: 5,
            interval: vec!["1d".to_owned(), "1h".to_owned()],
            from: Some("2026-02-27".parse().expect("a day")),
        };
        let content = || -> Vec<(String, Vec<u8>)> {
            let found = archives(dir.path()).expect("archives");
            found.iter().map(|one| (one.key.clone(), fs::read(&one.path).expect("bytes"))).collect()
        };
        run(&args).expect("generates");
        let first = content();
        assert_eq!(first.len(), 2 * 5 * 2 * 2);
        assert!(first.iter().any(|(key, _)| key.ends_with("COIN4USDT-1h-2026-02-28.zip")), "{:?}", first[0].0);
        run(&args).expect("generates again");
        assert_eq!(content(), first);
    }
}
