//! `--cleanup` and `publish.cleanup_after`: removes archives from disk that are announced and in the bucket. Nothing is
//! ever removed there.
//!
//! Folders stay, also empty ones: a downloader may be about to write into one.

use std::io;
use std::time::Duration;

use common::config::{Publish, Storage};
use common::marker::Object;
use common::unit::Unit;
use futures::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp};

use crate::bucket::upload;
use crate::contents::digest::Digested;
use crate::error::UnitError;
use crate::local::staged_delete;
use crate::site::context::{Site, blocking};

/// When archives may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Policy {
    /// How long ago the unit's newest marker must have been published; `None`: nothing goes.
    after: Option<Duration>,
    /// Archives of periods that ended less than so many days ago stay.
    keep_days: u32,
}

impl Policy {
    pub(crate) const NEVER: Self = Self { after: None, keep_days: 0 };

    /// What the configuration asks for; `at_once` is `--cleanup`, `keep_days` is that of the command line.
    pub(crate) fn of(publish: &Publish, at_once: bool, keep_days: Option<u32>) -> Self {
        let after = if at_once { Some(Duration::ZERO) } else { publish.cleanup_after };
        Self { after, keep_days: keep_days.unwrap_or(publish.keep_days) }
    }

    /// Whether anything may go at all.
    pub(crate) fn removes(self) -> bool {
        self.after.is_some()
    }

    /// Whether archives may go of a unit whose newest marker was published then.
    ///
    /// The marker's own time counts, which every run and every uploader reads the same from the stream: restarts, a lost
    /// cache or a file touched since change nothing. A unit that is corrected waits anew.
    pub(crate) fn allows(self, unit: &Unit, published_at: Timestamp, now: Timestamp) -> bool {
        self.removable_at(unit, published_at).is_some_and(|at| at <= now)
    }

    /// When archives may go of such a unit; `None`: never.
    pub(crate) fn removable_at(self, unit: &Unit, published_at: Timestamp) -> Option<Timestamp> {
        let after = self.after?;
        let later = |at: Timestamp, by: SignedDuration| at.checked_add(by).unwrap_or(Timestamp::MAX);
        let retained_until = later(unit.period.end(), SignedDuration::from_hours(24 * i64::from(self.keep_days)));
        if after.is_zero() {
            // With `--cleanup` a clock that was ahead when the marker was published must not matter.
            return Some(retained_until);
        }
        Some(retained_until.max(later(published_at, SignedDuration::try_from(after).unwrap_or(SignedDuration::MAX))))
    }
}

/// Whether this site may remove archives as it is asked to.
///
/// # Errors
/// Says why not.
pub(crate) fn allowed(storage: &Storage, policy: Policy) -> Result<(), &'static str> {
    if storage.is_data_dir() && policy.after.is_some() {
        return Err("with storage.type rsync the archives in local.data_dir are the only copy until the puller has \
                    fetched them, so none is removed: run it without --cleanup and publish.cleanup_after");
    }
    Ok(())
}

/// What was removed of one unit.
#[derive(Debug, Default)]
pub(crate) struct Removed {
    pub(crate) archives: u64,
    /// What could not be removed: one line each.
    pub(crate) problems: Vec<String>,
}

/// Removes the archives that an acknowledged marker names, with their `.CHECKSUM` files. Marks stay.
///
/// `announced` are the objects of the newest marker on the stream. An archive goes only if that marker names its very
/// content, the bucket still holds it, and the file is the one that was hashed.
pub(crate) async fn remove(
    site: &Site,
    unit: &Unit,
    announced: &[Object],
    local: &[Digested],
) -> Result<Removed, UnitError> {
    let mut removed = Removed::default();
    let named = local.iter().filter_map(|archive| {
        let here = archive.object(site);
        let object = announced.iter().find(|object| object.key == here.key)?;
        (object.size == here.size && object.sha256 == here.sha256).then_some((archive, object))
    });
    let mut results = stream::iter(named)
        .map(async |(archive, object)| {
            let removal = remove_one(site, archive, object).await?;
            Ok::<_, UnitError>(removal.map_err(|why| format!("{} {why}", archive.path)))
        })
        .buffer_unordered(site.transfers_max);
    while let Some(result) = results.next().await {
        match result? {
            Ok(()) => removed.archives += 1,
            Err(problem) => removed.problems.push(problem),
        }
    }
    drop(results);
    if removed.archives > 0 {
        tracing::info!(%unit, archives = removed.archives, "removed from disk");
    }
    Ok(removed)
}

/// Removes one archive, unless it is the only copy.
///
/// That the bucket says it holds the object is not enough: the object may be the very file, where `storage.fs.path` leads
/// to `data_dir` by a link or a mount, or a server keeps its bucket there. So the file is compared with the object, and the
/// object is asked for again once the file has another name.
async fn remove_one(site: &Site, archive: &Digested, object: &Object) -> Result<Result<(), String>, UnitError> {
    let (file, fingerprint, sha256) = (site.data_dir.join(&archive.path), archive.fingerprint, archive.sha256());
    let _place = site.transfer().await?;
    if !upload::is_stored(site, object, &archive.checked).await? {
        return Ok(Err("stays: the bucket no longer holds it as announced".into()));
    }
    if site.store.is_this_file(&object.key, &file).await? {
        return Ok(Err("stays: it is the stored object itself, and its only copy; storage.fs.path leads to \
                       local.data_dir"
            .into()));
    }
    let failed = |error: io::Error| format!("cannot be removed: {error}");
    let to_leave = file.clone();
    if let Err(error) = blocking(move || staged_delete::stage(&to_leave, fingerprint)).await {
        return Ok(Err(failed(error)));
    }
    let still_stored = site.store.exists(&object.key).await;
    if !matches!(still_stored, Ok(true)) {
        if let Err(error) = blocking(move || staged_delete::put_back(&file)).await {
            return Ok(Err(format!("has lost its name to {}, and cannot get it back: {error}", staged_delete::ENDING)));
        }
        still_stored?;
        return Ok(Err("stays: the object went with it, so that it is the only copy; the bucket is kept in \
                       local.data_dir"
            .into()));
    }
    Ok(blocking(move || staged_delete::remove(&file, sha256)).await.map_err(failed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_go_when_their_time_has_come() {
        let (now, unit): (Timestamp, Unit) = (
            "2026-02-18T00:00:00Z".parse().expect("a time"),
            "binance/um/klines/1h/2026-02-14".parse().expect("a unit"),
        );
        let check = |after: Option<u64>, keep_days, published_at: &str, allowed| {
            let policy = Policy { after: after.map(Duration::from_secs), keep_days };
            let published_at = published_at.parse().expect("a time");
            assert_eq!(policy.allows(&unit, published_at, now), allowed, "{policy:?} {published_at}");
        };
        check(None, 0, "2020-01-01T00:00:00Z", false);
        check(Some(0), 0, "2026-02-18T00:00:00Z", true);
        check(Some(0), 0, "2026-02-19T00:00:00Z", true);
        check(Some(3600), 0, "2026-02-17T23:00:00Z", true);
        check(Some(3600), 0, "2026-02-17T23:00:01Z", false);
        check(Some(3600), 0, "2026-02-19T00:00:00Z", false);
        // The period ended three days ago.
        check(Some(0), 3, "2026-02-15T00:00:00Z", true);
        check(Some(0), 4, "2026-02-15T00:00:00Z", false);
    }
}
