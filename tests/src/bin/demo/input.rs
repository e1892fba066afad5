//! The data_dir: generated, or a user's tree with marks added.

use std::{fs, path::Path};

use jiff::{SignedDuration, Timestamp};
use tests::{
    Context, Failure, Result,
    data::{ArchiveSpec, Market, archives},
};

const INTERVALS: [&str; 3] = ["1m", "1h", "1d"];
const SPOT: [&str; 4] = ["BTCUSDT", "ETHUSDT", "SOLUSDT", "PEPEUSDT"];
const UM: [&str; 4] = ["BTCUSDT", "ETHUSDT", "SOLUSDT", "1000PEPEUSDT"];
/// The youngest day, counted back from today: one that the exchange has published for certain.
const YOUNGEST_DAYS_AGO: u8 = 2;

pub(crate) fn generate(data_dir: &Path, days: u8) -> Result<()> {
    let today = Timestamp::now();
    for ago in YOUNGEST_DAYS_AGO..YOUNGEST_DAYS_AGO + days {
        let day = (today - SignedDuration::from_hours(24 * i64::from(ago))).strftime("%Y-%m-%d").to_string();
        for interval in INTERVALS {
            for (market, symbols) in [(Market::Spot, SPOT), (Market::Um, UM)] {
                for symbol in symbols {
                    ArchiveSpec::new(market, symbol, interval, &day).write(data_dir)?;
                }
            }
        }
    }
    Ok(())
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
