//! A cleanup never removes an archive that is its own stored copy.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use tests::data::{archives, mark_all};
use tests::project::Project;
use tests::servers::Stack;
use tests::{Context, Result};

use crate::scenario::{btc, text};

fn write(data_dir: &Path) -> Result<PathBuf> {
    let archive = btc("2025-03-01").write(data_dir)?;
    mark_all(data_dir)?;
    Ok(archive)
}

#[test]
fn a_store_that_contains_the_data_dir_is_refused() -> Result<()> {
    let mut project = Project::new(Stack::shared(), "store-over-data-dir")?;
    let archive = write(project.data_dir())?;
    let link = project.dir().join("link");
    symlink(project.dir(), &link).context("a link")?;
    project.set("storage.type", "fs")?;
    project.set("storage.r2.prefix", "data_dir")?;
    for path in [project.dir().to_owned(), link] {
        project.set("storage.fs.path", text(&path)?)?;
        for args in [&["upload", "--cleanup"][..], &["doctor"], &["watch"]] {
            let refused = project.uploader(args)?.expect_code(2)?;
            assert!(refused.stderr.contains("storage.fs.path"), "{}", refused.stderr);
            assert!(refused.stderr.contains("local.data_dir"), "{}", refused.stderr);
        }
        assert!(archive.exists());
    }
    // A store beside the archives is fine.
    project.set("storage.r2.prefix", "store")?;
    project.uploader(&["upload", "--cleanup"])?.expect_code(0)?;
    assert_eq!(archives(project.data_dir())?.len(), 0);
    Ok(())
}

/// A folder of the tree leads into the store, so that no comparison of the configured folders notices.
#[test]
fn an_archive_that_is_its_own_object_stays() -> Result<()> {
    let mut project = Project::new(Stack::shared(), "own-object")?;
    let share = project.dir().join("share");
    let in_store = share.join(project.prefix()).join("data/spot");
    fs::create_dir_all(&in_store).context("the store")?;
    fs::create_dir_all(project.data_dir().join("data")).context("the tree")?;
    symlink(&in_store, project.data_dir().join("data/spot")).context("a link")?;
    project.set("storage.type", "fs")?;
    project.set("storage.fs.path", text(&share)?)?;
    stays(&project)
}

/// The S3 server keeps its buckets as folders, and the archives lie in one of them.
#[test]
fn an_archive_in_the_folder_of_its_bucket_stays() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "own-bucket")?;
    let in_bucket = stack.s3.bucket_dir().join(project.prefix()).join("data");
    fs::create_dir_all(&in_bucket).context("the bucket")?;
    symlink(&in_bucket, project.data_dir().join("data")).context("a link")?;
    stays(&project)
}

fn stays(project: &Project) -> Result<()> {
    let archive = write(project.data_dir())?;
    let bytes = fs::read(&archive).context("the archive")?;
    project.uploader(&["upload"])?.expect_code(0)?;
    for _ in 0..2 {
        let cleaned = project.uploader(&["upload", "--cleanup"])?.expect_code(1)?;
        assert!(cleaned.stderr.contains("only copy"), "{}", cleaned.stderr);
        assert!(fs::read(&archive).is_ok_and(|found| found == bytes), "the archive is there as it was");
    }
    project.puller(&["pull"])?.expect_code(0)?;
    project.check_tables(24)
}
