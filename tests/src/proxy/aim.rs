//! Faults for some requests only: those whose first line has certain words, or that carry a header.

use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug)]
pub struct Aim {
    target: Target,
    left: AtomicU64,
    fate: Fate,
}

#[derive(Debug)]
enum Target {
    /// Words of the first line.
    Line(String),
    /// The name of a header, in lower case.
    Header(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The server does not see the request, the client is told 503.
    Refused,
    /// The server does not see the request, the client is told 501.
    NotImplemented,
    /// The server does its work; the reply is thrown away and the connection cut.
    ReplyLost,
}

impl Aim {
    pub(super) fn at_line(words: String, times: u64, fate: Fate) -> Self {
        Self { target: Target::Line(words), left: times.into(), fate }
    }

    pub(super) fn at_header(name: String, fate: Fate) -> Self {
        Self { target: Target::Header(name), left: u64::MAX.into(), fate }
    }

    /// What is to happen to the request with this head.
    pub(super) fn hit(&self, head: &str) -> Option<Fate> {
        let one_less = |left: u64| left.checked_sub(1);
        let mut lines = head.lines();
        let first = lines.next().unwrap_or_default();
        let meant = match &self.target {
            Target::Line(words) => first.contains(words),
            Target::Header(name) => lines.any(|line| line.to_ascii_lowercase().starts_with(&format!("{name}:"))),
        };
        let hit = meant && self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_ok();
        hit.then_some(self.fate)
    }
}
