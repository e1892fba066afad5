//! Uploaders and workers that die, hang or are suspended at any step: every unit is published and loaded once.

use std::time::Duration;

use tests::project::Project;
use tests::proxy::Fault;
use tests::servers::Stack;
use tests::{Failure, Result};

use crate::handmade::Handmade;
use crate::scenario::{SOON, assert_nothing_uploaded, is_drained};
use crate::server_faults::{behind_proxies, check_units, write_units};

#[test]
fn an_uploader_dying_between_any_two_steps_publishes_every_unit_once() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "uploader-dies")?;
    let hand = Handmade::new(stack, &project)?;
    let points = [
        "uploader.object_put",
        "uploader.objects_stored",
        "uploader.manifest_stored",
        "uploader.current_stored",
        "uploader.published",
    ];
    let mut units = 0;
    for point in points {
        units += 2;
        write_units(&project, units)?;
        let mut dying = project.start("uploader", &["upload"], &[("FERRY_FAILPOINT", point)])?;
        let died = dying.wait(SOON)?;
        assert_eq!(died.code, None, "{point} was not reached: {}", died.stderr);
        project.uploader(&["upload"])?.expect_code(0)?;
        assert_eq!(hand.markers()?.len(), units, "after {point}");
    }
    assert_nothing_uploaded(&project.uploader(&["upload", "--json"])?.expect_code(0)?.json()?);
    project.puller(&["pull"])?.expect_code(0)?;
    check_units(&project, &hand, units)
}

#[test]
fn a_worker_dying_between_any_two_steps_loads_every_row_once() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "worker-dies")?;
    project.set("puller.ack_wait", "1s")?;
    let hand = Handmade::new(stack, &project)?;
    let points = [
        "puller.decoded",
        "puller.inserted",
        "puller.read_back",
        "puller.archives_recorded",
        "puller.attempt_recorded",
        "puller.ended",
    ];
    let mut units = 0;
    for point in points {
        units += 2;
        write_units(&project, units)?;
        project.uploader(&["upload"])?.expect_code(0)?;
        let mut dying = project.start("puller", &["pull"], &[("FERRY_FAILPOINT", point)])?;
        let died = dying.wait(SOON)?;
        assert_eq!(died.code, None, "{point} was not reached: {}", died.stderr);
        project.puller(&["pull"])?.expect_code(0)?;
        project.check_tables(8640).map_err(|failure| Failure::new(format!("after {point}: {failure}")))?;
    }
    check_units(&project, &hand, units)
}

#[test]
fn a_worker_that_dies_after_storing_a_dead_letter_stores_it_once() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "dead-letter-once")?;
    project.set("puller.ack_wait", "1s")?;
    let hand = Handmade::new(stack, &project)?;
    hand.publish("binance/spot/klines/1h/2025-03-01", b"no marker")?;
    let mut dying = project.start("puller", &["pull"], &[("FERRY_FAILPOINT", "puller.dead_letter_stored")])?;
    assert_eq!(dying.wait(SOON)?.code, None);
    project.puller(&["pull"])?.expect_code(1)?;
    assert_eq!(hand.dead_letters()?.len(), 1);
    Ok(())
}

/// Killed at random moments, again and again, while others work.
#[test]
fn workers_killed_at_random_load_every_row_once() -> Result<()> {
    const KILLS: u64 = 20;
    let stack = Stack::shared();
    let mut project = Project::new(stack, "killed")?;
    project.set("puller.ack_wait", "2s")?;
    // A kill costs the delivery an attempt, and this test does nothing but kill.
    project.set("retry.attempts", 24)?;
    let hand = Handmade::new(stack, &project)?;
    let units = 12;
    let archives = write_units(&project, units)?;
    project.uploader(&["upload"])?.expect_code(0)?;
    let seed = u64::from(std::process::id());
    eprintln!("seed {seed}");
    let mut state = seed;
    for _ in 0..KILLS {
        let mut worker = project.spawn_puller(&["run"])?;
        // xorshift: what matters is that it differs from run to run and can be repeated.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        std::thread::sleep(Duration::from_millis(300 + state % 700));
        worker.kill9()?;
    }
    let _worker = project.spawn_puller(&["run"])?;
    project.wait_for_archives(archives, SOON)?;
    project.wait_until("an empty queue", SOON, || is_drained(&project))?;
    check_units(&project, &hand, units)
}

/// A unit that makes no progress loses its lease, so that another worker may try.
#[test]
fn a_stalled_unit_loses_its_lease() -> Result<()> {
    let stack = Stack::shared();
    let (mut project, bucket, _clickhouse) = behind_proxies(stack, "stalled")?;
    project.set("puller.ack_wait", "1s")?;
    project.set("puller.stall_timeout", "2s")?;
    project.set("retry.attempts", 24)?;
    let hand = Handmade::new(stack, &project)?;
    let archives = write_units(&project, 1)?;
    project.uploader(&["upload"])?.expect_code(0)?;
    bucket.set(Fault::Hang);
    let worker = project.spawn_puller(&["run"])?;
    let lost = r#"marketferry_puller_leases_lost_total{destination="primary"}"#;
    worker.wait_for_metric(lost, SOON, |count| count >= 1.0)?;
    bucket.set(Fault::None);
    project.wait_for_archives(archives, SOON)?;
    project.wait_until("an empty queue", SOON, || is_drained(&project))?;
    check_units(&project, &hand, 1)
}

/// The first SIGTERM finishes or hands back within the grace, the second stops at once.
#[test]
fn a_worker_drains_at_the_first_sigterm_and_stops_at_the_second() -> Result<()> {
    let stack = Stack::shared();
    let (mut project, bucket, _clickhouse) = behind_proxies(stack, "told-to-stop")?;
    project.set("puller.shutdown_grace", "1s")?;
    let hand = Handmade::new(stack, &project)?;
    let archives = write_units(&project, 1)?;
    project.uploader(&["upload"])?.expect_code(0)?;
    bucket.set(Fault::Hang);
    let in_flight = || -> Result<bool> {
        let status = project.puller(&["status", "--json"])?.expect_code(0)?.json()?;
        Ok(status["destinations"][0]["in_flight"] == 1)
    };

    // It cannot finish, so it hands the unit back: the next worker has it long before a lease would have ended.
    let mut worker = project.spawn_puller(&["run"])?;
    project.wait_until("a unit in flight", SOON, in_flight)?;
    worker.drain(SOON)?;
    let status = project.puller(&["status", "--json"])?.expect_code(0)?.json()?;
    assert!(
        status["destinations"][0]["pending"] == 1 || status["destinations"][0]["retries_scheduled"] == 1,
        "{status}"
    );

    let mut worker = project.spawn_puller(&["run"])?;
    project.wait_until("a unit in flight", SOON, in_flight)?;
    worker.sigterm()?;
    worker.wait_for_line("draining", SOON)?;
    worker.sigterm()?;
    let stopped = worker.wait(SOON)?;
    // 143 as a shell would say; 0 where the grace was over first.
    assert!(matches!(stopped.code, Some(143 | 0)), "{:?}", stopped.code);

    bucket.set(Fault::None);
    project.puller(&["pull"])?.expect_code(0)?;
    assert_eq!(project.archives_loaded()?, archives);
    check_units(&project, &hand, 1)
}

/// A stopped process loses its leases; when it goes on, its late inserts and acks change nothing.
#[test]
fn a_worker_suspended_past_its_leases_changes_nothing() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "asleep")?;
    project.set("puller.ack_wait", "2s")?;
    project.set("retry.attempts", 24)?;
    let hand = Handmade::new(stack, &project)?;
    let units = 8;
    let archives = write_units(&project, units)?;
    project.uploader(&["upload"])?.expect_code(0)?;
    let mut sleeper = project.spawn_puller(&["run"])?;
    project.wait_until("the sleeper's first archive", SOON, || Ok(project.archives_loaded()? > 0))?;
    sleeper.signal("STOP")?;
    let mut other = project.spawn_puller(&["run"])?;
    project.wait_for_archives(archives, SOON)?;
    sleeper.signal("CONT")?;
    project.wait_until("an empty queue", SOON, || is_drained(&project))?;
    for worker in [&mut sleeper, &mut other] {
        worker.drain(SOON)?;
    }
    check_units(&project, &hand, units)
}
