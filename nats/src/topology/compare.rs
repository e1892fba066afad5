//! What is different from what this version needs, and whether the server can change it.
//!
//! What the server fills in by itself is no difference, nor is what an operator may add: a placement, a larger limit, a
//! longer age, a refusal of purges.

use std::time::Duration;

use async_nats::jetstream::consumer::{self, DeliverPolicy, pull};
use async_nats::jetstream::stream::{Config, PersistenceMode, RetentionPolicy};
use serde::Serialize;

use crate::stream_names::DEAD;

/// A setting that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Difference {
    /// Its name and both values, for people.
    pub(crate) text: String,
    /// Whether a marker or a dead letter may be lost, skipped or never delivered because of it.
    pub(crate) breaks: bool,
    /// Whether the server takes the change.
    pub(crate) in_place: bool,
}

/// What a difference does.
#[derive(Debug, Clone, Copy)]
enum Effect {
    /// Costs time or room.
    Slows,
    Breaks,
}

use Effect::{Breaks, Slows};

/// Pulls of one consumer that may be open at the same time: what the server gives unless told otherwise.
const PULLS_WAITING: i64 = 512;

const CHANGED: bool = true;
const MADE_ANEW: bool = false;

#[derive(Default)]
struct Differences(Vec<Difference>);

impl Differences {
    fn expect_equal<T: PartialEq + Serialize>(
        &mut self,
        name: &str,
        is: &T,
        expected: &T,
        effect: Effect,
        in_place: bool,
    ) {
        if is != expected {
            self.add(name, &json(is), &json(expected), effect, in_place);
        }
    }

    fn none<T>(&mut self, name: &str, is: Option<&T>, effect: Effect, in_place: bool) {
        if is.is_some() {
            self.add(name, "set", "none", effect, in_place);
        }
    }

    /// A limit as the server writes it, where 0 and -1 are no limit; a larger one is no difference.
    fn at_least(&mut self, name: &str, is: i64, expected: i64, effect: Effect, in_place: bool) {
        let shown = |limit| if limit > 0 { format!("{limit}") } else { "unlimited".to_owned() };
        if is != larger(is, expected) {
            self.add(name, &shown(is), &shown(expected), effect, in_place);
        }
    }

    fn lasts(&mut self, name: &str, is: Duration, expected: Duration, effect: Effect) {
        let shown = |age: Duration| if age.is_zero() { "unlimited".to_owned() } else { format!("{age:?}") };
        if is != longer(is, expected) {
            self.add(name, &shown(is), &shown(expected), effect, CHANGED);
        }
    }

    fn add(&mut self, name: &str, is: &str, expected: &str, effect: Effect, in_place: bool) {
        let text = format!("{name} is {is}, needed is {expected}");
        self.0.push(Difference { text, breaks: matches!(effect, Breaks), in_place });
    }
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default().trim_matches('"').to_owned()
}

/// The one that admits more.
fn larger(is: i64, expected: i64) -> i64 {
    match (is > 0, expected > 0) {
        (false, _) => is,
        (true, false) => -1,
        (true, true) => is.max(expected),
    }
}

fn longer(is: Duration, expected: Duration) -> Duration {
    if is.is_zero() || expected.is_zero() { Duration::ZERO } else { is.max(expected) }
}

pub(super) fn stream_differences(is: &Config, expected: &Config) -> Vec<Difference> {
    let mut found = Differences::default();
    let sorted = |subjects: &[String]| {
        let mut subjects = subjects.to_vec();
        subjects.sort();
        subjects
    };
    found.expect_equal("subjects", &sorted(&is.subjects), &sorted(&expected.subjects), Breaks, CHANGED);
    let to_or_from_work_queue = [is.retention, expected.retention].contains(&RetentionPolicy::WorkQueue);
    found.expect_equal("retention", &is.retention, &expected.retention, Breaks, !to_or_from_work_queue);
    found.expect_equal("storage", &is.storage, &expected.storage, Breaks, MADE_ANEW);
    found.expect_equal("discard", &is.discard, &expected.discard, Breaks, CHANGED);
    found.expect_equal(
        "discard_new_per_subject",
        &is.discard_new_per_subject,
        &expected.discard_new_per_subject,
        Breaks,
        CHANGED,
    );
    found.lasts("max_age", is.max_age, expected.max_age, Breaks);
    found.at_least("max_bytes", is.max_bytes, expected.max_bytes, Slows, CHANGED);
    found.at_least("max_msgs", is.max_messages, expected.max_messages, Slows, CHANGED);
    found.at_least(
        "max_msgs_per_subject",
        is.max_messages_per_subject,
        expected.max_messages_per_subject,
        Breaks,
        CHANGED,
    );
    let (size, needed) = (i64::from(is.max_message_size), i64::from(expected.max_message_size));
    found.at_least("max_msg_size", size, needed, Slows, CHANGED);
    found.at_least("max_consumers", is.max_consumers.into(), expected.max_consumers.into(), Slows, MADE_ANEW);
    if !expected.duplicate_window.is_zero() {
        found.lasts("duplicate_window", is.duplicate_window, expected.duplicate_window, Slows);
    }
    found.expect_equal("num_replicas", &is.num_replicas, &expected.num_replicas, Slows, CHANGED);
    found.expect_equal("no_ack", &is.no_ack, &false, Breaks, CHANGED);
    found.expect_equal("sealed", &is.sealed, &false, Breaks, MADE_ANEW);
    if expected.name == DEAD {
        // Letters are replaced, retried and discarded.
        found.expect_equal("deny_delete", &is.deny_delete, &false, Slows, MADE_ANEW);
    }
    found.expect_equal("allow_direct", &is.allow_direct, &true, Breaks, CHANGED);
    found.expect_equal("allow_rollup_hdrs", &is.allow_rollup, &false, Slows, CHANGED);
    found.expect_equal("allow_msg_counter", &is.allow_message_counter, &false, Breaks, MADE_ANEW);
    let asynchronous = is.persist_mode.filter(|mode| *mode == PersistenceMode::Async);
    found.none("persist_mode async", asynchronous.as_ref(), Breaks, MADE_ANEW);
    found.none("mirror", is.mirror.as_ref(), Breaks, MADE_ANEW);
    found.none("sources", is.sources.as_ref().filter(|sources| !sources.is_empty()), Slows, CHANGED);
    found.none("republish", is.republish.as_ref(), Slows, CHANGED);
    found.none("subject_transform", is.subject_transform.as_ref(), Breaks, CHANGED);
    found.none("consumer_limits", is.consumer_limits.as_ref(), Slows, CHANGED);
    found.0
}

/// The found configuration with ours laid over it: what an operator added or raised stays.
pub(super) fn merged(is: &Config, expected: &Config) -> Config {
    let size = larger(is.max_message_size.into(), expected.max_message_size.into());
    Config {
        subjects: expected.subjects.clone(),
        retention: expected.retention,
        discard: expected.discard,
        discard_new_per_subject: expected.discard_new_per_subject,
        max_age: longer(is.max_age, expected.max_age),
        max_bytes: larger(is.max_bytes, expected.max_bytes),
        max_messages: larger(is.max_messages, expected.max_messages),
        max_messages_per_subject: larger(is.max_messages_per_subject, expected.max_messages_per_subject),
        max_message_size: i32::try_from(size).unwrap_or(i32::MAX),
        duplicate_window: is.duplicate_window.max(expected.duplicate_window),
        num_replicas: expected.num_replicas,
        no_ack: false,
        allow_direct: true,
        allow_rollup: false,
        sources: None,
        republish: None,
        subject_transform: None,
        consumer_limits: None,
        ..is.clone()
    }
}

/// `replicas`: how many copies the stream should have, and with it the consumer.
pub(super) fn consumer_differences(is: &consumer::Config, expected: &pull::Config, replicas: usize) -> Vec<Difference> {
    let mut found = Differences::default();
    let policy = |policy: &DeliverPolicy| json(&serde_json::to_value(policy).unwrap_or_default()["deliver_policy"]);
    if is.deliver_policy != expected.deliver_policy {
        let (is, expected) = (policy(&is.deliver_policy), policy(&expected.deliver_policy));
        found.add("deliver_policy", &is, &expected, Breaks, MADE_ANEW);
    }
    found.expect_equal("ack_policy", &is.ack_policy, &expected.ack_policy, Breaks, MADE_ANEW);
    found.expect_equal("replay_policy", &is.replay_policy, &expected.replay_policy, Breaks, MADE_ANEW);
    found.none("deliver_subject", is.deliver_subject.as_ref(), Breaks, MADE_ANEW);
    let filters = |one: &str, many: &[String]| {
        let mut filters = if many.is_empty() { vec![one.to_owned()] } else { many.to_vec() };
        filters.sort();
        filters
    };
    let (filtered, needed) = (
        filters(&is.filter_subject, &is.filter_subjects),
        filters(&expected.filter_subject, &expected.filter_subjects),
    );
    // The server would change them, but go on from where the consumer is: what the former filters passed over before would
    // never be delivered.
    found.expect_equal("filter_subjects", &filtered, &needed, Breaks, MADE_ANEW);
    // What runs out at the server is a dead letter all the same.
    found.at_least("max_deliver", is.max_deliver, expected.max_deliver, Slows, CHANGED);
    found.expect_equal("headers_only", &is.headers_only, &expected.headers_only, Breaks, CHANGED);
    if !is.backoff.is_empty() {
        // It would take the place of ack_wait, too.
        found.add("backoff", "set", "none", Breaks, CHANGED);
    }
    if is.ack_wait != expected.ack_wait && !expected.ack_wait.is_zero() {
        found.add("ack_wait", &format!("{:?}", is.ack_wait), &format!("{:?}", expected.ack_wait), Slows, CHANGED);
    }
    // 0 leaves it to the server.
    if expected.max_ack_pending != 0 {
        found.at_least("max_ack_pending", is.max_ack_pending, expected.max_ack_pending, Slows, CHANGED);
    }
    // Each worker has a pull open; the server refuses those beyond this.
    found.at_least("max_waiting", is.max_waiting, PULLS_WAITING, Slows, MADE_ANEW);
    // 0 is as many as the stream has.
    if (1..replicas).contains(&is.num_replicas) {
        found.add("num_replicas", &is.num_replicas.to_string(), &replicas.to_string(), Slows, CHANGED);
    }
    found.lasts("inactive_threshold", is.inactive_threshold, Duration::ZERO, Slows);
    found.at_least("max_batch", is.max_batch, 0, Slows, CHANGED);
    found.at_least("max_bytes", is.max_bytes, 0, Slows, CHANGED);
    found.lasts("max_expires", is.max_expires, Duration::ZERO, Slows);
    found.expect_equal("mem_storage", &is.memory_storage, &false, Slows, MADE_ANEW);
    found.none("priority_groups", is.priority_groups.first(), Breaks, MADE_ANEW);
    found.0
}

/// The wanted configuration with what an operator raised, and the pause, which an update without it would take back.
pub(super) fn merged_consumer(is: &consumer::Config, expected: pull::Config) -> pull::Config {
    let raised = |is, expected| if expected > 0 { larger(is, expected) } else { expected };
    pull::Config {
        max_deliver: raised(is.max_deliver, expected.max_deliver),
        max_ack_pending: raised(is.max_ack_pending, expected.max_ack_pending),
        pause_until: is.pause_until,
        // An update without it would take it away.
        metadata: is.metadata.clone().into_iter().chain(expected.metadata).collect(),
        ..expected
    }
}

#[cfg(test)]
mod tests {
    use async_nats::jetstream::consumer::{AckPolicy, IntoConsumerConfig, ReplayPolicy};
    use async_nats::jetstream::stream::{DiscardPolicy, StorageType};
    use common::config::StreamLimits;

    use super::*;
    use crate::topology::definitions::{ConsumerSettings, consumers, streams};

    fn expected_advisories() -> Config {
        streams(1, &StreamLimits { markers: 1000, replays: 1, dead: 1, advisories: 1, tasks: 1 })[0].clone()
    }

    #[test]
    fn each_setting_that_is_otherwise_is_named() {
        type Change = fn(&mut Config);
        let changes: [(&str, bool, bool, Change); 14] = [
            ("max_age is 2s, needed is unlimited", true, true, |c| c.max_age = Duration::from_secs(2)),
            ("retention is interest, needed is limits", true, true, |c| c.retention = RetentionPolicy::Interest),
            ("retention is workqueue, needed is limits", true, false, |c| c.retention = RetentionPolicy::WorkQueue),
            ("storage is memory, needed is file", true, false, |c| c.storage = StorageType::Memory),
            ("discard is old, needed is new", true, true, |c| c.discard = DiscardPolicy::Old),
            ("max_msgs_per_subject is 1, needed is 10", true, true, |c| c.max_messages_per_subject = 1),
            ("max_msgs is 5, needed is unlimited", false, true, |c| c.max_messages = 5),
            ("max_bytes is 999, needed is 1000", false, true, |c| c.max_bytes = 999),
            ("duplicate_window is 120s, needed is 172800s", false, true, |c| {
                c.duplicate_window = Duration::from_secs(120);
            }),
            ("sealed is true, needed is false", true, false, |c| c.sealed = true),
            ("no_ack is true, needed is false", true, true, |c| c.no_ack = true),
            ("allow_direct is false, needed is true", true, true, |c| c.allow_direct = false),
            ("mirror is set, needed is none", true, false, |c| c.mirror = Some(Default::default())),
            ("num_replicas is 3, needed is 1", false, true, |c| c.num_replicas = 3),
        ];
        for (text, breaks, in_place, change) in changes {
            let mut is = expected_advisories();
            change(&mut is);
            let found = stream_differences(&is, &expected_advisories());
            assert_eq!(found, [Difference { text: text.to_owned(), breaks, in_place }]);
            if in_place {
                assert_eq!(
                    stream_differences(&merged(&is, &expected_advisories()), &expected_advisories()),
                    [],
                    "{text}"
                );
            }
        }
    }

    #[test]
    fn what_an_operator_raised_or_added_is_no_difference_and_stays() {
        let mut is = expected_advisories();
        (is.max_bytes, is.max_messages_per_subject, is.max_message_size) = (5000, -1, -1);
        (is.deny_purge, is.deny_delete, is.max_messages) = (true, true, -1);
        is.duplicate_window *= 2;
        assert_eq!(stream_differences(&is, &expected_advisories()), []);
        is.discard = DiscardPolicy::Old;
        let updated = merged(&is, &expected_advisories());
        assert_eq!((updated.max_bytes, updated.max_messages_per_subject), (5000, -1));
        assert!(updated.deny_purge && updated.deny_delete);
        assert_eq!(updated.duplicate_window, is.duplicate_window);
    }

    #[test]
    fn a_consumer_that_would_skip_markers_is_told_from_one_that_is_slow() {
        let settings = ConsumerSettings { destination: "primary".into(), ack_wait: Duration::from_secs(60) };
        let [(_, expected), ..] = consumers(&settings);
        let as_found = || consumer::Config {
            durable_name: expected.durable_name.clone(),
            filter_subject: expected.filter_subjects[0].clone(),
            ack_wait: expected.ack_wait,
            max_deliver: expected.max_deliver,
            max_ack_pending: expected.max_ack_pending,
            ..consumer::Config::default()
        };
        assert_eq!(consumer_differences(&as_found(), &expected, 3), []);
        type Change = fn(&mut consumer::Config);
        let changes: [(&str, bool, bool, Change); 11] = [
            ("deliver_policy is new, needed is all", true, false, |c| c.deliver_policy = DeliverPolicy::New),
            ("ack_policy is none, needed is explicit", true, false, |c| c.ack_policy = AckPolicy::None),
            (r#"filter_subjects is ["marker.ready.a.>"], needed is ["marker.ready.>"]"#, true, false, |c| {
                c.filter_subject = "marker.ready.a.>".into();
            }),
            ("max_deliver is 1, needed is 100000", false, true, |c| c.max_deliver = 1),
            ("headers_only is true, needed is false", true, true, |c| c.headers_only = true),
            ("backoff is set, needed is none", true, true, |c| c.backoff = vec![Duration::from_secs(1)]),
            ("ack_wait is 1s, needed is 60s", false, true, |c| c.ack_wait = Duration::from_secs(1)),
            ("max_ack_pending is 1, needed is unlimited", false, true, |c| c.max_ack_pending = 1),
            ("max_waiting is 1, needed is 512", false, false, |c| c.max_waiting = 1),
            ("num_replicas is 1, needed is 3", false, true, |c| c.num_replicas = 1),
            ("replay_policy is original, needed is instant", true, false, |c| c.replay_policy = ReplayPolicy::Original),
        ];
        for (text, breaks, in_place, change) in changes {
            let mut is = as_found();
            change(&mut is);
            assert_eq!(
                consumer_differences(&is, &expected, 3),
                [Difference { text: text.to_owned(), breaks, in_place }]
            );
            if in_place {
                let merged = merged_consumer(&is, expected.clone()).into_consumer_config();
                assert_eq!(consumer_differences(&merged, &expected, 3), [], "{text}");
            }
        }
    }
}
