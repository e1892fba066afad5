//! How long each scenario takes, and which were skipped: lines in the file that `slowest.py` names, which sums them up.
//!
//! libtest has no stable way to tell it. A scenario begins with its first scratch directory and ends with its thread.

use std::{
    fs::File,
    io::Write,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use crate::{Context, Result};

/// The file; nothing is written where this is not set.
const FILE: &str = "FERRY_SCENARIO_TIMES";

/// From here on the time of this thread's scenario counts, unless it counts already.
pub fn begin() {
    thread_local! {
        static TIMER: Timer = Timer { begun: Instant::now() };
    }
    TIMER.with(|_| ());
}

struct Timer {
    begun: Instant,
}

impl Drop for Timer {
    fn drop(&mut self) {
        let elapsed: Duration = self.begun.elapsed();
        // The scenario itself is over, and its result does not depend on this.
        if let (Some(scenario), Err(failure)) = (scenario(), record("took", &format!("{:.3}", elapsed.as_secs_f64()))) {
            drop(writeln!(std::io::stderr(), "{scenario}: {failure}"));
        }
    }
}

/// The test runner gives each test's thread the test's name.
pub(crate) fn scenario() -> Option<String> {
    thread::current().name().map(str::to_owned)
}

pub(crate) fn record(what: &str, value: &str) -> Result<()> {
    let (Some(path), Some(scenario)) = (std::env::var_os(FILE).map(PathBuf::from), scenario()) else { return Ok(()) };
    let doing = format!("writing {}", path.display());
    let mut file = File::options().append(true).create(true).open(&path).context(&doing)?;
    // In one piece, for others write too.
    file.write_all(format!("{what}\t{scenario}\t{value}\n").as_bytes()).context(&doing)
}
