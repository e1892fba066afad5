//! Small files that a person names: read within bounds, whatever they turn out to be.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// How long reading may take: a pipe that nobody writes to is opened for ever, and a share may hang.
const PATIENCE: Duration = Duration::from_secs(10);

/// Reads a text, which may come through a pipe, as from `<(…)` of a shell.
///
/// # Errors
/// It cannot be read, has more than `bytes_max` bytes, is no text, or does not come to its end.
pub(super) fn read(path: &Path, bytes_max: u64) -> io::Result<String> {
    let (sender, ended) = mpsc::channel();
    let path = path.to_owned();
    thread::spawn(move || sender.send(read_to_end(&path, bytes_max)));
    let seconds = PATIENCE.as_secs();
    let silent = |_| Err(io::Error::new(ErrorKind::TimedOut, format!("it did not come to its end within {seconds} s")));
    ended.recv_timeout(PATIENCE).unwrap_or_else(silent)
}

fn read_to_end(path: &Path, bytes_max: u64) -> io::Result<String> {
    let file = File::open(path)?;
    if file.metadata()?.is_dir() {
        // Docker makes a folder of a file that is not there and is to be mounted.
        return Err(io::Error::new(ErrorKind::IsADirectory, "it is a directory, not a file"));
    }
    let mut bytes = Vec::new();
    if file.take(bytes_max + 1).read_to_end(&mut bytes)? as u64 > bytes_max {
        return Err(io::Error::new(ErrorKind::FileTooLarge, format!("it is larger than {} KiB", bytes_max >> 10)));
    }
    String::from_utf8(bytes).map_err(|_| io::Error::new(ErrorKind::InvalidData, "it is not text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_end_is_given_up() {
        let dir = tempfile::tempdir().expect("a folder");
        let pipe = dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
        let kind = |path: &Path| read(path, 1 << 10).expect_err("no text").kind();
        assert_eq!(kind(&pipe), ErrorKind::TimedOut);
        assert_eq!(kind(Path::new("/dev/zero")), ErrorKind::FileTooLarge);
        assert_eq!(kind(dir.path()), ErrorKind::IsADirectory);
        let written = dir.path().join("text");
        std::fs::write(&written, "text").expect("written");
        assert_eq!(read(&written, 4).expect("read"), "text");
    }
}
