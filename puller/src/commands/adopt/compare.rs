//! One unit: whether its archives' rows are in `klines` as a worker of ours would have put them there.
//!
//! An archive counts as there when ClickHouse shows (with FINAL) every one of its rows with the archive's values under the
//! archive's version, and no other row of that version between them: exactly what the read-back after an insert asks
//! for. Everything weaker is left to the workers, because it would break rule 9 later:
//!
//! - the right values under an older version: a stale month that arrives tomorrow would win over them;
//! - under a newer one: if no archive of ours brought it, a correction of the exchange would lose against it; if one did,
//!   loading this archive as well changes nothing that is shown.
//!
//! Workers that skip what is recorded here still take away what former revisions left ([`crate::load::superseded_rows`]).

use std::collections::HashSet;

use common::marker::Object;
use futures::{StreamExt, stream};
use jiff::SignedDuration;
use nats::Activity;

use crate::clickhouse::ledger::ArchiveFacts;
use crate::clickhouse::read_back::{Expected, ExpectedRows};
use crate::clickhouse::version::version;
use crate::error::work::WorkError;
use crate::job::place::acceptable;
use crate::job::resolve::Job;
use crate::job::spec::spec;
use crate::load::loader::Loader;
use archive::Spec;

/// Symbols one query names at most, so that it stays below the server's limit for a query's text.
const QUERY_SYMBOLS_MAX: usize = 1_000;
/// Archives of one unit that are fetched and compared at once.
const CHECKS_MAX: usize = 8;
/// A candle of a month may have begun before the period of its archive.
const LONGEST_CANDLE: SignedDuration = SignedDuration::from_hours(31 * 24);

/// What was found of one archive.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Every row is there; it is recorded now, unless in a dry run.
    There,
    /// It was recorded before.
    Recorded,
    /// For the workers to load.
    Differs(String),
    Unchecked(String),
}

/// Answers for every object of the job, in its order, and records those that are there.
///
/// # Errors
/// Something stopped the whole unit.
pub(super) async fn compare(loader: &Loader, job: &Job, dry_run: bool) -> Result<Vec<Verdict>, WorkError> {
    let spec = spec(job)?;
    let ledger = loader.warehouse.ledger(&job.unit).await?;
    let mut verdicts = Vec::with_capacity(job.objects.len());
    for part in job.objects.chunks(QUERY_SYMBOLS_MAX) {
        let hopeful = with_rows_of_their_version(loader, job, part).await?;
        let checks: Vec<_> = part
            .iter()
            .map(async |object| match ledger.get(&object.key) {
                Some(entry) if entry.covers(object, job.unit.period) => Ok((Verdict::Recorded, None)),
                Some(entry) if entry.outranks(object, job.unit.period) => {
                    Ok((Verdict::Unchecked("a revision that was generated later is loaded".into()), None))
                }
                // Workers hold a correction back that would take too many rows away.
                Some(_) => Ok((Verdict::Differs("an earlier revision of it is loaded".into()), None)),
                None if !hopeful.contains(object.symbol.as_str()) => {
                    Ok((Verdict::Differs("no row has its version".into()), None))
                }
                None => compare_archive(loader, job, object, &spec).await,
            })
            .collect();
        let mut checks = stream::iter(checks).buffered(CHECKS_MAX);
        let mut there = Vec::new();
        for object in part {
            let Some(looked) = checks.next().await else { break };
            let (verdict, facts): (Verdict, Option<ArchiveFacts>) = looked?;
            verdicts.push(verdict);
            there.extend(facts.map(|facts| (object, facts)));
        }
        if !dry_run {
            loader.record_archives(job, there, &Activity::default()).await?;
        }
    }
    Ok(verdicts)
}

/// The symbols that have any row under their archive's version: of the others nothing needs to be fetched.
async fn with_rows_of_their_version<'j>(
    loader: &Loader,
    job: &Job,
    part: &'j [Object],
) -> Result<HashSet<&'j str>, WorkError> {
    let period = job.unit.period;
    let first = period.start().saturating_sub(LONGEST_CANDLE).unwrap_or(period.start());
    let range = (first.as_microsecond(), period.end().as_microsecond());
    let symbols = part.iter().map(|object| object.symbol.as_str());
    let groups = loader.warehouse.groups(&job.unit, symbols, range).await?;
    let shown: HashSet<(&str, u64)> = groups.iter().map(|group| (group.symbol.as_str(), group.version)).collect();
    let has_rows = |object: &&Object| shown.contains(&(object.symbol.as_str(), version(object.generated_at, period)));
    Ok(part.iter().filter(has_rows).map(|object| object.symbol.as_str()).collect())
}

/// Fetches, verifies and decodes the archive, and compares; with what the ledger is to say of it if all is there.
async fn compare_archive(
    loader: &Loader,
    job: &Job,
    object: &Object,
    spec: &Spec,
) -> Result<(Verdict, Option<ArchiveFacts>), WorkError> {
    let unchecked = |why: &dyn std::fmt::Display| Ok((Verdict::Unchecked(format!("{}: {why}", object.key)), None));
    if let Err(fault) = acceptable(job, object, &loader.fetcher.prefix, &loader.memory) {
        return unchecked(&fault);
    }
    let outline = match loader.fetch_outline(&job.unit, object, spec).await? {
        Ok(outline) => outline,
        Err(fault) => return unchecked(&fault),
    };
    let version = version(object.generated_at, job.unit.period);
    let facts = ArchiveFacts::of(&outline);
    let (Some(first), Some(last)) = (facts.first_open_time, facts.last_open_time) else {
        return Ok((Verdict::Differs("the archive has no rows".into()), None));
    };
    let groups = loader.warehouse.groups(&job.unit, std::iter::once(object.symbol.as_str()), (first, last)).await?;
    let same = groups
        .iter()
        .any(|group| group.version == version && group.rows == facts.rows && group.hash == facts.rows_hash);
    if same {
        return Ok((Verdict::There, Some(facts)));
    }
    let rows = ExpectedRows::Outline(&outline);
    let expected = Expected { symbol: &object.symbol, version, rows, rows_hash: facts.rows_hash };
    let comparison = loader.warehouse.row_by_row(&job.unit, &expected).await?;
    let what = match comparison.first {
        Some(first) => {
            format!("{} rows missing, {} with other values: {first}", comparison.missing, comparison.differing)
        }
        None => "some of its rows are shown under another version, or others under its own".into(),
    };
    Ok((Verdict::Differs(what), None))
}
