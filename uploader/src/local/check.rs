//! One archive: whether it is whole, and what is said of it in a marker.
//!
//! The zip file is read by the reader that workers use, so that none is announced that they would refuse. What the rows mean
//! is not looked at: a worker knows that, the uploader does not.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use archive::{Archive, ArchiveFault, Source};
use bytes::Bytes;
use common::checksum::{Sha256Sum, Summing, Sums};
use common::files::regular_file;
use common::marker::OBJECT_BYTES_MAX;
use common::text::shorten;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use store::parts::{SINGLE_BYTES_MAX, part_bytes};

use crate::local::scan::Fingerprint;
use crate::local::signs;

/// What is read at once of an archive that is not held in memory whole.
const CHUNK_BYTES: usize = 256 * 1024;
/// Memory that checking such an archive takes, with a good deal to spare.
pub(crate) const STREAM_BYTES: u64 = 4 << 20;
/// A `.CHECKSUM` is one line of about 100 bytes.
pub(crate) const CHECKSUM_BYTES_MAX: u64 = 4096;
/// Klines shrink to a third, rows that repeat themselves to a thirtieth. What unpacks to more than this many times its
/// size is made to exhaust whoever unpacks it.
const RATIO_MAX: u64 = 100;
/// Below this a ratio says nothing: unpacking costs nothing either.
const RATIO_BYTES_MIN: u64 = 16 << 20;
/// How far a stamp may be ahead of the clock, as at the worker.
const AHEAD_MAX: SignedDuration = SignedDuration::from_hours(24);
/// Binance was founded in 2017: an earlier time stamp is a placeholder.
const FIRST_YEAR: i16 = 2017;

/// What is known of an archive that is whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Checked {
    pub(crate) sha256: Sha256Sum,
    /// In hex: the ETag the bucket gives an object stored by a single PUT.
    pub(crate) md5: String,
    /// The ETag of one stored in parts as we cut them, where it is too large for a single PUT.
    pub(crate) parts_etag: Option<String>,
    /// When the exchange generated it: the member's time stamp, read as UTC. Before 2017 it is a placeholder, and the
    /// file's modification time is taken.
    pub(crate) generated_at: Timestamp,
    /// Whether that is the stamp.
    pub(crate) stamped: bool,
}

/// Why an archive is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    #[error("changed while it was read; it is taken once it stays as it is")]
    Changed,
    #[error("has {0} bytes, more than the {OBJECT_BYTES_MAX} that a marker may name")]
    TooLarge(u64),
    #[error("is no whole zip file: {0}")]
    Zip(ArchiveFault),
    #[error("is refused: {0}")]
    Member(ArchiveFault),
    #[error("has no rows")]
    NoRows,
    #[error(
        "has a time stamp of {at}, which is more than a day ahead of this machine's clock ({now}): the clock is behind, \
         or the stamp lies in the future; it is taken once they agree"
    )]
    Ahead { at: Timestamp, now: Timestamp },
    #[error("does not match its .CHECKSUM: it has sha256 {actual}, the file says {stated}")]
    Checksum { actual: Sha256Sum, stated: Sha256Sum },
    #[error("has a .CHECKSUM that cannot be used: {0}")]
    ChecksumFile(String),
}

impl From<ArchiveFault> for Fault {
    fn from(fault: ArchiveFault) -> Self {
        match fault.class() {
            "zip" | "crc" => Self::Zip(fault),
            _ => Self::Member(fault),
        }
    }
}

/// Reads an archive and its `.CHECKSUM`, if there is one, and checks them. Blocks.
pub(crate) fn check_file(path: &Path, now: Timestamp) -> Result<(Checked, Fingerprint), Fault> {
    let mut file = regular_file::open(path)?;
    let fingerprint = Fingerprint::of(&file.metadata()?);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let (size, mtime) = (fingerprint.size, mtime(fingerprint));
    let checked = if size <= SINGLE_BYTES_MAX {
        // Read once, so that what is hashed is what was unpacked, whatever happens to the file.
        let bytes = read_whole(&mut file, size)?;
        check(&name, bytes.as_slice(), &mut bytes.as_slice(), mtime, now)
    } else if size <= OBJECT_BYTES_MAX {
        check(&name, &OpenFile { file: &file, bytes: size }, &mut &file, mtime, now)
    } else {
        Err(Fault::TooLarge(size))
    };
    // A file that is being written looks damaged too, and is not.
    if Fingerprint::of(&file.metadata()?) != fingerprint {
        return Err(Fault::Changed);
    }
    let checked = checked?;
    if let Some(line) = read_checksum(path)? {
        compare_checksum(&line, &name, checked.sha256)?;
    }
    Ok((checked, fingerprint))
}

/// Reads a file whole that goes out by a single PUT. Blocks.
pub(crate) fn read(path: &Path) -> Result<Bytes, Fault> {
    let mut file = regular_file::open(path)?;
    let before = Fingerprint::of(&file.metadata()?);
    if before.size > SINGLE_BYTES_MAX {
        return Err(Fault::Changed);
    }
    let bytes = read_whole(&mut file, before.size)?;
    if Fingerprint::of(&file.metadata()?) == before { Ok(bytes.into()) } else { Err(Fault::Changed) }
}

fn read_whole(file: &mut File, size: u64) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default() + 1);
    file.take(size + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == size { Ok(bytes) } else { Err(Fault::Changed) }
}

/// The sums of a file, whatever it is. Blocks.
pub(crate) fn sum_file(path: &Path) -> Result<Sums, Fault> {
    let mut file = regular_file::open(path)?;
    let size = file.metadata()?.len();
    sum(&mut file, size)
}

fn sum(reader: &mut impl Read, size: u64) -> Result<Sums, Fault> {
    let mut summing = Summing::new((size > SINGLE_BYTES_MAX).then(|| part_bytes(size)));
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut total = 0;
    loop {
        let count = match reader.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        signs::bump();
        total += count as u64;
        if total > size {
            return Err(Fault::Changed);
        }
        summing.update(&chunk[..count]);
    }
    if total == size { Ok(summing.finish()) } else { Err(Fault::Changed) }
}

fn mtime(fingerprint: Fingerprint) -> Timestamp {
    Timestamp::from_nanosecond(fingerprint.mtime_ns.into()).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Checks an archive; `name` is the file's, `bytes` are all of it from the start.
fn check<S: Source + ?Sized>(
    name: &str,
    archive: &S,
    bytes: &mut impl Read,
    mtime: Timestamp,
    now: Timestamp,
) -> Result<Checked, Fault>
where
    Fault: From<S::Error>,
{
    let stamp = check_zip(name, archive)?;
    let Sums { sha256, md5, parts_etag } = sum(bytes, archive.bytes())?;
    let (generated_at, stamped) = generated_at(stamp, mtime, now)?;
    Ok(Checked { sha256, md5: md5.to_string(), parts_etag, generated_at, stamped })
}

/// Unpacks the one member as a worker does, keeping nothing; returns its time stamp.
fn check_zip<S: Source + ?Sized>(name: &str, archive: &S) -> Result<Option<Timestamp>, Fault>
where
    Fault: From<S::Error>,
{
    let csv_bytes_max = RATIO_BYTES_MIN.max(archive.bytes().saturating_mul(RATIO_MAX));
    let archive = Archive::open(name, archive, csv_bytes_max)?;
    let mut rows = Rows::default();
    archive.inflate::<Fault>(|text| {
        signs::bump();
        rows.scan(text);
        Ok(())
    })?;
    if rows.are_there() { Ok(archive.member_time()) } else { Err(Fault::NoRows) }
}

/// Whether a text has a row: a first line that is none may be a header.
#[derive(Default)]
struct Rows {
    lines: u32,
    /// Whether the line has begun that is being looked at.
    begun: bool,
    found: bool,
}

impl Rows {
    fn scan(&mut self, text: &[u8]) {
        for byte in text {
            if self.found {
                return;
            }
            match byte {
                b'\n' => (self.lines, self.begun) = (self.lines + 1, false),
                b'\r' => {}
                _ if self.begun => {}
                first => {
                    self.begun = true;
                    self.found = self.lines > 0 || !first.is_ascii_alphabetic();
                }
            }
        }
    }

    fn are_there(&self) -> bool {
        self.found
    }
}

/// An archive that is read where it lies.
struct OpenFile<'f> {
    file: &'f File,
    bytes: u64,
}

impl Source for OpenFile<'_> {
    type Error = Fault;

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn range(&self, at: u64, count: usize) -> Result<Cow<'_, [u8]>, Fault> {
        let mut bytes = vec![0; count];
        self.file.read_exact_at(&mut bytes, at)?;
        Ok(bytes.into())
    }
}

/// When an archive was generated, and whether its stamp says so.
///
/// # Errors
/// That time lies ahead of the clock: nobody knows which of the two is right, and a wrong one would decide which rows win.
fn generated_at(stamp: Option<Timestamp>, mtime: Timestamp, now: Timestamp) -> Result<(Timestamp, bool), Fault> {
    let stamp = stamp.filter(|at| at.to_zoned(TimeZone::UTC).year() >= FIRST_YEAR);
    let at = stamp.unwrap_or(mtime);
    if is_ahead(at, now) {
        return Err(Fault::Ahead { at, now });
    }
    Ok((stamp.unwrap_or_else(|| mtime.clamp(Timestamp::UNIX_EPOCH, now)), stamp.is_some()))
}

/// Whether a time lies so far ahead that no worker would take it.
pub(crate) fn is_ahead(at: Timestamp, now: Timestamp) -> bool {
    at.duration_since(now) > AHEAD_MAX
}

/// The `.CHECKSUM` beside an archive; `None` where there is none.
pub(crate) fn read_checksum(path: &Path) -> Result<Option<String>, Fault> {
    let mut name = path.as_os_str().to_owned();
    name.push(".CHECKSUM");
    let file = match regular_file::open(Path::new(&name)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return match std::fs::symlink_metadata(&name) {
                Ok(_) => Err(Fault::ChecksumFile("it is a link that leads nowhere".to_owned())),
                Err(_) => Ok(None),
            };
        }
        Err(error) => return Err(Fault::ChecksumFile(error.to_string())),
    };
    let mut text = String::new();
    file.take(CHECKSUM_BYTES_MAX).read_to_string(&mut text).map_err(|error| Fault::ChecksumFile(error.to_string()))?;
    Ok(Some(text))
}

/// A line as sha256sum writes it: `<sha256>  <name>`.
fn compare_checksum(line: &str, name: &str, actual: Sha256Sum) -> Result<(), Fault> {
    let stated = stated_checksum(line, name)?;
    if stated == actual { Ok(()) } else { Err(Fault::Checksum { actual, stated }) }
}

/// What a `.CHECKSUM` says of the archive of this name.
pub(crate) fn stated_checksum(line: &str, name: &str) -> Result<Sha256Sum, Fault> {
    let (sum, named) = line.trim().split_once(char::is_whitespace).unwrap_or((line.trim(), name));
    let stated: Sha256Sum = sum.parse().map_err(|_| Fault::ChecksumFile(format!("'{}' is no sha256", shorten(sum))))?;
    let named = named.trim_start().trim_start_matches('*');
    if named != name {
        return Err(Fault::ChecksumFile(format!("it is of '{}'", shorten(named))));
    }
    Ok(stated)
}

#[cfg(test)]
mod tests;
