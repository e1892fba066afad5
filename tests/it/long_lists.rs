//! Units whose list of objects is too long for a message: the list is in the manifest.

use std::fs;

use tests::data::{ArchiveSpec, Market, mark_all};
use tests::project::Project;
use tests::servers::Stack;
use tests::{Context, Result};

use crate::handmade::Handmade;
use crate::scenario::SOON;

/// A list of so many has more than 256 KiB.
const SYMBOLS: usize = 1_300;

fn spec(number: usize) -> ArchiveSpec {
    ArchiveSpec::new(Market::Spot, &format!("SYMBOL{number:05}USDT"), "12h", "2025-03-01")
        .generated_at("2025-03-02T00:00:00Z")
}

fn corrected(number: usize) -> ArchiveSpec {
    spec(number).seed(1).generated_at("2025-03-05T00:00:00Z")
}

fn write(project: &Project, all: impl Iterator<Item = ArchiveSpec>) -> Result<()> {
    for spec in all {
        spec.write_unchecked(project.data_dir(), &spec.zip())?;
    }
    mark_all(project.data_dir()).map(drop)
}

/// The list is in the former bucket, which nobody can read from here. Its hash tells whether all of it is at hand.
#[test]
fn a_unit_whose_list_is_in_another_bucket_is_not_published_with_less() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "list-left-behind")?;
    let hand = Handmade::new(stack, &project)?;
    write(&project, (0..SYMBOLS).map(spec))?;
    project.uploader(&["upload", "--cleanup"])?.expect_code(0)?;
    assert!(hand.markers()?[0].1["objects"].is_null(), "the list is in the message");

    let bucket = "ferry-moved";
    fs::create_dir_all(stack.s3.bucket_dir().with_file_name(bucket)).context("a bucket")?;
    let moved = [("FERRY__STORAGE__R2__BUCKET", bucket)];
    let upload = || project.start("uploader", &["upload", "--accept-move"], &moved)?.wait(SOON);
    write(&project, [corrected(7)].into_iter())?;
    let held_back = upload()?.expect_code(1)?;
    assert!(held_back.stderr.contains("with a list that lies there"), "{}", held_back.stderr);
    assert_eq!(hand.markers()?.len(), 1);
    // All of it is at hand again.
    write(&project, (0..SYMBOLS).map(spec))?;
    upload()?.expect_code(0)?;
    let markers = hand.markers()?;
    assert_eq!((markers.len(), &markers[1].1["bucket"]), (2, &bucket.into()));
    Ok(())
}

/// It may date thousands of objects.
#[test]
fn a_long_current_json_is_read() -> Result<()> {
    /// White space after it, in bytes.
    const LONG: usize = 100 * 1024;
    let stack = Stack::shared();
    let project = Project::new(stack, "long-current")?;
    let hand = Handmade::new(stack, &project)?;
    for archive in [spec, corrected, spec] {
        write(&project, (0..3).map(archive))?;
        project.uploader(&["upload"])?.expect_code(0)?;
    }
    let unit = spec(0).unit();
    project.uploader(&["upload", "--accept-rollback", &unit])?.expect_code(0)?;
    let key = format!("{}/_markers/{unit}/current.json", project.prefix());
    let current = String::from_utf8_lossy(&hand.get(&key)?).into_owned();
    assert!(current.contains(r#""dates":{"#), "{current}");
    hand.put(&key, format!("{current}{}", " ".repeat(LONG)).as_bytes())?;

    project.uploader(&["reconcile", "--fix"])?.expect_code(0)?;
    write(&project, [spec(3)].into_iter())?;
    project.uploader(&["upload"])?.expect_code(0)?;
    assert_eq!(hand.markers()?.len(), 4);
    // Without the stream the bucket says what the unit is.
    let current = String::from_utf8_lossy(&hand.get(&key)?).into_owned();
    hand.put(&key, format!("{current}{}", " ".repeat(LONG)).as_bytes())?;
    hand.purge_stream("MARKERS")?;
    let explained = project.puller(&["explain", &unit])?;
    assert!(!explained.stderr.contains("is larger than"), "{}", explained.stderr);
    project.uploader(&["reconcile", "--fix"])?.expect_code(0)?;
    Ok(())
}

const MOST_SYMBOLS: usize = 20_000;
const CORRECTED: usize = 5_000;

fn one_of_most(number: usize) -> ArchiveSpec {
    ArchiveSpec::new(Market::Spot, &format!("SYMBOL{number:05}USDT"), "12h", "2025-03-01")
}

#[test]
fn a_unit_of_twenty_thousand_symbols_is_published_loaded_and_corrected() -> Result<()> {
    let mut project = Project::new(Stack::shared(), "many-symbols")?;
    project.set("corrections.shrink_limit", 0.6)?;
    let write = |spec: ArchiveSpec| spec.write_unchecked(project.data_dir(), &spec.zip()).map(drop);
    (0..MOST_SYMBOLS).try_for_each(|number| write(one_of_most(number)))?;
    mark_all(project.data_dir())?;
    project.uploader(&["upload"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    assert_eq!(project.archives_loaded()?, MOST_SYMBOLS as u64);

    // One of two rows is gone from each: what is left of the former ones is found among all symbols.
    for number in (0..MOST_SYMBOLS).rev().take(CORRECTED) {
        write(one_of_most(number).seed(1).missing([1]).generated_at("2025-03-05T00:00:00Z"))?;
    }
    project.uploader(&["upload"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    project.check_tables(35_000)?;
    let rows = project.query("SELECT count() FROM {db}.klines_latest")?;
    assert_eq!(rows.trim().parse::<usize>().context("a count")?, 2 * MOST_SYMBOLS - CORRECTED);
    project.puller(&["verify"])?.expect_code(0).map(drop)
}
