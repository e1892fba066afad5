//! What a person watching sees: units, bytes, rate and time left. Elsewhere the log has a line a unit.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::output::bars::BARS;
use common::output::short_duration;
use common::text::printable;
use indicatif::{BinaryBytes, ProgressBar, ProgressStyle};

/// Bars on stderr, shared by cloning. Hidden where stderr is no terminal.
#[derive(Clone)]
pub struct Progress {
    units: ProgressBar,
    /// Of the archives that may have to be sent; those that need not be count as done.
    bytes: ProgressBar,
    rate: Arc<Mutex<Rate>>,
}

/// What was sent, and in what time: what lies in the bucket already, or waits for a server, says nothing of speed.
#[derive(Default)]
struct Rate {
    bytes: u64,
    busy: Duration,
    /// When the last transfer ended, or the first began.
    sent_at: Option<Instant>,
}

impl Rate {
    /// One transfer takes no longer than this: the rest is a pause, and no part of sending.
    const PAUSE: Duration = Duration::from_secs(30);

    fn begin_sending(&mut self, now: Instant) {
        self.sent_at.get_or_insert(now);
    }

    fn sent(&mut self, bytes: u64, now: Instant) {
        self.bytes += bytes;
        if let Some(before) = self.sent_at.replace(now) {
            self.busy += (now - before).min(Self::PAUSE);
        }
    }

    /// Bytes a second, and how long `left` will take.
    fn to_text(&self, left: u64) -> String {
        if self.busy < Duration::from_secs(1) {
            return String::new();
        }
        let a_second = self.bytes as f64 / self.busy.as_secs_f64();
        let seconds = (left as f64 / a_second.max(1.0)).ceil() as u64;
        format!("at {}/s, {} left", BinaryBytes(a_second as u64), short_duration(seconds))
    }
}

impl Progress {
    /// Bars on stderr, if that is a terminal.
    pub fn on_stderr() -> Self {
        let units = BARS.add(ProgressBar::no_length());
        units.set_style(style("units {bar:20} {pos}/{len} {wide_msg}"));
        let bytes = BARS.add(ProgressBar::no_length());
        bytes.set_style(style("bytes {bar:20} {binary_bytes}/{binary_total_bytes} {elapsed} {wide_msg}"));
        Self { units, bytes, rate: Arc::default() }
    }

    pub fn hidden() -> Self {
        Self { units: ProgressBar::hidden(), bytes: ProgressBar::hidden(), rate: Arc::default() }
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
        self.units.set_style(style("archives {bar:20} {pos}/{len} {wide_msg}"));
        // Nobody says beforehand how large they are.
        self.bytes.set_style(style("fetched  {binary_bytes}, {elapsed}"));
        self.begin(archives, 1);
    }

    /// What is going on, beside the bar.
    pub(crate) fn doing(&self, text: String) {
        self.units.set_message(printable(&text));
    }

    pub(crate) fn unit_done(&self) {
        self.units.inc(1);
    }

    /// A transfer begins: from the first one on, time counts.
    pub(crate) fn begin_sending(&self) {
        self.rate().begin_sending(Instant::now());
    }

    pub(crate) fn sent(&self, bytes: u64) {
        self.bytes.inc(bytes);
        let mut rate = self.rate();
        rate.sent(bytes, Instant::now());
        if let Some(total) = self.bytes.length() {
            self.bytes.set_message(rate.to_text(total.saturating_sub(self.bytes.position())));
        }
    }

    fn rate(&self) -> MutexGuard<'_, Rate> {
        self.rate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These bytes need not be sent.
    pub(crate) fn present(&self, bytes: u64) {
        self.bytes.inc(bytes);
    }

    pub(crate) fn end(&self) {
        self.units.finish_and_clear();
        self.bytes.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates in this file are right")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_no_part_of_the_rate() {
        let (mut rate, start) = (Rate::default(), Instant::now());
        rate.begin_sending(start);
        // Four at once, which end at the same moment.
        for _ in 0..4 {
            rate.sent(1024, start + Duration::from_secs(4));
        }
        assert_eq!(rate.to_text(10 * 1024), "at 1.00 KiB/s, 10s left");
        // The bucket was away for an hour.
        rate.sent(30 * 1024, start + Duration::from_secs(3600));
        assert_eq!(rate.to_text(10 * 1024), "at 1.00 KiB/s, 10s left");
        assert_eq!(Rate::default().to_text(10), "");
    }
}
