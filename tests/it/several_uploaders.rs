//! Several uploaders with different archives of one unit announce all of them.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tests::data::{ArchiveSpec, Market, mark_all};
use tests::process::Process;
use tests::project::Project;
use tests::proxy::{Fault, Proxy};
use tests::servers::Stack;
use tests::{Context, Result};

use crate::handmade::Handmade;
use crate::scenario::{SOON, hours};

/// Starts another uploader's `upload`, of a folder of its own, and holds its `PUT` of this key.
fn start_elsewhere(
    stack: &Stack,
    project: &Project,
    folder: &Path,
    delayed_key: &str,
    clock_offset: Duration,
) -> Result<(Proxy, Process)> {
    let proxy = Proxy::start(stack.s3.address())?;
    proxy.set(Fault::holding(&format!("PUT /{}/{delayed_key}", stack.s3.bucket())));
    let env = [
        ("FERRY__LOCAL__DATA_DIR", folder.display().to_string()),
        ("FERRY__LOCAL__STATE_DIR", project.dir().join("state-elsewhere").display().to_string()),
        ("FERRY__STORAGE__R2__ENDPOINT", format!("http://{}", proxy.address())),
        ("FERRY_CLOCK_OFFSET_S", clock_offset.as_secs().to_string()),
    ];
    let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let started = project.start("uploader", &["upload", "--json"], &env)?;
    project.wait_until("a held request", SOON, || Ok(proxy.met() > 0))?;
    Ok((proxy, started))
}

/// Between its `current.json` and its marker another uploader announces all that it has, and more: the stream refuses its
/// marker, and then the bucket must not go on naming its part as the newest.
#[test]
fn an_uploader_whose_marker_is_refused_leaves_no_trace_in_the_bucket() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "refused")?;
    let hand = Handmade::new(stack, &project)?;
    let spec = |symbol| hours(symbol, "2025-03-01");
    let elsewhere = project.dir().join("elsewhere");
    for (data_dir, symbols) in [(project.data_dir(), &["BTCUSDT", "ETHUSDT"][..]), (&elsewhere, &["BTCUSDT"][..])] {
        fs::create_dir_all(data_dir).context("a folder")?;
        symbols.iter().try_for_each(|symbol| spec(symbol).write(data_dir).map(drop))?;
        mark_all(data_dir)?;
    }
    let current = format!("{}/_markers/{}/current.json", project.prefix(), spec("BTCUSDT").unit());
    let (proxy, mut part) = start_elsewhere(stack, &project, &elsewhere, &current, Duration::ZERO)?;
    project.uploader(&["upload"])?.expect_code(0)?;
    proxy.set(Fault::None);
    let report = part.wait(SOON)?.expect_code(0)?.json()?;
    assert_eq!(report["units"]["unchanged"], 1, "{report:#}");

    let markers = hand.markers()?;
    assert_eq!(markers.len(), 1);
    let named: Value = serde_json::from_slice(&hand.get(&current)?).context("current.json")?;
    assert_eq!(named["revision"], markers[0].1["revision"]);
    project.uploader(&["reconcile"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    project.check_tables(48)
}

/// By the clock of one the unit belongs to the backlog already, and so to another subject. Each finds its subject as it
/// left it, and the newest marker must name what both have.
#[test]
fn uploaders_on_two_lanes_announce_all_archives() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "two-lanes")?;
    let hand = Handmade::new(stack, &project)?;
    let yesterday = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date().yesterday().context("a day")?;
    let spec = |symbol| {
        ArchiveSpec::new(Market::Spot, symbol, "1h", &yesterday.to_string()).generated_at("2025-03-03T00:00:00Z")
    };
    let elsewhere = project.dir().join("elsewhere");
    for (data_dir, symbol) in [(project.data_dir(), "ETHUSDT"), (&elsewhere, "BTCUSDT")] {
        fs::create_dir_all(data_dir).context("a folder")?;
        spec(symbol).write(data_dir)?;
        mark_all(data_dir)?;
    }
    let current = format!("{}/_markers/{}/current.json", project.prefix(), spec("BTCUSDT").unit());
    let (proxy, mut backlog) =
        start_elsewhere(stack, &project, &elsewhere, &current, Duration::from_secs(10 * 86_400))?;
    project.uploader(&["upload"])?.expect_code(0)?;
    proxy.set(Fault::None);
    backlog.wait(SOON)?.expect_code(0)?;

    let markers = hand.markers()?;
    let symbols = |marker: &Value| marker["objects"].as_array().map(Vec::len);
    assert_eq!(markers.last().and_then(|(_, marker)| symbols(marker)), Some(2), "{markers:#?}");
    let named: Value = serde_json::from_slice(&hand.get(&current)?).context("current.json")?;
    assert_eq!(Some(&named["revision"]), markers.last().map(|(_, marker)| &marker["revision"]));
    Ok(())
}

/// After a cleanup the bucket has what the disk has not. Another prefix has neither.
#[test]
fn a_unit_stored_in_another_bucket_is_not_published_with_less() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "left-behind")?;
    let hand = Handmade::new(stack, &project)?;
    let spec = |symbol| hours(symbol, "2025-03-01");
    let all = ["BTCUSDT", "ETHUSDT"];
    all.iter().try_for_each(|symbol| spec(symbol).write(project.data_dir()).map(drop))?;
    mark_all(project.data_dir())?;
    project.uploader(&["upload", "--cleanup"])?.expect_code(0)?;

    let moved = [("FERRY__STORAGE__R2__PREFIX", "tests/left-behind-moved")];
    let args = ["upload", "--accept-move"];
    let upload = || project.start("uploader", &args, &moved)?.wait(SOON);
    spec("BTCUSDT").seed(1).generated_at("2025-03-05T00:00:00Z").write(project.data_dir())?;
    let held_back = upload()?.expect_code(1)?;
    assert!(
        held_back.stderr.contains("announced from another bucket or prefix with 2 archives, 1 of"),
        "{}",
        held_back.stderr
    );
    assert_eq!(hand.markers()?.len(), 1);
    // All of it is at hand again.
    spec("ETHUSDT").write(project.data_dir())?;
    upload()?.expect_code(0)?;
    let markers = hand.markers()?;
    assert_eq!((markers.len(), markers[1].1["objects"].as_array().map(Vec::len)), (2, Some(2)));
    Ok(())
}
