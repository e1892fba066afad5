//! Progress bars on stderr.

use std::io::IsTerminal;

use common::output::bars::BARS;
use indicatif::{ProgressBar, ProgressStyle};

/// A bar that counts units; hidden where stderr is no terminal.
pub(crate) fn progress_bar(destination: &str, units: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{prefix} [{bar:10}] {pos}/{len} {elapsed} {wide_msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    BARS.add(ProgressBar::new(units)).with_style(style).with_prefix(destination.to_owned())
}
