//! The time of day. Nothing that decides which row wins depends on it: versions come from the archives.

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
