//! Faults for some requests only: those whose first line has certain words.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Fault;

#[derive(Debug)]
pub struct Aim {
    words: String,
    left: AtomicU64,
    fate: Fate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The server does not see the request, the client is told 503.
    Refused,
    /// The server does its work; the reply is thrown away and the connection cut.
    ReplyLost,
}

impl Fault {
    /// For the next `times` requests with these words in their first line.
    pub fn aimed(words: impl Into<String>, times: u64, fate: Fate) -> Fault {
        Fault::Aimed(Arc::new(Aim { words: words.into(), left: times.into(), fate }))
    }
}

impl Aim {
    /// What is to happen to the request with this line.
    pub(super) fn hit(&self, line: &str) -> Option<Fate> {
        let one_less = |left: u64| left.checked_sub(1);
        let hit =
            line.contains(&self.words) && self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_ok();
        hit.then_some(self.fate)
    }
}
