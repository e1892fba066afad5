//! One archive: whether it is whole, and what is said of it in a marker.
//!
//! What the rows mean is not looked at: a worker knows that, the uploader does not.

use std::fs::File;
use std::io::{self, Cursor, Read};
use std::path::Path;

use bytes::Bytes;
use common::checksum::{Sha256Sum, md5_hex};
use common::unit::shorten;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use zip::ZipArchive;

use crate::scan::Fingerprint;

/// Largest archive taken, in bytes: one is held in memory whole and stored by a single PUT.
pub(crate) const ARCHIVE_BYTES_MAX: u64 = 256 << 20;
/// A `.CHECKSUM` is one line of about 100 bytes.
const CHECKSUM_BYTES_MAX: u64 = 4096;
/// Klines shrink to a third, rows that repeat themselves to a thirtieth. What unpacks to more than this many times its
/// size is made to exhaust whoever unpacks it.
const RATIO_MAX: u64 = 100;
/// Below this a ratio says nothing: unpacking costs nothing either.
const RATIO_BYTES_MIN: u64 = 16 << 20;
/// Binance was founded in 2017: an earlier time stamp is a placeholder.
const FIRST_YEAR: i16 = 2017;

/// What is known of an archive that is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Checked {
    pub(crate) sha256: Sha256Sum,
    /// In hex: the ETag the bucket gives an object stored by a single PUT.
    pub(crate) md5: String,
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
    #[error("has {0} bytes, more than {ARCHIVE_BYTES_MAX}: larger archives are not supported yet")]
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
    let (bytes, fingerprint) = read(path)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let checked = check(&name, &bytes, mtime(fingerprint), now)?;
    if let Some(line) = read_checksum(path)? {
        compare_checksum(&line, &name, checked.sha256)?;
    }
    Ok((checked, fingerprint))
}

/// Reads a file whole, and what tells whether it has changed since. Blocks.
pub(crate) fn read(path: &Path) -> Result<(Bytes, Fingerprint), Fault> {
    let mut file = File::open(path)?;
    let before = Fingerprint::of(&file.metadata()?);
    if before.size > ARCHIVE_BYTES_MAX {
        return Err(Fault::TooLarge(before.size));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(before.size).unwrap_or_default() + 1);
    file.by_ref().take(before.size + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != before.size || Fingerprint::of(&file.metadata()?) != before {
        return Err(Fault::Changed);
    }
    Ok((bytes.into(), before))
}

fn mtime(fingerprint: Fingerprint) -> Timestamp {
    Timestamp::from_nanosecond(fingerprint.mtime_ns.into()).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Checks an archive's bytes; `name` is the file's.
fn check(name: &str, bytes: &[u8], mtime: Timestamp, now: Timestamp) -> Result<Checked, Fault> {
    let mut zip = ZipArchive::new(Cursor::new(bytes)).map_err(Fault::Zip)?;
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
    if declared > RATIO_BYTES_MIN && declared / RATIO_MAX > bytes.len() as u64 {
        return Err(Fault::Bomb { declared });
    }
    let stamp = member.last_modified();
    // The reader stops at the first byte beyond the declared size, and compares the CRC at the end.
    let actual = io::copy(&mut member, &mut io::sink()).map_err(Fault::Damaged)?;
    if actual != declared {
        return Err(Fault::MemberSize { declared, actual });
    }
    drop(member);
    Ok(Checked {
        sha256: Sha256Sum::of(bytes),
        md5: md5_hex(bytes),
        generated_at: generated_at(stamp.and_then(utc), mtime, now),
    })
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

fn read_checksum(path: &Path) -> Result<Option<String>, Fault> {
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
    let (sum, named) = line.trim().split_once(char::is_whitespace).unwrap_or((line.trim(), name));
    let stated: Sha256Sum = sum.parse().map_err(|_| Fault::ChecksumFile(format!("'{}' is no sha256", shorten(sum))))?;
    let named = named.trim_start().trim_start_matches('*');
    if named != name {
        return Err(Fault::ChecksumFile(format!("it is of '{}'", shorten(named))));
    }
    if stated == actual { Ok(()) } else { Err(Fault::Checksum { actual, stated }) }
}

#[cfg(test)]
mod tests;
