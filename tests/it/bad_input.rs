//! Bad archives and markers become dead letters, none of their rows is loaded, and all other units are.

use jiff::Timestamp;
use serde_json::{Value, json};
use tests::data::hostile::{CASES, Visible};
use tests::data::{ArchiveSpec, Market, mark_all};
use tests::project::Project;
use tests::servers::Stack;
use tests::truth::Truth;
use tests::{Failure, Result};

use crate::handmade::{Handmade, Placed};
use crate::scenario::{is_drained, upload};

fn day(number: usize) -> String {
    format!("2025-03-{:02}", number + 1)
}

fn spec(symbol: &str, number: usize) -> ArchiveSpec {
    ArchiveSpec::new(Market::Spot, symbol, "1h", &day(number))
}

/// A worker gets every kind of bad archive, each beside a good one.
#[test]
fn a_worker_dead_letters_bad_archives_and_loads_their_neighbours() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "bad-archives")?;
    let hand = Handmade::new(stack, &project)?;
    let mut truth = Truth::default();
    for (number, case) in CASES.iter().enumerate() {
        let (good, bad) = (spec("GOODUSDT", number), spec("POORUSDT", number));
        let objects = [hand.place(&good, &good.zip())?, hand.place(&bad, &(case.bytes)(&bad))?];
        hand.publish_marker(&good.unit(), &objects)?;
        truth.add_archive(&good.path(), &good.zip(), Timestamp::now())?;
    }

    let pull = project.puller(&["pull", "--json"])?.expect_code(1)?.json()?;
    assert_eq!(pull["destinations"][0]["dead_letters"], CASES.len(), "{pull:#}");
    project.check_tables_against(&truth, 600)?;

    let letters = hand.dead_letters()?;
    assert_eq!(letters.len(), CASES.len());
    for (number, case) in CASES.iter().enumerate() {
        let subject = format!("dead.primary.binance.spot.klines.1h.{}", day(number));
        let letter = letters.iter().find(|letter| letter.subject == subject);
        let letter = letter.ok_or_else(|| Failure::new(format!("no dead letter for '{}'", case.name)))?;
        assert_eq!(letter.class, "damaged", "{}: {}", case.name, letter.error);
        let file = format!("POORUSDT-1h-{}.zip", day(number));
        assert!(letter.error.contains(&file), "{}: {}", case.name, letter.error);
        assert!(!letter.error.contains("GOODUSDT"), "{}: {}", case.name, letter.error);
        if case.visible == Visible::InTheRows {
            assert!(letter.error.contains("line "), "{}: {}", case.name, letter.error);
        }
        // Enough to send it again.
        let marker: Value = serde_json::from_slice(&letter.payload).map_err(|error| Failure::new(error.to_string()))?;
        assert_eq!(marker["period"], day(number));
    }
    let status = project.puller(&["status", "--json"])?.expect_code(0)?.json()?;
    assert!(is_drained(&project)?, "{status:#}");
    assert_eq!(status["destinations"][0]["dead"], json!(CASES.len()));
    let log = "SELECT count() FROM {db}.ingest_log WHERE outcome = 'dead_letter' AND error_class = 'damaged' \
               AND archives_loaded = 1 AND archives_failed = 1";
    assert_eq!(project.query(&log.replace("{db}", project.database()))?.trim(), CASES.len().to_string());
    Ok(())
}

/// Messages that are no markers one may act on.
#[test]
fn a_worker_dead_letters_bad_markers() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "bad-markers")?;
    let hand = Handmade::new(stack, &project)?;
    let good = |number| -> Result<Placed> { hand.place(&spec("GOODUSDT", number), &spec("GOODUSDT", number).zip()) };
    let unit = |number| spec("GOODUSDT", number).unit();
    // Makes the marker of a good unit and changes it.
    let changed = |number, change: &dyn Fn(&mut Value)| -> Result<()> {
        let mut marker = hand.marker(&unit(number), &[good(number)?]);
        change(&mut marker);
        hand.publish(&unit(number), marker.to_string().as_bytes())
    };

    hand.publish(&unit(0), b"{ this is not JSON")?;
    changed(1, &|marker| marker["schema"] = json!("marketferry.marker/9"))?;
    let outside = Placed { key: "elsewhere/GOODUSDT-1h-2025-03-03.zip".into(), ..good(2)? };
    hand.publish_marker(&unit(2), &[outside])?;
    let many: Vec<Placed> = (0..100_000)
        .map(|n| Placed {
            key: format!("{}/data/{n}.zip", project.prefix()),
            symbol: format!("S{n}"),
            size: 1,
            sha256: "0".repeat(64),
        })
        .collect();
    let long = hand.marker(&unit(3), &many);
    let long_key = manifest_key(&project, &unit(3), &long);
    hand.put(&long_key, long.to_string().as_bytes())?;
    let mut reference = long.clone();
    reference["objects"] = Value::Null;
    reference["manifest"] = json!({ "key": long_key, "sha256": tests::data::sha256(long.to_string().as_bytes()) });
    hand.publish(&unit(3), reference.to_string().as_bytes())?;
    changed(4, &|marker| marker["revision"] = json!("0".repeat(64)))?;
    changed(5, &|marker| marker["period"] = json!("2025-03-31"))?;
    changed(6, &|marker| marker["objects"][0]["generated_at"] = json!("2199-01-01T00:00:00Z"))?;
    let other_name = Placed { symbol: "OTHERUSDT".into(), ..good(7)? };
    hand.publish_marker(&unit(7), &[other_name])?;
    let trades = unit(8).replace("klines", "aggTrades");
    hand.publish_marker(&trades, &[good(8)?])?;
    let absent = good(9)?;
    hand.delete(&absent.key)?;
    hand.publish_marker(&unit(9), &[absent])?;
    let differs = good(10)?;
    hand.put(&differs.key, &spec("GOODUSDT", 10).seed(7).zip())?;
    hand.publish_marker(&unit(10), &[differs])?;
    // And one that is as it should be.
    hand.publish_marker(&unit(11), &[good(11)?])?;

    project.puller(&["pull"])?.expect_code(1)?;
    let truth = Truth::of_specs([&spec("GOODUSDT", 11)])?;
    project.check_tables_against(&truth, 24)?;

    let letters = hand.dead_letters()?;
    let expected = [
        (0, "malformed", "not a marker"),
        (1, "schema", "marketferry.marker/9"),
        (2, "refused", "outside storage.r2.prefix"),
        (3, "refused", "names 100000 objects"),
        (4, "refused", "claims revision"),
        (5, "refused", "is not that of its subject"),
        (6, "refused", "generated_at"),
        (7, "refused", "its key is not that of the unit's archive of this symbol"),
        (8, "unsupported", "aggTrades"),
        (9, "missing", "not in the bucket"),
        (10, "mismatch", "the marker says"),
    ];
    assert_eq!(letters.len(), expected.len(), "{letters:#?}");
    for (number, class, message) in expected {
        let letter = letters.iter().find(|letter| letter.subject.ends_with(&day(number)));
        let letter = letter.ok_or_else(|| Failure::new(format!("no dead letter for day {}", day(number))))?;
        assert_eq!(letter.class, class, "{}", letter.error);
        assert!(letter.error.contains(message), "{message}: {}", letter.error);
    }
    // What may pass was tried as often as configured.
    let tried = "SELECT period, max(attempt) FROM {db}.ingest_log WHERE period IN ('2025-03-10', '2025-03-11') \
                 GROUP BY period ORDER BY period FORMAT TSV";
    assert_eq!(project.query(&tried.replace("{db}", project.database()))?.trim(), "2025-03-10\t3\n2025-03-11\t3");
    Ok(())
}

fn manifest_key(project: &Project, unit: &str, marker: &Value) -> String {
    format!("{}/_markers/{unit}/{}.json", project.prefix(), marker["revision"].as_str().unwrap_or_default())
}

/// A marker whose object was overwritten by a newer revision is not an error: the newer one has its own marker.
#[test]
fn an_overtaken_marker_is_superseded() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "superseded")?;
    let hand = Handmade::new(stack, &project)?;
    let first = spec("GOODUSDT", 0);
    upload(&project, [first])?;
    // The exchange publishes it again before any worker came round.
    spec("GOODUSDT", 0).seed(1).generated_at("2025-04-01T00:00:00Z").write(project.data_dir())?;
    project.uploader(&["upload"])?.expect_code(0)?;
    assert_eq!(hand.markers()?.len(), 2);

    project.puller(&["pull"])?.expect_code(0)?;
    project.check_tables(24)?;
    let outcomes = "SELECT outcome FROM {db}.ingest_log ORDER BY outcome FORMAT TSV";
    assert_eq!(project.query(&outcomes.replace("{db}", project.database()))?.trim(), "loaded\nsuperseded");
    assert_eq!(hand.dead_letters()?.len(), 0);
    Ok(())
}

/// The uploader refuses what it can see, unit by unit.
#[test]
fn the_uploader_holds_back_units_with_bad_archives() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "held-back")?;
    let hand = Handmade::new(stack, &project)?;
    let bad: Vec<_> = CASES.iter().filter(|case| case.visible == Visible::InTheZip).collect();
    for (number, case) in bad.iter().enumerate() {
        spec("GOODUSDT", number).write(project.data_dir())?;
        let poor = spec("POORUSDT", number);
        poor.write_unchecked(project.data_dir(), &(case.bytes)(&poor))?;
    }
    let good = spec("GOODUSDT", bad.len());
    good.write(project.data_dir())?;
    // The rows are fine and the file is not the one the exchange's checksum is of.
    let altered = spec("ALTEREDUSDT", bad.len() + 1);
    altered.write(project.data_dir())?;
    let path = project.data_dir().join(altered.path());
    std::fs::write(path, altered.clone().seed(5).zip()).map_err(|error| Failure::new(error.to_string()))?;
    mark_all(project.data_dir())?;

    let finished = project.uploader(&["upload"])?.expect_code(1)?;
    for (number, case) in bad.iter().enumerate() {
        let file = format!("POORUSDT-1h-{}.zip", day(number));
        assert!(finished.stderr.contains(&file), "{}: {}", case.name, finished.stderr);
    }
    assert!(finished.stderr.contains("ALTEREDUSDT-1h"), "{}", finished.stderr);
    let markers = hand.markers()?;
    assert_eq!(markers.len(), 1, "{markers:#?}");
    assert_eq!(markers[0].1["period"], day(bad.len()));
    // Nothing of a unit that is held back is announced, and the rest is loaded.
    project.puller(&["pull"])?.expect_code(0)?;
    let truth = Truth::of_specs([&good])?;
    truth.compare_rows(project.sql(), project.database(), 24)
}
