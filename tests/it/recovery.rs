//! What one side lost the others bring back, and nothing is loaded twice for it.

use std::fs;
use std::time::Duration;

use serde_json::Value;
use tests::data::{ArchiveSpec, Market, mark_all};
use tests::project::Project;
use tests::servers::{RunDir, Stack};
use tests::{Context, Failure, Result};

use crate::handmade::Handmade;
use crate::scenario::{assert_nothing_uploaded, hours, is_found, units_found};

const SYMBOLS: [&str; 2] = ["BTCUSDT", "ETHUSDT"];
const DAYS: [&str; 3] = ["2025-03-01", "2025-03-02", "2025-03-03"];

fn unit(day: &str) -> String {
    hours(SYMBOLS[0], day).unit()
}

/// Three units of two archives each, in the bucket and announced.
fn upload(project: &Project) -> Result<()> {
    for symbol in SYMBOLS {
        DAYS.iter().try_for_each(|day| hours(symbol, day).write(project.data_dir()).map(drop))?;
    }
    mark_all(project.data_dir())?;
    project.uploader(&["upload"])?.expect_code(0).map(drop)
}

/// The same, loaded.
fn ship(project: &Project) -> Result<()> {
    upload(project)?;
    project.puller(&["pull"])?.expect_code(0)?;
    project.check_tables(144)
}

/// Rows as they were inserted, before ClickHouse merges any.
fn rows_inserted(project: &Project) -> Result<String> {
    project.query("SELECT sum(rows), countIf(outcome = 'skipped') FROM {db}.ingest_log FORMAT TSV")
}

#[test]
fn a_deleted_stream_is_filled_from_the_bucket() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "stream-deleted")?;
    let hand = Handmade::new(stack, &project)?;
    ship(&project)?;
    let same = project.uploader(&["reconcile", "--verbose", "--json"])?.expect_code(0)?.json()?;
    assert_eq!(units_found(&same, "same").len(), 3, "{same:#}");
    let before = hand.markers()?;

    hand.delete_stream("MARKERS")?;
    // The first one did not make it.
    for _ in 0..2 {
        let found = project.uploader(&["reconcile", "--json"])?.expect_code(4)?.json()?;
        assert_eq!(units_found(&found, "bucket_only"), DAYS.map(unit), "{found:#}");
        assert_eq!((&found["stream_was_missing"], &found["units"]["bucket_only"]), (&Value::Bool(true), &3.into()));
    }

    project.uploader(&["reconcile", "--fix"])?.expect_code(0)?;
    let mut after = hand.markers()?;
    after.sort_by(|a, b| a.0.cmp(&b.0));
    let mut expected = before;
    expected.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(after, expected, "the same ids and times");
    project.uploader(&["reconcile"])?.expect_code(0)?;

    // The worker gets all of it again, and finds it done.
    project.puller(&["pull"])?.expect_code(0)?;
    assert_eq!(rows_inserted(&project)?.trim(), "144\t3");
    project.check_tables(144)?;
    // And the uploader has nothing to add.
    assert_nothing_uploaded(&project.uploader(&["upload", "--json"])?.expect_code(0)?.json()?);
    Ok(())
}

/// A worker that runs makes its consumers again and goes through everything, skipping what is loaded.
#[test]
fn a_running_worker_goes_on_after_the_loss_of_the_stream() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "stream-under-worker")?;
    let hand = Handmade::new(stack, &project)?;
    upload(&project)?;
    let mut worker = project.spawn_puller(&["run"])?;
    project.wait_for_archives(6, Duration::from_secs(30))?;
    hand.delete_stream("MARKERS")?;
    project.uploader(&["reconcile", "--fix"])?.expect_code(0)?;
    project.wait_until("three skipped units", Duration::from_secs(60), || {
        Ok(rows_inserted(&project)?.trim() == "144\t3")
    })?;
    worker.drain(Duration::from_secs(30))?;
    project.puller(&["verify"])?.expect_code(0)?;
    project.check_tables(144)
}

/// Markers that were purged are remembered by their ids for two days; they come back all the same.
#[test]
fn a_purged_stream_is_filled_from_the_bucket() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "stream-purged")?;
    let hand = Handmade::new(stack, &project)?;
    ship(&project)?;
    for _ in 0..2 {
        hand.purge_stream("MARKERS")?;
        project.uploader(&["reconcile"])?.expect_code(4)?;
        project.uploader(&["reconcile", "--fix"])?.expect_code(0)?;
        assert_eq!(hand.markers()?.len(), 3);
    }
    project.puller(&["pull"])?.expect_code(0)?;
    project.check_tables(144)
}

#[test]
fn a_lost_manifest_is_written_back_from_the_stream() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "manifest-lost")?;
    let hand = Handmade::new(stack, &project)?;
    ship(&project)?;
    let markers = hand.markers()?;
    let revision = |day: &str| -> Result<String> {
        let found = markers
            .iter()
            .find(|(subject, _)| subject.ends_with(day))
            .ok_or_else(|| Failure::new(format!("no marker of {day}")))?;
        Ok(found.1["revision"].as_str().unwrap_or_default().to_owned())
    };
    let folder = |day: &str| format!("{}/_markers/{}", project.prefix(), unit(day));
    let manifest = |day: &str| Ok::<_, Failure>(format!("{}/{}.json", folder(day), revision(day)?));
    let current = |day: &str| format!("{}/current.json", folder(day));

    // One unit has lost its manifest, one is gone from the bucket, one has a manifest that somebody wrote to.
    let before = hand.get(&manifest(DAYS[0])?)?;
    hand.delete(&manifest(DAYS[0])?)?;
    hand.delete(&manifest(DAYS[1])?)?;
    hand.delete(&current(DAYS[1]))?;
    hand.put(&manifest(DAYS[2])?, b"{}")?;
    let found = project.uploader(&["reconcile", "--json"])?.expect_code(4)?.json()?;
    assert_eq!(units_found(&found, "faulty"), [unit(DAYS[0]), unit(DAYS[2])], "{found:#}");
    assert_eq!(units_found(&found, "stream_only"), [unit(DAYS[1])], "{found:#}");
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
    let held = project.uploader(&["upload"])?.expect_code(1)?;
    assert!(held.stderr.contains("uploader adopt --market spot --interval 12h --from 2025-03-01"), "{}", held.stderr);
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
    ship(&project)?;
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
    let kept = project.data_dir().with_file_name("elsewhere");
    fs::rename(project.data_dir(), &kept).context("moving data_dir")?;
    let failed = project.uploader(&["reconcile", "--fix", "--json"])?.expect_code(1)?.json()?;
    assert!(is_found(&failed, &format!("NOT FIXED: {}", key(&lost))), "{failed:#}");
    // Nor is a unit announced whose objects are not all there.
    hand.delete_stream("MARKERS")?;
    let failed = project.uploader(&["reconcile", "--fix", "--quick", "--json"])?.expect_code(1)?.json()?;
    assert_eq!((&failed["units"]["fixed"], &failed["units"]["not_fixed"]), (&1.into(), &2.into()), "{failed}");
    assert_eq!(hand.markers()?.len(), 1);
    fs::rename(&kept, project.data_dir()).context("moving data_dir")?;
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
    upload(&project)?;
    let current = format!("{}/_markers/{}/current.json", project.prefix(), unit(DAYS[0]));
    let first = (hand.get(&current)?, hand.markers()?);
    hours("XRPUSDT", DAYS[0]).write(project.data_dir())?;
    project.uploader(&["upload"])?.expect_code(0)?;

    hand.put(&current, &first.0)?;
    let found = project.uploader(&["reconcile", "--json"])?.expect_code(4)?.json()?;
    assert_eq!(units_found(&found, "differs"), [unit(DAYS[0])], "{found:#}");
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
    let held = project.uploader(&["upload"])?.expect_code(1)?;
    assert!(held.stderr.contains("has the list of what is published"), "{}", held.stderr);
    [SYMBOLS[0], "XRPUSDT"].iter().try_for_each(|name| hours(name, DAYS[0]).write(project.data_dir()).map(drop))?;
    hand.put(manifest, &list)?;
    project.uploader(&["reconcile", "--fix"])?.expect_code(0)?;
    project.uploader(&["reconcile"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    project.check_tables(168)
}

/// NATS starts with an empty disk: streams, consumers and positions are gone.
#[test]
fn a_wiped_nats_is_filled_from_the_bucket() -> Result<()> {
    let dir = RunDir::new("wiped")?;
    let mut stack = Stack::start(dir.path())?;
    let project = Project::new(&stack, "nats-wiped")?;
    ship(&project)?;
    stack.nats.stop()?;
    fs::remove_dir_all(dir.path().join("nats/store")).context("wiping NATS")?;
    stack.nats.restart()?;
    // Meanwhile somebody deleted rows too.
    project.query("DELETE FROM {db}.klines WHERE symbol = 'ETHUSDT' AND toDate(open_time) = '2025-03-02'")?;

    let found = project.uploader(&["reconcile", "--json"])?.expect_code(4)?.json()?;
    assert_eq!(units_found(&found, "bucket_only").len(), 3, "{found:#}");
    project.uploader(&["reconcile", "--fix"])?.expect_code(0)?;
    project.puller(&["verify", "--fix"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    project.puller(&["verify"])?.expect_code(0)?;
    project.check_tables(144)?;
    // One archive of 24 rows was loaded besides the six of before.
    assert_eq!(rows_inserted(&project)?.split('\t').next(), Some("168"));
    Ok(())
}

/// Whatever somebody did to the rows: it is found, and what is loaded again is what was wrong and nothing else.
#[test]
fn verify_finds_changed_rows_and_loads_only_their_archives() -> Result<()> {
    let project = Project::new(Stack::shared(), "rows-deleted")?;
    ship(&project)?;
    let all = project.puller(&["verify", "--verbose", "--json"])?.expect_code(0)?.json()?;
    assert_eq!(units_found(&all, "verified").len(), 3, "{all:#}");
    let one = hours(SYMBOLS[0], DAYS[1]);
    for (harm, archives, rows) in [
        ("DELETE FROM {db}.klines WHERE symbol = 'BTCUSDT' AND toStartOfHour(open_time) = '2025-03-02 05:00:00'", 1, 1),
        ("DELETE FROM {db}.klines WHERE symbol = 'BTCUSDT' AND toDate(open_time) = '2025-03-02'", 1, 24),
        ("ALTER TABLE {db}.klines DROP PARTITION 202503", 6, 24),
        ("TRUNCATE TABLE {db}.klines", 6, 24),
        (
            "ALTER TABLE {db}.klines UPDATE close = close + 1 WHERE symbol = 'BTCUSDT' \
             AND toDate(open_time) = '2025-03-02' SETTINGS mutations_sync = 2",
            1,
            0,
        ),
        (
            "INSERT INTO {db}.klines SELECT * REPLACE (close + 1 AS close) FROM {db}.klines FINAL \
             WHERE symbol = 'BTCUSDT' AND toDate(open_time) = '2025-03-02' SETTINGS insert_deduplicate = 0",
            1,
            0,
        ),
    ] {
        project.query(harm)?;
        let found = project.puller(&["verify", "--json"])?.expect_code(4)?.json()?;
        let wrong = units_found(&found, "wrong");
        assert_eq!(wrong.len(), archives, "{harm}\n{found:#}");
        assert!(wrong.contains(&one.unit()), "{harm}\n{found:#}");
        assert!(is_found(&found, &format!("{rows} rows missing")), "{harm}\n{found:#}");
        let narrowed = project.puller(&["verify", "--unit", &unit(DAYS[1]), "--json"])?.expect_code(4)?.json()?;
        assert_eq!(narrowed["destinations"][0]["units"], 1, "{narrowed}");
        assert_eq!(narrowed["findings"][0]["missing_rows"], rows, "{narrowed}");

        let before = rows_loaded(&project)?;
        let fixed = project.puller(&["verify", "--fix", "--json"])?.expect_code(0)?.json()?;
        assert_eq!(fixed["destinations"][0]["archives_sent"], archives, "{harm}\n{fixed:#}");
        // Asked twice, it is loaded once.
        project.puller(&["verify", "--fix"])?.expect_code(0)?;
        project.puller(&["pull"])?.expect_code(0)?;
        assert_eq!(rows_loaded(&project)? - before, 24 * archives as u64, "{harm}");
        project.puller(&["verify"])?.expect_code(0)?;
        project.check_tables(144)?;
    }
    Ok(())
}

fn rows_loaded(project: &Project) -> Result<u64> {
    let rows = project.query("SELECT sum(rows) FROM {db}.ingest_log")?;
    rows.trim().parse().context(rows)
}

#[test]
fn verify_loads_units_that_are_not_loaded() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "not-loaded")?;
    let hand = Handmade::new(stack, &project)?;
    upload(&project)?;
    // Announced, and nobody has pulled: found, and explained.
    let pending = project.puller(&["verify", "--to", DAYS[1], "--json"])?.expect_code(4)?.json()?;
    assert_eq!(units_found(&pending, "not_loaded"), [unit(DAYS[0]), unit(DAYS[1])], "{pending:#}");
    project.puller(&["pull"])?.expect_code(0)?;
    project.puller(&["verify"])?.expect_code(0)?;

    // The ledger has lost an archive, with its rows; a worker that runs brings it back.
    project.query("DELETE FROM {db}.archives WHERE symbol = 'ETHUSDT' AND period = '2025-03-02'")?;
    project.query("DELETE FROM {db}.klines WHERE symbol = 'ETHUSDT' AND toDate(open_time) = '2025-03-02'")?;
    let mut worker = project.spawn_puller(&["run"])?;
    let before = rows_loaded(&project)?;
    project.puller(&["verify", "--fix", "--wait"])?.expect_code(0)?;
    assert_eq!(rows_loaded(&project)? - before, 24);
    worker.drain(Duration::from_secs(30))?;
    project.check_tables(144)?;

    // Everything is lost but the stream: the ids of what was sent before do not stand in the way.
    for _ in 0..2 {
        project.query("DROP DATABASE {db} SYNC")?;
        let found = project.puller(&["verify"])?.expect_code(4)?;
        assert!(found.stderr.contains("run `puller migrate`"), "{}", found.stderr);
        project.puller(&["verify", "--fix"])?.expect_code(0)?;
        let found = project.puller(&["verify", "--json"])?.expect_code(4)?.json()?;
        assert_eq!(units_found(&found, "not_loaded").len(), 3, "{found:#}");
        project.puller(&["pull"])?.expect_code(0)?;
        project.puller(&["verify"])?.expect_code(0)?;
        project.check_tables(144)?;
    }

    // An archive that has to be looked at and is not in the bucket cannot be checked, and is named.
    project.query("DELETE FROM {db}.klines WHERE symbol = 'ETHUSDT' AND toHour(open_time) = 5")?;
    let lost = format!("{}/{}", project.prefix(), hours("ETHUSDT", DAYS[0]).path());
    hand.delete(&lost)?;
    let found = project.puller(&["verify", "--json"])?.expect_code(4)?.json()?;
    assert_eq!(units_found(&found, "not_checked"), [unit(DAYS[0])], "{found:#}");
    assert!(is_found(&found, &format!("{lost}: it is not in the bucket")), "{found:#}");
    project.puller(&["verify", "--fix"])?.expect_code(1)?;

    project.puller(&["verify", "--destination", "nowhere"])?.expect_code(2)?;
    project.puller(&["verify", "--unit", "binance/spot/klines/1h/2020-01-01"])?.expect_code(4)?;
    Ok(())
}

#[test]
fn verify_distinguishes_an_unreachable_server_from_a_difference() -> Result<()> {
    let mut project = Project::new(Stack::shared(), "recovery-away")?;
    let none = project.puller(&["verify"])?.expect_code(4)?;
    assert!(none.stderr.contains("run `uploader reconcile --fix`"), "{}", none.stderr);
    project.uploader(&["reconcile"])?.expect_code(4)?;
    upload(&project)?;
    // Nobody but the operator makes the stream where that is so.
    project.set("nats.manage", false)?;
    project.uploader(&["reconcile", "--fix"])?.expect_code(0)?;
    project.puller(&["verify", "--fix"])?.expect_code(4)?;
    for (key, binaries) in [
        ("clickhouse.port", &["puller"][..]),
        ("nats.url", &["puller", "uploader"]),
        ("storage.r2.endpoint", &["uploader"]),
    ] {
        let before = key.split('.').fold(project.config(), |config, part| &config[part]).clone();
        let away = match key {
            "clickhouse.port" => 9.into(),
            "nats.url" => Value::from("nats://127.0.0.1:9"),
            _ => "http://127.0.0.1:9".into(),
        };
        project.set(key, away)?;
        for binary in binaries {
            let ended =
                if *binary == "puller" { project.puller(&["verify"])? } else { project.uploader(&["reconcile"])? };
            ended.expect_code(3)?;
        }
        project.set(key, before)?;
    }
    Ok(())
}

/// Rows that a later archive replaced, or a correction took away, are not missing.
#[test]
fn verify_accepts_rows_replaced_by_a_later_archive() -> Result<()> {
    let project = Project::new(Stack::shared(), "replaced")?;
    ship(&project)?;
    hours(SYMBOLS[0], DAYS[0]).seed(1).missing([3]).generated_at("2025-03-05T00:00:00Z").write(project.data_dir())?;
    let monthly = ArchiveSpec::new(Market::Spot, SYMBOLS[0], "1h", "2025-03").seed(2).missing(0..30);
    monthly.generated_at("2025-04-07T00:00:00Z").write(project.data_dir())?;
    mark_all(project.data_dir())?;
    project.uploader(&["upload"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    let right = project.puller(&["verify", "--json"])?.expect_code(0)?.json()?;
    let destination = &right["destinations"][0];
    assert_eq!((&destination["units"], &destination["archives"]["verified"]), (&4.into(), &7.into()), "{right:#}");
    // A daily's own rows, of which the monthly has replaced some.
    project.query("DELETE FROM {db}.klines WHERE symbol = 'BTCUSDT' AND toDate(open_time) = '2025-03-02'")?;
    let found = project.puller(&["verify", "--json"])?.expect_code(4)?.json()?;
    assert_eq!(units_found(&found, "wrong").len(), 2, "{found:#}");
    project.puller(&["verify", "--fix"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    project.puller(&["verify"])?.expect_code(0).map(drop)
}
