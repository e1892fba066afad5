//! `uploader adopt`: a bucket that another program filled is announced, and nothing is sent again.

use std::fs;
use std::io::{Cursor, Write};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tests::data::{ArchiveSpec, Market, mark_all};
use tests::other_client::OtherClient;
use tests::project::Project;
use tests::proxy::{Fate, Fault, Proxy, Request};
use tests::servers::{NO_COPIES, Stack};
use tests::{Context, Result};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use crate::handmade::Handmade;
use crate::scenario::{SOON, assert_nothing_uploaded, hours, text};

/// Smallest part of an object that S3 takes.
const PART_BYTES: usize = 5 << 20;

/// Three units; returns how many archives.
fn write(data_dir: &Path) -> Result<usize> {
    let days = ["2025-03-01", "2025-03-02"];
    for day in days {
        for symbol in ["BTCUSDT", "ETHUSDT", "币安人生USDT"] {
            hours(symbol, day).write(data_dir)?;
        }
    }
    ArchiveSpec::new(Market::Um, "BTCUSDT", "1d", "2025-02").dataset("markPriceKlines").write(data_dir)?;
    Ok(7)
}

/// An archive that is not compressed, and large enough to be sent in parts.
fn large_zip(spec: &ArchiveSpec) -> Result<Vec<u8>> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    let time = zip::DateTime::from_date_and_time(2025, 3, 2, 0, 44, 0).context("a time")?;
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored).last_modified_time(time);
    writer.start_file(format!("{}.csv", spec.stem()), options).context("a member")?;
    writer.write_all(&spec.csv()).context("memory")?;
    Ok(writer.finish().context("memory")?.into_inner())
}

#[test]
fn objects_of_another_program_are_adopted_and_not_sent_again() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "recognised")?;
    let (proxy, data_dir) = (Proxy::start(stack.s3.address())?, project.data_dir().to_owned());
    let archives = write(&data_dir)? + 1;
    // One that rclone sends in parts.
    let large = ArchiveSpec::new(Market::Spot, "BTCUSDT", "1s", "2025-03-01");
    let large_bytes = fs::metadata(large.write_bytes(&data_dir, &large_zip(&large)?)?).context("its size")?.len();
    mark_all(&data_dir)?;
    let key = |spec: &ArchiveSpec| format!("{}/{}", project.prefix(), spec.path());
    let (large, other) = (key(&large), key(&hours("ETHUSDT", "2025-03-02")));
    OtherClient::new(stack, &project).fill(&data_dir, PART_BYTES)?;
    // As large as ours, and something else.
    let other_bytes = Handmade::new(stack, &project)?.get(&other)?.len();
    Handmade::new(stack, &project)?.put(&other, &vec![0; other_bytes])?;
    project.set("storage.r2.endpoint", format!("http://{}", proxy.address()))?;
    let (hand, client) = (Handmade::new(stack, &project)?, OtherClient::new(stack, &project));
    let before = client.list()?;
    assert!(before[&large].etag.contains('-') && before[&large].size == large_bytes, "{:?}", before[&large]);

    let planned = project.uploader(&["upload", "--dry-run", "--json"])?.expect_code(0)?.json()?;
    let to_upload = |unit: &Value| unit["archives_to_upload"].as_u64().unwrap_or_default();
    assert_eq!(planned["planned"].as_array().into_iter().flatten().map(to_upload).sum::<u64>(), 1);
    assert_eq!(client.list()?, before);

    let (sent_before, report) = (proxy.body_bytes(), project.uploader(&["upload", "--json"])?.expect_code(0)?.json()?);
    assert_eq!((&report["archives"]["uploaded"], &report["bytes_uploaded"]), (&1.into(), &other_bytes.into()));
    // What went over the link is heads of requests, manifests, and one small archive.
    let sent = proxy.body_bytes() - sent_before;
    assert!(sent < 200_000 && large_bytes > 5_000_000, "{sent} of {large_bytes} bytes");
    assert_eq!(client.check(&data_dir)?, archives as u64);
    let after = client.list()?;
    for (key, listed) in before.iter().filter(|(key, _)| **key != other) {
        let now = &after[key];
        assert_eq!((&now.content_type, now.size), (&listed.content_type, listed.size), "{key}");
        assert_eq!(now.metadata["mtime"], listed.metadata["mtime"], "{key}");
        assert_eq!(now.metadata["sha256"].len(), 64, "{key}");
    }
    assert_eq!(hand.markers()?.len(), 4);

    assert_nothing_uploaded(&project.uploader(&["upload", "--json"])?.expect_code(0)?.json()?);
    assert_eq!(client.list()?, after);
    project.puller(&["pull"])?.expect_code(0)?;
    project.check_tables(86_572)
}

/// Requests that give an object its sha256 are refused for a moment, or done without an answer.
#[test]
fn a_copy_that_fails_for_a_moment_is_retried() -> Result<()> {
    let stack = Stack::shared();
    for command in ["upload", "adopt"] {
        for fate in [Fate::Refused, Fate::ReplyLost] {
            let mut project = Project::new(stack, "copy-faults")?;
            let proxy = Proxy::start(stack.s3.address())?;
            let archives = write(project.data_dir())?;
            mark_all(project.data_dir())?;
            let client = OtherClient::new(stack, &project);
            client.fill(project.data_dir(), usize::MAX)?;
            project.set("storage.r2.endpoint", format!("http://{}", proxy.address()))?;
            proxy.set(Fault::aimed("x-id=CopyObject", 2, fate));
            let report = project.uploader(&[command, "--json"])?.expect_code(0)?.json()?;
            assert_eq!(proxy.met(), 2, "{fate:?}");
            assert_eq!(report["published"].as_array().map(Vec::len), Some(3), "{command} {fate:?}: {report:#}");
            let client = OtherClient::new(stack, &project);
            assert_eq!(client.check(project.data_dir())?, archives as u64);
            let bodies = |request: &&Request| request.line.starts_with("PUT") && request.line.contains(".zip");
            let sent: u64 = proxy.requests().iter().filter(bodies).map(|request| request.body).sum();
            assert_eq!(sent, 0, "{command} {fate:?}: no archive crosses the link");
        }
    }
    Ok(())
}

/// The bodies of archives are cut on a link that drops: those that came whole are not fetched again.
#[test]
fn adoption_over_a_dropping_link_fetches_no_whole_archive_twice() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "adopt-cut")?;
    let proxy = Proxy::start(stack.s3.address())?;
    write(project.data_dir())?;
    // Some 60 kB, and so the one that a connection does not last for.
    let large = ArchiveSpec::new(Market::Spot, "BTCUSDT", "1m", "2025-03-01");
    large.write(project.data_dir())?;
    mark_all(project.data_dir())?;
    OtherClient::new(stack, &project).fill(project.data_dir(), usize::MAX)?;
    project.set("storage.r2.endpoint", format!("http://{}", proxy.address()))?;
    let fetched = || -> Vec<Request> {
        let is_fetch = |request: &Request| request.line.starts_with("GET") && request.line.contains(".zip");
        proxy.requests().into_iter().filter(is_fetch).collect()
    };
    let of_large = || fetched().iter().filter(|request| request.line.contains("1m-2025-03-01.zip")).count();
    proxy.set(Fault::CutReplyAfter(30_000));
    let mut adopting = project.start("uploader", &["adopt", "--json"], &[])?;
    project.wait_until("a second try", SOON, || Ok(of_large() >= 2))?;
    proxy.set(Fault::None);
    let report = adopting.wait(SOON)?.expect_code(0)?.json()?;
    assert_eq!((&report["units"]["published"], &report["archives"]["new"]), (&4.into(), &8.into()));
    // Connections are cut when the fault goes, too.
    let small = fetched().len() - of_large();
    assert!(small < 7 + 7, "{:#?}", fetched());
    project.puller(&["pull"])?.expect_code(0)?;
    project.check_tables(1612)
}

/// Where archives have to be sent because they are not copied, they are sent in their turn and take their memory.
#[test]
fn archives_sent_while_adopting_count_among_the_transfers() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, NO_COPIES)?;
    let proxy = Proxy::start(stack.s3.address())?;
    for day in 1..=8 {
        hours("BTCUSDT", &format!("2025-03-{day:02}")).write(project.data_dir())?;
    }
    OtherClient::new(stack, &project).fill(project.data_dir(), usize::MAX)?;
    project.set("storage.r2.endpoint", format!("http://{}", proxy.address()))?;
    project.set("storage.r2.transfers", 1)?;
    proxy.set(Fault::Slow(Duration::from_millis(100)));
    let mut adopting = project.start("uploader", &["adopt", "--json"], &[])?;
    // Questions about objects need no place, nor do copies, which are refused here and have no body.
    let sends =
        |request: &Request| request.line.starts_with("PUT") && request.line.contains(".zip") && request.body > 0;
    let under_way = || -> Vec<usize> {
        let requests = proxy.requests();
        let waiting = requests.iter().enumerate().filter(|(_, request)| request.status.is_none());
        waiting.filter(|(_, request)| sends(request)).map(|(at, _)| at).collect()
    };
    let mut before = Vec::new();
    while adopting.is_running() {
        let now = under_way();
        // Seen twice: an answer is the client's a moment before it is noted here.
        let both: Vec<_> = now.iter().filter(|at| before.contains(*at)).collect();
        assert!(both.len() <= 1, "{both:?} at once of {:#?}", proxy.requests());
        before = now;
        std::thread::sleep(Duration::from_millis(20));
    }
    let report = adopting.wait(SOON)?.expect_code(0)?.json()?;
    assert_eq!(report["units"]["published"], 8);
    assert_eq!(proxy.requests().into_iter().filter(sends).count(), 8);
    Ok(())
}

/// A bucket, or a token, that does not copy costs the sending, and is told of, not once for each archive.
#[test]
fn archives_are_sent_where_the_bucket_copies_none() -> Result<()> {
    let stack = Stack::shared();
    for adopted in [false, true] {
        let project = Project::new(stack, NO_COPIES)?;
        let archives = write(project.data_dir())?;
        mark_all(project.data_dir())?;
        let client = OtherClient::new(stack, &project);
        client.fill(project.data_dir(), usize::MAX)?;
        let command = if adopted { "adopt" } else { "upload" };
        let done = project.uploader(&[command])?.expect_code(0)?;
        let warnings = done.stderr.matches("does not copy it").count();
        assert!((1..=3).contains(&warnings), "{}", done.stderr);
        assert_eq!(client.check(project.data_dir())?, archives as u64);
        let has_sha256 = |(key, listed): (&String, &tests::other_client::Listed)| {
            assert!(listed.metadata.contains_key("sha256"), "{key}");
        };
        client.list()?.iter().for_each(has_sha256);
        project.puller(&["pull"])?.expect_code(0)?;
        project.check_tables(172)?;
    }
    Ok(())
}

#[test]
fn a_bucket_is_adopted_without_local_archives() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "adopted")?;
    let data_dir = project.data_dir().to_owned();
    let archives = write(&data_dir)?;
    mark_all(&data_dir)?;
    // More than one page of other things, which come before the archives.
    let foreign = Handmade::new(stack, &project)?;
    (0..1_050).try_for_each(|number| foreign.put(&format!("{}/backup/{number}.txt", project.prefix()), b"notes"))?;
    drop(foreign);
    OtherClient::new(stack, &project).fill_all(&data_dir)?;
    project.set("local.data_dir", Value::Null)?;
    let (hand, client) = (Handmade::new(stack, &project)?, OtherClient::new(stack, &project));
    let before = client.list()?;

    let planned = project.uploader(&["adopt", "--dry-run", "--json"])?.expect_code(0)?.json()?;
    assert_eq!((&planned["units"]["found"], &planned["archives"]["new"]), (&3.into(), &archives.into()));
    assert_eq!((client.list()?, hand.markers()?.len()), (before, 0));

    let only = ["adopt", "--json", "--market", "um"];
    assert_eq!(project.uploader(&only)?.expect_code(0)?.json()?["units"]["published"], 1);
    let adopted = project.uploader(&["adopt", "--json"])?.expect_code(0)?.json()?;
    let units = &adopted["units"];
    assert_eq!(
        (&units["published"], &units["unchanged"], &adopted["archives"]["new"]),
        (&2.into(), &1.into(), &6.into())
    );
    // The notes and the marks; `.CHECKSUM` objects are of use.
    assert_eq!((&adopted["others"]["count"], &adopted["others"]["checksums"]), (&1_053.into(), &archives.into()));
    project.uploader(&["reconcile"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    project.check_tables(172)?;

    let (bucket, markers) = (client.list()?, hand.markers()?);
    let again = project.uploader(&["adopt", "--json"])?.expect_code(0)?.json()?;
    assert_eq!((&again["units"]["unchanged"], &again["archives"]["new"]), (&3.into(), &0.into()));
    assert_eq!((client.list()?, hand.markers()?), (bucket.clone(), markers.clone()));
    // What an uploader that has the archives would announce is the same to the bit.
    let env = [("LOCAL_DATA_DIR", text(&data_dir)?)];
    let upload = project.start("uploader", &["upload", "--json"], &env)?.wait(SOON)?.expect_code(0)?;
    assert_nothing_uploaded(&upload.json()?);
    assert_eq!((client.list()?, hand.markers()?), (bucket, markers));

    // The other program is not switched off yet: an archive more, and one corrected.
    hours("SOLUSDT", "2025-03-02").write(&data_dir)?;
    hours("BTCUSDT", "2025-03-02").seed(5).generated_at("2025-03-09T00:00:00Z").write(&data_dir)?;
    client.fill_all(&data_dir)?;
    let more = project.uploader(&["adopt", "--json"])?.expect_code(0)?.json()?;
    assert_eq!(more["published"], serde_json::json!(["binance/spot/klines/1h/2025-03-02"]));
    let newest = hand.markers()?.pop().map(|(_, marker)| marker["objects"].as_array().map(Vec::len));
    assert_eq!(newest, Some(Some(4)));
    project.puller(&["pull"])?.expect_code(0)?;
    project.check_tables(196)
}

#[test]
fn a_damaged_object_holds_back_only_its_unit() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "adopted-damaged")?;
    write(project.data_dir())?;
    mark_all(project.data_dir())?;
    let (hand, client) = (Handmade::new(stack, &project)?, OtherClient::new(stack, &project));
    client.fill_all(project.data_dir())?;
    let key = |spec: &ArchiveSpec| format!("{}/{}", project.prefix(), spec.path());
    let (cut, swapped) = (hours("BTCUSDT", "2025-03-01"), hours("ETHUSDT", "2025-03-01"));
    hand.put(&key(&cut), &cut.zip()[..cut.zip().len() / 2])?;
    // A whole archive, and not the one its .CHECKSUM is about.
    hand.put(&key(&swapped), &swapped.clone().seed(9).zip())?;

    let adopted = project.uploader(&["adopt", "--json"])?.expect_code(1)?;
    for (spec, why) in [(&cut, "is no whole zip file"), (&swapped, "does not match its .CHECKSUM")] {
        assert!(adopted.stderr.contains(&format!("{} {why}", key(spec))), "{}", adopted.stderr);
    }
    let report = adopted.json()?;
    assert_eq!((&report["units"]["published"], &report["units"]["held_back"]), (&2.into(), &1.into()));
    assert_eq!(hand.markers()?.len(), 2);

    client.fill(project.data_dir(), usize::MAX)?;
    let mended = project.uploader(&["adopt", "--json"])?.expect_code(0)?.json()?;
    assert_eq!(mended["published"], serde_json::json!(["binance/spot/klines/1h/2025-03-01"]));
    project.puller(&["pull"])?.expect_code(0)?;
    project.check_tables(172)
}
