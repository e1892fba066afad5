use super::*;

#[test]
fn every_folder_that_is_read_shows_that_the_pass_gets_on() {
    let dir = tempfile::tempdir().expect("a folder");
    for symbol in 0..200 {
        fs::create_dir_all(dir.path().join(format!("data/spot/daily/klines/S{symbol}/1h"))).expect("made");
    }
    let before = signs::count();
    find(dir.path(), &CompletenessRule::default(), &CancellationToken::new()).expect("read");
    // Other tests of the process may count too.
    assert!(signs::count() - before >= 400);
}

#[test]
fn folders_of_the_tree_that_cannot_be_read_are_told() {
    let dir = tempfile::tempdir().expect("a folder");
    fs::create_dir_all(dir.path().join("data/spot/daily/klines/BTCUSDT")).expect("made");
    let unreadable = Path::new("data/spot/daily/klines/BTCUSDT/1h");
    // root may read every folder, and so may a test; nobody follows such a name.
    std::os::unix::fs::symlink("x".repeat(300), dir.path().join(unreadable)).expect("linked");
    let found = find(dir.path(), &CompletenessRule::default(), &CancellationToken::new()).expect("read");
    assert_eq!(found.unreadable.len(), 1, "{found:?}");
}

#[test]
fn files_that_are_not_taken_are_judged_by_name_and_folder() {
    let check =
        |path: &str, expected: Verdict| assert_eq!(judge(path, &CompletenessRule::default()), expected, "{path}");
    let at = |why: Why, place: &str| Verdict::Ignored(why, Some(place.to_owned()));
    let nowhere = |why: Why| Verdict::Ignored(why, None);
    let folder = "data/spot/daily/klines/BTCUSDT/1h";
    let day = "data/spot/daily/klines/BTCUSDT/1h/BTCUSDT-1h-2026-02-14.zip";
    let month = "data/futures/um/monthly/klines/BTCUSDT/1h/BTCUSDT-1h-2020-08.zip";
    check(day, Verdict::InPlace);
    for path in [
        "data/spot/daily/klines/BTCUSDT/1h/2026-02-01_2026-03-01/BTCUSDT-1h-2026-02-14.zip",
        "data/spot/klines/BTCUSDT/1h/BTCUSDT-1h-2026-02-14.zip",
        "data/spot/daily/klines/BTCUSDT/1m/BTCUSDT-1h-2026-02-14.zip",
        "data/spot/monthly/klines/BTCUSDT/1h/BTCUSDT-1h-2026-02-14.zip",
        "spot/BTCUSDT-1h-2026-02-14.zip",
    ] {
        check(path, at(Why::Folder, day));
    }
    check("data/futures/um/monthly/klines/BTCUSDT/1h/BTCUSDT-1h-2020-8.zip", at(Why::Name, month));
    check("data/futures/um/monthly/klines/BTCUSDT/1h/btcusdt-1H-2020-08.ZIP", at(Why::Name, month));
    let in_folder = |name: &str, expected: Verdict| check(&format!("{folder}/{name}"), expected);
    for name in [
        "BTCUSDT_1h_2026-02-14.zip",
        "BTCUSDT-1h-20260214.zip",
        "BTCUSDT-1h-2026-02-14.zip.zip",
        "BTCUSDT-1h-2026-02-14",
    ] {
        in_folder(name, at(Why::Name, day));
    }
    for name in ["BTCUSDT-1h-2026-02-14 (1).zip", "Copy of BTCUSDT-1h-2026-02-14.zip", "BTCUSDT-1h-2026-02-14.zip.1"] {
        in_folder(name, at(Why::Copy, day));
    }
    in_folder("BTCUSDT-1h-2026-02-30.zip", nowhere(Why::Date));
    in_folder("BTCUSDT-7h-2026-02-14.zip", nowhere(Why::Interval));
    check("data/spot/daily/klines/BTCUSDT/7h/BTCUSDT-7h-2026-02-14.zip", nowhere(Why::Interval));
    for name in ["BTCUSDT-1h-2026-02-14.csv", "BTCUSDT-1h-2026-02-14.rar", "BTCUSDT-1h-2026-02-14.zip.gz"] {
        in_folder(name, at(Why::Format, day));
    }
    in_folder("BTCUSDT-1h-2026-02-14.zip.part", at(Why::Partial, day));
    in_folder("Unconfirmed 1.crdownload", nowhere(Why::Partial));
    in_folder("anything.zip", nowhere(Why::Unknown));
    check("data/option/daily/klines/BTC/1h/BTC-1h-2026-02-14.zip", nowhere(Why::Unknown));
    check("data/spot/daily/trades/BTCUSDT/BTCUSDT-trades-2026-02-14.zip", nowhere(Why::Unknown));
    for name in [
        "BTCUSDT-1h-2026-02-14.zip.CHECKSUM",
        "BTCUSDT-1h-2026-02-14.zip.CHECKSUM.part",
        "BTCUSDT-1h-2026-02-14.zip.part.of",
        "BTCUSDT-1h-2026-02-14.zip.leaving",
        "_BTCUSDT-1h-2026-02-14.zip",
        "notes.txt",
    ] {
        in_folder(name, Verdict::Other);
    }
    for path in ["backup.zip", "photos-2024-05.zip", "data/notes.zip", "BTCUSDT-1h-2026-02-14.csv", "spot/x.part"] {
        check(path, Verdict::Other);
    }
}

#[test]
fn marks_that_publish_nothing_are_judged_where_marks_count() {
    let rule = CompletenessRule::marked();
    let right = "_SUCCESS__2026-02-14__um__1h";
    let check = |path: &str, expected: Option<(Why, Option<&str>)>| {
        let verdict = expected.map_or(Verdict::Other, |(why, place)| Verdict::Ignored(why, place.map(str::to_owned)));
        assert_eq!(judge(path, &rule), verdict, "{path}");
        assert_eq!(judge(path, &CompletenessRule::default()), Verdict::Other, "{path}");
    };
    for path in ["data/_SUCCESS__2026-02-14__um__1h", "marks/_SUCCESS__2026-02-14__um__1h"] {
        check(path, Some((Why::MarkFolder, Some(right))));
    }
    for path in ["SUCCESS__2026-02-14__um__1h", "_success_20260214_um_1h", "data/_SUCCESS_2026-02-14_um_1h.txt"] {
        check(path, Some((Why::MarkName, Some(right))));
    }
    check("data/_SUCCESS__yesterday", Some((Why::MarkName, None)));
    // Those in the root are marks, or told with the marks; other programs leave a bare one in their folders.
    for path in [right, "_SUCCESS__yesterday", "_SUCCESS", "exports/_SUCCESS", "_other", "success.txt"] {
        check(path, None);
    }
}

#[test]
fn files_are_counted_by_kind_and_the_first_are_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path().join("data/spot/daily/klines/BTCUSDT/1h");
    fs::create_dir_all(&folder).expect("made");
    let write = |name: &str| fs::write(folder.join(name), "").expect("written");
    for day in 1..=28 {
        write(&format!("BTCUSDT-1h-2026-2-{day}.zip"));
    }
    for name in ["BTCUSDT-1h-2026-02-01.zip", "BTCUSDT-1h-2026-02-30.zip", "_ignored.zip", ".BTCUSDT-1h-2026-02-01.zip"]
    {
        write(name);
    }
    let found = find(dir.path(), &CompletenessRule::default(), &CancellationToken::new()).expect("read");
    assert_eq!(found.in_place, 1);
    let counts: Vec<_> = found.strays.iter().map(|strays| (strays.class(), strays.count())).collect();
    assert_eq!(counts, [("name", 28), ("date", 1)]);
    let json = serde_json::to_value(&found.strays[0]).expect("json");
    let place = "data/spot/daily/klines/BTCUSDT/1h/BTCUSDT-1h-2026-02-01.zip";
    assert_eq!((&json["why"], &json["count"], &json["place"]), (&"name".into(), &28.into(), &place.into()));
    assert_eq!(json["files"].as_array().map(Vec::len), Some(FILES_MAX));
    assert_eq!((&json["files"][0]["path"], &json["files"][0]["place"]), (&json["example"], &json["place"]));
}

#[test]
fn a_part_is_reported_when_nobody_has_written_to_it_for_an_hour() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path().join("data/spot/daily/klines/BTCUSDT/1h");
    fs::create_dir_all(&folder).expect("made");
    let write = |name: &str, age: Duration| {
        let file = fs::File::create(folder.join(name)).expect("made");
        file.set_modified(SystemTime::now() - age).expect("dated");
    };
    let count = || {
        let found = find(dir.path(), &CompletenessRule::default(), &CancellationToken::new()).expect("read");
        found.strays.iter().map(Strays::count).sum::<usize>()
    };
    write("BTCUSDT-1h-2026-02-01.zip.part", Duration::ZERO);
    assert_eq!(count(), 0, "it may be written to");
    write("BTCUSDT-1h-2026-02-02.zip.part", 2 * BROKEN_OFF);
    assert_eq!(count(), 1);
    // The uploader's next download goes on with it.
    write("BTCUSDT-1h-2026-02-02.zip.part.of", 2 * BROKEN_OFF);
    assert_eq!(count(), 0);
}

#[test]
fn a_mark_whose_unit_is_marked_in_the_root_too_is_no_loss() {
    let dir = tempfile::tempdir().expect("a folder");
    let mark = "_SUCCESS__2026-02-14__um__1h";
    fs::create_dir_all(dir.path().join("data")).expect("made");
    fs::write(dir.path().join("data").join(mark), "").expect("written");
    let rule = CompletenessRule::marked();
    let count = || find(dir.path(), &rule, &CancellationToken::new()).expect("read").strays.len();
    assert_eq!(count(), 1);
    fs::write(dir.path().join(mark), "").expect("written");
    assert_eq!(count(), 0);
}

#[test]
fn what_was_unpacked_beside_its_archive_is_no_loss() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path().join("data/spot/daily/klines/BTCUSDT/1h");
    fs::create_dir_all(&folder).expect("made");
    fs::write(folder.join("BTCUSDT-1h-2026-02-14.csv"), "").expect("written");
    let count =
        || find(dir.path(), &CompletenessRule::default(), &CancellationToken::new()).expect("read").strays.len();
    assert_eq!(count(), 1);
    fs::write(folder.join("BTCUSDT-1h-2026-02-14.zip"), "").expect("written");
    assert_eq!(count(), 0);
}

#[test]
fn marks_that_somebody_put_away_are_a_remark() {
    let dir = tempfile::tempdir().expect("a folder");
    let find = || find(dir.path(), &CompletenessRule::marked(), &CancellationToken::new()).expect("read").strays;
    for (folder, is_remark) in [("done", true), ("data", false)] {
        fs::create_dir_all(dir.path().join(folder)).expect("made");
        fs::write(dir.path().join(folder).join("_SUCCESS__2026-02-14__um__1h"), "").expect("written");
        assert_eq!(find().iter().map(Strays::is_remark).collect::<Vec<_>>(), [is_remark], "{folder}");
    }
}
