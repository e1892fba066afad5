//! Whether two names lead to one file or folder, through links, bind mounts or a network mount of the same disk.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

/// Whether both describe one file or folder.
///
/// One device and inode number is one file. A network mount of a local folder shows its files under another device, with
/// the server's inode numbers and times: two files that agree in all of these, to the nanosecond, are one.
pub fn is_same_file(one: &Metadata, other: &Metadata) -> bool {
    let times = |of: &Metadata| (of.mtime(), of.mtime_nsec(), of.ctime(), of.ctime_nsec());
    one.ino() == other.ino() && (one.dev() == other.dev() || (one.len(), times(one)) == (other.len(), times(other)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn links_lead_to_one_file_and_copies_do_not() {
        let dir = tempfile::tempdir().expect("a folder");
        let [file, copy, hard, soft] = ["file", "copy", "hard", "soft"].map(|name| dir.path().join(name));
        fs::write(&file, "abc").expect("written");
        fs::copy(&file, &copy).expect("copied");
        fs::hard_link(&file, &hard).expect("linked");
        std::os::unix::fs::symlink(&file, &soft).expect("linked");
        let same = |other| is_same_file(&fs::metadata(&file).expect("there"), &fs::metadata(other).expect("there"));
        assert!(same(&file) && same(&hard) && same(&soft) && !same(&copy));
    }
}
