//! A stream of markers that is gone, or was made anew: the loss is told, whoever asks.

use tests::project::Project;
use tests::servers::Stack;
use tests::{Context, Result};

use crate::handmade::Handmade;
use crate::scenario::{SOON, assert_nothing_pulled, march, upload};

#[test]
fn a_lost_stream_is_named_by_every_command() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "lost-stream")?;
    let hand = Handmade::new(stack, &project)?;
    upload(&project, (1..=3).map(march))?;
    project.puller(&["pull"])?.expect_code(0)?;
    hand.delete_stream("MARKERS")?;
    project.set("nats.manage", false)?;
    let unit = march(1).unit();
    for args in [&["status"][..], &["explain", &unit], &["verify"], &["pull"], &["replay"], &["doctor"]] {
        let ended = project.puller(args)?.expect_code(4)?;
        let said = format!("{}{}", ended.stdout, ended.stderr);
        assert!(said.contains("MARKERS") && said.contains("puller migrate"), "{args:?}: {said}");
    }
    project.uploader(&["reconcile"])?.expect_code(4)?;

    // Made again by whoever comes first, it is empty: nothing pending is not all there is to say.
    project.set("nats.manage", true)?;
    let dry_run = |said: &str| -> Result<()> {
        let ended = project.puller(&["pull", "--dry-run", "--json"])?.expect_code(4)?.json()?;
        let destination = &ended["destinations"][0];
        assert_eq!((&destination["lost"], &destination["lost_in_bucket"]), (&3.into(), &true.into()), "{ended}");
        let error = ended["error"]["text"].as_str().unwrap_or_default();
        assert!(error.starts_with(&format!("the stream MARKERS {said}: primary has loaded 3 units")), "{ended}");
        let text = project.puller(&["pull", "--dry-run"])?.expect_code(4)?;
        assert!(text.stdout.contains("no longer announces 3 units"), "{}", text.stdout);
        Ok(())
    };
    dry_run("was lost")?;
    let pull = project.puller(&["pull"])?.expect_code(4)?;
    assert!(!pull.stdout.contains("nothing to do"), "{}", pull.stdout);
    for text in [&pull.stdout, &pull.stderr] {
        assert!(text.contains("uploader reconcile --fix"), "{text}");
    }
    dry_run("was lost and made anew")?;
    let doctor = project.puller(&["doctor"])?.expect_code(4)?;
    assert!(doctor.stdout.contains("was lost and made anew"), "{}", doctor.stdout);
    for args in [&["status"][..], &["verify"], &["verify", "--fix"], &["replay"], &["replay", "--dry-run"]] {
        let ended = project.puller(args)?.expect_code(4)?;
        let said = format!("{}{}", ended.stdout, ended.stderr);
        assert!(said.contains("was lost and made anew"), "{args:?}: {said}");
    }
    let mut worker = project.spawn_puller(&["run"])?;
    worker.wait_for_line("was lost and made anew", SOON)?;
    worker.drain(SOON)?;

    project.uploader(&["reconcile", "--fix"])?.expect_code(0)?;
    project.puller(&["pull", "--dry-run"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    for command in ["doctor", "status"] {
        project.puller(&[command])?.expect_code(0)?;
    }
    assert_nothing_pulled(&project.puller(&["pull", "--json"])?.expect_code(0)?.json()?);

    // A worker that runs meanwhile makes the stream itself: then nobody else would find it missing.
    let mut worker = project.spawn_puller(&["run"])?;
    let lost = "puller_lost_units{destination=\"primary\"}";
    worker.wait_for_metric(lost, SOON, |lost| lost == 0.0)?;
    Handmade::new(stack, &project)?.delete_stream("MARKERS")?;
    worker.wait_for_line("was lost and made anew", SOON)?;
    worker.wait_for_metric(lost, SOON, |lost| lost == 3.0)?;
    worker.drain(SOON)?;
    project.uploader(&["reconcile", "--fix"])?.expect_code(0)?;
    project.check_tables(72)?;
    project.check_tables(72)?;

    // What the bucket does not have either cannot be announced again: it is told, and fails nothing.
    let markers = stack.s3.bucket_dir().join(project.prefix()).join("_markers");
    std::fs::remove_dir_all(markers).context("manifests")?;
    Handmade::new(stack, &project)?.delete_stream("MARKERS")?;
    let pull = project.puller(&["pull"])?.expect_code(0)?;
    assert!(pull.stdout.contains("no longer announces 3 units"), "{}", pull.stdout);
    let dry_run = project.puller(&["pull", "--dry-run"])?.expect_code(0)?;
    assert!(dry_run.stdout.contains("no longer announces 3 units"), "{}", dry_run.stdout);
    for command in ["doctor", "status"] {
        let ended = project.puller(&[command])?.expect_code(0)?;
        assert!(ended.stdout.contains("nor is any of them in the bucket"), "{command}: {}", ended.stdout);
    }
    Ok(())
}
