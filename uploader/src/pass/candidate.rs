//! A unit's turn in a pass: nothing more than is needed to know that it needs nothing, or else all of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use common::unit::Unit;
use jiff::{SignedDuration, Timestamp};
use nats::Stamp;
use tokio_util::sync::CancellationToken;

use crate::error::PassError;
use crate::local::complete::{Reason, Situation, Wait};
use crate::local::scan;
use crate::local::scan::{LocalUnit, SetDigest};
use crate::local::seen::Seen;
use crate::site::context::{Site, blocking};
use crate::state::cache::{ProcessedAs, Record};
use crate::unit::process;
use crate::unit::process::{LocalCheck, Mode, Outcome, Processed};

/// When to interruptible again at an archive that somebody writes; that it is closed is told by an event, which comes first.
const OPEN_AGAIN: SignedDuration = SignedDuration::from_mins(1);

/// A unit of which something may have changed.
pub(crate) struct Candidate {
    pub(crate) unit: Unit,
    pub(crate) seen: Seen,
    /// Since when its archives are these, as far as this process has seen.
    pub(crate) same_since: Timestamp,
    pub(crate) marked: bool,
    /// Whether it is remembered to be announced.
    pub(crate) published: bool,
}

/// What came of it.
pub(crate) struct Handled {
    pub(crate) processed: Processed,
    pub(crate) marked: bool,
    /// The archives it is about; `None` where one of them was written to so lately that it must be looked at again.
    pub(crate) archives: Option<SetDigest>,
}

/// Does what a unit needs. `stamps`: what the stream has, if that was asked for. `None`: interrupted before it began.
pub(crate) async fn handle(
    site: &Site,
    candidate: Candidate,
    stamps: Option<&HashMap<Unit, Stamp>>,
    mode: Mode,
    interrupt: &CancellationToken,
) -> Result<Option<Handled>, PassError> {
    let Candidate { unit, mut seen, same_since, marked, published } = candidate;
    if mode.service {
        seen.not_later_than(same_since);
    }
    let done = |processed| Ok(Some(Handled { processed, marked, archives: Some(seen.digest) }));
    if mode.service
        && let Some(wait) = still_written(&seen, site.min_age, common::clock::now())
    {
        return done(Processed::new(unit, Outcome::Waiting { wait, missing: Vec::new() }));
    }
    // One short line of a small file. Not sent to another thread: the units would come back in another order.
    let record = site.cache.record(&unit);
    let on_stream = stamps.and_then(|stamps| stamps.get(&unit));
    let mut published = published || on_stream.is_some() || record.processed.is_some();
    if stamps.is_none() && site.completeness.misses_symbols(&seen, marked, published) {
        // What has left the disk is forgotten here. Its unit is out all the same, and waits for nothing.
        published = is_announced(site, &unit).await;
    }
    if let Some(wait) = judge(site, &unit, &seen, marked, published, &record, mode).await {
        let missing = match wait.reason {
            Reason::Symbols(_) => missing(site, &unit).await,
            Reason::Open(_) | Reason::Written | Reason::Quiet => Vec::new(),
        };
        return done(Processed::new(unit, Outcome::Waiting { wait, missing }));
    }
    let removable = |published_at: Option<Timestamp>| {
        let now = common::clock::now();
        published_at.is_none_or(|at| mode.cleanup.allows(&unit, at, now)) && mode.cleanup.removes()
    };
    if let Some(processed) = record.processed
        && on_stream == Some(&processed.message)
        && processed.archives == seen.digest
        && processed.place == site.place()
        && seen.unreadable.is_empty()
        && (mode.dry_run || seen.archives == 0 || !removable(processed.published_at))
    {
        let published_at = processed.published_at;
        return done(Processed {
            published_at,
            ..Processed::new(unit, Outcome::Unchanged { objects: processed.objects })
        });
    }
    // What was never announced needs more than a comparison; permits are given in the order they are asked for, newest first.
    let early = if published { None } else { Some(site.unit().await?) };
    if interrupt.is_cancelled() {
        return Ok(None);
    }
    let interruptible = if early.is_none() { Some(interrupt) } else { None };
    work(site, unit, marked, &seen, mode, interruptible).await
}

/// Another try on a unit that could not be announced.
pub(crate) async fn process_anew(site: &Site, unit: Unit, marked: bool, mode: Mode) -> Result<Handled, PassError> {
    let handled = work(site, unit, marked, &Seen::default(), mode, None).await?;
    Ok(handled.expect("only an interrupt leaves a unit for later"))
}

/// What the unit waits for, if it does.
async fn judge(
    site: &Site,
    unit: &Unit,
    seen: &Seen,
    marked: bool,
    published: bool,
    record: &Record,
    mode: Mode,
) -> Option<Wait> {
    let now = common::clock::now();
    // What cannot be looked at is not waited for, but told.
    if !seen.unreadable.is_empty() {
        return None;
    }
    // One in the future is of a clock that has been set right since, and would be waited for until then.
    let recorded = record.first_seen.filter(|at| *at <= now);
    let mut first_seen = recorded.unwrap_or(now);
    if recorded.is_none() && !mode.dry_run && site.completeness.misses_symbols(seen, marked, published) {
        let (cache, unit) = (Arc::clone(&site.cache), unit.clone());
        if !blocking(move || cache.record_first_seen(&unit, now)).await {
            // The next pass would begin to wait anew, and so for ever. How long the first archive lies here is on disk.
            first_seen = first_arrived(seen).map_or(now, |arrived| arrived.min(now));
        }
    }
    site.completeness.judge(&Situation { seen, marked, published, first_seen, now })
}

/// Whether the stream has a marker of the unit; no, while it cannot be asked.
async fn is_announced(site: &Site, unit: &Unit) -> bool {
    site.queue.latest(unit).await.is_ok_and(|latest| latest.marker.is_some())
}

fn first_arrived(seen: &Seen) -> Option<Timestamp> {
    Timestamp::from_nanosecond(seen.first_arrived_ns.into()).ok().filter(|_| seen.archives > 0)
}

/// When the archives may be read, if not now. Of the one written to last a time in the future says nothing, and nothing waits for it: in a service
/// it was replaced by the time when the archive was seen first.
fn still_written(seen: &Seen, min_age: Duration, now: Timestamp) -> Option<Wait> {
    if let Some(path) = &seen.open {
        return Some(Wait { reason: Reason::Open(Arc::clone(path)), until: now.saturating_add(OPEN_AGAIN).ok()? });
    }
    let written = Timestamp::from_nanosecond(seen.written_ns.into()).ok().filter(|written| *written <= now)?;
    let until = written.saturating_add(SignedDuration::try_from(min_age).ok()?).ok()?;
    (until > now).then_some(Wait { reason: Reason::Written, until })
}

async fn missing(site: &Site, unit: &Unit) -> Vec<String> {
    let (data_dir, wanted, unit) = (site.data_dir.clone(), Arc::clone(&site.completeness), unit.clone());
    blocking(move || wanted.missing_here(&scan::list(&data_dir, unit, false))).await
}

/// Lists a unit and processes it; with an `interrupt`, only if a comparison says that it needs it, and when a permit is free.
async fn work(
    site: &Site,
    unit: Unit,
    marked: bool,
    seen: &Seen,
    mode: Mode,
    interrupt: Option<&CancellationToken>,
) -> Result<Option<Handled>, PassError> {
    let (data_dir, cache, listed) = (site.data_dir.clone(), Arc::clone(&site.cache), unit.clone());
    let mut local = blocking(move || {
        cache.load(&listed);
        scan::list(&data_dir, listed, marked)
    })
    .await;
    if local.unreadable.is_empty() {
        local.unreadable = seen.unreadable.iter().map(ToString::to_string).collect();
    }
    let worked = match interrupt {
        Some(interrupt) => check_and_process(site, local, mode, interrupt).await,
        None => process(site, local, mode).await.map(Some),
    };
    let (local, processed) = match worked {
        Ok(Some(done)) => done,
        ended => {
            let cache = Arc::clone(&site.cache);
            blocking(move || cache.close(&unit)).await;
            return ended.map(|_| None);
        }
    };
    let archives = local.digest();
    let objects = match &processed.outcome {
        Outcome::Published { objects, .. } => Some(*objects),
        Outcome::Unchanged { objects } => *objects,
        _ => None,
    };
    let published_at = processed.published_at;
    // Older publications are named each time the unit is looked at.
    let older = !processed.older.is_empty();
    let message = processed.message.filter(|_| !older);
    let record = message.map(|message| ProcessedAs { archives, message, place: site.place(), objects, published_at });
    let announced = matches!(processed.outcome, Outcome::Published { .. } | Outcome::Unchanged { .. });
    let (cache, dry_run) = (Arc::clone(&site.cache), mode.dry_run);
    let sure = blocking(move || {
        let sure = cache.record_processed(&local, record, announced.then_some(older));
        if dry_run {
            cache.abandon(&unit);
        } else {
            cache.close(&unit);
        }
        sure
    })
    .await;
    Ok(Some(Handled { processed, marked, archives: (sure || !announced).then_some(archives) }))
}

/// Looks at a unit, and waits for its turn if it needs work.
async fn check_and_process(
    site: &Site,
    local: LocalUnit,
    mode: Mode,
    interrupt: &CancellationToken,
) -> Result<Option<(LocalUnit, Processed)>, PassError> {
    match process::check_local(site, local, mode).await {
        LocalCheck::Done(local, processed) => Ok(Some((local, *processed))),
        LocalCheck::NeedsWork(local) => {
            let _permit = site.unit().await?;
            if interrupt.is_cancelled() {
                return Ok(None);
            }
            process(site, local, mode).await.map(Some)
        }
    }
}

/// Processes a unit; one that is held back counts as processed, too.
async fn process(site: &Site, local: LocalUnit, mode: Mode) -> Result<(LocalUnit, Processed), PassError> {
    site.progress.doing(local.unit.to_string());
    let processed = match process::process(site, &local, mode).await {
        Ok(processed) => processed,
        Err(error) => Processed::new(local.unit.clone(), Outcome::HeldBack(error.into_reasons()?)),
    };
    Ok((local, processed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_open_waits_whatever_its_age() {
        let (now, open) = (Timestamp::from_second(1000).expect("a time"), Some(Arc::from("data/a.zip")));
        let wait = still_written(&Seen { written_ns: 1, open, ..Seen::default() }, Duration::ZERO, now);
        assert_eq!(wait.map(|wait| wait.reason), Some(Reason::Open("data/a.zip".into())));
    }

    #[test]
    fn what_was_written_a_moment_ago_waits() {
        let now = Timestamp::from_second(1000).expect("a time");
        let check = |written_s: i64, waits: bool| {
            let seen = Seen { written_ns: written_s * 1_000_000_000, ..Seen::default() };
            assert_eq!(still_written(&seen, Duration::from_secs(3), now).is_some(), waits, "{written_s}");
        };
        check(999, true);
        check(997, false);
        check(1001, false);
        check(0, false);
    }
}
