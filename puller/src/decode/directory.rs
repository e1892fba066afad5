//! Reads the directory of a zip file that holds exactly one member.
//!
//! Layout and names from PKWARE's APPNOTE.TXT 4.3. Stricter than a general reader on purpose: the directory must end
//! where the end record starts and hold nothing but the one entry, which must agree with the local header.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::fault::{ArchiveFault, printable, printable_name};

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

/// The one member of a zip file, as its directory describes it.
#[derive(Debug)]
pub(super) struct Member<'a> {
    pub(super) method: u16,
    pub(super) crc: u32,
    /// Inflated size the directory declares.
    pub(super) declared_bytes: u64,
    /// Time stamp of the member, read as UTC; none where it is no valid date.
    pub(super) time: Option<Timestamp>,
    pub(super) compressed: &'a [u8],
}

/// Finds the member, which must be called `member_name`, and checks it against its local header.
pub(super) fn only_member<'a>(zip: &'a [u8], member_name: &str) -> Result<Member<'a>, ArchiveFault> {
    let end_at = end_record_at(zip)?;
    let directory = directory(zip, end_at)?;
    let mut fields = Fields(directory);
    let central = Header::central(&mut fields)?;
    if !fields.0.is_empty() {
        return Err(ArchiveFault::Damaged("the directory holds more than it declares"));
    }
    if central.flags & (FLAG_ENCRYPTED | FLAG_STRONG_ENCRYPTION | FLAG_MASKED_HEADERS) != 0 {
        return Err(ArchiveFault::Encrypted);
    }
    if central.flags & FLAG_PATCHED != 0 {
        return Err(ArchiveFault::Unsupported("patched data"));
    }
    if central.name != member_name.as_bytes() {
        return Err(ArchiveFault::MemberName { expected: printable_name(member_name), found: printable(central.name) });
    }

    let outside = ArchiveFault::Damaged("the member lies outside the file");
    let members = zip.get(..end_at - directory.len()).ok_or(ArchiveFault::NotZip)?;
    let from_local = usize::try_from(central.offset).ok().and_then(|offset| members.get(offset..));
    let mut fields = Fields(from_local.ok_or(outside.clone())?);
    let local = Header::local(&mut fields)?;
    check_same(&central, &local)?;
    let compressed = usize::try_from(central.compressed_bytes).ok().and_then(|bytes| fields.0.get(..bytes));
    Ok(Member {
        method: central.method,
        crc: central.crc,
        declared_bytes: central.declared_bytes,
        time: central.time,
        compressed: compressed.ok_or(outside)?,
    })
}

/// The bytes between the members and the end record.
fn directory(zip: &[u8], end_at: usize) -> Result<&[u8], ArchiveFault> {
    let mut end = Fields(zip.get(end_at + END_SIGNATURE.len()..).ok_or(ArchiveFault::NotZip)?);
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
    let (from, bytes) = (directory_at as usize, directory_bytes as usize);
    if from.checked_add(bytes) != Some(end_at) {
        return Err(ArchiveFault::Damaged("the directory is not where the end record says"));
    }
    zip.get(from..end_at).ok_or(ArchiveFault::NotZip)
}

/// Where the end record starts: it is followed by nothing but a comment of the length it states.
fn end_record_at(zip: &[u8]) -> Result<usize, ArchiveFault> {
    let last = zip.len().checked_sub(END_BYTES).ok_or(ArchiveFault::NotZip)?;
    let first = last.saturating_sub(COMMENT_BYTES_MAX);
    let is_end_record = |&at: &usize| {
        let (_, end) = zip.split_at_checked(at).unwrap_or_default();
        let comment_bytes = ((last - at) as u16).to_le_bytes();
        end.starts_with(&END_SIGNATURE) && end.get(END_BYTES - 2..END_BYTES) == Some(&comment_bytes[..])
    };
    (first..=last).rev().find(is_end_record).ok_or(ArchiveFault::NotZip)
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
        if fields.take()? != CENTRAL_SIGNATURE {
            return Err(ArchiveFault::Damaged("no entry where the directory starts"));
        }
        let _version_made_by = fields.u16()?;
        let common = Common::read(fields)?;
        let comment_bytes = fields.u16()?;
        let disk = fields.u16()?;
        let _attributes: [u8; 6] = fields.take()?;
        let offset = fields.u32()?;
        let (name, extra) = (fields.slice(common.name_bytes)?, fields.slice(common.extra_bytes)?);
        fields.slice(comment_bytes)?;
        if disk != 0 {
            return Err(ArchiveFault::Unsupported("a zip file in several parts"));
        }
        common.resolve(name, extra, Some(offset))
    }

    fn local(fields: &mut Fields<'a>) -> Result<Self, ArchiveFault> {
        if fields.take()? != LOCAL_SIGNATURE {
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
    fn take<const N: usize>(&mut self) -> Result<[u8; N], ArchiveFault> {
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
        self.take().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, ArchiveFault> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, ArchiveFault> {
        self.take().map(u64::from_le_bytes)
    }
}
