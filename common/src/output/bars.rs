//! What a person watching sees: progress bars on stderr, and log lines that do not write over them.

use std::io::{self, Write};
use std::sync::LazyLock;

use indicatif::MultiProgress;
use tracing_subscriber::fmt::MakeWriter;

/// The bars of the process. Where stderr is no terminal nothing is drawn.
pub static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Where log lines go: stderr, while the bars are out of the way.
#[derive(Debug, Clone, Copy)]
pub struct LogWriter;

impl<'w> MakeWriter<'w> for LogWriter {
    type Writer = Self;

    fn make_writer(&'w self) -> Self {
        Self
    }
}

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        BARS.suspend(|| io::stderr().write_all(line))?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
