//! The next revision of a unit: what is published, overlaid by what is on disk.

use std::collections::BTreeMap;

use common::marker::Object;
use jiff::{SignedDuration, Timestamp};

/// Zip time stamps have steps of two seconds.
const STAMP_STEP: SignedDuration = SignedDuration::from_secs(2);
/// Rows tell two archives apart whose times differ by this much: their version is the time in ms with its last bit taken.
const VERSION_STEP: SignedDuration = SignedDuration::from_millis(2);

/// `newer` laid over `older`, sorted by key. Nothing vanishes.
///
/// An object that is the same in both stays as it is in `older`, its `generated_at` too. One that comes with other
/// bytes is replaced. A replacement whose time stamp cannot be told from the older one's, because both were generated
/// within one step of a zip's clock, is dated two milliseconds later: of two archives of one key, the one published later
/// is to win.
pub(crate) fn overlay(older: &[Object], newer: Vec<Object>) -> Vec<Object> {
    let mut objects: BTreeMap<String, Object> =
        older.iter().map(|object| (object.key.clone(), object.clone())).collect();
    for mut object in newer {
        if let Some(previous) = objects.get(&object.key) {
            if previous.sha256 == object.sha256 && previous.size == object.size {
                continue;
            }
            object.generated_at = after(previous.generated_at, object.generated_at);
        }
        objects.insert(object.key.clone(), object);
    }
    objects.into_values().collect()
}

fn after(previous: Timestamp, generated_at: Timestamp) -> Timestamp {
    let least = previous.saturating_add(VERSION_STEP).unwrap_or(Timestamp::MAX);
    if generated_at >= least || previous.duration_since(generated_at) >= STAMP_STEP {
        return generated_at;
    }
    least
}

#[cfg(test)]
mod tests {
    use common::checksum::Sha256Sum;

    use super::*;

    fn object(key: &str, content: &str, generated_at: &str) -> Object {
        Object {
            key: key.to_owned(),
            symbol: key.to_owned(),
            size: content.len() as u64,
            sha256: Sha256Sum::of(content.as_bytes()),
            generated_at: generated_at.parse().expect("a time"),
        }
    }

    #[test]
    fn nothing_vanishes_and_the_same_stays_as_it_was() {
        let older = [object("a", "1", "2026-02-15T00:00:00Z"), object("b", "1", "2026-02-15T00:00:00Z")];
        assert_eq!(overlay(&older, vec![]), older);
        assert_eq!(overlay(&[], vec![older[1].clone(), older[0].clone()]), older);
        assert_eq!(overlay(&older, vec![object("a", "1", "2026-02-16T00:00:00Z")]), older);
        let added = object("c", "1", "2026-02-15T00:00:00Z");
        let [a, b] = older.clone();
        assert_eq!(overlay(&older, vec![added.clone()]), [a, b, added]);
    }

    #[test]
    fn other_bytes_replace() {
        let check = |older: &str, newer: &str, dated: &str| {
            let overlaid = overlay(&[object("a", "1", older)], vec![object("a", "2", newer)]);
            assert_eq!(overlaid, [object("a", "2", dated)], "{older} {newer}");
        };
        check("2026-02-15T00:00:00Z", "2026-02-16T00:00:00Z", "2026-02-16T00:00:00Z");
        check("2026-02-15T00:00:00Z", "2026-02-15T00:00:02Z", "2026-02-15T00:00:02Z");
        check("2026-02-15T00:00:00Z", "2026-02-15T00:00:00Z", "2026-02-15T00:00:00.002Z");
        // The third archive within one step comes after the second, which was moved already.
        check("2026-02-15T00:00:00.002Z", "2026-02-15T00:00:00Z", "2026-02-15T00:00:00.004Z");
        check("2026-02-15T00:00:00.002Z", "2026-02-15T00:00:00.003Z", "2026-02-15T00:00:00.004Z");
        // An older archive put back keeps its place in time.
        check("2026-02-15T00:00:02Z", "2026-02-15T00:00:00Z", "2026-02-15T00:00:00Z");
    }
}
