//! Lost and damaged objects, manifests and lists of the bucket are named, and restored from the stream or the disk.

use std::fs;

use serde_json::Value;
use tests::data::{ArchiveSpec, Market, mark_all};
use tests::project::Project;
use tests::servers::Stack;
use tests::{Context, Failure, Result};

use crate::handmade::Handmade;
use crate::scenario::{DAYS, SYMBOLS, hours, is_found, ship, three_units, unit_of, units_found, upload};

#[test]
fn a_lost_manifest_is_written_back_from_the_stream() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "manifest-lost")?;
    let hand = Handmade::new(stack, &project)?;
    ship(&project, three_units())?;
    let markers = hand.markers()?;
    let revision = |day: &str| -> Result<String> {
        let found = markers
            .iter()
            .find(|(subject, _)| subject.ends_with(day))
            .ok_or_else(|| Failure::new(format!("no marker of {day}")))?;
        Ok(found.1["revision"].as_str().unwrap_or_default().to_owned())
    };
    let folder = |day: &str| format!("{}/_markers/{}", project.prefix(), unit_of(day));
    let manifest = |day: &str| Ok::<_, Failure>(format!("{}/{}.json", folder(day), revision(day)?));
    let current = |day: &str| format!("{}/current.json", folder(day));

    // One unit has lost its manifest, one is gone from the bucket, one has a manifest that somebody wrote to.
    let before = hand.get(&manifest(DAYS[0])?)?;
    hand.delete(&manifest(DAYS[0])?)?;
    hand.delete(&manifest(DAYS[1])?)?;
    hand.delete(&current(DAYS[1]))?;
    hand.put(&manifest(DAYS[2])?, b"{}")?;
    let found = project.uploader(&["reconcile", "--json"])?.expect_code(4)?.json()?;
    assert_eq!(units_found(&found, "faulty"), [unit_of(DAYS[0]), unit_of(DAYS[2])], "{found:#}");
    assert_eq!(units_found(&found, "stream_only"), [unit_of(DAYS[1])], "{found:#}");
    assert!(is_found(&found, &manifest(DAYS[0])?), "{found:#}");

    project.uploader(&["reconcile", "--fix"])?.expect_code(0)?;
    project.uploader(&["reconcile"])?.expect_code(0)?;
    assert_eq!(hand.get(&manifest(DAYS[0])?)?, before);

    // A manifest that nothing names, because current.json is lost and the stream too, is found all the same.
    hand.delete(&current(DAYS[1]))?;
    hand.delete_stream("MARKERS")?;
    project.uploader(&["reconcile", "--fix"])?.expect_code(0)?;
    project.uploader(&["reconcile"])?.expect_code(0)?;
    assert_eq!(hand.markers()?.len(), 3);
    Ok(())
}

/// A unit whose list is too long for its marker, and which is no longer on disk, has lost all of `_markers/`.
#[test]
fn a_lost_list_is_rebuilt_from_the_objects() -> Result<()> {
    const MANY: usize = 1_200;
    let stack = Stack::shared();
    let project = Project::new(stack, "list-lost")?;
    let hand = Handmade::new(stack, &project)?;
    let spec = |number: usize| ArchiveSpec::new(Market::Spot, &format!("S{number:04}USDT"), "12h", DAYS[0]);
    let write = |spec: ArchiveSpec| spec.write_unchecked(project.data_dir(), &spec.zip()).map(drop);
    (0..MANY).try_for_each(|number| write(spec(number)))?;
    mark_all(project.data_dir())?;
    project.uploader(&["upload", "--cleanup"])?.expect_code(0)?;
    let announced = hand.markers()?;
    assert!(announced[0].1.get("objects").is_none(), "its list is in the marker: nothing is tested");
    let markers =
        || -> Result<Vec<String>> { Ok(hand.keys()?.into_iter().filter(|key| key.contains("/_markers/")).collect()) };
    let manifest = announced[0].1["manifest"]["key"].as_str().unwrap_or_default();
    let before = hand.get(manifest)?;
    let lose = || markers()?.iter().try_for_each(|key| hand.delete(key));
    lose()?;

    // One archive comes again, with other bytes: the unit must not shrink to it.
    write(spec(7).seed(1).generated_at("2025-03-05T00:00:00Z"))?;
    let held_back = project.uploader(&["upload"])?.expect_code(1)?;
    assert!(
        held_back.stderr.contains("uploader adopt --market spot --interval 12h --from 2025-03-01"),
        "{}",
        held_back.stderr
    );
    assert_eq!(hand.markers()?, announced);
    let failed = project.uploader(&["reconcile", "--fix", "--json"])?.expect_code(1)?.json()?;
    assert!(is_found(&failed, "`uploader adopt` makes it again"), "{failed:#}");

    let plan = project.uploader(&["adopt", "--dry-run", "--json"])?.expect_code(0)?.json()?;
    assert_eq!(plan["archives"]["new"], MANY);
    assert_eq!(markers()?, Vec::<String>::new());
    project.uploader(&["adopt"])?.expect_code(0)?;
    assert_eq!((hand.get(manifest)?, hand.markers()?), (before, announced));
    project.uploader(&["reconcile"])?.expect_code(0)?;
    project.uploader(&["upload"])?.expect_code(0)?;
    let listed = |marker: &Value| -> Result<usize> {
        let manifest = hand.get(marker["manifest"]["key"].as_str().unwrap_or_default())?;
        let manifest: Value = serde_json::from_slice(&manifest).context("a manifest")?;
        Ok(manifest["objects"].as_array().map_or(0, Vec::len))
    };
    assert_eq!(hand.markers()?.iter().map(|(_, marker)| listed(marker)).collect::<Result<Vec<_>>>()?, [MANY, MANY]);
    project.puller(&["pull"])?.expect_code(0)?;

    // Lost again, and the bucket has an archive more than was announced: that is a new revision.
    lose()?;
    hand.place(&spec(MANY), &spec(MANY).zip())?;
    project.uploader(&["adopt"])?.expect_code(0)?;
    project.uploader(&["reconcile"])?.expect_code(0)?;
    let markers = hand.markers()?;
    assert_eq!((markers.len(), listed(&markers[2].1)?), (3, MANY + 1));
    project.puller(&["pull"])?.expect_code(0)?;
    assert_eq!(project.archives_loaded()?, MANY as u64 + 1);
    project.puller(&["verify"])?.expect_code(0).map(drop)
}

#[test]
fn a_lost_object_is_named() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "object-lost")?;
    let hand = Handmade::new(stack, &project)?;
    ship(&project, three_units())?;
    let lost = hours(SYMBOLS[0], DAYS[0]);
    let other = hours(SYMBOLS[1], DAYS[1]);
    let key = |spec: &ArchiveSpec| format!("{}/{}", project.prefix(), spec.path());
    hand.delete(&key(&lost))?;
    hand.put(&key(&other), b"something else")?;
    let found = project.uploader(&["reconcile", "--json"])?.expect_code(4)?.json()?;
    assert_eq!(units_found(&found, "faulty"), [lost.unit(), other.unit()], "{found:#}");
    assert!(is_found(&found, &format!("{}: it is not in the bucket", key(&lost))), "{found:#}");
    assert!(is_found(&found, &format!("{}: it has 14 bytes instead of", key(&other))), "{found:#}");
    project.uploader(&["reconcile", "--quick"])?.expect_code(0)?;

    // It cannot be mended where the archives are not, and can where they are.
    let copies = project.data_dir().with_file_name("elsewhere");
    fs::rename(project.data_dir(), &copies).context("moving data_dir")?;
    let failed = project.uploader(&["reconcile", "--fix", "--json"])?.expect_code(1)?.json()?;
    assert!(is_found(&failed, &format!("NOT FIXED: {}", key(&lost))), "{failed:#}");
    // Nor is a unit announced whose objects are not all there.
    hand.delete_stream("MARKERS")?;
    let failed = project.uploader(&["reconcile", "--fix", "--quick", "--json"])?.expect_code(1)?.json()?;
    assert_eq!((&failed["units"]["fixed"], &failed["units"]["not_fixed"]), (&1.into(), &2.into()), "{failed}");
    assert_eq!(hand.markers()?.len(), 1);
    fs::rename(&copies, project.data_dir()).context("moving data_dir")?;
    project.uploader(&["reconcile", "--fix"])?.expect_code(0)?;
    project.uploader(&["reconcile"])?.expect_code(0)?;
    Ok(())
}

/// A bucket or a stream that was restored from an older copy.
#[test]
fn the_newer_of_two_revisions_is_announced() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "two-revisions")?;
    let hand = Handmade::new(stack, &project)?;
    upload(&project, three_units())?;
    let current = format!("{}/_markers/{}/current.json", project.prefix(), unit_of(DAYS[0]));
    let first = (hand.get(&current)?, hand.markers()?);
    hours("XRPUSDT", DAYS[0]).write(project.data_dir())?;
    project.uploader(&["upload"])?.expect_code(0)?;

    hand.put(&current, &first.0)?;
    let found = project.uploader(&["reconcile", "--json"])?.expect_code(4)?.json()?;
    assert_eq!(units_found(&found, "differs"), [unit_of(DAYS[0])], "{found:#}");
    assert!(is_found(&found, "the stream's is newer"), "{found:#}");
    project.uploader(&["reconcile", "--fix"])?.expect_code(0)?;
    project.uploader(&["reconcile"])?.expect_code(0)?;

    // The newer of the two has less: another uploader wrote it, whose marker the stream refused, and died.
    let mut refused: Value = serde_json::from_slice(&first.0).context("current.json")?;
    refused["published_at"] = "2099-01-01T00:00:00Z".into();
    let markers = hand.markers()?;
    hand.put(&current, refused.to_string().as_bytes())?;
    let found = project.uploader(&["reconcile", "--json"])?.expect_code(4)?.json()?;
    assert!(is_found(&found, "the bucket's is newer"), "{found:#}");
    project.uploader(&["reconcile", "--fix"])?.expect_code(0)?;
    project.uploader(&["reconcile"])?.expect_code(0)?;
    assert_eq!(hand.markers()?, markers, "no archive leaves the unit");

    // Now the stream is behind: as if it came from a backup.
    hand.purge_stream("MARKERS")?;
    for (subject, marker) in &first.1 {
        hand.publish(&subject.replace("marker.backfill.", "").replace('.', "/"), marker.to_string().as_bytes())?;
    }
    let found = project.uploader(&["reconcile", "--json"])?.expect_code(4)?.json()?;
    assert!(is_found(&found, "the bucket's is newer"), "{found:#}");
    // Nor is the older list enough to go on with where the newer one is lost.
    let named: Value = serde_json::from_slice(&hand.get(&current)?).context("current.json")?;
    let manifest = named["manifest"].as_str().unwrap_or_default();
    let list = hand.get(manifest)?;
    hand.delete(manifest)?;
    fs::remove_file(project.data_dir().join(hours("XRPUSDT", DAYS[0]).path())).context("as after a cleanup")?;
    hours(SYMBOLS[0], DAYS[0]).seed(1).write(project.data_dir())?;
    let held_back = project.uploader(&["upload"])?.expect_code(1)?;
    assert!(held_back.stderr.contains("has the list of what is published"), "{}", held_back.stderr);
    [SYMBOLS[0], "XRPUSDT"].iter().try_for_each(|name| hours(name, DAYS[0]).write(project.data_dir()).map(drop))?;
    hand.put(manifest, &list)?;
    project.uploader(&["reconcile", "--fix"])?.expect_code(0)?;
    project.uploader(&["reconcile"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    project.check_tables(168)
}

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
    let elsewhere = project.dir().join("elsewhere.zip");
    fs::rename(&local, &elsewhere).context("moved away")?;
    let failed = project.uploader(&["reconcile", "--content", "--fix"])?.expect_code(1)?;
    assert!(failed.stdout.contains("put the archive back into data_dir"), "{}", failed.stdout);
    fs::rename(&elsewhere, &local).context("back")?;
    let mended = project.uploader(&["reconcile", "--content", "--fix"])?.expect_code(0)?;
    assert!(mended.stdout.contains("uploaded again from data_dir"), "{}", mended.stdout);
    assert_eq!(hand.get(&key(damaged))?, damaged.zip());
    project.uploader(&["reconcile", "--content"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    project.check_tables(96)
}
