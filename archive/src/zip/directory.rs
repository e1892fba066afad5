//! Reads the directory of a zip file that holds exactly one member.
//!
//! Layout and names from PKWARE's APPNOTE.TXT 4.3. Stricter than a general reader on purpose: the directory must end
//! where the end record starts and hold nothing but the one entry, which must agree with the local header.

use std::ops::Range;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use crate::zip::fault::{ArchiveFault, not_zip, printable, printable_name};
use crate::zip::source::Source;

const END_SIGNATURE: [u8; 4] = *b"PK\x05\x06";
const CENTRAL_SIGNATURE: [u8; 4] = *b"PK\x01\x02";
const LOCAL_SIGNATURE: [u8; 4] = *b"PK\x03\x04";
const END_BYTES: usize = 22;
const COMMENT_BYTES_MAX: usize = 0xffff;

const FLAG_ENCRYPTED: u16 = 1 << 0;
/// Sizes and CRC follow the data, the local header's are zero.
const FLAG_DATA_DESCRIPTOR: u16 = 1 << 3;
const FLAG_PATCHED: u16 = 1 << 5;
const FLAG_STRONG_ENCRYPTION: u16 = 1 << 6;
const FLAG_MASKED_HEADERS: u16 = 1 << 13;

const ZIP64_EXTRA: u16 = 0x0001;
/// Stands in a 32-bit field for a value that is in the zip64 extra field.
const IN_ZIP64_EXTRA: u32 = u32::MAX;

/// Longest local header: its fixed fields, a name and extra fields.
const LOCAL_BYTES_MAX: usize = 30 + 2 * 0xffff;
/// Longest directory of one entry: its fixed fields, a name, extra fields and a comment.
const DIRECTORY_BYTES_MAX: usize = 46 + 3 * 0xffff;
/// What is looked at to say what a file is that is no zip file.
const HEAD_BYTES: u64 = 256;

/// The one member of a zip file, as its directory describes it.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) method: u16,
    pub(crate) crc: u32,
    /// Inflated size the directory declares.
    pub(crate) declared_bytes: u64,
    /// Time stamp of the member, read as UTC; none where it is no valid date.
    pub(crate) time: Option<Timestamp>,
    /// Where its compressed bytes are.
    pub(crate) compressed: Range<u64>,
}

/// Finds the member, which must be called `member_name`, and checks it against its local header.
pub(crate) fn only_member<S: Source + ?Sized>(zip: &S, member_name: &str) -> Result<Member, S::Error> {
    let directory_at = {
        let (end_at, end) = end_record(zip)?;
        directory_range(&end, end_at)?
    };
    let directory = zip.range(directory_at.start, (directory_at.end - directory_at.start) as usize)?;
    let mut fields = Fields(&directory);
    let central = Header::central(&mut fields)?;
    if !fields.0.is_empty() {
        return Err(ArchiveFault::Damaged("the directory holds more than it declares").into());
    }
    if central.flags & (FLAG_ENCRYPTED | FLAG_STRONG_ENCRYPTION | FLAG_MASKED_HEADERS) != 0 {
        return Err(ArchiveFault::Encrypted.into());
    }
    if central.flags & FLAG_PATCHED != 0 {
        return Err(ArchiveFault::Unsupported("patched data").into());
    }
    if central.name != member_name.as_bytes() {
        let (expected, found) = (printable_name(member_name), printable(central.name));
        return Err(ArchiveFault::MemberName { expected, found }.into());
    }

    let outside = || ArchiveFault::Damaged("the member lies outside the file");
    // Members end where the directory starts.
    let space = directory_at.start.checked_sub(central.offset).ok_or_else(outside)?;
    let head = zip.range(central.offset, space.min(LOCAL_BYTES_MAX as u64) as usize)?;
    let mut fields = Fields(&head);
    let local = Header::local(&mut fields)?;
    check_same(&central, &local)?;
    let from = central.offset + (head.len() - fields.0.len()) as u64;
    let until = from.checked_add(central.compressed_bytes).filter(|until| *until <= directory_at.start);
    Ok(Member {
        method: central.method,
        crc: central.crc,
        declared_bytes: central.declared_bytes,
        time: central.time,
        compressed: from..until.ok_or_else(outside)?,
    })
}

/// Where the bytes between the members and the end record are.
fn directory_range(end: &[u8], end_at: u64) -> Result<Range<u64>, ArchiveFault> {
    let mut end = Fields(end.get(END_SIGNATURE.len()..).unwrap_or_default());
    let (disk, directory_disk) = (end.u16()?, end.u16()?);
    let (members_here, members) = (end.u16()?, end.u16()?);
    let (directory_bytes, directory_at) = (end.u32()?, end.u32()?);
    if members == u16::MAX || directory_bytes == IN_ZIP64_EXTRA || directory_at == IN_ZIP64_EXTRA {
        return Err(ArchiveFault::Unsupported("a zip64 directory"));
    }
    if disk != 0 || directory_disk != 0 || members_here != members {
        return Err(ArchiveFault::Unsupported("a zip file in several parts"));
    }
    if members != 1 {
        return Err(ArchiveFault::MemberCount(members));
    }
    let from = u64::from(directory_at);
    if from + u64::from(directory_bytes) != end_at {
        return Err(ArchiveFault::Damaged("the directory is not where the end record says"));
    }
    if directory_bytes as usize > DIRECTORY_BYTES_MAX {
        return Err(ArchiveFault::Damaged("the directory holds more than it declares"));
    }
    Ok(from..end_at)
}

/// The end record, and where it starts: it is followed by nothing but a comment of the length it states.
fn end_record<S: Source + ?Sized>(zip: &S) -> Result<(u64, [u8; END_BYTES]), S::Error> {
    let size = zip.bytes();
    let tail_bytes = size.min((END_BYTES + COMMENT_BYTES_MAX) as u64);
    let tail = zip.range(size - tail_bytes, tail_bytes as usize)?;
    let record = tail.len().checked_sub(END_BYTES).and_then(|last| {
        (0..=last).rev().find_map(|at| {
            let record: [u8; END_BYTES] = *tail.get(at..)?.first_chunk()?;
            let comment_bytes = ((last - at) as u16).to_le_bytes();
            let found = record.starts_with(&END_SIGNATURE) && record.ends_with(&comment_bytes);
            found.then_some((size - tail_bytes + at as u64, record))
        })
    });
    match record {
        Some(record) => Ok(record),
        None => Err(not_zip(&zip.range(0, size.min(HEAD_BYTES) as usize)?).into()),
    }
}

/// What a local header and a directory entry have in common.
struct Header<'a> {
    flags: u16,
    method: u16,
    time: Option<Timestamp>,
    crc: u32,
    compressed_bytes: u64,
    declared_bytes: u64,
    name: &'a [u8],
    /// Where the local header starts; 0 in a local header.
    offset: u64,
}

impl<'a> Header<'a> {
    fn central(fields: &mut Fields<'a>) -> Result<Self, ArchiveFault> {
        if fields.read()? != CENTRAL_SIGNATURE {
            return Err(ArchiveFault::Damaged("no entry where the directory starts"));
        }
        let _version_made_by = fields.u16()?;
        let common = Common::read(fields)?;
        let comment_bytes = fields.u16()?;
        let disk = fields.u16()?;
        let _attributes: [u8; 6] = fields.read()?;
        let offset = fields.u32()?;
        let (name, extra) = (fields.slice(common.name_bytes)?, fields.slice(common.extra_bytes)?);
        fields.slice(comment_bytes)?;
        if disk != 0 {
            return Err(ArchiveFault::Unsupported("a zip file in several parts"));
        }
        common.resolve(name, extra, Some(offset))
    }

    fn local(fields: &mut Fields<'a>) -> Result<Self, ArchiveFault> {
        if fields.read()? != LOCAL_SIGNATURE {
            return Err(ArchiveFault::Damaged("no local header where the directory says"));
        }
        let common = Common::read(fields)?;
        let (name, extra) = (fields.slice(common.name_bytes)?, fields.slice(common.extra_bytes)?);
        common.resolve(name, extra, None)
    }
}

/// Readers that trust the local header must see the same bytes as we do.
fn check_same(central: &Header<'_>, local: &Header<'_>) -> Result<(), ArchiveFault> {
    let disagree = |what| Err(ArchiveFault::HeadersDisagree(what));
    if central.name != local.name {
        return disagree("name");
    }
    if central.method != local.method {
        return disagree("method");
    }
    if (central.flags ^ local.flags) & (FLAG_ENCRYPTED | FLAG_STRONG_ENCRYPTION | FLAG_MASKED_HEADERS) != 0 {
        return disagree("encryption");
    }
    if local.flags & FLAG_DATA_DESCRIPTOR != 0 {
        return Ok(());
    }
    if central.crc != local.crc {
        return disagree("CRC");
    }
    if (central.compressed_bytes, central.declared_bytes) != (local.compressed_bytes, local.declared_bytes) {
        return disagree("size");
    }
    Ok(())
}

/// The run of fields both headers have, from `version needed` to `extra field length`.
struct Common {
    flags: u16,
    method: u16,
    dos_time: u16,
    dos_date: u16,
    crc: u32,
    compressed_bytes: u32,
    declared_bytes: u32,
    name_bytes: u16,
    extra_bytes: u16,
}

impl Common {
    fn read(fields: &mut Fields<'_>) -> Result<Self, ArchiveFault> {
        let _version_needed = fields.u16()?;
        Ok(Self {
            flags: fields.u16()?,
            method: fields.u16()?,
            dos_time: fields.u16()?,
            dos_date: fields.u16()?,
            crc: fields.u32()?,
            compressed_bytes: fields.u32()?,
            declared_bytes: fields.u32()?,
            name_bytes: fields.u16()?,
            extra_bytes: fields.u16()?,
        })
    }

    fn resolve<'a>(self, name: &'a [u8], extra: &[u8], offset: Option<u32>) -> Result<Header<'a>, ArchiveFault> {
        let mut zip64 = Fields(zip64_extra(extra));
        // The extra field holds, in this order, only the values whose 32-bit fields are full.
        let mut widen = |value: u32| if value == IN_ZIP64_EXTRA { zip64.u64() } else { Ok(u64::from(value)) };
        let declared_bytes = widen(self.declared_bytes)?;
        let compressed_bytes = widen(self.compressed_bytes)?;
        let offset = offset.map_or(Ok(0), widen)?;
        Ok(Header {
            flags: self.flags,
            method: self.method,
            time: dos_time(self.dos_date, self.dos_time),
            crc: self.crc,
            compressed_bytes,
            declared_bytes,
            name,
            offset,
        })
    }
}

/// Content of the zip64 extra field; empty where there is none.
fn zip64_extra(extra: &[u8]) -> &[u8] {
    let mut fields = Fields(extra);
    while let (Ok(id), Ok(bytes)) = (fields.u16(), fields.u16()) {
        match fields.slice(bytes) {
            Ok(content) if id == ZIP64_EXTRA => return content,
            Ok(_) => {}
            Err(_) => break,
        }
    }
    &[]
}

/// MS-DOS date and time (steps of two seconds), read as UTC.
fn dos_time(date: u16, time: u16) -> Option<Timestamp> {
    // Each part is at most seven bits wide.
    let part = |word: u16, shift: u16, bits: u16| ((word >> shift) & ((1 << bits) - 1)) as i8;
    let year = 1980 + (date >> 9).cast_signed();
    let (month, day) = (part(date, 5, 4), part(date, 0, 5));
    let (hour, minute, second) = (part(time, 11, 5), part(time, 5, 6), 2 * part(time, 0, 5));
    let datetime = DateTime::new(year, month, day, hour, minute, second, 0).ok()?;
    Some(datetime.to_zoned(TimeZone::UTC).ok()?.timestamp())
}

/// Little-endian fields read one after the other.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn read<const N: usize>(&mut self) -> Result<[u8; N], ArchiveFault> {
        let (field, rest) = self.0.split_first_chunk().ok_or(ArchiveFault::Damaged("a header is cut short"))?;
        self.0 = rest;
        Ok(*field)
    }

    fn slice(&mut self, bytes: u16) -> Result<&'a [u8], ArchiveFault> {
        let cut_short = ArchiveFault::Damaged("a header is cut short");
        let (field, rest) = self.0.split_at_checked(bytes.into()).ok_or(cut_short)?;
        self.0 = rest;
        Ok(field)
    }

    fn u16(&mut self) -> Result<u16, ArchiveFault> {
        self.read().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, ArchiveFault> {
        self.read().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, ArchiveFault> {
        self.read().map(u64::from_le_bytes)
    }
}
