//! The tree below data_dir: what each archive is, from its path alone, and the completion marks.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use crate::{Context, Failure, Result};

/// An archive and what its path says of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Located {
    /// Below data_dir, with `/`: the object key without the prefix.
    pub key: String,
    pub path: PathBuf,
    pub market: String,
    pub dataset: String,
    pub interval: String,
    pub period: String,
    pub symbol: String,
}

impl Located {
    /// `binance/um/klines/1h/2026-02-14`.
    pub fn unit(&self) -> String {
        format!("binance/{}/{}/{}/{}", self.market, self.dataset, self.interval, self.period)
    }
}

/// All archives below `data_dir`, sorted; other files are passed over, links are followed.
pub fn archives(data_dir: &Path) -> Result<Vec<Located>> {
    let mut found = Vec::new();
    let mut folders = vec![data_dir.join("data")];
    while let Some(folder) = folders.pop() {
        let doing = format!("reading {}", folder.display());
        for entry in fs::read_dir(&folder).context(&doing)? {
            let path = entry.context(&doing)?.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let relative = path.strip_prefix(data_dir).context(&doing)?;
            if let Some(located) = relative.to_str().and_then(|key| locate(data_dir, key)) {
                found.push(located);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Reads `data/<market>/<daily|monthly>/<dataset>/<symbol>/<interval>/<symbol>-<interval>-<period>.zip`.
pub fn locate(data_dir: &Path, key: &str) -> Option<Located> {
    let parts: Vec<&str> = key.split('/').collect();
    let (market, rest) = match parts.as_slice() {
        ["data", "spot", rest @ ..] => ("spot", rest),
        ["data", "futures", market @ ("um" | "cm"), rest @ ..] => (*market, rest),
        _ => return None,
    };
    let ["daily" | "monthly", dataset, symbol, interval, file] = rest else { return None };
    let period = file.strip_prefix(&format!("{symbol}-{interval}-"))?.strip_suffix(".zip")?;
    super::period_bounds(period)?;
    Some(Located {
        key: key.to_owned(),
        path: data_dir.join(key),
        market: market.to_owned(),
        dataset: (*dataset).to_owned(),
        interval: (*interval).to_owned(),
        period: period.to_owned(),
        symbol: (*symbol).to_owned(),
    })
}

/// Marks one unit, written `binance/um/klines/1h/2026-02-14`, as complete; returns the mark's path.
pub fn mark(data_dir: &Path, unit: &str) -> Result<PathBuf> {
    let parts: Vec<&str> = unit.split('/').collect();
    let [_exchange, market, dataset, interval, period] = parts.as_slice() else {
        return Err(Failure::new(format!("{unit} is no unit")));
    };
    let mut name = format!("_SUCCESS__{period}__{market}__{interval}");
    if *dataset != "klines" {
        name = format!("{name}__{dataset}");
    }
    let path = data_dir.join(name);
    fs::write(&path, "").context(format!("writing {}", path.display()))?;
    Ok(path)
}

/// Marks every unit that has an archive below `data_dir`; returns the units, sorted.
pub fn mark_all(data_dir: &Path) -> Result<Vec<String>> {
    let units: BTreeSet<String> = archives(data_dir)?.iter().map(Located::unit).collect();
    for unit in &units {
        mark(data_dir, unit)?;
    }
    Ok(units.into_iter().collect())
}
