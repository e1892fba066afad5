//! The time of day. Nothing that decides which row wins depends on it: versions are the archives' own stamps, and an
//! archive whose stamp this clock cannot believe is held back instead of being dated by the clock. Two things are dated by
//! it, and never earlier than what they follow: an archive without a stamp, whose file time counts up to now, and a
//! roll-back that somebody asked for.

use jiff::Timestamp;

/// Now, by this machine's clock; in builds with debug assertions off by `FERRY_CLOCK_OFFSET_S`, for tests of what a
/// wrong clock does.
pub fn now() -> Timestamp {
    let now = Timestamp::now();
    match offset_s() {
        0 => now,
        seconds => now.saturating_add(jiff::SignedDuration::from_secs(seconds)).unwrap_or(now),
    }
}

#[cfg(debug_assertions)]
fn offset_s() -> i64 {
    std::env::var("FERRY_CLOCK_OFFSET_S").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or_default()
}

#[cfg(not(debug_assertions))]
fn offset_s() -> i64 {
    0
}
