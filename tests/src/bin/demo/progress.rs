//! What is going on, on stderr: bars when it is a terminal, else a line per phase.

use std::{
    io::{IsTerminal, stderr},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

pub(crate) struct Phase {
    name: &'static str,
    bar: Option<ProgressBar>,
    start: Instant,
}

impl Phase {
    /// A phase of unknown length.
    pub(crate) fn begin(name: &'static str) -> Phase {
        Phase::with_style(name, None, "{spinner} {msg} {elapsed}")
    }

    /// A phase of so many archives.
    pub(crate) fn of_archives(name: &'static str, archives: u64) -> Phase {
        Phase::with_style(name, Some(archives), "{spinner} {msg} [{bar:40}] {pos}/{len} archives, {eta} left")
    }

    fn with_style(name: &'static str, length: Option<u64>, template: &str) -> Phase {
        let bar = if stderr().is_terminal() {
            let bar = length.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
            let style = ProgressStyle::with_template(template).expect("the templates above are valid");
            bar.set_style(style.progress_chars("=> "));
            bar.set_message(name);
            bar.enable_steady_tick(Duration::from_millis(100));
            Some(bar)
        } else {
            eprintln!("{name} …");
            None
        };
        Phase { name, bar, start: Instant::now() }
    }

    pub(crate) fn set(&self, done: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        }
    }

    /// Ends the phase with a line of what came out of it; returns how long it took.
    pub(crate) fn end(self, outcome: &str) -> Duration {
        let elapsed = self.start.elapsed();
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
        eprintln!("{}: {outcome} ({:.1} s)", self.name, elapsed.as_secs_f64());
        elapsed
    }
}
