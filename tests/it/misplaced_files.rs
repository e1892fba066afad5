//! Archives at wrong paths or with wrong names are counted and listed, and never skipped silently.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use tests::data::{ArchiveSpec, Market, mark_all};
use tests::project::Project;
use tests::servers::Stack;
use tests::{Context, Result};

use crate::scenario::{SOON, hours, is_checked};

fn day(symbol: &str) -> ArchiveSpec {
    hours(symbol, "2025-03-01")
}

/// Puts an archive where the exchange's tree does not have it.
fn put(data_dir: &Path, path: &str, spec: &ArchiveSpec) -> Result<()> {
    let file = data_dir.join(path);
    fs::create_dir_all(file.parent().unwrap_or(data_dir)).context(path)?;
    fs::write(file, spec.zip()).context(path)
}

fn ignored_files(report: &Value) -> Vec<(u64, &str, Option<&str>)> {
    let strays = report["ignored"].as_array().into_iter().flatten();
    strays
        .map(|strays| {
            let text = |key: &str| strays[key].as_str();
            (strays["count"].as_u64().unwrap_or_default(), text("example").unwrap_or_default(), text("place"))
        })
        .collect()
}

#[test]
fn archives_at_wrong_paths_are_counted_and_listed() -> Result<()> {
    let mut project = Project::new(Stack::shared(), "layouts")?;
    let data_dir = project.data_dir().to_owned();
    project.puller(&["migrate"])?.expect_code(0)?;
    let folder = "data/spot/daily/klines/ETHUSDT/1h";
    // As the exchange's own downloader lays them when it is given two dates; the layout of former years; a date without
    // its zeros.
    let deeper = format!("{folder}/2025-03-01_2025-04-01/ETHUSDT-1h-2025-03-01.zip");
    put(&data_dir, &deeper, &day("ETHUSDT"))?;
    put(&data_dir, "data/spot/klines/SOLUSDT/1h/SOLUSDT-1h-2025-03-01.zip", &day("SOLUSDT"))?;
    put(&data_dir, &format!("{folder}/ETHUSDT-1h-2025-3-1.zip"), &day("ETHUSDT"))?;
    let place = format!("{folder}/ETHUSDT-1h-2025-03-01.zip");
    let expected = [
        (2, deeper.as_str(), Some(place.as_str())),
        (1, "data/spot/daily/klines/ETHUSDT/1h/ETHUSDT-1h-2025-3-1.zip", Some(place.as_str())),
    ];

    for when in ["marked", "complete"] {
        project.set("publish.when", when)?;
        project.set("publish.settle", "0s")?;
        // A tree of archives none of which is taken is no tree with nothing to do.
        let upload = project.uploader(&["upload", "--json"])?.expect_code(1)?;
        assert_eq!(ignored_files(&upload.json()?), expected, "{when}");
        let upload = project.uploader(&["upload"])?.expect_code(1)?;
        assert!(upload.stdout.contains("2 files look like an archive and are not taken"), "{}", upload.stdout);
        assert!(upload.stdout.contains(&format!("it belongs to {place}")), "{}", upload.stdout);
        assert!(!upload.stdout.contains("nothing to do"), "{}", upload.stdout);
        let doctor = project.uploader(&["doctor", "--json"])?.expect_code(4)?.json()?;
        assert!(is_checked(&doctor, &format!("it belongs to {place}")), "{doctor:#}");
    }

    // Beside archives in their place they are a remark.
    day("BTCUSDT").write(&data_dir)?;
    mark_all(&data_dir)?;
    let upload = project.uploader(&["upload", "--json"])?.expect_code(0)?.json()?;
    assert_eq!((&upload["units"]["published"], ignored_files(&upload).len()), (&1.into(), 2));
    let again = project.uploader(&["upload"])?.expect_code(0)?;
    assert!(again.stdout.contains("are not taken") && again.stdout.contains("nothing to do"), "{}", again.stdout);

    // Once they lie where they belong there is nothing to say.
    fs::rename(data_dir.join(&deeper), data_dir.join(&place)).context("moved")?;
    day("SOLUSDT").write(&data_dir)?;
    fs::remove_dir_all(data_dir.join("data/spot/klines")).context("the old layout")?;
    fs::remove_file(data_dir.join(folder).join("ETHUSDT-1h-2025-3-1.zip")).context("the other name")?;
    project.uploader(&["doctor"])?.expect_code(0)?;
    let upload = project.uploader(&["upload", "--json"])?.expect_code(0)?.json()?;
    assert_eq!((&upload["units"]["published"], ignored_files(&upload).len()), (&1.into(), 0));
    Ok(())
}

/// A folder that cannot be read may hold archives: nothing says "nothing to do" of it.
#[test]
fn a_folder_that_cannot_be_read_is_a_failure() -> Result<()> {
    let mut project = Project::new(Stack::shared(), "unreadable-folder")?;
    let data_dir = project.data_dir().to_owned();
    project.set("publish.when", "complete")?;
    project.set("publish.settle", "0s")?;
    project.puller(&["migrate"])?.expect_code(0)?;
    let folder = "data/spot/daily/klines/BTCUSDT/1h";
    fs::create_dir_all(data_dir.join(folder).parent().unwrap_or(&data_dir)).context(folder)?;
    // Tests may run as root, who may read every folder; nobody follows such a name.
    std::os::unix::fs::symlink("x".repeat(300), data_dir.join(folder)).context(folder)?;

    for args in [&["upload", "--json"][..], &["upload", "--json", "--unit", "binance/spot/klines/1h/2025-03-01"]] {
        let report = project.uploader(args)?.expect_code(1)?.json()?;
        let reason = report["unreadable"][0].as_str().unwrap_or_default();
        assert!(reason.starts_with(&format!("{folder} cannot be read")), "{report:#}");
        assert_eq!(report["findings"][0]["state"], "unreadable", "{report:#}");
    }
    let upload = project.uploader(&["upload"])?.expect_code(1)?;
    assert!(!upload.stdout.contains("nothing to do"), "{}", upload.stdout);
    let doctor = project.uploader(&["doctor", "--json"])?.expect_code(4)?.json()?;
    assert!(is_checked(&doctor, &format!("{folder} cannot be read")), "{doctor:#}");
    project.uploader(&["mark", "--market", "spot"])?.expect_code(1)?;

    // Beside units that are found it is one, too.
    ArchiveSpec::new(Market::Um, "BTCUSDT", "1h", "2025-03-01").write(&data_dir)?;
    let report = project.uploader(&["upload", "--json"])?.expect_code(1)?.json()?;
    assert_eq!((&report["units"]["published"], report["unreadable"].as_array().map(Vec::len)), (&1.into(), Some(1)));
    fs::remove_file(data_dir.join(folder)).context("the link")?;
    project.uploader(&["upload"])?.expect_code(0).map(drop)
}

/// What is configured not to be collected may lie there.
#[test]
fn archives_that_are_not_collected_are_no_failure() -> Result<()> {
    let mut project = Project::new(Stack::shared(), "not-collected")?;
    project.set("publish.when", "complete")?;
    project.set("download.intervals", serde_json::json!(["1m"]))?;
    project.puller(&["migrate"])?.expect_code(0)?;
    day("BTCUSDT").write(project.data_dir())?;
    let doctor = project.uploader(&["doctor"])?.expect_code(0)?;
    assert!(doctor.stdout.contains("WARN  archives: 1 file looks like an archive"), "{}", doctor.stdout);
    let upload = project.uploader(&["upload"])?.expect_code(0)?;
    assert!(upload.stdout.contains("there is no archive to publish; 1 file is not taken"), "{}", upload.stdout);
    Ok(())
}

/// Each kind of mistake is counted and shown by itself, and none of them hides another.
#[test]
fn every_kind_of_skipped_file_is_listed_with_its_right_path() -> Result<()> {
    const FOLDER: &str = "data/spot/daily/klines/BTCUSDT/1h";
    const MARK: &str = "_SUCCESS__2025-03-01__spot__1h";
    let project = Project::new(Stack::shared(), "kinds-not-taken")?;
    let data_dir = project.data_dir().to_owned();
    project.puller(&["migrate"])?.expect_code(0)?;
    let place = format!("{FOLDER}/BTCUSDT-1h-2025-03-01.zip");

    // A download that broke off is a remark; one that goes on is none, and neither is another program's temporary file.
    let part = |name: &str, age: Duration| {
        let path = data_dir.join(FOLDER).join(name);
        put(&data_dir, &format!("{FOLDER}/{name}"), &day("BTCUSDT"))?;
        let file = fs::File::options().write(true).open(&path).context(name)?;
        file.set_modified(SystemTime::now() - age).context(name)
    };
    part("BTCUSDT-1h-2025-03-01.zip.part", Duration::from_secs(7200))?;
    part("BTCUSDT-1h-2025-03-02.zip.part", Duration::ZERO)?;
    part(".BTCUSDT-1h-2025-03-03.zip.a1b2c3", Duration::from_secs(7200))?;
    let upload = project.uploader(&["upload"])?.expect_code(0)?;
    assert!(
        upload.stdout.contains("nothing to do: no unit is marked complete; 1 file is not taken"),
        "{}",
        upload.stdout
    );
    project.uploader(&["doctor"])?.expect_code(0)?;

    let files = [
        ("name", "BTCUSDT_1h_2025-03-01.zip", Some(&place)),
        ("name", "BTCUSDT-1h-20250301.zip", Some(&place)),
        ("name", "BTCUSDT-1h-2025-03-01.zip.zip", Some(&place)),
        ("copy", "BTCUSDT-1h-2025-03-01 (1).zip", Some(&place)),
        ("copy", "Copy of BTCUSDT-1h-2025-03-01.zip", Some(&place)),
        ("date", "BTCUSDT-1h-2024-02-30.zip", None),
        ("interval", "BTCUSDT-7h-2025-03-01.zip", None),
        ("format", "BTCUSDT-1h-2025-03-01.csv", Some(&place)),
        ("unknown", "archive.zip", None),
    ];
    for (_, name, _) in files {
        put(&data_dir, &format!("{FOLDER}/{name}"), &day("BTCUSDT"))?;
    }
    fs::write(data_dir.join("data").join(MARK), "").context("a mark that lies too deep")?;
    let mut expected: BTreeMap<&str, BTreeMap<String, Option<String>>> = BTreeMap::new();
    for (why, name, place) in files {
        expected.entry(why).or_default().insert(format!("{FOLDER}/{name}"), place.cloned());
    }
    expected.entry("partial").or_default().insert(format!("{place}.part"), Some(place.clone()));
    expected.entry("mark_folder").or_default().insert(format!("data/{MARK}"), Some(MARK.to_owned()));

    let report = project.uploader(&["upload", "--json"])?.expect_code(1)?.json()?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let mut found: BTreeMap<&str, BTreeMap<String, Option<String>>> = BTreeMap::new();
    for strays in report["ignored"].as_array().into_iter().flatten() {
        let files: BTreeMap<_, _> = strays["files"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|file| (text(&file["path"]).unwrap_or_default(), text(&file["place"])))
            .collect();
        assert_eq!(strays["count"], files.len(), "{strays:#}");
        assert_eq!(text(&strays["example"]).as_ref(), files.keys().next(), "{strays:#}");
        found.insert(strays["why"].as_str().unwrap_or_default(), files);
    }
    assert_eq!(found, expected);

    let upload = project.uploader(&["upload"])?.expect_code(1)?;
    assert!(!upload.stdout.contains("nothing to do"), "{}", upload.stdout);
    assert!(upload.stderr.contains("no archive lies where it belongs"), "{}", upload.stderr);
    let doctor = project.uploader(&["doctor"])?.expect_code(4)?;
    let checks = project.uploader(&["doctor", "--json"])?.expect_code(4)?.json()?;
    let named = |path: &str| {
        checks["checks"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|check| check["paths"].as_array().is_some_and(|paths| paths.iter().any(|named| named == path)))
    };
    let mut service = project.spawn("uploader", &["watch"], &[])?;
    for (why, files) in &expected {
        let (example, _) = files.first_key_value().expect("a file of each kind");
        for shown in [&upload.stdout, &doctor.stdout] {
            assert!(shown.contains(example), "{why}: {shown}");
        }
        assert!(files.keys().all(|path| named(path)), "{why}: {checks:#}");
        service.wait_for_line(example, SOON)?;
    }
    service.drain(SOON)?;

    // With the archive in its place the mark is all that is missing.
    day("BTCUSDT").write(&data_dir)?;
    let upload = project.uploader(&["upload"])?.expect_code(1)?;
    assert!(upload.stderr.contains("no completion mark lies where it belongs"), "{}", upload.stderr);
    fs::rename(data_dir.join("data").join(MARK), data_dir.join(MARK)).context("the mark")?;
    let upload = project.uploader(&["upload", "--json"])?.expect_code(0)?.json()?;
    assert_eq!(upload["units"]["published"], 1, "{upload:#}");
    let again = project.uploader(&["upload"])?.expect_code(0)?;
    let sum = "nothing to do: 1 unit, 1 archive are published; 8 files are not taken";
    assert!(again.stdout.contains(sum), "{}", again.stdout);

    // A mark in the root that is spelt otherwise is told with its right name.
    fs::rename(data_dir.join(MARK), data_dir.join("_SUCCESS_2025-03-01_spot_1h")).context("the mark")?;
    let upload = project.uploader(&["upload"])?.expect_code(1)?;
    assert!(upload.stderr.contains(&format!("would be called {MARK}")), "{}", upload.stderr);
    Ok(())
}
