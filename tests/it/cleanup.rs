//! A cleanup removes announced archives from the disk, and never the only copy of one.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tests::data::{ArchiveSpec, archives, mark_all};
use tests::other_client::OtherClient;
use tests::project::Project;
use tests::servers::Stack;
use tests::{Context, Result};

use crate::handmade::Handmade;
use crate::scenario;
use crate::scenario::{SOON, assert_nothing_uploaded, btc, hours, march, text};

/// Two units of three archives each.
fn write(data_dir: &Path) -> Result<()> {
    for day in ["2025-03-01", "2025-03-02"] {
        for symbol in ["BTCUSDT", "ETHUSDT", "币安人生USDT"] {
            hours(symbol, day).write(data_dir)?;
        }
    }
    mark_all(data_dir).map(drop)
}

/// Every file below `data/`.
fn files(data_dir: &Path) -> Result<Vec<PathBuf>> {
    let (mut folders, mut found) = (vec![data_dir.join("data")], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).context("a folder")? {
            let path = entry.context("an entry")?.path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    Ok(found)
}

#[test]
fn a_second_upload_with_cleanup_changes_nothing() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "cleanup-twice")?;
    let (hand, client) = (Handmade::new(stack, &project)?, OtherClient::new(stack, &project));
    // The archives as they were, for afterwards.
    let remaining = project.dir().join("kept");
    for folder in [project.data_dir(), &remaining] {
        write(folder)?;
    }
    project.uploader(&["upload", "--dry-run", "--cleanup"])?.expect_code(0)?;
    assert_eq!(files(project.data_dir())?.len(), 12);

    let first = project.uploader(&["upload", "--cleanup"])?.expect_code(0)?;
    assert!(first.stdout.contains("6 removed from disk"), "{}", first.stdout);
    assert_eq!(client.check(&remaining)?, 6);
    assert_eq!(files(project.data_dir())?, Vec::<PathBuf>::new());
    // Marks stay, and so do folders: a downloader may be about to write into one.
    assert!(project.data_dir().join("_SUCCESS__2025-03-01__spot__1h").exists());
    assert!(project.data_dir().join("data/spot/daily/klines/BTCUSDT/1h").is_dir());
    let (bucket, markers) = (client.list()?, hand.markers()?);
    assert_eq!((bucket.len(), markers.len()), (6 + 2 * 2, 2));

    // With the cache of hashes and without.
    for run in 0..2 {
        assert_nothing_uploaded(&project.uploader(&["upload", "--cleanup", "--json"])?.expect_code(0)?.json()?);
        assert_eq!(client.list()?, bucket, "run {run}");
        assert_eq!(hand.markers()?, markers, "run {run}");
        if run == 0 {
            fs::remove_dir_all(project.dir().join("state")).context("the cache")?;
        }
    }

    // One archive comes back with other bytes: its unit keeps the others.
    let corrected = hours("BTCUSDT", "2025-03-01").seed(7).generated_at("2025-03-05T00:00:00Z");
    for folder in [project.data_dir(), &remaining] {
        corrected.write(folder)?;
    }
    project.uploader(&["upload", "--cleanup"])?.expect_code(0)?;
    assert_eq!(client.check(&remaining)?, 6);
    assert_eq!(files(project.data_dir())?, Vec::<PathBuf>::new());
    assert_eq!(hand.markers()?.last().map(|(_, marker)| marker["objects"].as_array().map(Vec::len)), Some(Some(3)));
    Ok(())
}

/// A cleanup that dies when an archive has lost its name and is not gone yet.
#[test]
fn a_killed_cleanup_is_finished_by_the_next() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "cleanup-killed")?;
    let hand = Handmade::new(stack, &project)?;
    write(project.data_dir())?;
    project.uploader(&["upload"])?.expect_code(0)?;
    let markers = hand.markers()?;
    let args = ["upload", "--cleanup"];
    let died = project.start("uploader", &args, &[("FERRY_FAILPOINT", "uploader.archive_staged")])?.wait(SOON)?;
    assert_eq!(died.code, None, "{}", died.stderr);
    let left = files(project.data_dir())?;
    assert!(left.iter().any(|file| file.to_string_lossy().ends_with(".zip.leaving")), "{left:?}");
    project.uploader(&args)?.expect_code(0)?;
    assert_eq!(files(project.data_dir())?, Vec::<PathBuf>::new());
    assert_eq!(hand.markers()?, markers);
    Ok(())
}

/// What the bucket lost stays on disk, whatever the stream says.
#[test]
fn an_archive_that_the_bucket_lost_stays_on_disk() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "cleanup-lost")?;
    let hand = Handmade::new(stack, &project)?;
    write(project.data_dir())?;
    project.uploader(&["upload"])?.expect_code(0)?;
    hand.delete(&format!("{}/{}", project.prefix(), hours("ETHUSDT", "2025-03-02").path()))?;
    let cleaned = project.uploader(&["upload", "--cleanup"])?.expect_code(1)?;
    assert!(cleaned.stderr.contains("the bucket no longer holds it"), "{}", cleaned.stderr);
    assert_eq!(files(project.data_dir())?.len(), 2);
    // Nothing is lost: it is put back, and goes with the next run.
    project.uploader(&["reconcile", "--fix"])?.expect_code(0)?;
    project.uploader(&["upload", "--cleanup"])?.expect_code(0)?;
    assert_eq!(files(project.data_dir())?.len(), 0);
    Ok(())
}

#[test]
fn archives_are_removed_after_the_delay_and_young_periods_stay() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "cleanup-after")?;
    let yesterday = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date().yesterday().context("a day")?;
    let (old, young) = (hours("BTCUSDT", "2025-03-01"), hours("BTCUSDT", &yesterday.to_string()));
    for spec in [&old, &young] {
        spec.clone().generated_at("2025-03-03T00:00:00Z").write(project.data_dir())?;
    }
    mark_all(project.data_dir())?;
    let data_dir = project.data_dir().to_owned();
    let there = |spec: &ArchiveSpec| data_dir.join(spec.path()).exists();

    project.set("publish.cleanup_after", "1h")?;
    project.set("publish.keep_days", 30)?;
    project.uploader(&["upload"])?.expect_code(0)?;
    project.uploader(&["upload"])?.expect_code(0)?;
    assert!(there(&old) && there(&young), "an hour has not passed");

    // The service removes what is old enough, without being asked.
    project.set("publish.cleanup_after", "100ms")?;
    project.set("watch.rescan", "200ms")?;
    let mut watch = project.spawn_uploader(&["watch"])?;
    project.wait_until("the old archive's removal", Duration::from_secs(30), || Ok(!there(&old)))?;
    watch.drain(Duration::from_secs(30))?;
    assert!(there(&young), "its period ended yesterday");

    // The command line has the last word.
    project.uploader(&["upload", "--cleanup", "--keep-days", "2"])?.expect_code(0)?;
    assert!(there(&young));
    project.uploader(&["upload", "--keep-days", "0"])?.expect_code(0)?;
    assert!(!there(&young));
    Ok(())
}

fn write_one(data_dir: &Path) -> Result<PathBuf> {
    let archive = btc("2025-03-01").write(data_dir)?;
    mark_all(data_dir)?;
    Ok(archive)
}

#[test]
fn a_store_that_contains_the_data_dir_is_refused() -> Result<()> {
    let mut project = Project::new(Stack::shared(), "store-over-data-dir")?;
    let archive = write_one(project.data_dir())?;
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
    let archive = write_one(project.data_dir())?;
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

#[test]
fn cleanup_removes_only_announced_archives() -> Result<()> {
    let project = Project::new(Stack::shared(), "cleanup")?;
    scenario::write(&project, [march(1), march(2)])?;
    let unmarked = btc("2025-03-09");
    unmarked.write(project.data_dir())?;
    let truth = tests::truth::Truth::of_archives(
        &archives(project.data_dir())?.into_iter().filter(|a| !a.key.contains("03-09")).collect::<Vec<_>>(),
    )?;
    project.uploader(&["upload", "--cleanup"])?.expect_code(0)?;
    let left: Vec<String> = archives(project.data_dir())?.into_iter().map(|archive| archive.key).collect();
    assert_eq!(left, [unmarked.path()]);
    assert_nothing_uploaded(&project.uploader(&["upload", "--cleanup", "--json"])?.expect_code(0)?.json()?);
    project.puller(&["pull"])?.expect_code(0)?;
    project.check_tables_against(&truth, 48)
}
