//! What was derived before of single open_times.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use common::checksum::Sha256Sum;

use crate::clickhouse::ledger::RecordedArchive;

/// Decisions that are remembered.
const REMEMBERED_MAX: usize = 100_000;

/// What an open_time is to show.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Shown {
    Nothing,
    Row { own_version: u64, hash: u64 },
}

/// What was derived before. It depends on nothing but the archives that may have the open_time, so it holds for ever; and the
/// attempts that come after a correction look at the same open_times again.
#[derive(Default)]
pub(crate) struct Decisions(Mutex<HashMap<(Sha256Sum, i64), Shown>>);

impl Decisions {
    pub(super) fn of(&self, archives: &[&RecordedArchive], open_time: i64) -> Option<Shown> {
        let decisions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        decisions.get(&(digest(archives), open_time)).copied()
    }

    pub(super) fn remember(&self, archives: &[&RecordedArchive], open_time: i64, shown: Shown) {
        let mut decisions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if decisions.len() >= REMEMBERED_MAX {
            decisions.clear();
        }
        decisions.insert((digest(archives), open_time), shown);
    }
}

/// Tells archives and their order apart from all others.
fn digest(archives: &[&RecordedArchive]) -> Sha256Sum {
    let lines = archives
        .iter()
        .map(|archive| format!("{}\t{}\t{}\n", archive.object.key, archive.object.sha256, archive.version));
    Sha256Sum::of(lines.collect::<String>().as_bytes())
}
