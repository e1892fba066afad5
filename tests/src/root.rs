//! Scenarios that need root.

use std::io::Write;
use std::process::Command;

use crate::{Context, Failure, Result, times};

/// Whether this process may do what only root may. Where it may not, a line on stderr says what is skipped; in CI, where
/// `CI` is set, that is a failure.
pub fn is_root(needed_for: &str) -> Result<bool> {
    let user = Command::new("id").arg("-u").output().context("id")?;
    if user.stdout == b"0\n" {
        return Ok(true);
    }
    let scenario = times::scenario().unwrap_or_default();
    if std::env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false") {
        return Err(Failure::new(format!("{scenario} needs root, {needed_for}, and CI skips nothing")));
    }
    // Past the test runner, which would swallow it.
    writeln!(std::io::stderr(), "skipped: {scenario} needs root, {needed_for}").context("stderr")?;
    times::record("skipped", needed_for)?;
    Ok(false)
}
