//! Places where a test makes the process die, to see what the next one finds, or hang, to see who notices.
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

/// Hangs, once in a process, if `FERRY_HANG` names this place.
#[cfg(debug_assertions)]
pub async fn hang(name: &str) {
    use std::sync::atomic::{AtomicBool, Ordering};
    static HUNG: AtomicBool = AtomicBool::new(false);
    if std::env::var("FERRY_HANG").is_ok_and(|wanted| wanted == name) && !HUNG.swap(true, Ordering::Relaxed) {
        tracing::error!(name, "hanging at a fail point");
        std::future::pending::<()>().await;
    }
}

#[cfg(not(debug_assertions))]
#[inline]
pub async fn hang(_name: &str) {}

/// The same with the whole thread, as a disk that does not answer does.
#[cfg(debug_assertions)]
pub fn hang_thread(name: &str) {
    if std::env::var("FERRY_HANG").is_ok_and(|wanted| wanted == name) {
        tracing::error!(name, "hanging at a fail point");
        loop {
            std::thread::park();
        }
    }
}

#[cfg(not(debug_assertions))]
#[inline]
pub fn hang_thread(_name: &str) {}

/// A bound, or the seconds that this variable of the environment gives instead.
#[cfg(debug_assertions)]
pub fn bound(bound: std::time::Duration, variable: &str) -> std::time::Duration {
    let seconds = std::env::var(variable).ok().and_then(|seconds| seconds.parse().ok());
    seconds.map_or(bound, std::time::Duration::from_secs)
}

#[cfg(not(debug_assertions))]
#[inline]
pub fn bound(bound: std::time::Duration, _variable: &str) -> std::time::Duration {
    bound
}
