//! What a person watching sees: bars on a terminal. Elsewhere the log has a line a unit.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Bars on stderr, shared by cloning. Hidden where stderr is no terminal.
#[derive(Clone)]
pub struct Progress {
    bars: MultiProgress,
    units: ProgressBar,
    sent: ProgressBar,
}

impl Progress {
    /// Bars on stderr, if that is a terminal.
    pub fn on_stderr() -> Self {
        let shown = io::stderr().is_terminal();
        Self::new(if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() })
    }

    pub fn hidden() -> Self {
        Self::new(ProgressDrawTarget::hidden())
    }

    fn new(target: ProgressDrawTarget) -> Self {
        let style = |template| ProgressStyle::with_template(template).expect("the templates below are right");
        let bars = MultiProgress::with_draw_target(target);
        let units = bars.add(ProgressBar::no_length());
        units.set_style(style("units {bar:40} {pos}/{len} {wide_msg}"));
        let sent = bars.add(ProgressBar::no_length());
        sent.set_style(style("sent  {binary_bytes} at {binary_bytes_per_sec}, {elapsed}"));
        Self { bars, units, sent }
    }

    /// A writer for the log that draws the bars anew below each line.
    pub fn log_writer(&self) -> impl Fn() -> LogWriter + Send + Sync + 'static {
        let bars = self.bars.clone();
        move || LogWriter { bars: bars.clone() }
    }

    pub(crate) fn begin(&self, units: usize) {
        const REDRAW: Duration = Duration::from_millis(200);
        self.units.set_length(units as u64);
        self.units.enable_steady_tick(REDRAW);
        self.sent.enable_steady_tick(REDRAW);
    }

    /// What is going on, beside the bar.
    pub(crate) fn doing(&self, text: String) {
        self.units.set_message(text);
    }

    pub(crate) fn unit_done(&self) {
        self.units.inc(1);
    }

    pub(crate) fn sent(&self, bytes: u64) {
        self.sent.inc(bytes);
    }

    pub(crate) fn end(&self) {
        self.units.finish_and_clear();
        self.sent.finish_and_clear();
    }
}

/// Writes to stderr while the bars are out of the way.
pub struct LogWriter {
    bars: MultiProgress,
}

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.bars.suspend(|| io::stderr().write_all(line))?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
