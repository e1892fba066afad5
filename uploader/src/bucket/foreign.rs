//! Archives that somebody else put into the bucket under the keys they have with us, rclone for example: they are
//! recognised by their content and not sent again.
//!
//! Such an object has no sha256 in its metadata, and a marker may name only what has (rule 1: what is announced was read
//! back). So the bucket copies it onto itself with the sha256 added, and is asked again. No byte of it crosses the link.

use std::io::{self, Read};
use std::path::Path;

use common::checksum::{Md5Sum, Summing};
use common::files::regular_file;
use common::marker::Object;
use store::{Given, Stored};

use crate::bucket::compare::difference;
use crate::contents::digest::Digested;
use crate::error::UnitError;
use crate::local::scan::Fingerprint;
use crate::site::context::{Site, blocking};

/// Sizes of parts in MiB that programs use unless told otherwise (rclone 5, the AWS tools 8), and round ones.
const PART_MIB: [u64; 14] = [5, 8, 10, 15, 16, 20, 25, 32, 50, 64, 100, 128, 256, 512];

/// Whether what is stored is this archive, without our metadata. Then it gets it, and is read back.
pub(crate) async fn recognise(
    site: &Site,
    object: &Object,
    archive: &Digested,
    stored: &Stored,
) -> Result<bool, UnitError> {
    if site.refusals.is_refused() || !is_same(site, object, archive, stored).await? {
        return Ok(false);
    }
    let key = &object.key;
    match site.store.give_sha256(key, &stored.etag, object.sha256).await? {
        Given::Done => site.refusals.done(),
        Given::Changed => return Ok(false),
        Given::Refused(why) => {
            site.refusals.refused(key, &why);
            return Ok(false);
        }
    }
    let read_back = site.store.head(key).await?;
    Ok(read_back.is_some_and(|stored| difference(&stored, object, Some(&archive.checked)).is_none()))
}

/// Whether the bucket says of the object what it would say of this archive, had another program sent it.
pub(crate) async fn is_same(
    site: &Site,
    object: &Object,
    archive: &Digested,
    stored: &Stored,
) -> Result<bool, UnitError> {
    if stored.sha256.is_some() || stored.encrypted || stored.size != object.size || archive.sha256() != object.sha256 {
        return Ok(false);
    }
    if stored.etag.parse::<Md5Sum>().is_ok() {
        return Ok(stored.etag == archive.checked.md5);
    }
    // Sent in parts. The parts were checked by the bucket when they came, each by its MD5.
    let details = site.store.details(&object.key).await?;
    if let Some(md5) = details.filter(|details| details.stored == *stored).and_then(|details| details.md5) {
        return Ok(md5 == archive.checked.md5);
    }
    let (file, fingerprint, etag) = (site.data_dir.join(&archive.path), archive.fingerprint, stored.etag.clone());
    // An archive that cannot be read now is the uploading's to report.
    Ok(blocking(move || has_etag(&file, fingerprint, &etag)).await.unwrap_or(false))
}

/// Whether the file, which must be the one that was hashed, would have this ETag if it were sent in parts.
fn has_etag(file: &Path, fingerprint: Fingerprint, etag: &str) -> io::Result<bool> {
    let Some(parts) = etag.split_once('-').and_then(|(_, parts)| parts.parse::<u64>().ok()) else { return Ok(false) };
    let candidates = PART_MIB.into_iter().map(|mib| mib << 20).filter(|part| fingerprint.size.div_ceil(*part) == parts);
    for part in candidates {
        let mut opened = regular_file::open(file)?;
        let actual = etag_of_parts(&mut opened, part)?;
        if Fingerprint::of(&opened.metadata()?) != fingerprint {
            return Ok(false);
        }
        if actual == etag {
            return Ok(true);
        }
    }
    Ok(false)
}

fn etag_of_parts(content: &mut impl Read, part_bytes: u64) -> io::Result<String> {
    let mut summing = Summing::new(Some(part_bytes));
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match content.read(&mut buffer)? {
            0 => return Ok(summing.finish().parts_etag.unwrap_or_default()),
            count => summing.update(&buffer[..count]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_etag_of_parts_is_that_of_s3() {
        // What s3s-fs and S3 answer for three parts of these bytes: the MD5 of the parts' MD5s, and their number.
        let parts = [b"aaaa".as_slice(), b"bbbb", b"c"];
        let mut whole: &[u8] = b"aaaabbbbc";
        let sums: Vec<u8> = parts.iter().flat_map(|part| unhex(&common::checksum::md5_hex(part))).collect();
        let expected = format!("{}-3", common::checksum::md5_hex(&sums));
        assert_eq!(etag_of_parts(&mut whole, 4).expect("memory is read"), expected);
    }

    fn unhex(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")).collect()
    }

    #[test]
    fn a_file_that_changed_has_no_etag() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("a.zip");
        std::fs::write(&file, "abc").expect("written");
        let fingerprint = Fingerprint::of(&std::fs::metadata(&file).expect("is there"));
        let etag = etag_of_parts(&mut b"abc".as_slice(), 5 << 20).expect("memory is read");
        assert!(has_etag(&file, fingerprint, &etag).expect("is read"));
        assert!(!has_etag(&file, fingerprint, "900150983cd24fb0d6963f7d28e17f72-2").expect("is read"));
        let other = Fingerprint { ctime_ns: fingerprint.ctime_ns - 1, ..fingerprint };
        assert!(!has_etag(&file, other, &etag).expect("is read"));
    }
}
