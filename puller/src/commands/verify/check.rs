//! One unit: what its marker names against the ledger and the rows.

use std::collections::HashSet;

use common::marker::Object;
use common::unit::Unit;
use futures::{StreamExt, stream};

use crate::clickhouse::ledger::{Ledger, LedgerEntry};
use crate::clickhouse::read_back::{Expected, ExpectedRows};
use crate::clickhouse::version::version;
use crate::error::work::WorkError;
use crate::job::resolve::Job;
use crate::job::spec::spec;
use crate::load::loader::Loader;
use crate::load::superseded_rows::WronglyShown;

/// Rows one query hashes at most, so that it ends well within its time.
const QUERY_ROWS_MAX: u64 = 5_000_000;
/// Symbols one query names at most, so that it stays below the server's limit for a query's text.
const QUERY_SYMBOLS_MAX: usize = 1_000;
/// Archives of one unit that are fetched for a closer look at once.
const CHECKS_MAX: usize = 8;

/// What was found of one archive.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Right,
    /// Right, and the marker names bytes that were generated earlier than what is loaded: the archive generated last decides.
    /// What is to be said of that.
    RolledBack(String),
    NotLoaded,
    /// Not loaded, and rightly: see [`crate::job::beginning`].
    TooOld,
    /// Rows that are not shown as the archive has them.
    Wrong {
        missing: u64,
        differing: u64,
        first: String,
    },
    /// Rows that only a former revision had are shown, or others' rows are hidden; a delivery without force mends it.
    FormerRevision {
        superseded: u64,
        hidden: u64,
        first: String,
    },
    /// Why it could not be checked.
    Unchecked(String),
}

/// Answers for every object of the job, in its order.
///
/// # Errors
/// Something stopped the whole unit.
pub(super) async fn check(loader: &Loader, job: &Job) -> Result<Vec<Verdict>, WorkError> {
    spec(job)?;
    let ledger = loader.warehouse.ledger(&job.unit).await?;
    let mut verdicts: Vec<Verdict> = job.objects.iter().map(|object| by_ledger(object, &ledger, &job.unit)).collect();
    let loaded: Vec<(usize, &Object, &LedgerEntry)> = job
        .objects
        .iter()
        .enumerate()
        .filter(|(index, _)| matches!(verdicts[*index], Verdict::Right | Verdict::RolledBack(_)))
        .filter_map(|(index, object)| Some((index, object, ledger.get(&object.key)?)))
        .collect();
    for part in parts(&loaded) {
        let doubtful = by_hash(loader, job, part, &mut verdicts).await?;
        let checks = stream::iter(doubtful)
            .map(async |(index, object, entry)| {
                Ok::<_, WorkError>((index, compare_rows(loader, job, object, entry).await?))
            })
            .buffer_unordered(CHECKS_MAX);
        let mut checks = std::pin::pin!(checks);
        while let Some(looked) = checks.next().await {
            let (index, verdict) = looked?;
            if verdict != Verdict::Right {
                verdicts[index] = verdict;
            }
        }
    }
    of_former_revisions(loader, job, &loaded, &mut verdicts).await?;
    Ok(verdicts)
}

/// Finds rows that no archive's own rows tell of: those that are shown and that no current archive has, or that a tombstone
/// hides.
async fn of_former_revisions(
    loader: &Loader,
    job: &Job,
    loaded: &[(usize, &Object, &LedgerEntry)],
    verdicts: &mut [Verdict],
) -> Result<(), WorkError> {
    let period = job.unit.period;
    let versions = loaded.iter().map(|(_, object, entry)| (object.symbol.clone(), entry.version(period))).collect();
    let wrong = loader.wrongly_shown(&job.unit, versions).await?;
    for (index, object, _) in loaded {
        let Some(WronglyShown { superseded, hidden, first_open_time, undecided }) = wrong.get(&object.symbol) else {
            continue;
        };
        if !matches!(verdicts[*index], Verdict::Right | Verdict::RolledBack(_)) {
            continue;
        }
        verdicts[*index] = match (first_open_time, undecided) {
            (Some(first), _) => Verdict::FormerRevision {
                superseded: *superseded,
                hidden: *hidden,
                first: format!("{}: the row of open_time {first} µs", object.symbol),
            },
            (None, Some(why)) => Verdict::Unchecked(why.clone()),
            (None, None) => continue,
        };
    }
    Ok(())
}

/// `Right` means: as far as the ledger says.
fn by_ledger(object: &Object, ledger: &Ledger, unit: &Unit) -> Verdict {
    match ledger.get(&object.key) {
        Some(entry) if entry.covers(object, unit.period) => Verdict::Right,
        Some(entry) if entry.outranks(object, unit.period) => Verdict::RolledBack(entry.stays(object, unit)),
        Some(_) | None => Verdict::NotLoaded,
    }
}

fn parts<'p, 'a>(
    loaded: &'p [(usize, &'a Object, &'a LedgerEntry)],
) -> Vec<&'p [(usize, &'a Object, &'a LedgerEntry)]> {
    let mut parts = Vec::new();
    let (mut start, mut rows) = (0, 0);
    for (index, (_, _, entry)) in loaded.iter().enumerate() {
        if index > start && (index - start >= QUERY_SYMBOLS_MAX || rows + entry.rows > QUERY_ROWS_MAX) {
            parts.push(&loaded[start..index]);
            (start, rows) = (index, 0);
        }
        rows += entry.rows;
    }
    if start < loaded.len() {
        parts.push(&loaded[start..]);
    }
    parts
}

/// Compares count and hash; returns those that need a closer look.
async fn by_hash<'a>(
    loader: &Loader,
    job: &Job,
    part: &[(usize, &'a Object, &'a LedgerEntry)],
    verdicts: &mut [Verdict],
) -> Result<Vec<(usize, &'a Object, &'a LedgerEntry)>, WorkError> {
    let first = part.iter().map(|(_, _, entry)| entry.first_open_time).min();
    let last = part.iter().map(|(_, _, entry)| entry.last_open_time).max();
    let (Some(first), Some(last)) = (first, last) else { return Ok(Vec::new()) };
    let symbols = part.iter().map(|(_, object, _)| object.symbol.as_str());
    let groups = loader.warehouse.groups(&job.unit, symbols, (first, last)).await?;
    let shown: HashSet<&str> = groups.iter().map(|group| group.symbol.as_str()).collect();
    let same = |object: &Object, entry: &LedgerEntry| {
        groups.iter().any(|group| {
            group.symbol == object.symbol
                && group.version == entry.version(job.unit.period)
                && group.rows == entry.rows
                && group.hash == entry.rows_hash
        })
    };
    let mut doubtful: Vec<_> = part.iter().copied().filter(|(_, object, entry)| !same(object, entry)).collect();

    // Where nothing is left of a symbol, there is nothing to compare, and no archive to fetch for it.
    let unseen: Vec<&str> =
        doubtful.iter().map(|(_, object, _)| object.symbol.as_str()).filter(|symbol| !shown.contains(symbol)).collect();
    if !unseen.is_empty() {
        let present = loader.warehouse.symbols_with_rows(&job.unit, unseen.iter().copied(), (first, last)).await?;
        let gone: HashSet<&str> =
            unseen.into_iter().filter(|symbol| !present.iter().any(|present| present == symbol)).collect();
        doubtful.retain(|(index, object, entry)| {
            let gone = gone.contains(object.symbol.as_str());
            if gone {
                let first = "none of its rows is there".to_owned();
                verdicts[*index] = Verdict::Wrong { missing: entry.rows, differing: 0, first };
            }
            !gone
        });
    }
    Ok(doubtful)
}

/// Fetches the archive and compares row by row: other archives may have replaced some of its rows, rightly.
async fn compare_rows(loader: &Loader, job: &Job, object: &Object, entry: &LedgerEntry) -> Result<Verdict, WorkError> {
    if entry.outranks(object, job.unit.period) {
        return Ok(Verdict::Unchecked(format!(
            "{}: its rows differ from what was loaded, and only bytes that were generated earlier can be fetched",
            object.key
        )));
    }
    let spec = spec(job)?;
    let outline = match loader.fetch_outline(&job.unit, object, &spec).await? {
        Ok(outline) => outline,
        Err(fault) => return Ok(Verdict::Unchecked(format!("{}: {fault}", object.key))),
    };
    let expected = Expected {
        symbol: &object.symbol,
        version: entry.version(job.unit.period).min(version(object.generated_at, job.unit.period)),
        rows: ExpectedRows::Outline(&outline),
        rows_hash: entry.rows_hash,
    };
    let comparison = loader.warehouse.row_by_row(&job.unit, &expected).await?;
    if comparison.first.is_none() {
        let differing = loader.warehouse.shown_otherwise(&job.unit, &expected).await?;
        if differing > 0 {
            let first = "rows of the same version with other values were inserted later".to_owned();
            return Ok(Verdict::Wrong { missing: 0, differing, first });
        }
    }
    Ok(match comparison.first {
        None => Verdict::Right,
        Some(first) => Verdict::Wrong { missing: comparison.missing, differing: comparison.differing, first },
    })
}
