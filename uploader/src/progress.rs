//! What a person watching sees: units, bytes, rate and time left. Elsewhere the log has a line a unit.

use std::time::Duration;

use common::bars::BARS;
use indicatif::{ProgressBar, ProgressStyle};

/// Bars on stderr, shared by cloning. Hidden where stderr is no terminal.
#[derive(Clone)]
pub struct Progress {
    units: ProgressBar,
    /// Of the archives that may have to be sent. What need not be is taken off its length.
    bytes: ProgressBar,
}

impl Progress {
    /// Bars on stderr, if that is a terminal.
    pub fn on_stderr() -> Self {
        let units = BARS.add(ProgressBar::no_length());
        units.set_style(style("units {bar:40} {pos}/{len} {wide_msg}"));
        let bytes = BARS.add(ProgressBar::no_length());
        bytes.set_style(style(
            "bytes {bar:40} {binary_bytes}/{binary_total_bytes} at {binary_bytes_per_sec}, {elapsed} (ETA {eta})",
        ));
        Self { units, bytes }
    }

    pub fn hidden() -> Self {
        Self { units: ProgressBar::hidden(), bytes: ProgressBar::hidden() }
    }

    /// So many units, with archives of so many bytes.
    pub(crate) fn begin(&self, units: usize, bytes: u64) {
        const REDRAW: Duration = Duration::from_millis(200);
        self.units.set_length(units as u64);
        self.units.enable_steady_tick(REDRAW);
        if bytes > 0 {
            self.bytes.set_length(bytes);
            self.bytes.enable_steady_tick(REDRAW);
        }
    }

    /// Archives are fetched one by one, units only in parts.
    pub(crate) fn begin_download(&self, archives: usize) {
        self.units.set_style(style("archives {bar:40} {pos}/{len} {wide_msg}"));
        // Nobody says beforehand how large they are.
        self.bytes.set_style(style("fetched  {binary_bytes} at {binary_bytes_per_sec}, {elapsed}"));
        self.begin(archives, 1);
    }

    /// What is going on, beside the bar.
    pub(crate) fn doing(&self, text: String) {
        self.units.set_message(text);
    }

    pub(crate) fn unit_done(&self) {
        self.units.inc(1);
    }

    pub(crate) fn sent(&self, bytes: u64) {
        self.bytes.inc(bytes);
    }

    /// These bytes need not be sent.
    pub(crate) fn present(&self, bytes: u64) {
        self.bytes.dec_length(bytes);
    }

    pub(crate) fn end(&self) {
        self.units.finish_and_clear();
        self.bytes.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates in this file are right")
}
