//! A byte that changed in the bucket is found and mended.

use std::fs;

use tests::data::{ArchiveSpec, mark_all};
use tests::project::Project;
use tests::servers::Stack;
use tests::{Context, Result};

use crate::handmade::Handmade;
use crate::scenario::hours;

#[test]
fn a_byte_changed_in_the_bucket_is_found_and_repaired() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "content")?;
    let hand = Handmade::new(stack, &project)?;
    let archives: Vec<ArchiveSpec> = ["BTCUSDT", "ETHUSDT"]
        .into_iter()
        .flat_map(|symbol| ["2025-03-01", "2025-03-02"].map(|day| hours(symbol, day)))
        .collect();
    archives.iter().try_for_each(|spec| spec.write(project.data_dir()).map(drop))?;
    mark_all(project.data_dir())?;
    project.uploader(&["upload"])?.expect_code(0)?;
    project.uploader(&["reconcile", "--content"])?.expect_code(0)?;

    // On the disks of the bucket, behind the back of its metadata.
    let key = |spec: &ArchiveSpec| format!("{}/{}", project.prefix(), spec.path());
    let damaged = &archives[0];
    let on_disk = stack.s3.bucket_dir().join(key(damaged));
    let mut bytes = fs::read(&on_disk).context("the object")?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&on_disk, &bytes).context("the object")?;

    project.uploader(&["upload"])?.expect_code(0)?;
    project.uploader(&["reconcile"])?.expect_code(0)?;
    let found = project.uploader(&["reconcile", "--content", "--json"])?.expect_code(4)?.json()?;
    let details = found["findings"][0]["details"][0].as_str().unwrap_or_default().to_owned();
    assert!(details.contains(&key(damaged)) && details.contains("its content has sha256"), "{found:#}");
    assert_eq!(found["findings"].as_array().map(Vec::len), Some(1));
    // Of the other day nothing is read.
    project.uploader(&["reconcile", "--content", "--from", "2025-03-02"])?.expect_code(0)?;

    // The archive is not here any more, and then it is again.
    let local = project.data_dir().join(damaged.path());
    let aside = project.dir().join("aside.zip");
    fs::rename(&local, &aside).context("aside")?;
    let failed = project.uploader(&["reconcile", "--content", "--fix"])?.expect_code(1)?;
    assert!(failed.stdout.contains("put the archive back into data_dir"), "{}", failed.stdout);
    fs::rename(&aside, &local).context("back")?;
    let mended = project.uploader(&["reconcile", "--content", "--fix"])?.expect_code(0)?;
    assert!(mended.stdout.contains("uploaded again from data_dir"), "{}", mended.stdout);
    assert_eq!(hand.get(&key(damaged))?, damaged.zip());
    project.uploader(&["reconcile", "--content"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    project.check_tables(96)
}
