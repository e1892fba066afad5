//! Places where a test makes the process die, to see what the next one finds.
//!
//! Only in builds with debug assertions: a release binary has none of this.

/// Dies as by `kill -9` if `FERRY_FAILPOINT` names this place.
#[cfg(debug_assertions)]
pub fn failpoint(name: &str) {
    if std::env::var("FERRY_FAILPOINT").is_ok_and(|wanted| wanted == name) {
        tracing::error!(name, "dying at a fail point");
        // No destructors, no flushing, as little notice as a kill gives.
        std::process::abort();
    }
}

#[cfg(not(debug_assertions))]
#[inline]
pub fn failpoint(_name: &str) {}
