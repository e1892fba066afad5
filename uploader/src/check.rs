//! One archive: whether it is whole, and what is said of it in a marker.
//!
//! What the rows mean is not looked at: a worker knows that, the uploader does not.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, Cursor, Read, Seek, SeekFrom};
use std::path::Path;
use std::rc::Rc;

use bytes::Bytes;
use common::checksum::{Sha256Sum, Summing, Sums};
use common::object_store::parts::{OBJECT_BYTES_MAX, SINGLE_BYTES_MAX, part_bytes};
use common::unit::shorten;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use zip::ZipArchive;

use crate::scan::Fingerprint;
use crate::signs;

/// What is read at once of an archive that is not held in memory whole.
const CHUNK_BYTES: usize = 256 * 1024;
/// Memory that checking such an archive takes, with a good deal to spare for the reader of zips.
pub(crate) const STREAM_BYTES: u64 = 4 << 20;
/// Most bytes read to find a zip's directory, which is held in memory whole: that of one member has some hundred bytes,
/// and a comment may take 64 KiB.
const DIRECTORY_BYTES_MAX: u64 = 1 << 20;
/// A `.CHECKSUM` is one line of about 100 bytes.
pub(crate) const CHECKSUM_BYTES_MAX: u64 = 4096;
/// Klines shrink to a third, rows that repeat themselves to a thirtieth. What unpacks to more than this many times its
/// size is made to exhaust whoever unpacks it.
const RATIO_MAX: u64 = 100;
/// Below this a ratio says nothing: unpacking costs nothing either.
const RATIO_BYTES_MIN: u64 = 16 << 20;
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
    /// When the exchange generated it: the member's time stamp, read as UTC. Before 2017, or in the future, it is a
    /// placeholder, and the file's modification time is taken.
    pub(crate) generated_at: Timestamp,
}

/// Why an archive is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    #[error("changed while it was read; it is taken once it stays as it is")]
    Changed,
    #[error("has {0} bytes, more than the {OBJECT_BYTES_MAX} that can be stored")]
    TooLarge(u64),
    #[error("is no whole zip file: {0}")]
    Zip(zip::result::ZipError),
    #[error("has {0} members instead of one")]
    Members(usize),
    #[error("holds '{found}' instead of '{expected}'")]
    MemberName { found: String, expected: String },
    #[error("is damaged: its member cannot be unpacked: {0}")]
    Damaged(io::Error),
    #[error("is damaged: its member says it has {declared} bytes and has {actual}")]
    MemberSize { declared: u64, actual: u64 },
    #[error("would unpack to {declared} bytes, more than {RATIO_MAX} times its size")]
    Bomb { declared: u64 },
    #[error("does not match its .CHECKSUM: it has sha256 {actual}, the file says {stated}")]
    Checksum { actual: Sha256Sum, stated: Sha256Sum },
    #[error("has a .CHECKSUM that cannot be used: {0}")]
    ChecksumFile(String),
}

/// Reads an archive and its `.CHECKSUM`, if there is one, and checks them. Blocks.
pub(crate) fn check_file(path: &Path, now: Timestamp) -> Result<(Checked, Fingerprint), Fault> {
    let mut file = File::open(path)?;
    let fingerprint = Fingerprint::of(&file.metadata()?);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let (size, mtime) = (fingerprint.size, mtime(fingerprint));
    let checked = if size <= SINGLE_BYTES_MAX {
        // Read once, so that what is hashed is what was unpacked, whatever happens to the file.
        let bytes = read_whole(&mut file, size)?;
        check(&name, Cursor::new(&bytes), size, mtime, now)
    } else if size <= OBJECT_BYTES_MAX {
        check(&name, BufReader::with_capacity(CHUNK_BYTES, &file), size, mtime, now)
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
    let mut file = File::open(path)?;
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
    let mut file = File::open(path)?;
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

/// Checks an archive of this size; `name` is the file's.
fn check<R: Read + Seek>(
    name: &str,
    mut archive: R,
    size: u64,
    mtime: Timestamp,
    now: Timestamp,
) -> Result<Checked, Fault> {
    let stamp = check_zip(name, &mut archive, size)?;
    archive.seek(SeekFrom::Start(0))?;
    let Sums { sha256, md5, parts_etag } = sum(&mut archive, size)?;
    let generated_at = generated_at(stamp.and_then(utc), mtime, now);
    Ok(Checked { sha256, md5: md5.to_string(), parts_etag, generated_at })
}

/// Unpacks the one member, keeping nothing; returns its time stamp.
fn check_zip(name: &str, archive: impl Read + Seek, size: u64) -> Result<Option<zip::DateTime>, Fault> {
    let left = Rc::new(Cell::new(DIRECTORY_BYTES_MAX));
    let mut zip = ZipArchive::new(Limited { archive, left: Rc::clone(&left) }).map_err(Fault::Zip)?;
    left.set(u64::MAX);
    // Of two members with one name the reader would show the last only.
    let members = if zip.len() == 1 && zip.has_duplicate_names() { 2 } else { zip.len() };
    if members != 1 {
        return Err(Fault::Members(members));
    }
    let mut member = zip.by_index(0).map_err(Fault::Zip)?;
    let expected = format!("{}.csv", name.strip_suffix(".zip").unwrap_or(name));
    if member.name_raw() != expected.as_bytes() {
        let found = shorten(&String::from_utf8_lossy(member.name_raw()));
        return Err(Fault::MemberName { found, expected });
    }
    let declared = member.size();
    if declared > RATIO_BYTES_MIN && declared / RATIO_MAX > size {
        return Err(Fault::Bomb { declared });
    }
    let stamp = member.last_modified();
    // The reader stops at the first byte beyond the declared size, and compares the CRC at the end.
    let actual = io::copy(&mut member, &mut io::sink()).map_err(Fault::Damaged)?;
    if actual != declared {
        return Err(Fault::MemberSize { declared, actual });
    }
    Ok(stamp)
}

/// Gives out so many bytes and no more.
struct Limited<R> {
    archive: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.archive.read(buffer)?;
        signs::bump();
        let left = self.left.get().checked_sub(count as u64);
        self.left.set(left.ok_or_else(|| io::Error::other("its directory is not where it should be, or too large"))?);
        Ok(count)
    }
}

impl<R: Seek> Seek for Limited<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.archive.seek(to)
    }
}

fn utc(stamp: zip::DateTime) -> Option<Timestamp> {
    let number = |n: u8| i8::try_from(n).ok();
    let civil = DateTime::new(
        i16::try_from(stamp.year()).ok()?,
        number(stamp.month())?,
        number(stamp.day())?,
        number(stamp.hour())?,
        number(stamp.minute())?,
        number(stamp.second())?,
        0,
    );
    Some(civil.ok()?.to_zoned(TimeZone::UTC).ok()?.timestamp())
}

fn generated_at(stamp: Option<Timestamp>, mtime: Timestamp, now: Timestamp) -> Timestamp {
    let plausible = |at: &Timestamp| *at <= now && at.to_zoned(TimeZone::UTC).year() >= FIRST_YEAR;
    // A clock that was ahead when the file was written must not put it ahead of every later correction.
    stamp.filter(plausible).unwrap_or_else(|| mtime.clamp(Timestamp::UNIX_EPOCH, now))
}

/// The `.CHECKSUM` beside an archive; `None` where there is none.
pub(crate) fn read_checksum(path: &Path) -> Result<Option<String>, Fault> {
    let mut name = path.as_os_str().to_owned();
    name.push(".CHECKSUM");
    let file = match File::open(name) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
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
