//! The next revision of a unit: what is published, overlaid by what is on disk.

use std::collections::BTreeMap;

use common::marker::Object;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// Zip time stamps have steps of two seconds.
const STAMP_STEP: SignedDuration = SignedDuration::from_secs(2);
/// Rows tell two archives apart whose times differ by this much: their version is the time in ms with its last bit taken.
const VERSION_STEP: SignedDuration = SignedDuration::from_millis(2);

/// An archive at hand, as a marker would name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LocalObject {
    pub(crate) object: Object,
    /// Whether its time is the stamp in its bytes, and not that of the file.
    pub(crate) stamped: bool,
}

/// An archive at hand that the exchange generated before the one that is announced in its place: an older publication
/// that came back. The archive generated last keeps winning, so it is not taken unless somebody says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OlderArchive {
    pub(crate) symbol: String,
    pub(crate) key: String,
    /// When the archive at hand was generated.
    pub(crate) generated_at: Timestamp,
    /// When the announced one was.
    pub(crate) announced_generated_at: Timestamp,
}

/// The objects of a revision.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Plan {
    /// Sorted by key.
    pub(crate) objects: Vec<Object>,
    /// What is at hand and not taken.
    pub(crate) older: Vec<OlderArchive>,
    /// Whether an object got another time than it is published with, though its content is the same.
    pub(crate) redated: bool,
}

/// What is at hand laid over what is published. Nothing vanishes.
///
/// An object with the same content stays as it is published, unless its own stamp is later than the published time: that
/// one came from a clock that was behind. One with other bytes is replaced. A replacement whose stamp cannot be told from
/// the published one, because both were generated within one step of a zip's clock, is dated two milliseconds later: of
/// two archives of one key, the one published later is to win. An older one is not taken; where somebody wants it to be
/// shown again, it is dated as generated at `rollback_at`.
pub(crate) fn plan(published: &[Object], here: Vec<LocalObject>, rollback_at: Option<Timestamp>) -> Plan {
    let mut objects = by_key(published);
    let mut plan = Plan::default();
    for LocalObject { mut object, stamped } in here {
        if let Some(previous) = objects.get(&object.key) {
            let earliest = previous.generated_at.saturating_add(VERSION_STEP).unwrap_or(Timestamp::MAX);
            if previous.sha256 == object.sha256 && previous.size == object.size {
                if !(stamped && object.generated_at >= earliest) {
                    continue;
                }
                plan.redated = true;
            } else if previous.generated_at.duration_since(object.generated_at) >= STAMP_STEP {
                let Some(now) = rollback_at else {
                    plan.older.push(OlderArchive {
                        generated_at: object.generated_at,
                        announced_generated_at: previous.generated_at,
                        symbol: object.symbol,
                        key: object.key,
                    });
                    continue;
                };
                object.generated_at = now.max(earliest);
            } else {
                object.generated_at = object.generated_at.max(earliest);
            }
        }
        objects.insert(object.key.clone(), object);
    }
    plan.objects = objects.into_values().collect();
    plan
}

/// One published list laid over an earlier one.
pub(crate) fn merged(earlier: &[Object], later: &[Object]) -> Vec<Object> {
    let mut objects = by_key(earlier);
    objects.extend(by_key(later));
    objects.into_values().collect()
}

fn by_key(objects: &[Object]) -> BTreeMap<String, Object> {
    objects.iter().map(|object| (object.key.clone(), object.clone())).collect()
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

    fn stamped(object: Object) -> LocalObject {
        LocalObject { object, stamped: true }
    }

    #[test]
    fn nothing_vanishes_and_the_same_stays_as_it_was() {
        let older = [object("a", "1", "2026-02-15T00:00:00Z"), object("b", "1", "2026-02-15T00:00:00Z")];
        let check = |published: &[Object], here: &[Object], expected: &[Object]| {
            let plan = plan(published, here.iter().cloned().map(stamped).collect(), None);
            assert_eq!(plan, Plan { objects: expected.to_vec(), ..Plan::default() });
        };
        check(&older, &[], &older);
        check(&[], &[older[1].clone(), older[0].clone()], &older);
        check(&older, &[object("a", "1", "2026-02-15T00:00:00.001Z")], &older);
        check(&older, &[object("a", "1", "2026-02-14T00:00:00Z")], &older);
        let added = object("c", "1", "2026-02-15T00:00:00Z");
        let [a, b] = older.clone();
        check(&older, std::slice::from_ref(&added), &[a, b, added.clone()]);
        assert_eq!(merged(&older, &[added]).len(), 3);
    }

    #[test]
    fn the_same_content_with_a_later_stamp_gets_its_time() {
        let published = [object("a", "1", "2026-02-05T00:00:00Z")];
        let here = object("a", "1", "2026-02-15T00:00:00Z");
        let check = |stamped, expected: &Object| {
            let plan = plan(&published, vec![LocalObject { object: here.clone(), stamped }], None);
            assert_eq!((&plan.objects[0], plan.redated), (expected, expected == &here), "{stamped}");
        };
        check(true, &here);
        // The time of a file changes whenever it is copied.
        check(false, &published[0]);
    }

    #[test]
    fn other_bytes_replace() {
        let check = |older: &str, newer: &str, dated: &str| {
            let plan = plan(&[object("a", "1", older)], vec![stamped(object("a", "2", newer))], None);
            assert_eq!(plan.objects, [object("a", "2", dated)], "{older} {newer}");
            assert_eq!(plan.older, []);
        };
        check("2026-02-15T00:00:00Z", "2026-02-16T00:00:00Z", "2026-02-16T00:00:00Z");
        check("2026-02-15T00:00:00Z", "2026-02-15T00:00:02Z", "2026-02-15T00:00:02Z");
        check("2026-02-15T00:00:00Z", "2026-02-15T00:00:00Z", "2026-02-15T00:00:00.002Z");
        // The third archive within one step comes after the second, which was moved already.
        check("2026-02-15T00:00:00.002Z", "2026-02-15T00:00:00Z", "2026-02-15T00:00:00.004Z");
        check("2026-02-15T00:00:00.002Z", "2026-02-15T00:00:00.003Z", "2026-02-15T00:00:00.004Z");
    }

    #[test]
    fn an_older_publication_is_taken_when_somebody_says_so() {
        let published = object("a", "1", "2026-02-15T00:00:02Z");
        let here = object("a", "2", "2026-02-15T00:00:00Z");
        let check = |rollback_at: Option<&str>| {
            let rollback_at = rollback_at.map(|at| at.parse().expect("a time"));
            plan(std::slice::from_ref(&published), vec![stamped(here.clone())], rollback_at)
        };
        let retained = check(None);
        assert_eq!(retained.objects, std::slice::from_ref(&published));
        assert_eq!(retained.older[0].announced_generated_at, published.generated_at);
        assert_eq!(check(Some("2026-03-01T00:00:00Z")).objects, [object("a", "2", "2026-03-01T00:00:00Z")]);
        // By a clock that is behind.
        assert_eq!(check(Some("2026-01-01T00:00:00Z")).objects, [object("a", "2", "2026-02-15T00:00:02.002Z")]);
    }
}
