//! Files that are read and written as fast as the limit allows.

use std::io::{self, Read};

use tokio::runtime::Handle;

use crate::bandwidth::{Bandwidth, Direction};

/// Read at once where there is a limit.
const PACED_BYTES: usize = 64 << 10;

/// How fast files may be read on a thread that may block.
pub(super) struct Pace {
    pub(super) direction: Direction,
    pub(super) bandwidth: Bandwidth,
    pub(super) runtime: Handle,
}

impl Pace {
    pub(super) fn of(self, source: std::fs::File) -> Paced {
        Paced { source, pace: self }
    }

    /// Waits until all of these bytes may go.
    pub(super) fn wait(&self, mut bytes: usize) {
        while bytes > 0 {
            bytes -= self.runtime.block_on(self.bandwidth.acquire(self.direction, bytes));
        }
    }
}

/// A file that is read as fast as the limit allows.
pub(super) struct Paced {
    source: std::fs::File,
    pace: Pace,
}

impl Read for Paced {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = if self.pace.bandwidth.is_off() { buffer.len() } else { buffer.len().min(PACED_BYTES) };
        let count = self.source.read(&mut buffer[..most])?;
        // Asked for afterwards, when it is known how many there were.
        self.pace.wait(count);
        Ok(count)
    }
}
