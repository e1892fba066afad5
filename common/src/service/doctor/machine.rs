//! What of this machine the work depends on: its clock against the servers', free space, open files.

use std::io;
use std::path::Path;
use std::time::Duration;

use bytesize::ByteSize;
use jiff::{SignedDuration, Timestamp};

use super::DoctorReport;
use crate::clock;
use crate::config::{Place, Storage};
use crate::service::open_files;

/// Below this, a folder that archives come to is as good as full.
pub const ARCHIVES_BYTES: u64 = 1 << 30;
/// The same for one that holds small files.
pub const FILES_BYTES: u64 = 64 << 20;
/// Synchronised clocks differ by less than a second. A bucket refuses requests at 15 minutes, and a marker's times are
/// trusted to a day.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_secs(30);
/// What a server may be silent for that is only asked for its time, and a disk that is asked for its free space.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Compares this machine's clock with a server's; says nothing where the server does not tell its own.
pub async fn check_clock(report: &mut DoctorReport, name: &str, ask: impl AsyncFnOnce() -> Option<Timestamp>) {
    let before = clock::now();
    let Ok(Some(theirs)) = tokio::time::timeout(TIMEOUT, ask()).await else { return };
    compare(report, name, theirs, before, clock::now());
}

fn compare(report: &mut DoctorReport, name: &str, theirs: Timestamp, before: Timestamp, after: Timestamp) {
    let behind = theirs.duration_since(after).max(SignedDuration::ZERO);
    // Some tell whole seconds only.
    let ahead = before.duration_since(theirs) - SignedDuration::from_secs(1);
    let (off, word) = if behind > ahead { (behind, "behind") } else { (ahead, "ahead of") };
    if off <= CLOCK_TOLERANCE {
        return report.good(name, "agrees with this machine's");
    }
    let found = format!("this machine's clock is {} s {word} it", off.as_secs());
    report.bad(name, found, "let both synchronise their clocks (NTP)");
}

/// The same with a bucket, which every answer of its server tells, also a refusal.
pub async fn check_store_clock(report: &mut DoctorReport, storage: &Storage) {
    let Place::S3(bucket) = &storage.place else { return };
    check_clock(report, "bucket, clock", async || date_of(&bucket.endpoint).await).await;
}

async fn date_of(endpoint: &str) -> Option<Timestamp> {
    // Of no importance when another part of the process has installed one before.
    drop(rustls::crypto::ring::default_provider().install_default());
    let client = reqwest::Client::builder().timeout(TIMEOUT).redirect(reqwest::redirect::Policy::none()).no_proxy();
    let response = client.build().ok()?.get(endpoint).send().await.ok()?;
    let date = response.headers().get(reqwest::header::DATE)?.to_str().ok()?;
    Some(jiff::fmt::rfc2822::parse(date).ok()?.timestamp())
}

/// Free space of the file system that a folder is on, against what is needed there at least.
pub async fn check_space(report: &mut DoctorReport, name: &str, path: &Path, needed_bytes: u64) {
    let folder = path.to_owned();
    match on_disk(move || rustix::fs::statvfs(&folder).map_err(Into::into)).await {
        Ok(found) => say_space(report, name, found.f_bavail.saturating_mul(found.f_frsize), needed_bytes),
        // That it cannot be used is another check's word.
        Err(error) => tracing::debug!(path = %path.display(), %error, "asking for free space"),
    }
}

/// Asks a disk something that takes no time where it answers; a share that hangs is an error.
pub async fn on_disk<T: Send + 'static>(ask: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    match tokio::time::timeout(TIMEOUT, tokio::task::spawn_blocking(ask)).await {
        Ok(answer) => answer?,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer for {} s", TIMEOUT.as_secs()))),
    }
}

/// The same where somebody else has found out how much is free.
pub fn say_space(report: &mut DoctorReport, name: &str, free_bytes: u64, needed_bytes: u64) {
    let (free, needed) = (ByteSize::b(free_bytes), ByteSize::b(needed_bytes));
    if free_bytes >= needed_bytes {
        report.good(name, format!("{free} free"));
    } else {
        report.bad(name, format!("{free} free, {needed} are needed"), "make room there, or move it to a larger disk");
    }
}

/// The limit on open files, which a process raises as far as it may when it starts.
pub fn check_open_files(report: &mut DoctorReport, needed: u64) {
    const NAME: &str = "open files";
    match too_few_open_files(needed) {
        None => report.good(NAME, format!("{} may be open, {needed} are needed at most", open_files::limit())),
        Some((found, advice)) => report.bad(NAME, found, advice),
    }
}

/// What is wrong with the limit on open files, and what to do about it.
pub fn too_few_open_files(needed: u64) -> Option<(String, &'static str)> {
    let limit = open_files::limit();
    let found = || format!("{limit} may be open, and {needed} can be needed: transfers would fail and be tried again");
    let advice = "raise the hard limit (LimitNOFILE= of the unit, ulimits of the container, ulimit -Hn), or lower puller.slots or \
                  storage.r2.transfers";
    (limit < needed).then(|| (found(), advice))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_off_is_named_with_its_direction() {
        let at = |second: i64| Timestamp::from_second(1_700_000_000 + second).expect("a time");
        let check = |theirs: i64, expected: Option<&str>| {
            let mut report = DoctorReport::default();
            compare(&mut report, "server", at(theirs), at(0), at(2));
            match expected {
                None => assert!(report.checks[0].ok, "{report:?}"),
                Some(text) => assert!(!report.checks[0].ok && report.checks[0].found.contains(text), "{report:?}"),
            }
        };
        check(1, None);
        check(20, None);
        check(-20, None);
        check(102, Some("100 s behind it"));
        check(-101, Some("100 s ahead of it"));
    }

    #[tokio::test]
    async fn a_disk_without_room_is_named() {
        let mut report = DoctorReport::default();
        let dir = tempfile::tempdir().expect("a folder");
        check_space(&mut report, "here", dir.path(), 1).await;
        check_space(&mut report, "here", dir.path(), u64::MAX).await;
        assert_eq!(report.checks.iter().map(|check| check.ok).collect::<Vec<_>>(), [true, false]);
    }
}
