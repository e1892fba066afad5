//! Objects too large for one request: stored part by part, each of which is kept if the rest does not follow at once.
//!
//! All parts but the last have the same size, as R2 demands. It follows from the object's size alone, so that whoever
//! goes on with an upload cuts the parts as whoever began it.

use common::checksum::Md5Sum;
use jiff::Timestamp;

/// Largest object stored by a single request, and held in memory whole for it.
pub const SINGLE_BYTES_MAX: u64 = 16 << 20;
/// Size of a part, unless there would be too many. At least 5 MiB; more means more to send again when a part is cut short.
const PART_BYTES: u64 = 8 << 20;
/// Parts of this size are the largest we hold in memory.
pub const PART_BYTES_MAX: u64 = 64 << 20;
const PARTS_MAX: u64 = 10_000;
/// Largest object that can be stored: 625 GiB.
pub const OBJECT_BYTES_MAX: u64 = PART_BYTES_MAX * PARTS_MAX;

/// How large the parts of an object are: the smallest whole number of MiB that is enough, and never less than 8.
pub const fn part_bytes(object_bytes: u64) -> u64 {
    let least = object_bytes.div_ceil(PARTS_MAX).next_multiple_of(1 << 20);
    if least > PART_BYTES { least } else { PART_BYTES }
}

/// An upload that was begun and not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadId {
    pub key: String,
    pub id: String,
}

/// A part that the store has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartStored {
    /// From 1.
    pub number: u32,
    pub size: u64,
    /// As the server wants it back when the object is put together.
    pub etag: String,
    /// What the ETag says of the content; `None` where it is no MD5.
    pub md5: Option<Md5Sum>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingUpload {
    pub upload: UploadId,
    pub begun: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_thousand_parts_are_enough() {
        let check = |bytes: u64, part: u64| assert_eq!(part_bytes(bytes), part, "{bytes}");
        check(SINGLE_BYTES_MAX + 1, 8 << 20);
        check((8 << 20) * 10_000, 8 << 20);
        check((8 << 20) * 10_000 + 1, 9 << 20);
        check(OBJECT_BYTES_MAX, PART_BYTES_MAX);
        for bytes in [1, 1 << 30, 1 << 37, OBJECT_BYTES_MAX] {
            assert!(bytes.div_ceil(part_bytes(bytes)) <= PARTS_MAX);
        }
    }
}
