//! A paused destination loads nothing until it is resumed or the pause ends; the others go on.

use serde_json::json;
use tests::project::Project;
use tests::servers::Stack;
use tests::{Context, Result};

use crate::scenario::{SOON, btc, status, upload};

/// One destination is paused under a running worker; the other goes on, and after the resume so does the first.
#[test]
fn a_pause_stops_one_destination_until_the_resume() -> Result<()> {
    let mut project = Project::new(Stack::shared(), "pause")?;
    let copies = project.dir().join("copies");
    std::fs::create_dir_all(&copies).context("a folder")?;
    project.set("destinations", json!([{ "name": "copies", "type": "directory", "path": copies.to_str() }]))?;
    project.puller(&["migrate"])?.expect_code(0)?;
    let mut worker = project.spawn_puller(&["run"])?;
    upload(&project, [btc("2025-03-01")])?;
    project.wait_for_archives(1, SOON)?;

    let paused = project.puller(&["pause", "--destination", "primary"])?.expect_code(0)?;
    assert!(paused.stdout.contains("puller resume --destination primary"), "{}", paused.stdout);
    assert_eq!(status(&project, "primary")?["paused"], true);
    assert_eq!(status(&project, "copies")?["paused"], false);
    for day in ["2025-03-02", "2025-03-03"] {
        upload(&project, [btc(day)])?;
        let copy = copies.join(btc(day).path());
        project.wait_until("the copy", SOON, || Ok(copy.is_file()))?;
    }
    assert_eq!(project.archives_loaded()?, 1);
    assert_eq!(status(&project, "primary")?["pending"], 2);

    // Neither a change of settings nor another worker takes the pause back.
    project.set("puller.ack_wait", "7s")?;
    project.puller(&["migrate"])?.expect_code(0)?;
    let pulled = project.puller(&["pull"])?.expect_code(1)?;
    assert!(pulled.stderr.contains("primary is paused"), "{}", pulled.stderr);
    assert_eq!(project.archives_loaded()?, 1);

    project.puller(&["resume"])?.expect_code(0)?;
    project.wait_for_archives(3, SOON)?;
    assert_eq!(status(&project, "primary")?["paused"], false);
    worker.drain(SOON)?;
    project.check_tables(72)
}

#[test]
fn a_pause_with_an_end_ends_by_itself() -> Result<()> {
    let project = Project::new(Stack::shared(), "pause-until")?;
    project.puller(&["migrate"])?.expect_code(0)?;
    upload(&project, [btc("2025-03-01")])?;
    for wrong in
        [&["pause", "--until", "2020-01-01"][..], &["pause", "--until", "soon"], &["pause", "--destination", "no"]]
    {
        project.puller(wrong)?.expect_code(2)?;
    }
    let paused = project.puller(&["pause", "--until", "6s", "--json"])?.expect_code(0)?.json()?;
    assert!(paused["destinations"][0]["until"].is_string(), "{paused}");
    project.puller(&["pull"])?.expect_code(1)?;
    assert_eq!(project.archives_loaded()?, 0);
    let mut worker = project.spawn_puller(&["run"])?;
    project.wait_for_archives(1, SOON)?;
    worker.drain(SOON)?;
    project.check_tables(24)
}
