//! The section `log`.

use std::path::PathBuf;

use tracing_subscriber::EnvFilter;

use crate::catalogue::one_of;
use crate::text::shorten;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone)]
pub struct LogSettings {
    /// A level, or directives such as `info,puller=debug`.
    pub level: String,
    pub format: LogFormat,
    pub dir: Option<PathBuf>,
}

/// Whether a text can be `log.level`.
///
/// # Errors
/// It is neither a level nor directives: what it may be.
pub(super) fn check_level(level: &str) -> Result<(), String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    if level.contains(['=', ',']) {
        let parsed = EnvFilter::builder().parse(level).map(drop);
        return parsed.map_err(|error| {
            let level = shorten(level);
            format!("'{level}' is not a list of directives such as info,puller=debug: {error}")
        });
    }
    let named = one_of(&level.to_lowercase(), &LEVELS).map(drop);
    named.map_err(|problem| format!("'{}' is no level: {problem}", shorten(level)))
}
