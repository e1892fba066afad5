//! A wrong bucket or prefix is detected before anything is uploaded or replaced.

use tests::data::mark_all;
use tests::other_client::OtherClient;
use tests::process::Finished;
use tests::project::Project;
use tests::proxy::{Fate, Fault, Proxy};
use tests::servers::Stack;
use tests::{Context, Result};

use crate::handmade::Handmade;
use crate::scenario::{SOON, assert_units, assert_verdict, hours, is_checked, loopback, proxy_of_bucket, ship, upload};

fn moved(project: &Project, args: &[&str], prefix: &str) -> Result<Finished> {
    project.start("uploader", args, &[("FERRY__STORAGE__R2__PREFIX", prefix)])?.wait(SOON)
}

/// Three units are announced, a fourth is not yet; then the prefix is mistyped.
#[test]
fn a_wrong_prefix_stops_the_uploader_with_one_message() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "wrong-prefix")?;
    let (hand, client) = (Handmade::new(stack, &project)?, OtherClient::new(stack, &project));
    for day in ["2025-03-01", "2025-03-02", "2025-03-03"] {
        hours("BTCUSDT", day).write(project.data_dir())?;
    }
    mark_all(project.data_dir())?;
    project.uploader(&["upload"])?.expect_code(0)?;
    hours("BTCUSDT", "2025-03-04").write(project.data_dir())?;
    mark_all(project.data_dir())?;
    let (bucket, markers) = (client.list()?, hand.markers()?);

    // Below the prefix of the project, so that the bucket's listing would show what is stored there.
    let wrong = format!("{}/mistyped", project.prefix());
    for args in [&["upload"][..], &["upload", "--cleanup"], &["watch"], &["reconcile"], &["reconcile", "--fix"]] {
        let stopped = moved(&project, args, &wrong)?.expect_code(2)?;
        let refusals = stopped.stderr.lines().filter(|line| line.contains("are announced from")).collect::<Vec<_>>();
        assert_eq!(refusals.len(), 1, "{args:?}: {}", stopped.stderr);
        for prefix in [project.prefix(), &wrong] {
            assert!(refusals[0].contains(&format!("prefix '{prefix}'")), "{}", refusals[0]);
        }
        assert!(!stopped.stderr.contains("WARN"), "{}", stopped.stderr);
    }
    // Doctor says what is wrong, and leaves no object of its own there either.
    let doctor = moved(&project, &["doctor", "--json"], &wrong)?.expect_code(4)?.json()?;
    assert_verdict(&doctor, "place", "failed");
    assert_verdict(&doctor, "bucket requests", "warning");
    assert!(is_checked(&doctor, &wrong), "{doctor:#}");
    let env = [("FERRY__STORAGE__R2__PREFIX", wrong.as_str())];
    let doctor = project.start("puller", &["doctor", "--json"], &env)?.wait(SOON)?.expect_code(4)?.json()?;
    assert_verdict(&doctor, "newest marker", "failed");
    assert_verdict(&doctor, "bucket requests", "warning");
    assert_eq!((client.list()?, hand.markers()?), (bucket, markers));
    assert_eq!(tests::data::archives(project.data_dir())?.len(), 4);

    // With the right one it goes on as if nothing had been.
    let upload = project.uploader(&["upload", "--json"])?.expect_code(0)?;
    assert_units(&upload.json()?, &[("published", 1), ("unchanged", 3)]);
    assert_verdict(&project.uploader(&["doctor", "--json"])?.expect_code(0)?.json()?, "place", "ok");
    Ok(())
}

/// The object that doctor makes its requests on goes again, and stays where the bucket deletes nothing.
#[test]
fn doctor_removes_its_object_where_it_may() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "probe")?;
    let bucket = proxy_of_bucket(&mut project, stack)?;
    let client = OtherClient::new(stack, &project);
    project.puller(&["migrate"])?.expect_code(0)?;
    std::fs::create_dir_all(project.data_dir().join("data")).context("a tree")?;
    bucket.set(Fault::aimed("x-id=DeleteObject", u64::MAX, Fate::NotImplemented));
    let doctor = project.uploader(&["doctor", "--json"])?.expect_code(0)?.json()?;
    assert!(is_checked(&doctor, "/_doctor/probe was written for it and stays"), "{doctor:#}");
    let left: Vec<String> = client.list()?.into_keys().collect();
    assert!(left.len() == 1 && left[0].ends_with("/_doctor/probe"), "{left:?}");
    // Nothing is announced yet, and what another run left is no obstacle.
    bucket.set(Fault::None);
    let doctor = project.uploader(&["doctor", "--json"])?.expect_code(0)?.json()?;
    assert!(is_checked(&doctor, "was written for it and removed"), "{doctor:#}");
    // A request that fails after the object is there leaves nothing behind either.
    bucket.set(Fault::aimed("partNumber=", u64::MAX, Fate::NotImplemented));
    project.uploader(&["doctor"])?.expect_code(4)?;
    assert_eq!(client.list()?.len(), 0);
    Ok(())
}

/// Somebody says that the archives have moved: the units at hand are announced from the new place, and the service that
/// comes after needs no such word.
#[test]
fn an_accepted_move_announces_archives_from_the_new_prefix() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "moved-prefix")?;
    let hand = Handmade::new(stack, &project)?;
    ship(&project, [hours("BTCUSDT", "2025-03-01")])?;
    // One that is never loaded from the former place, and gone from the disk.
    let lost = hours("BTCUSDT", "2025-02-27");
    lost.write(project.data_dir())?;
    mark_all(project.data_dir())?;
    project.uploader(&["upload"])?.expect_code(0)?;
    std::fs::remove_file(project.data_dir().join(lost.path())).context("the archive")?;
    std::fs::remove_file(project.data_dir().join("_SUCCESS__2025-02-27__spot__1h")).context("its mark")?;
    let prefix = format!("{}-moved", project.prefix());
    moved(&project, &["upload"], &prefix)?.expect_code(2)?;
    let upload = moved(&project, &["upload", "--accept-move", "--json"], &prefix)?.expect_code(0)?;
    assert_units(&upload.json()?, &[("published", 1)]);
    assert_eq!(hand.markers()?.len(), 3);
    drop(hand);
    project.set("storage.r2.prefix", prefix)?;
    hours("BTCUSDT", "2025-03-02").write(project.data_dir())?;
    mark_all(project.data_dir())?;
    let upload = project.uploader(&["upload", "--json"])?.expect_code(0)?;
    assert_units(&upload.json()?, &[("published", 1), ("unchanged", 1)]);
    // The one that is announced from the former place only keeps nothing back.
    let pull = project.puller(&["pull"])?.expect_code(1)?;
    assert!(pull.stdout.contains("refused"), "{}", pull.stdout);
    // What was loaded before is in the ledger by both keys, and covered once.
    assert_eq!(project.query("SELECT count() FROM {db}.klines_latest")?.trim(), "48");
    assert_eq!(project.query("SELECT count(), countIf(state = 'complete') FROM {db}.coverage")?.trim(), "2\t2");
    Ok(())
}

/// A unit is announced, another one is not yet, and the prefix is mistyped. The proxy stands before NATS.
fn mistyped(stack: &Stack, label: &str) -> Result<(Project, Proxy, String)> {
    let project = Project::new(stack, label)?;
    upload(&project, [hours("BTCUSDT", "2025-03-01")])?;
    hours("BTCUSDT", "2025-03-02").write(project.data_dir())?;
    mark_all(project.data_dir())?;
    let queue = Proxy::start(loopback(stack.nats.port()))?;
    let wrong = format!("{}/mistyped", project.prefix());
    Ok((project, queue, wrong))
}

/// NATS is away when the pass begins, and comes back before its end.
#[test]
fn a_wrong_prefix_is_detected_by_a_pass_that_began_without_the_queue() -> Result<()> {
    let stack = Stack::shared();
    let (project, queue, wrong) = mistyped(stack, "wrong-prefix-late")?;
    let through = format!("nats://{}", queue.address());
    let env = [("FERRY__STORAGE__R2__PREFIX", wrong.as_str()), ("FERRY__NATS__URL", &through)];
    queue.set(Fault::Away);
    let mut upload = project.start("uploader", &["upload"], &env)?;
    upload.wait_for_line("uploading without the queue", SOON)?;
    queue.set(Fault::None);
    let stopped = upload.wait(SOON)?.expect_code(2)?;
    assert!(stopped.stderr.contains("are announced from"), "{}", stopped.stderr);
    assert_eq!(Handmade::new(stack, &project)?.markers()?.len(), 1);
    Ok(())
}

/// NATS does not say what was announced last.
#[test]
fn nothing_is_announced_while_the_prefix_cannot_be_compared() -> Result<()> {
    let stack = Stack::shared();
    let (project, queue, wrong) = mistyped(stack, "place-unknown")?;
    let through = format!("nats://{}", queue.address());
    // Longer than nothing is asked after a request that was not answered.
    let timeout = ("FERRY__PUBLISH__TIMEOUT", "7s");
    let env = [("FERRY__STORAGE__R2__PREFIX", wrong.as_str()), ("FERRY__NATS__URL", &through), timeout];
    queue.set(Fault::Unanswered("STREAM.MSG.GET.MARKERS"));
    let upload = project.start("uploader", &["upload", "--json"], &env)?.wait(SOON)?.expect_code(3)?;
    assert_units(&upload.json()?, &[("published", 0)]);
    assert_eq!(Handmade::new(stack, &project)?.markers()?.len(), 1);
    Ok(())
}
