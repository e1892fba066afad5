//! A directory destination replaces what it put there itself, and nothing else.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::json;
use tests::data::ArchiveSpec;
use tests::project::Project;
use tests::root::is_root;
use tests::servers::Stack;
use tests::{Context, Result};

use crate::handmade::Handmade;
use crate::scenario::{SOON, has_pulled, march, text, upload};

fn corrected(number: u32, seed: u64) -> ArchiveSpec {
    march(number).seed(seed).generated_at(&format!("2025-06-{seed:02}T00:00:00Z"))
}

fn has(root: &Path, spec: &ArchiveSpec) -> bool {
    fs::read(root.join(spec.path())).is_ok_and(|bytes| bytes == spec.zip())
}

/// The mirror's folder is the `data_dir` of an uploader on the same machine: what a cleanup took away comes back, and what
/// is newer than anything announced, and perhaps the only copy, stays.
#[test]
fn an_uploaders_newer_archive_is_not_replaced() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "mirror-at-uploader")?;
    let hand = Handmade::new(stack, &project)?;
    upload(&project, [march(1)])?;
    upload(&project, [march(2)])?;
    corrected(1, 1).write(project.data_dir())?;
    fs::remove_file(project.data_dir().join(march(2).path())).context("a cleanup")?;

    let pull = project.puller(&["pull", "--no-ingest", "--json"])?.expect_code(1)?.json()?;
    assert!(has_pulled(&pull, 1, 1), "{pull:#}");
    assert!(has(project.data_dir(), &corrected(1, 1)), "the newer archive is there as it was");
    assert!(has(project.data_dir(), &march(2)));
    let letter = &hand.dead_letters()?[0];
    assert_eq!(letter.class, "unwritable");
    assert!(
        letter.error.contains("may be the only copy") && letter.error.contains(&march(1).path()),
        "{}",
        letter.error
    );

    // Once it is announced it is of the stream, and the former marker has nothing to say any more.
    project.uploader(&["upload"])?.expect_code(0)?;
    project.puller(&["pull", "--no-ingest"])?.expect_code(0)?;
    project.puller(&["dead", "retry", "--all"])?.expect_code(0)?;
    project.puller(&["pull", "--no-ingest"])?.expect_code(0)?;
    assert!(has(project.data_dir(), &corrected(1, 1)));
    assert_eq!(hand.dead_letters()?.len(), 0);
    Ok(())
}

/// In a folder of its own, corrections take the place of what it had, and of nothing that somebody else put there.
#[test]
fn corrections_replace_what_was_delivered_and_nothing_else() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "mirror-corrections")?;
    let copy = project.dir().join("copy");
    project.set("clickhouse", json!({}))?;
    project.set("destinations", json!([{ "name": "files", "type": "directory", "path": copy }]))?;
    let hand = Handmade::new(stack, &project)?;
    // One was there before the destination, with the bytes that are announced.
    march(2).write(&copy)?;
    for number in 1..=3 {
        upload(&project, [march(number)])?;
    }
    project.puller(&["pull"])?.expect_code(0)?;
    for seed in 1..=2 {
        for number in 1..=2 {
            upload(&project, [corrected(number, seed)])?;
        }
        project.puller(&["pull"])?.expect_code(0)?;
        assert!((1..=2).all(|number| has(&copy, &corrected(number, seed))), "correction {seed}");
    }

    let foreign = march(3).seed(9);
    foreign.write(&copy)?;
    upload(&project, [corrected(3, 1)])?;
    upload(&project, [corrected(1, 3)])?;
    let pull = project.puller(&["pull", "--json"])?.expect_code(1)?.json()?;
    assert!(has_pulled(&pull, 1, 1), "{pull:#}");
    assert!(has(&copy, &foreign) && has(&copy, &corrected(1, 3)));
    fs::rename(copy.join(foreign.path()), project.dir().join("elsewhere.zip")).context("moved away")?;
    project.puller(&["dead", "retry", "--all"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    assert!(has(&copy, &corrected(3, 1)));
    assert_eq!(hand.dead_letters()?.len(), 0);
    Ok(())
}

/// What the configuration shows is refused before anything is done.
#[test]
fn a_destination_that_contains_an_uploaders_archives_is_refused() -> Result<()> {
    let mut project = Project::new(Stack::shared(), "mirror-refused")?;
    let archive = march(1).write(project.data_dir())?;
    let link = project.dir().join("link");
    symlink(project.data_dir(), &link).context("a link")?;
    let below = project.data_dir().join("data/copies");
    let refused = |project: &Project, words: [&str; 2]| -> Result<()> {
        for args in [&["run"][..], &["doctor"], &["pull"], &["pull", "--no-ingest"]] {
            let refused = project.puller(args)?.expect_code(2)?;
            assert!(words.iter().all(|word| refused.stderr.contains(word)), "{args:?}: {}", refused.stderr);
        }
        Ok(())
    };
    for path in [project.data_dir().to_owned(), link, below] {
        project.set("destinations", json!([{ "name": "files", "type": "directory", "path": path }]))?;
        refused(&project, ["destinations.0.path: 'files'", "local.data_dir"])?;
    }
    // The place of a store is known where that is a folder.
    let share = project.dir().join("share");
    let objects = share.join(project.prefix());
    fs::create_dir_all(&objects).context("the store")?;
    project.set("storage.type", "fs")?;
    project.set("storage.fs.path", text(&share)?)?;
    project.set("destinations", json!([{ "name": "files", "type": "directory", "path": objects }]))?;
    refused(&project, ["destinations.0.path: 'files'", "storage.fs.path"])?;
    assert!(archive.exists());

    // `mirror` is the name of the one that may.
    let mirror = json!([{ "name": "mirror", "type": "directory", "path": project.data_dir() }]);
    project.set("destinations", mirror)?;
    project.puller(&["migrate"])?.expect_code(0)?;
    project.puller(&["doctor"])?.expect_code(0).map(drop)
}

/// The same folder under another name, by a mount that no other process sees.
#[test]
fn a_destination_that_is_an_uploaders_folder_by_a_mount_is_refused() -> Result<()> {
    if !is_root("to mount a file system")? {
        return Ok(());
    }
    let mut project = Project::new(Stack::shared(), "mirror-mounted")?;
    march(1).write(project.data_dir())?;
    let copy: PathBuf = project.dir().join("copy");
    fs::create_dir(&copy).context("a folder")?;
    project.set("destinations", json!([{ "name": "files", "type": "directory", "path": copy }]))?;
    project.puller(&["migrate"])?.expect_code(0)?;
    let (data_dir, copy) = (text(project.data_dir())?, text(&copy)?);
    let script = format!(r#"exec unshare --mount sh -c 'mount --bind "{data_dir}" "{copy}" && exec "$@"' sh "$@""#);
    let doctor = project.start_by_script(&script, "puller", &["doctor"])?.wait(SOON)?.expect_code(2)?;
    assert!(doctor.stderr.contains("destinations.0.path: 'files'"), "{}", doctor.stderr);
    project.puller(&["doctor"])?.expect_code(0).map(drop)
}
