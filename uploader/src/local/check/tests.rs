use std::io::{Cursor, Write};

use common::checksum::md5_hex;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::*;

const STEM: &str = "BTCUSDT-1h-2026-02-14";

fn time(text: &str) -> Timestamp {
    text.parse().expect(text)
}

fn zip_of(members: &[(&str, &[u8])]) -> Vec<u8> {
    let stamp = zip::DateTime::from_date_and_time(2026, 2, 15, 0, 44, 6).expect("a time");
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in members {
        let options = SimpleFileOptions::default().last_modified_time(stamp);
        writer.start_file(*name, options).expect("starts");
        writer.write_all(content).expect("writes");
    }
    writer.finish().expect("finishes").into_inner()
}

fn csv() -> Vec<u8> {
    (0..500).flat_map(|row: u64| format!("{},{},1.5\n", row * 3600, row * row).into_bytes()).collect()
}

fn good() -> Vec<u8> {
    zip_of(&[(&format!("{STEM}.csv"), &csv())])
}

fn check_bytes(bytes: &[u8]) -> Result<Checked, Fault> {
    let (mtime, now) = (time("2026-02-15T06:00:00Z"), time("2026-02-16T00:00:00Z"));
    check(&format!("{STEM}.zip"), bytes, &mut &*bytes, mtime, now)
}

#[track_caller]
fn refused(bytes: &[u8], message: &str) {
    let fault = check_bytes(bytes).expect_err(message).to_string();
    assert!(fault.contains(message), "{fault}");
}

/// The offsets of the local and the central header.
fn headers(zip: &[u8]) -> [usize; 2] {
    let central = zip.windows(4).position(|window| window == b"PK\x01\x02").expect("a directory");
    [0, central]
}

#[test]
fn a_whole_archive_is_taken() {
    let zip = good();
    let checked = check_bytes(&zip).expect("is whole");
    assert_eq!(checked.sha256, Sha256Sum::of(&zip));
    assert_eq!(checked.md5, md5_hex(&zip));
    assert_eq!(checked.parts_etag, None);
    assert_eq!(checked.generated_at, time("2026-02-15T00:44:06Z"));
}

#[test]
fn damaged_archives_are_refused() {
    let zip = good();
    refused(b"", "no whole zip file: an empty file");
    refused(b"<Error><Code>NoSuchKey</Code></Error>", "an error of a server in XML");
    refused(&zip[..zip.len() / 2], "it was cut short");
    refused(&[&zip[..], b"\n"].concat(), "or bytes were added");
    refused(&[b"x", &zip[..]].concat(), "the directory is not where the end record says");
    for csv in [&b""[..], b"\n", b"open_time,open,high\n", b"open_time,open,high"] {
        refused(&zip_of(&[(&format!("{STEM}.csv"), csv)]), "has no rows");
    }
    for csv in [&b"1,2"[..], b"open_time,open\r\n1,2"] {
        assert!(check_bytes(&zip_of(&[(&format!("{STEM}.csv"), csv)])).is_ok());
    }
    let mut flipped = zip.clone();
    flipped[zip.len() / 3] ^= 0x10;
    refused(&flipped, "no whole zip file");
    let mut crc = zip.clone();
    let [local, central] = headers(&zip);
    crc[local + 14] ^= 0xff;
    crc[central + 16] ^= 0xff;
    refused(&crc, "CRC-32");
    for (stated, message) in [(100_u32, "inflates beyond the 100 bytes"), (1_000_000, "it declares 1000000")] {
        let mut size = zip.clone();
        size[local + 22..local + 26].copy_from_slice(&stated.to_le_bytes());
        size[central + 24..central + 28].copy_from_slice(&stated.to_le_bytes());
        refused(&size, message);
    }
}

#[test]
fn one_member_with_the_right_name() {
    let csv = csv();
    let name = format!("{STEM}.csv");
    refused(&zip_of(&[]), "one member expected, found 0");
    refused(&zip_of(&[(&name, &csv), ("readme.txt", b"hello")]), "one member expected, found 2");
    refused(&zip_of(&[("ETHUSDT-1h-2026-02-14.csv", &csv)]), "found 'ETHUSDT-1h-2026-02-14.csv'");
    refused(&zip_of(&[(&format!("../{name}"), &csv)]), "expected, found '../");
    // The writer refuses two members of one name, so the second is renamed in the bytes.
    let twin = name.replace("14.csv", "15.csv");
    let mut zip = zip_of(&[(&name, &csv), (&twin, &csv)]);
    while let Some(at) = zip.windows(twin.len()).position(|window| window == twin.as_bytes()) {
        zip[at..at + twin.len()].copy_from_slice(name.as_bytes());
    }
    refused(&zip, "one member expected, found 2");
}

#[test]
fn a_bomb_is_not_unpacked() {
    let zeros = vec![b'0'; 40 << 20];
    let mut bomb = zip_of(&[(&format!("{STEM}.csv"), &zeros)]);
    refused(&bomb, "bytes, the limit is");
    let [local, central] = headers(&bomb);
    bomb[local + 22..local + 26].copy_from_slice(&4000_u32.to_le_bytes());
    bomb[central + 24..central + 28].copy_from_slice(&4000_u32.to_le_bytes());
    refused(&bomb, "inflates beyond the 4000 bytes");
}

/// Too large to be held in memory: read from the file, with the ETag it will have in parts.
#[test]
fn a_large_archive_is_checked_where_it_lies() {
    let rows: Vec<u8> = (0..3_000_000_u64).flat_map(|row| (row * row % 999_983).to_le_bytes()).collect();
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    writer.start_file(format!("{STEM}.csv"), stored).expect("starts");
    writer.write_all(&rows).expect("writes");
    let mut zip = writer.finish().expect("finishes").into_inner();
    assert!(zip.len() as u64 > SINGLE_BYTES_MAX);
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join(format!("{STEM}.zip"));
    // The file is written now, and its member has no time of its own.
    let now = Timestamp::now();
    std::fs::write(&path, &zip).expect("written");
    let (checked, _) = check_file(&path, now).expect("is whole");
    let parts: Vec<_> = zip.chunks(8 << 20).map(common::checksum::Md5Sum::of).collect();
    assert_eq!(checked.parts_etag, Some(common::checksum::parts_etag(&parts)));
    assert_eq!((checked.sha256, checked.md5), (Sha256Sum::of(&zip), md5_hex(&zip)));

    let middle = zip.len() / 2;
    zip[middle] ^= 1;
    std::fs::write(&path, &zip).expect("written");
    assert!(matches!(check_file(&path, now), Err(Fault::Zip(ArchiveFault::Crc { .. }))));
    // Nothing in it looks like the end of a zip, which is not searched for through all of it.
    std::fs::write(&path, vec![b'x'; 20 << 20]).expect("written");
    assert!(matches!(check_file(&path, now), Err(Fault::Zip(_))));
}

#[test]
fn the_checksum_beside_it_must_match() {
    let name = format!("{STEM}.zip");
    let sum = Sha256Sum::of(b"x");
    let check = |line: &str| compare_checksum(line, &name, sum).map_err(|fault| fault.to_string());
    assert_eq!(check(&format!("{sum}  {name}")), Ok(()));
    assert_eq!(check(&format!("{sum} *{name}\n")), Ok(()));
    assert_eq!(check(&sum.to_string()), Ok(()));
    let message = check(&format!("{}  {name}", Sha256Sum::of(b"y"))).expect_err("differs");
    assert!(message.contains("does not match its .CHECKSUM"), "{message}");
    for line in ["", "<html>", &format!("{sum}  OTHER-1h-2026-02-14.zip")] {
        assert!(check(line).is_err(), "{line}");
    }
}

#[test]
fn an_implausible_time_stamp_gives_way_to_the_files() {
    let (mtime, now) = (time("2026-02-15T06:00:00Z"), time("2026-02-16T00:00:00Z"));
    let check = |stamp: Option<&str>, want, stamped| {
        assert_eq!(generated_at(stamp.map(time), mtime, now).expect("a time"), (want, stamped), "{stamp:?}");
    };
    check(Some("2026-02-15T00:44:06Z"), time("2026-02-15T00:44:06Z"), true);
    check(Some("1980-01-01T00:00:00Z"), mtime, false);
    check(Some("2016-12-31T23:59:58Z"), mtime, false);
    // Of a clock that is a little behind.
    check(Some("2026-02-16T00:00:02Z"), time("2026-02-16T00:00:02Z"), true);
    check(None, mtime, false);
    let ahead = |stamp: Option<&str>, mtime| {
        let fault = generated_at(stamp.map(time), time(mtime), now).expect_err("is ahead").to_string();
        assert!(fault.contains("the clock is behind, or the stamp lies in the future"), "{fault}");
    };
    ahead(Some("2026-02-17T00:00:02Z"), "2026-02-15T06:00:00Z");
    ahead(None, "2036-01-01T00:00:00Z");
    let soon = generated_at(None, time("2026-02-16T06:00:00Z"), now).expect("a time");
    assert_eq!(soon, (now, false), "of a file server that is a little ahead");
}

#[test]
fn files_are_read_with_their_checksum() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join(format!("{STEM}.zip"));
    std::fs::write(&path, good()).expect("written");
    let now = time("2026-02-16T00:00:00Z");
    let (checked, fingerprint) = check_file(&path, now).expect("is whole");
    assert_eq!(fingerprint.size, good().len() as u64);
    std::fs::write(dir.path().join(format!("{STEM}.zip.CHECKSUM")), format!("{}  {STEM}.zip", checked.sha256))
        .expect("written");
    assert!(check_file(&path, now).is_ok());
    std::fs::write(dir.path().join(format!("{STEM}.zip.CHECKSUM")), [0xff, 0xfe]).expect("written");
    assert!(matches!(check_file(&path, now), Err(Fault::ChecksumFile(_))));
    assert!(matches!(check_file(&dir.path().join("gone.zip"), now), Err(Fault::Read(_))));
}
