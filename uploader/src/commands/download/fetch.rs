//! One archive: whether it is asked for, as far as it came the last time, and whether it is what its `.CHECKSUM` says.

use std::path::PathBuf;
use std::sync::Arc;

use common::checksum::Sha256Sum;
use common::unit::Unit;
use jiff::civil::Date;
use tokio::io::AsyncWriteExt;
use tokio_util::sync::CancellationToken;

use super::exchange::{Body, Exchange, Opened, Tries};
use super::fault::DownloadFault;
use super::memory::{KnownVersion, VersionMemory};
use super::metrics::DownloadMetrics;
use super::outcome::DownloadOutcome;
use super::place::{ArchivePlace, LocalArchive, Origin, PartialArchive};
use crate::local::check::CHECKSUM_BYTES_MAX;
use crate::site::context::blocking;
use crate::site::progress::Progress;

/// A transfer that got so much further before it broke off has not used up an attempt.
const PROGRESS_BYTES_MIN: u64 = 64 << 10;
/// Largest archive that is taken: a month of trades has a few GB, of klines some hundred MB.
const ARCHIVE_BYTES_MAX: u64 = 16 << 30;

/// What is done about an archive that is not here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Absent {
    /// Whoever runs the command wants it.
    Fetch,
    /// The service had it, and the cleanup has taken it away: only if there is another by now.
    StaysAway,
}

/// What follows from what is here and what is known.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    /// Ask whether there is another publication than the known one.
    AskVersion,
    /// Ask for the `.CHECKSUM` and hash the archive.
    CompareChecksum,
    Fetch,
}

pub(crate) struct Fetcher {
    pub(crate) exchange: Exchange,
    pub(crate) data_dir: PathBuf,
    pub(crate) memory: Arc<VersionMemory>,
    pub(crate) metrics: DownloadMetrics,
    pub(crate) progress: Progress,
    pub(crate) shutdown: CancellationToken,
    /// Archives of periods that ended before are not asked for again.
    pub(crate) recheck_since: Date,
    pub(crate) absent: Absent,
}

impl Fetcher {
    /// Fetches an archive, if there is anything to fetch.
    pub(crate) async fn archive(&self, unit: &Unit, path: &str) -> Result<DownloadOutcome, DownloadFault> {
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => Err(DownloadFault::Stopped),
            outcome = self.fetch_archive(unit, path) => outcome,
        }
    }

    async fn fetch_archive(&self, unit: &Unit, path: &str) -> Result<DownloadOutcome, DownloadFault> {
        let place = ArchivePlace::new(&self.data_dir, path);
        let here = on_disk(&place, ArchivePlace::read).await?;
        let known = self.memory.get(path);
        match self.step(unit, &here, known.as_ref()) {
            Step::Nothing => Ok(DownloadOutcome::Unchanged),
            Step::AskVersion => {
                let now = self.exchange.version(path).await?;
                // What was withdrawn stays: it was verified when it came.
                if now.is_none_or(|now| known.is_some_and(|known| known.version.is_same(&now))) {
                    return Ok(DownloadOutcome::Unchanged);
                }
                self.fetch(unit, path, &place).await
            }
            Step::CompareChecksum => {
                if self.is_as_stated(unit, path, &place, here).await? {
                    return Ok(DownloadOutcome::Unchanged);
                }
                self.fetch(unit, path, &place).await
            }
            Step::Fetch => self.fetch(unit, path, &place).await,
        }
    }

    /// What would be done about an archive, without asking the exchange: whether it would be asked.
    pub(crate) async fn would_ask(&self, unit: &Unit, path: &str) -> Result<bool, DownloadFault> {
        let place = ArchivePlace::new(&self.data_dir, path);
        let here = on_disk(&place, ArchivePlace::read).await?;
        Ok(self.step(unit, &here, self.memory.get(path).as_ref()) != Step::Nothing)
    }

    fn step(&self, unit: &Unit, here: &LocalArchive, known: Option<&KnownVersion>) -> Step {
        let may_change = unit.period.last_day() >= self.recheck_since;
        next_step(here, known, may_change, self.absent)
    }

    /// Whether the archive here is what the exchange's `.CHECKSUM` says; writes that, if it is not here.
    async fn is_as_stated(
        &self,
        unit: &Unit,
        path: &str,
        place: &ArchivePlace,
        here: LocalArchive,
    ) -> Result<bool, DownloadFault> {
        let (sha256, fingerprint) = match self.memory.get(path) {
            Some(known) if Some(known.fingerprint) == here.archive => (known.sha256, known.fingerprint),
            _ => on_disk(place, ArchivePlace::hash).await?,
        };
        let Some((line, stated)) = self.checksum(path, place).await? else {
            return if here.stated.is_some() { Ok(true) } else { Err(DownloadFault::NoChecksum) };
        };
        if stated != sha256 {
            return Ok(false);
        }
        if here.stated != Some(stated) {
            on_disk(place, move |place| place.write_checksum(&line)).await?;
        }
        // Of which publication it is nobody said: that is known only of what was fetched.
        let version = self.memory.get(path).filter(|known| known.sha256 == sha256).map(|known| known.version);
        let known = KnownVersion { fingerprint, sha256, version: version.unwrap_or_default(), period: unit.period };
        self.memory.insert(path.to_owned(), known);
        Ok(true)
    }

    async fn checksum(&self, path: &str, place: &ArchivePlace) -> Result<Option<(Vec<u8>, Sha256Sum)>, DownloadFault> {
        let line = self.exchange.small(&format!("{path}.CHECKSUM"), CHECKSUM_BYTES_MAX).await?;
        let Some(line) = line else { return Ok(None) };
        let stated = place.stated(&line).map_err(|fault| DownloadFault::BadChecksum(fault.to_string()))?;
        Ok(Some((line, stated)))
    }

    async fn fetch(&self, unit: &Unit, path: &str, place: &ArchivePlace) -> Result<DownloadOutcome, DownloadFault> {
        let mut resumed_before = false;
        loop {
            let Some((part, resumed)) = self.part(path, place).await? else { return Ok(DownloadOutcome::NotPublished) };
            // Asked for after the archive: of the two it is published later. What came stays for the next run.
            let Some((line, stated)) = self.checksum(path, place).await? else { return Err(DownloadFault::NoChecksum) };
            let actual = on_disk(place, ArchivePlace::hash_part).await?;
            if actual == stated {
                let (version, bytes) = (part.origin.version.clone(), part.bytes);
                let fingerprint = on_disk(place, move |place| place.land(part, &line)).await?;
                let known = KnownVersion { fingerprint, sha256: actual, version, period: unit.period };
                self.memory.insert(path.to_owned(), known);
                return Ok(DownloadOutcome::Downloaded { bytes });
            }
            drop(part);
            on_disk(place, ArchivePlace::discard_part).await?;
            // What was put together of two runs may be spoilt by what happened in between; a whole one speaks for itself.
            if !resumed || resumed_before {
                return Err(DownloadFault::Mismatch { actual, stated });
            }
            resumed_before = true;
        }
    }

    /// Brings the archive as a part, whole, and tells whether it was begun by an earlier run. `None`: there is none.
    async fn part(&self, path: &str, place: &ArchivePlace) -> Result<Option<(PartialArchive, bool)>, DownloadFault> {
        let mut tries = Tries::default();
        let mut resumed = false;
        let mut furthest = 0;
        loop {
            let part = on_disk(place, ArchivePlace::resume).await?;
            resumed |= part.is_some();
            let mut reached = 0;
            let outcome = self.part_once(path, place, part, &mut reached).await;
            match outcome {
                Ok(part) => return Ok(part.map(|part| (part, resumed))),
                Err(fault) => {
                    if matches!(fault, DownloadFault::DiskFull(_)) {
                        // Room for smaller ones.
                        on_disk(place, ArchivePlace::discard_part).await?;
                    }
                    // Further than ever, so that this ends also where each attempt has to begin anew.
                    if reached >= furthest + PROGRESS_BYTES_MIN {
                        furthest = reached;
                        tries.got_on();
                    }
                    tries.retry(fault, &self.shutdown).await?;
                }
            }
        }
    }

    async fn part_once(
        &self,
        path: &str,
        place: &ArchivePlace,
        part: Option<PartialArchive>,
        reached: &mut u64,
    ) -> Result<Option<PartialArchive>, DownloadFault> {
        let part = match part {
            // Whole, and its `.CHECKSUM` was not there.
            Some(part) if part.origin.size == Some(part.bytes) => {
                let now = self.exchange.version(path).await?;
                if now.is_some_and(|now| now.is_same(&part.origin.version)) {
                    return Ok(Some(part));
                }
                None
            }
            part => part,
        };
        let have = part.as_ref().map(|part| (part.bytes, &part.origin.version));
        let opened = match self.exchange.open(path, have).await? {
            Some(opened) => opened,
            None => {
                drop(part);
                on_disk(place, ArchivePlace::discard_part).await?;
                return Ok(None);
            }
        };
        let Opened { version, size, offset, body } = opened;
        if size.is_some_and(|size| size > ARCHIVE_BYTES_MAX) {
            return Err(DownloadFault::TooLarge { what: "it", bytes_max: ARCHIVE_BYTES_MAX });
        }
        let goes_on = |part: &PartialArchive| offset == part.bytes && version.is_same(&part.origin.version);
        let part = match part {
            Some(part) if offset > 0 && goes_on(&part) => part,
            part if offset > 0 => {
                drop(part);
                on_disk(place, ArchivePlace::discard_part).await?;
                return Err(DownloadFault::Cut("it answered with another part than was asked for".to_owned()));
            }
            part => {
                // The lock goes with it: beginning anew takes its own.
                drop(part);
                let origin = Origin { version, size };
                on_disk(place, move |place| place.begin(origin)).await?
            }
        };
        self.receive(part, body, size, reached).await.map(Some)
    }

    /// Writes the body to the part's end.
    async fn receive(
        &self,
        part: PartialArchive,
        mut body: Body,
        size: Option<u64>,
        reached: &mut u64,
    ) -> Result<PartialArchive, DownloadFault> {
        let PartialArchive { file, mut bytes, origin } = part;
        let mut file = tokio::fs::File::from_std(file);
        let outcome = loop {
            let chunk = match body.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break Ok(()),
                Err(fault) => break Err(fault),
            };
            let more = chunk.len() as u64;
            if bytes + more > size.unwrap_or(ARCHIVE_BYTES_MAX) {
                break Err(DownloadFault::TooLarge { what: "it", bytes_max: size.unwrap_or(ARCHIVE_BYTES_MAX) });
            }
            if let Err(error) = file.write_all(&chunk).await {
                break Err(error.into());
            }
            bytes += more;
            self.progress.sent(more);
            self.metrics.received(more);
        };
        *reached = bytes;
        // Also what came before it broke off is kept: the next attempt goes on from there.
        file.flush().await?;
        outcome?;
        match size {
            Some(size) if bytes < size => Err(DownloadFault::Cut(format!("{bytes} of {size} bytes came"))),
            _ => Ok(PartialArchive { file: file.into_std().await, bytes, origin }),
        }
    }
}

fn next_step(here: &LocalArchive, known: Option<&KnownVersion>, may_change: bool, absent: Absent) -> Step {
    let remembered = known.is_some();
    let known = known.filter(|known| known.version.is_known());
    let Some(archive) = here.archive else {
        return match (absent, known) {
            (Absent::StaysAway, _) if remembered && !may_change => Step::Nothing,
            (Absent::StaysAway, Some(_)) => Step::AskVersion,
            _ => Step::Fetch,
        };
    };
    let same = |known: &KnownVersion| known.fingerprint == archive && Some(known.sha256) == here.stated;
    match here.stated {
        Some(_) if !may_change => Step::Nothing,
        Some(_) if known.is_some_and(same) => Step::AskVersion,
        _ => Step::CompareChecksum,
    }
}

/// Works with the disk on a thread that may block.
async fn on_disk<T, E>(
    place: &ArchivePlace,
    work: impl FnOnce(&ArchivePlace) -> Result<T, E> + Send + 'static,
) -> Result<T, DownloadFault>
where
    T: Send + 'static,
    E: Into<DownloadFault> + Send + 'static,
{
    let place = place.clone();
    blocking(move || work(&place)).await.map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::scan::Fingerprint;

    #[test]
    fn only_what_may_have_changed_is_asked_for() {
        let fingerprint = Fingerprint { size: 1, mtime_ns: 2, ctime_ns: 3, inode: 4 };
        let (sum, other) = (Sha256Sum::of(b"a"), Sha256Sum::of(b"b"));
        let known = |version: &str, sha256| KnownVersion {
            fingerprint,
            sha256,
            version: serde_json::from_str(version).expect("a version"),
            period: "2026-03-01".parse().expect("a day"),
        };
        let (versioned, nameless) = (known(r#"{"etag": "x"}"#, sum), known("{}", sum));
        let nothing = LocalArchive::default();
        let pair = LocalArchive { archive: Some(fingerprint), stated: Some(sum) };
        let touched = LocalArchive { archive: Some(Fingerprint { ctime_ns: 9, ..fingerprint }), stated: Some(sum) };
        let bare = LocalArchive { archive: Some(fingerprint), stated: None };
        let spoilt = LocalArchive { archive: Some(fingerprint), stated: Some(other) };
        let check = |here: &LocalArchive, known: Option<&KnownVersion>, may_change, absent, step| {
            assert_eq!(next_step(here, known, may_change, absent), step, "{here:?} {known:?} {may_change}");
        };
        check(&nothing, None, true, Absent::Fetch, Step::Fetch);
        check(&nothing, Some(&versioned), true, Absent::Fetch, Step::Fetch);
        check(&nothing, None, false, Absent::StaysAway, Step::Fetch);
        check(&nothing, Some(&versioned), true, Absent::StaysAway, Step::AskVersion);
        check(&nothing, Some(&versioned), false, Absent::StaysAway, Step::Nothing);
        check(&nothing, Some(&nameless), true, Absent::StaysAway, Step::Fetch);
        check(&nothing, Some(&nameless), false, Absent::StaysAway, Step::Nothing);
        check(&pair, Some(&versioned), true, Absent::Fetch, Step::AskVersion);
        check(&pair, Some(&versioned), false, Absent::Fetch, Step::Nothing);
        check(&pair, Some(&nameless), true, Absent::Fetch, Step::CompareChecksum);
        check(&pair, None, true, Absent::Fetch, Step::CompareChecksum);
        check(&touched, Some(&versioned), true, Absent::Fetch, Step::CompareChecksum);
        check(&bare, Some(&versioned), false, Absent::Fetch, Step::CompareChecksum);
        check(&spoilt, Some(&versioned), true, Absent::Fetch, Step::CompareChecksum);
    }
}
