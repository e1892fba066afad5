//! Archives that must not get through, one function per way to be bad.

use std::io::{Cursor, Write};

use zip::ZipWriter;

use super::{ArchiveSpec, HEADER, Record};

/// Where a bad archive can first be seen to be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visible {
    /// The zip itself is wrong: the uploader refuses it, and a worker that meets it all the same does too.
    InTheZip,
    /// The zip is sound and its rows are not: only a decoder sees it.
    InTheRows,
}

pub struct Case {
    pub name: &'static str,
    pub visible: Visible,
    pub bytes: fn(&ArchiveSpec) -> Vec<u8>,
}

/// All of them; the specification needs at least 10 rows.
pub const CASES: [Case; 25] = {
    use Visible::{InTheRows, InTheZip};
    const fn case(name: &'static str, visible: Visible, bytes: fn(&ArchiveSpec) -> Vec<u8>) -> Case {
        Case { name, visible, bytes }
    }
    [
        case("not a zip", InTheZip, not_a_zip),
        case("truncated", InTheZip, truncated),
        case("flipped byte", InTheZip, flipped_byte),
        case("wrong crc", InTheZip, wrong_crc),
        case("declared bomb", InTheZip, declared_bomb),
        case("undeclared bomb", InTheZip, undeclared_bomb),
        case("wrong member name", InTheZip, wrong_member_name),
        case("member outside", InTheZip, member_outside),
        case("two members", InTheZip, two_members),
        case("no member", InTheZip, no_member),
        case("empty file", InTheZip, |_| Vec::new()),
        case("html page", InTheZip, |_| b"<!DOCTYPE html><html><title>404</title></html>".to_vec()),
        case("bytes before", InTheZip, bytes_before),
        case("bytes after", InTheZip, bytes_after),
        case("folder beside", InTheZip, folder_beside),
        case("encrypted", InTheZip, encrypted),
        case("header only", InTheZip, header_only),
        case("empty csv", InTheZip, empty_csv),
        case("eleven columns", InTheRows, eleven_columns),
        case("letter in a price", InTheRows, letter_in_a_price),
        case("price too large", InTheRows, price_too_large),
        case("volume too large", InTheRows, volume_too_large),
        case("too many decimals", InTheRows, too_many_decimals),
        case("header in the middle", InTheRows, header_in_the_middle),
        case("mixed time units", InTheRows, mixed_time_units),
    ]
};

/// What a bomb unpacks to; a worker's memory is bounded far below.
pub const BOMB_BYTES: usize = 1 << 30;

pub fn not_a_zip(_: &ArchiveSpec) -> Vec<u8> {
    b"<?xml version=\"1.0\"?><Error><Code>NoSuchKey</Code></Error>".to_vec()
}

/// The download broke off.
pub fn truncated(spec: &ArchiveSpec) -> Vec<u8> {
    let mut bytes = spec.zip();
    bytes.truncate(bytes.len() / 2);
    bytes
}

/// One bit of the compressed data is wrong, the rest is as it was.
pub fn flipped_byte(spec: &ArchiveSpec) -> Vec<u8> {
    let mut bytes = spec.zip();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    bytes
}

/// Both headers state another CRC than the content has.
pub fn wrong_crc(spec: &ArchiveSpec) -> Vec<u8> {
    let mut bytes = spec.zip();
    let (local, central) = header_offsets(&bytes);
    for at in [local + 14, central + 16] {
        bytes[at] ^= 0xff;
    }
    bytes
}

/// A megabyte that says it is a gigabyte, and is.
pub fn declared_bomb(spec: &ArchiveSpec) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    let options = spec.zip_options().compression_level(Some(1));
    writer.start_file(format!("{}.csv", spec.stem()), options).expect("a member can be started in memory");
    // No line ends: neither a buffer for the whole nor one for a line may grow with it.
    let block = vec![b'1'; 1 << 20];
    for _ in 0..BOMB_BYTES / block.len() {
        writer.write_all(&block).expect("memory can be written");
    }
    writer.finish().expect("memory can be written").into_inner()
}

/// The same, but the headers say that it unpacks to 4,000 bytes.
pub fn undeclared_bomb(spec: &ArchiveSpec) -> Vec<u8> {
    let mut bytes = declared_bomb(spec);
    let (local, central) = header_offsets(&bytes);
    for at in [local + 22, central + 24] {
        bytes[at..at + 4].copy_from_slice(&4_000u32.to_le_bytes());
    }
    bytes
}

pub fn wrong_member_name(spec: &ArchiveSpec) -> Vec<u8> {
    spec.zip_with_members(&[("OTHERUSDT-1h-2020-01-01.csv", &spec.csv())])
}

pub fn member_outside(spec: &ArchiveSpec) -> Vec<u8> {
    spec.zip_with_members(&[(&format!("../../{}.csv", spec.stem()), &spec.csv())])
}

pub fn two_members(spec: &ArchiveSpec) -> Vec<u8> {
    let csv = spec.csv();
    spec.zip_with_members(&[(&format!("{}.csv", spec.stem()), &csv), ("readme.txt", b"hello")])
}

pub fn no_member(spec: &ArchiveSpec) -> Vec<u8> {
    spec.zip_with_members(&[])
}

pub fn bytes_before(spec: &ArchiveSpec) -> Vec<u8> {
    [b"HTTP/1.1 200 OK\r\n\r\n", spec.zip().as_slice()].concat()
}

pub fn bytes_after(spec: &ArchiveSpec) -> Vec<u8> {
    [spec.zip().as_slice(), b"\n"].concat()
}

/// The member, and the folder that a program packs with it.
pub fn folder_beside(spec: &ArchiveSpec) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    writer.add_directory("archives/", zip::write::SimpleFileOptions::default()).expect("memory");
    writer.start_file(format!("{}.csv", spec.stem()), zip::write::SimpleFileOptions::default()).expect("memory");
    writer.write_all(&spec.csv()).expect("memory");
    writer.finish().expect("memory").into_inner()
}

/// Both headers say that the member is encrypted.
pub fn encrypted(spec: &ArchiveSpec) -> Vec<u8> {
    let mut bytes = spec.zip();
    let (local, central) = header_offsets(&bytes);
    bytes[local + 6] |= 1;
    bytes[central + 8] |= 1;
    bytes
}

pub fn header_only(spec: &ArchiveSpec) -> Vec<u8> {
    spec.zip_of(format!("{HEADER}\n").as_bytes())
}

pub fn empty_csv(spec: &ArchiveSpec) -> Vec<u8> {
    spec.zip_of(b"")
}

/// The last row has lost its last column.
pub fn eleven_columns(spec: &ArchiveSpec) -> Vec<u8> {
    let mut lines = lines(spec);
    let last = lines.last_mut().expect("an archive with rows");
    *last = last.rsplit_once(',').expect("a row has commas").0.to_owned();
    spec.zip_of(lines_to_csv(&lines).as_bytes())
}

pub fn letter_in_a_price(spec: &ArchiveSpec) -> Vec<u8> {
    with_record(spec, |record| record[2].push('x'))
}

/// Eleven digits before the point: a price column, Decimal(18, 8), holds ten.
pub fn price_too_large(spec: &ArchiveSpec) -> Vec<u8> {
    with_record(spec, |record| record[2] = "10000000000.50000000".to_owned())
}

/// Thirty-one digits before the point: a volume column, Decimal(38, 8), holds thirty.
pub fn volume_too_large(spec: &ArchiveSpec) -> Vec<u8> {
    with_record(spec, |record| record[5] = format!("1{}.5", "0".repeat(30)))
}

/// A ninth decimal that is not zero: no column can hold it, and rounding would be inventing.
pub fn too_many_decimals(spec: &ArchiveSpec) -> Vec<u8> {
    with_record(spec, |record| record[4] = "1.123456789".to_owned())
}

pub fn header_in_the_middle(spec: &ArchiveSpec) -> Vec<u8> {
    let mut lines = lines(spec);
    lines.insert(lines.len() / 2, HEADER.to_owned());
    spec.zip_of(lines_to_csv(&lines).as_bytes())
}

/// The first half of the rows in one unit of time, the second half in the other.
pub fn mixed_time_units(spec: &ArchiveSpec) -> Vec<u8> {
    let mut records = spec.clone().micros(false).records();
    let half = records.len() / 2;
    records.splice(half.., spec.clone().micros(true).records().split_off(half));
    spec.zip_of(&spec.csv_of(&records))
}

/// The archive with one row, past the first few, changed.
fn with_record(spec: &ArchiveSpec, change: impl FnOnce(&mut Record)) -> Vec<u8> {
    let mut records = spec.records();
    let middle = records.len() / 2;
    change(&mut records[middle]);
    spec.zip_of(&spec.csv_of(&records))
}

fn lines(spec: &ArchiveSpec) -> Vec<String> {
    let csv = String::from_utf8(spec.csv()).expect("the generator writes UTF-8");
    csv.lines().map(str::to_owned).collect()
}

fn lines_to_csv(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// Where the local and the central header of the only member begin.
fn header_offsets(zip: &[u8]) -> (usize, usize) {
    const END_RECORD_BYTES: usize = 22;
    let end = zip.len() - END_RECORD_BYTES;
    assert_eq!(&zip[end..end + 4], b"PK\x05\x06", "the generator writes no archive comment");
    let central = u32::from_le_bytes(zip[end + 16..end + 20].try_into().expect("four bytes"));
    (0, central as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{data::Market, truth::Truth};

    #[test]
    fn none_reads_as_a_good_archive() {
        let spec = ArchiveSpec::new(Market::Spot, "BTCUSDT", "1h", "2025-02-01");
        for case in CASES {
            let bytes = (case.bytes)(&spec);
            assert_ne!(bytes, spec.zip(), "{}", case.name);
            let read = Truth::default().add_archive(&spec.path(), &bytes, jiff::Timestamp::now());
            assert!(read.is_err(), "{} was read", case.name);
        }
    }
}
