//! Files that are opened by a name from a folder others write to.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::Path;

/// Opens a regular file to read it, also through a link. Opening a pipe that somebody left under its name would wait for a
/// writer for ever.
///
/// # Errors
/// There is none, it cannot be read, or it is something else.
pub fn open(path: &Path) -> io::Result<File> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "it is no regular file"));
    }
    File::open(path)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_pipe_is_refused_at_once() {
        let dir = tempfile::tempdir().expect("a folder");
        let pipe = dir.path().join("BTCUSDT-1h-2025-03-01.zip.CHECKSUM");
        assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
        let (sender, opened) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(open(&pipe).map(drop)));
        let opened = opened.recv_timeout(std::time::Duration::from_secs(10)).expect("it does not wait");
        assert_eq!(opened.expect_err("a pipe").kind(), ErrorKind::InvalidInput);
    }
}
