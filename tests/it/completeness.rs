//! The completeness rule: which symbols a unit needs, how long missing ones are waited for, and what is published without.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::json;
use tests::data::mark;
use tests::project::Project;
use tests::servers::Stack;
use tests::{Context, Result};

use crate::handmade::Handmade;
use crate::scenario::{SOON, assert_units, btc, is_found, units_found};
use crate::watching::{archive, published, revisions, symbols, watch};

#[test]
fn a_unit_is_complete_when_every_symbol_is_there() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "every-symbol")?;
    project.set("publish.when", "complete")?;
    project.set("download.symbols", json!(["BTCUSDT", "ETHUSDT", "SOLUSDT"]))?;
    project.set("download.market", "um")?;
    let hand = Handmade::new(stack, &project)?;
    let data_dir = project.data_dir();
    for symbol in ["BTCUSDT", "SOLUSDT", "XRPUSDT"] {
        archive(symbol, "2025-02-01").write(data_dir)?;
    }
    btc("2025-02-01").write(data_dir)?;
    let plan = project.uploader(&["upload", "--dry-run", "--json"])?.expect_code(0)?.json()?;
    let findings = plan["findings"].as_array().map_or(&[][..], Vec::as_slice);
    let waiting: Vec<_> = findings.iter().filter(|finding| finding["state"] == "waiting").collect();
    assert_eq!(waiting.len(), 1, "{plan:#}");
    assert_eq!(
        (&waiting[0]["unit"], &waiting[0]["missing"]),
        (&json!("binance/um/klines/1h/2025-02-01"), &json!(["ETHUSDT"]))
    );
    assert_units(
        &project.uploader(&["upload", "--json"])?.expect_code(0)?.json()?,
        &[("published", 0), ("waiting", 1)],
    );

    let late = archive("ETHUSDT", "2025-02-01");
    late.write(data_dir)?;
    let pass = project.uploader(&["upload", "--json"])?.expect_code(0)?;
    assert_units(&pass.json()?, &[("published", 1)]);
    let markers = hand.markers()?;
    assert_eq!(markers.len(), 1, "the spot archive is of no market that is collected");
    assert_eq!(symbols(&markers[0].1), ["BTCUSDT", "ETHUSDT", "SOLUSDT", "XRPUSDT"]);
    assert!(markers[0].1.get("incomplete").is_none(), "{}", markers[0].1);
    Ok(())
}

#[test]
fn a_quiet_period_makes_a_unit_without_a_list_complete() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "quiet")?;
    for (key, value) in [("publish.when", "complete"), ("publish.settle", "3s"), ("watch.min_age", "100ms")] {
        project.set(key, value)?;
    }
    let service = watch(&mut project)?;
    let hand = Handmade::new(stack, &project)?;
    let (first, second) = (archive("BTCUSDT", "2025-02-01"), archive("ETHUSDT", "2025-02-01"));
    first.write(project.data_dir())?;
    service.wait_for_metric("marketferry_uploader_waiting_units", SOON, |units| units == 1.0)?;
    second.write(project.data_dir())?;
    let written = Instant::now();
    let markers = published(&service, &hand, &first.unit(), 1)?;
    assert!(written.elapsed() > Duration::from_secs(2), "{:?}", written.elapsed());
    assert_eq!(symbols(&markers[0]), ["BTCUSDT", "ETHUSDT"]);
    archive("SOLUSDT", "2025-02-01").write(project.data_dir())?;
    let markers = published(&service, &hand, &first.unit(), 2)?;
    assert_eq!(symbols(&markers[1]), ["BTCUSDT", "ETHUSDT", "SOLUSDT"]);
    Ok(())
}

/// Times of files that lie in the future say when they were seen first, and no less is waited for.
#[test]
fn files_dated_in_the_future_are_timed_by_when_they_were_seen() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "clock-ahead")?;
    for (key, value) in [("publish.when", "both"), ("publish.settle", "3s"), ("watch.min_age", "2s")] {
        project.set(key, value)?;
    }
    project.set("watch.rescan", "1d")?;
    let service = project.spawn("uploader", &["watch"], &[("FERRY_CLOCK_OFFSET_S", "-3600")])?;
    project.wait_until("the end of the first pass", SOON, || Ok(service.is_ready()))?;
    let hand = Handmade::new(stack, &project)?;
    let (written, quiet) = (archive("BTCUSDT", "2025-02-01"), archive("BTCUSDT", "2025-02-02"));
    mark(project.data_dir(), &written.unit())?;
    for (spec, least_s, times) in [(written, 1, 1), (quiet, 2, 2)] {
        spec.write(project.data_dir())?;
        let came = Instant::now();
        published(&service, &hand, &spec.unit(), times)?;
        assert!(came.elapsed() > Duration::from_secs(least_s), "{:?}", came.elapsed());
    }
    Ok(())
}

#[test]
fn a_unit_is_published_without_missing_symbols_after_the_grace() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "grace")?;
    project.set("publish.when", "both")?;
    project.set("publish.grace", "6h")?;
    project.set("download.symbols", json!(["BTCUSDT", "ETHUSDT", "GONEUSDT"]))?;
    let hand = Handmade::new(stack, &project)?;
    let (spec, late) = (archive("BTCUSDT", "2025-02-01"), archive("ETHUSDT", "2025-02-01"));
    let marked = archive("BTCUSDT", "2025-02-02");
    spec.write(project.data_dir())?;
    marked.write(project.data_dir())?;
    mark(project.data_dir(), &marked.unit())?;
    let upload = |hours: &str| {
        let offset = (hours.parse::<u64>().unwrap_or_default() * 3600).to_string();
        project
            .start("uploader", &["upload", "--json"], &[("FERRY_CLOCK_OFFSET_S", &offset)])?
            .wait(SOON)?
            .expect_code(0)
    };
    // Its mark is somebody's word that the other unit is complete.
    let pass = upload("0")?;
    assert_units(&pass.json()?, &[("published", 1), ("waiting", 1)]);
    assert!(revisions(&hand, &marked.unit())?[0].get("incomplete").is_none());
    assert_units(&upload("5")?.json()?, &[("waiting", 1)]);
    let pass = upload("7")?;
    assert_eq!(units_found(&pass.json()?, "incomplete"), [spec.unit()], "{}", pass.stdout);
    assert!(pass.stderr.contains("published without 2 symbols"), "{}", pass.stderr);
    let again = upload("7")?;
    assert!(!again.stderr.contains("published without"), "said once: {}", again.stderr);
    project.puller(&["pull"])?.expect_code(0)?;
    let explained = project.puller(&["explain", &spec.unit()])?.expect_code(0)?;
    assert!(explained.stdout.contains("published without 2 symbols: ETHUSDT, GONEUSDT"), "{}", explained.stdout);

    // What is late needs no grace of its own.
    late.write(project.data_dir())?;
    let pass = upload("7")?;
    let markers = revisions(&hand, &spec.unit())?;
    assert_eq!(markers.len(), 2);
    assert_eq!(markers[0]["incomplete"], json!({ "count": 2, "symbols": ["ETHUSDT", "GONEUSDT"] }));
    assert_eq!(markers[1]["incomplete"], json!({ "count": 1, "symbols": ["GONEUSDT"] }));
    assert!(units_found(&pass.json()?, "incomplete").is_empty(), "said before: {}", pass.stdout);
    assert!(!pass.stderr.contains("published without"), "said before: {}", pass.stderr);
    project.puller(&["pull"])?.expect_code(0)?;
    project.check_tables(72)
}

/// `publish.grace` ends also where nothing can be kept of when it began.
#[test]
fn the_grace_ends_without_a_state_folder() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "grace-nowhere")?;
    project.set("publish.when", "complete")?;
    project.set("publish.grace", "3s")?;
    project.set("download.symbols", json!(["BTCUSDT", "GONEUSDT"]))?;
    fs::write(project.dir().join("state"), "a file where a folder should be").context("the state file")?;
    for (args, what) in [("upload", "there is no archive to publish"), ("doctor", "publish.when is complete")] {
        let said = project.uploader(&[args])?.stdout;
        assert!(said.contains(what) && !said.contains("no unit is marked"), "{said}");
    }
    archive("BTCUSDT", "2025-02-01").write(project.data_dir())?;
    assert_units(&project.uploader(&["upload", "--json"])?.expect_code(0)?.json()?, &[("waiting", 1)]);
    std::thread::sleep(Duration::from_secs(3));
    let pass = project.uploader(&["upload", "--json"])?.expect_code(0)?.json()?;
    assert!(is_found(&pass, "published without 1 symbol: GONEUSDT"), "{pass:#}");

    let service = watch(&mut project)?;
    let hand = Handmade::new(stack, &project)?;
    let spec = archive("BTCUSDT", "2025-02-02");
    spec.write(project.data_dir())?;
    published(&service, &hand, &spec.unit(), 1).map(drop)
}

/// What has left the disk is forgotten, but not that it is out.
#[test]
fn a_correction_of_removed_archives_waits_for_no_symbols() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "grace-cleaned")?;
    project.set("publish.when", "complete")?;
    project.set("download.symbols", json!(["BTCUSDT", "ETHUSDT"]))?;
    let hand = Handmade::new(stack, &project)?;
    let spec = archive("BTCUSDT", "2025-02-01");
    for spec in [&spec, &archive("ETHUSDT", "2025-02-01"), &archive("BTCUSDT", "2025-02-02")] {
        spec.write(project.data_dir())?;
    }
    project.uploader(&["upload", "--cleanup"])?.expect_code(0)?;
    // A pass that no longer finds the unit.
    let pass = project.uploader(&["upload", "--json"])?.expect_code(0)?.json()?;
    assert_units(&pass, &[("published", 0), ("waiting", 1)]);
    spec.clone().seed(1).generated_at("2025-02-05T00:00:00Z").write(project.data_dir())?;
    let pass = project.uploader(&["upload", "--json"])?.expect_code(0)?;
    assert_units(&pass.json()?, &[("published", 1), ("waiting", 1)]);
    let markers = revisions(&hand, &spec.unit())?;
    assert_eq!(markers.len(), 2);
    assert_eq!(symbols(&markers[1]), ["BTCUSDT", "ETHUSDT"]);
    Ok(())
}
