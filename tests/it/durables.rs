//! Durable consumers that were changed: changed back, made anew or named.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use futures::StreamExt;
use tests::data::{ArchiveSpec, Market};
use tests::project::Project;
use tests::servers::Stack;
use tests::{Context, Failure, Result};

use crate::handmade::Handmade;
use crate::scenario::{SOON, is_checked, listed_letters, march, upload};

/// The settings of a durable consumer of `primary`, as `migrate` makes them.
pub(crate) fn durable(project: &Project, lane: &str) -> pull::Config {
    let ack_wait = project.config()["puller"]["ack_wait"].as_str().unwrap_or_default();
    let seconds = ack_wait.trim_end_matches('s').parse().unwrap_or(60);
    let filter = if lane == "ingest" { "marker.ready.>" } else { "marker.backfill.>" };
    pull::Config {
        durable_name: Some(format!("{lane}-primary")),
        filter_subject: filter.to_owned(),
        ack_wait: Duration::from_secs(seconds),
        max_deliver: 25,
        ..pull::Config::default()
    }
}

pub(crate) fn remake_consumer(hand: &Handmade<'_>, config: pull::Config) -> Result<()> {
    hand.act(async |jetstream| {
        let name = config.durable_name.clone().unwrap_or_default();
        jetstream.delete_consumer_from_stream(&name, "MARKERS").await.context("deleting the consumer")?;
        jetstream.create_consumer_on_stream(config, "MARKERS").await.map(drop).context("making the consumer")
    })
}

#[test]
fn a_durable_that_would_skip_markers_is_refused_until_it_is_made_anew() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "durables")?;
    let hand = Handmade::new(stack, &project)?;
    upload(&project, [march(1)])?;
    type Change = fn(&mut pull::Config);
    let changes: [(&str, Change); 4] = [
        ("deliver_policy is new", |config| config.deliver_policy = DeliverPolicy::New),
        ("deliver_policy is last_per_subject", |config| config.deliver_policy = DeliverPolicy::LastPerSubject),
        ("ack_policy is none", |config| config.ack_policy = AckPolicy::None),
        ("filter_subjects is [\"marker.backfill.*.um.>\"]", |config| {
            config.filter_subject = "marker.backfill.*.um.>".into();
        }),
    ];
    for (text, change) in changes {
        let mut config = durable(&project, "backfill");
        change(&mut config);
        remake_consumer(&hand, config)?;
        let pull = project.puller(&["pull"])?.expect_code(2)?;
        assert!(pull.stderr.contains(text) && pull.stderr.contains("puller migrate"), "{}", pull.stderr);
        assert!(!pull.stdout.contains("nothing to do"), "{}", pull.stdout);
        let doctor = project.puller(&["doctor", "--json"])?.expect_code(4)?.json()?;
        assert!(is_checked(&doctor, text), "{doctor:#}");
        let status = project.puller(&["status"])?;
        assert!(status.stdout.contains(text), "{}", status.stdout);
        project.puller(&["migrate"])?.expect_code(0)?;
        project.puller(&["doctor"])?.expect_code(0)?;
        project.puller(&["pull"])?.expect_code(0)?;
    }
    project.check_tables(24)?;
    // Once loaded, and skipped after that.
    assert_eq!(project.query("SELECT sum(archives_loaded) FROM {db}.ingest_log")?.trim(), "1");

    // A service says so, and goes on once it is mended. It pulls nothing meanwhile.
    remake_consumer(&hand, pull::Config { ack_policy: AckPolicy::None, ..durable(&project, "backfill") })?;
    upload(&project, [march(2)])?;
    let worker = project.spawn_puller(&["run"])?;
    project.wait_until("a reason", SOON, || Ok(worker.reasons().contains("ack_policy is none")))?;
    assert_eq!(project.archives_loaded()?, 1);
    project.puller(&["migrate"])?.expect_code(0)?;
    project.wait_for_archives(2, SOON)?;
    project.check_tables(48)
}

/// Whoever may make consumers changes back what the server lets it change; where nobody but the operator may, it is named.
#[test]
fn a_changed_durable_is_changed_back_or_named() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "durables-back")?;
    let fixed = [("FERRY__NATS__MANAGE", "false")];
    let hand = Handmade::new(stack, &project)?;
    upload(&project, [march(1)])?;
    project.puller(&["migrate"])?.expect_code(0)?;
    type Change = fn(&mut pull::Config);
    // Whether a worker refuses it that may not change it.
    let changes: [(&str, bool, Change); 4] = [
        ("max_deliver is 1, needed is 100000", false, |config| config.max_deliver = 1),
        ("max_ack_pending is 1, needed is unlimited", false, |config| config.max_ack_pending = 1),
        ("headers_only is true, needed is false", true, |config| config.headers_only = true),
        ("backoff is set, needed is none", true, |config| config.backoff = vec![Duration::from_secs(1)]),
    ];
    for (text, is_refused, change) in changes {
        let mut config = pull::Config { max_deliver: 100_000, max_ack_pending: -1, ..durable(&project, "backfill") };
        change(&mut config);
        remake_consumer(&hand, config)?;
        let unmanaged = |args: &[&str]| project.start("puller", args, &fixed)?.wait(SOON);
        let doctor = unmanaged(&["doctor"])?.expect_code(4)?;
        for said in [text, "run `puller migrate`"] {
            assert!(doctor.stdout.contains(said), "{said}: {}", doctor.stdout);
        }
        let pull = unmanaged(&["pull"])?.expect_code(if is_refused { 2 } else { 0 })?;
        assert!(pull.stderr.contains(text), "{}", pull.stderr);
        let pull = project.puller(&["pull"])?.expect_code(0)?;
        assert!(pull.stderr.contains(text), "{}", pull.stderr);
        let now = hand.consumer("backfill-primary")?.config;
        assert_eq!((now.max_deliver, now.max_ack_pending, now.headers_only), (100_000, -1, false), "{text}");
        assert_eq!(now.ack_wait, durable(&project, "backfill").ack_wait, "{text}");
        project.puller(&["doctor"])?.expect_code(0)?;
    }
    // A service whose consumer was changed goes on by itself.
    let worker = project.spawn_puller(&["run"])?;
    project.wait_until("a worker", SOON, || Ok(worker.is_ready()))?;
    remake_consumer(&hand, pull::Config { headers_only: true, ..durable(&project, "backfill") })?;
    upload(&project, [march(2)])?;
    project.wait_for_archives(2, SOON)?;
    assert_eq!(listed_letters(&project, &[])?.len(), 0);
    project.check_tables(48)
}

/// A consumer goes on from where it is also with other filters: what the former ones passed over would never come.
#[test]
fn a_durable_whose_filter_is_widened_delivers_the_skipped_markers() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "narrow-filter")?;
    let hand = Handmade::new(stack, &project)?;
    upload(&project, [march(1)])?;
    ArchiveSpec::new(Market::Um, "BTCUSDT", "1h", "2025-03-01").write(project.data_dir())?;
    upload(&project, [march(1)])?;
    assert_eq!(hand.count("MARKERS")?, 2);
    project.puller(&["migrate"])?.expect_code(0)?;
    let narrow = pull::Config { filter_subject: "marker.backfill.*.um.>".into(), ..durable(&project, "backfill") };
    remake_consumer(&hand, narrow)?;
    // The second message is delivered and acknowledged: the consumer stands behind the first one.
    hand.act(async |jetstream| {
        let consumer: PullConsumer =
            jetstream.get_consumer_from_stream("backfill-primary", "MARKERS").await.context("the consumer")?;
        let mut messages = consumer.fetch().max_messages(1).messages().await.context("a pull")?;
        let message = messages.next().await.ok_or_else(|| Failure::new("no message"))?.context("a message")?;
        message.double_ack().await.context("the ack")
    })?;
    assert_eq!(hand.consumer("backfill-primary")?.num_pending, 0);
    project.puller(&["migrate"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    assert_eq!(project.archives_loaded()?, 2);
    project.check_tables(48)
}

/// What was done is not done again by a consumer that starts from the beginning.
#[test]
fn a_consumer_made_anew_repeats_no_replay() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "anew")?;
    let hand = Handmade::new(stack, &project)?;
    upload(&project, (1..=3).map(march))?;
    project.puller(&["pull"])?.expect_code(0)?;
    project.puller(&["replay", "--force"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    let sent = project.puller(&["replay", "--force", "--json"])?.expect_code(0)?.json()?;
    let task = sent["destinations"][0]["task"].as_str().unwrap_or_default().to_owned();
    project.puller(&["tasks", "cancel", &task])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    let loaded = "SELECT sum(archives_loaded) FROM {db}.ingest_log";
    assert_eq!(project.query(loaded)?.trim(), "6");
    for (stream, lane) in [("MARKERS", "ingest"), ("MARKERS", "backfill"), ("REPLAYS", "replay")] {
        hand.act(async |jetstream| {
            let deleted = jetstream.delete_consumer_from_stream(&format!("{lane}-primary"), stream).await;
            deleted.map(drop).context(lane)
        })?;
    }
    project.puller(&["pull"])?.expect_code(0)?;
    assert_eq!(project.query(loaded)?.trim(), "6");
    let skipped = "SELECT count() FROM {db}.ingest_log WHERE outcome = 'skipped'";
    assert_eq!(project.query(skipped)?.trim(), "3");
    Ok(())
}
