//! `uploader download`: an archive is stored only if it agrees with its `.CHECKSUM`, whatever the exchange's server does.

use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use serde_json::Value;
use tests::data::{ArchiveSpec, Market, mark_all, sha256};
use tests::exchange::{Asked, Exchange, Fault, checksum_path};
use tests::project::Project;
use tests::servers::Stack;
use tests::{Context, Result};

use crate::handmade::Handmade;
use crate::scenario::{SOON, hours};

/// Some 60 kB.
fn large() -> ArchiveSpec {
    ArchiveSpec::new(Market::Spot, "BTCUSDT", "1m", "2025-03-01")
}

/// A site that wants one symbol's hours on spot.
fn site(label: &str) -> Result<(Project, Exchange)> {
    let exchange = Exchange::start()?;
    let mut project = Project::new(Stack::shared(), label)?;
    project.set("download.base_url", exchange.url())?;
    project.set("download.symbols", serde_json::json!(["BTCUSDT"]))?;
    project.set("download.market", serde_json::json!(["spot"]))?;
    project.set("download.intervals", serde_json::json!(["1h"]))?;
    // Days that everything still changes in.
    project.set("download.recheck_days", 9999)?;
    Ok((project, exchange))
}

/// Runs the command for the first two days of March 2025, or up to another one.
fn download(project: &Project, code: i32, more: &[&str]) -> Result<Value> {
    let mut args = [&["download", "--json", "--from", "2025-03-01"], more].concat();
    if !more.contains(&"--to") {
        args.extend(["--to", "2025-03-02"]);
    }
    project.uploader(&args)?.expect_code(code)?.json()
}

/// downloaded, unchanged, not published, failed
fn counts(report: &Value) -> [u64; 4] {
    ["downloaded", "unchanged", "not_published", "failed"].map(|key| report["archives"][key].as_u64().unwrap_or(99))
}

fn on_disk(project: &Project, path: &str) -> Option<Vec<u8>> {
    std::fs::read(project.data_dir().join(path)).ok()
}

/// The archive and its `.CHECKSUM` lie there, and nothing else beside them.
fn assert_landed(project: &Project, spec: &ArchiveSpec) -> Result<()> {
    assert!(on_disk(project, &spec.path()) == Some(spec.zip()), "{} is not what was published", spec.path());
    let line = format!("{}  {}.zip", sha256(&spec.zip()), spec.stem());
    assert_eq!(on_disk(project, &checksum_path(spec)), Some(line.into_bytes()));
    let left = std::process::Command::new("find").arg(project.data_dir()).args(["-name", "*.part*"]).output();
    assert_eq!(String::from_utf8_lossy(&left.context("find")?.stdout), "");
    Ok(())
}

fn of_archives(asked: &[Asked]) -> Vec<&Asked> {
    asked.iter().filter(|asked| asked.path.ends_with(".zip")).collect()
}

#[test]
fn archives_are_fetched_once_and_checked_while_they_may_change() -> Result<()> {
    let (mut project, exchange) = site("download")?;
    project.set("download.symbols", serde_json::json!(["BTCUSDT", "币安人生USDT"]))?;
    project.set("download.market", serde_json::json!(["spot", "um"]))?;
    project.set("download.datasets", serde_json::json!(["klines", "markPriceKlines"]))?;
    let published = [
        hours("BTCUSDT", "2025-03-01"),
        hours("币安人生USDT", "2025-03-01"),
        hours("BTCUSDT", "2025-03-02"),
        ArchiveSpec::new(Market::Um, "BTCUSDT", "1h", "2025-03-01"),
        ArchiveSpec::new(Market::Um, "BTCUSDT", "1h", "2025-03-01").dataset("markPriceKlines"),
    ];
    published.iter().for_each(|spec| exchange.publish(spec));

    let planned = download(&project, 0, &["--dry-run"])?;
    assert_eq!(planned["archives"]["would_ask"], 12);
    assert!(exchange.asked().is_empty());

    let report = download(&project, 0, &[])?;
    assert_eq!(counts(&report), [5, 0, 7, 0]);
    for spec in &published {
        assert_landed(&project, spec)?;
    }
    let unit =
        report["units"].as_array().and_then(|units| units.iter().find(|unit| unit["unit"] == published[3].unit()));
    assert_eq!(unit.map(|unit| unit["downloaded"].as_u64()), Some(Some(1)), "{report:#}");
    exchange.asked();

    // What may change is asked for, and does not come twice. Without a memory of the last run its checksum is compared.
    assert_eq!(counts(&download(&project, 0, &[])?), [0, 5, 7, 0]);
    let heads = |asked: &[Asked]| asked.iter().filter(|asked| asked.method == "HEAD" && asked.status == 200).count();
    assert_eq!(heads(&exchange.asked()), 5);
    std::fs::remove_dir_all(project.dir().join("state")).context("the state")?;
    assert_eq!(counts(&download(&project, 0, &[])?), [0, 5, 7, 0]);
    assert!(exchange.asked().iter().all(|asked| asked.status == 404 || asked.path.ends_with(".CHECKSUM")));
    // Old enough not to change any more: only what was not there is asked for.
    assert_eq!(counts(&download(&project, 0, &["--recheck-days", "3"])?), [0, 5, 7, 0]);
    assert!(exchange.asked().iter().all(|asked| asked.status == 404));

    // A whole month, and what does not exist by day.
    let month = ArchiveSpec::new(Market::Spot, "BTCUSDT", "1w", "2025-03");
    exchange.publish(&month);
    let args = ["--monthly", "--interval", "1w", "--market", "spot", "--symbols", "btcusdt"];
    assert_eq!(counts(&download(&project, 0, &args)?), [1, 0, 0, 0]);
    assert_landed(&project, &month)?;
    let refused = project.uploader(&["download", "--interval", "1w"])?.expect_code(2)?;
    assert!(refused.stderr.contains("--monthly"), "{}", refused.stderr);
    Ok(())
}

#[test]
fn a_passing_failure_is_retried_and_nothing_is_fetched_twice() -> Result<()> {
    let (mut project, exchange) = site("download-faults")?;
    project.set("download.intervals", "1m")?;
    project.set("download.timeout", "1s")?;
    let spec = large();
    let size = spec.zip().len();
    exchange.publish(&spec);
    exchange.fault(".CHECKSUM", Fault::Answer("500 Internal Server Error", ""), 2);
    exchange.fault(".zip", Fault::CutAfter(20_000), 1);
    exchange.fault(".zip", Fault::Answer("503 Slow Down", "Retry-After: 2\r\n"), 1);
    exchange.fault(".zip", Fault::StallAfter(10_000), 1);
    exchange.fault(".zip", Fault::Slow(20, Duration::from_millis(20)), 1);

    let report = download(&project, 0, &["--to", "2025-03-01"])?;
    assert_eq!(counts(&report), [1, 0, 0, 0]);
    assert_landed(&project, &spec)?;
    let asked = exchange.asked();
    let asked = of_archives(&asked);
    let ranges: Vec<&str> = asked.iter().map(|asked| asked.range.as_deref().unwrap_or("-")).collect();
    assert_eq!(ranges, ["-", "bytes=20000-", "bytes=20000-", "bytes=30000-"]);
    assert_eq!(asked.iter().map(|asked| asked.bytes).sum::<usize>(), size);

    // A server that cannot do ranges, and one that does not say how long its answers are.
    for other in [Fault::NoRange, Fault::NoLength] {
        std::fs::remove_dir_all(project.data_dir().join("data")).context("the tree")?;
        exchange.fault(".zip", Fault::CutAfter(20_000), 1);
        exchange.fault(".zip", other, 9);
        assert_eq!(counts(&download(&project, 0, &["--to", "2025-03-01"])?), [1, 0, 0, 0]);
        assert_landed(&project, &spec)?;
        exchange.no_faults();
    }

    // What does not pass is told, and the others go on.
    project.set("download.intervals", serde_json::json!(["1m", "1h"]))?;
    std::fs::remove_dir_all(project.data_dir().join("data")).context("the tree")?;
    let hour = hours("BTCUSDT", "2025-03-01");
    exchange.publish(&hour);
    exchange.fault("1m-2025-03-01.zip", Fault::Answer("500 Internal Server Error", ""), 99);
    let report = download(&project, 1, &["--to", "2025-03-01"])?;
    assert_eq!(counts(&report), [1, 0, 0, 1]);
    assert!(report.to_string().contains("1m-2025-03-01.zip the exchange answered 500"), "{report:#}");
    assert_landed(&project, &hour)
}

#[test]
fn a_killed_transfer_resumes_unless_the_archive_changed() -> Result<()> {
    let (mut project, exchange) = site("download-resume")?;
    project.set("download.intervals", "1m")?;
    let killed_amid = |spec: &ArchiveSpec| -> Result<usize> {
        exchange.publish(spec);
        exchange.fault(".zip", Fault::Slow(40, Duration::from_millis(50)), 1);
        let part = project.data_dir().join(format!("{}.part", spec.path()));
        let begun = || Ok(std::fs::metadata(&part).is_ok_and(|part| part.len() > 10_000));
        let mut process =
            project.start("uploader", &["download", "--from", "2025-03-01", "--to", "2025-03-01"], &[])?;
        project.wait_until("a part", SOON, begun)?;
        process.kill9()?;
        exchange.no_faults();
        assert!(on_disk(&project, &spec.path()).is_none());
        let len = std::fs::metadata(&part).context("the part")?.len();
        // Not what the killed one was being sent.
        project.wait_until("the end of that answer", SOON, || Ok(!exchange.asked().is_empty()))?;
        usize::try_from(len).context("a length")
    };
    let here = killed_amid(&large())?;
    assert_eq!(counts(&download(&project, 0, &["--to", "2025-03-01"])?), [1, 0, 0, 0]);
    assert_landed(&project, &large())?;
    let asked = exchange.asked();
    let [rest] = of_archives(&asked)[..] else { panic!("{asked:?}") };
    assert_eq!((rest.status, rest.bytes), (206, large().zip().len() - here));

    // Another archive of that name by now: nothing of the former one may be in it.
    std::fs::remove_dir_all(project.data_dir().join("data")).context("the tree")?;
    killed_amid(&large())?;
    let other = large().seed(1);
    exchange.publish(&other);
    assert_eq!(counts(&download(&project, 0, &["--to", "2025-03-01"])?), [1, 0, 0, 0]);
    assert_landed(&project, &other)?;

    // A part that is spoilt is found out by the checksum, and the archive begun anew.
    std::fs::remove_dir_all(project.data_dir().join("data")).context("the tree")?;
    killed_amid(&large())?;
    let part = project.data_dir().join(format!("{}.part", large().path()));
    let mut bytes = std::fs::read(&part).context("the part")?;
    bytes[5000] ^= 1;
    std::fs::write(&part, bytes).context("the part")?;
    assert_eq!(counts(&download(&project, 0, &["--to", "2025-03-01"])?), [1, 0, 0, 0]);
    assert_landed(&project, &large())
}

#[test]
fn an_archive_that_differs_from_its_checksum_is_not_stored() -> Result<()> {
    let (project, exchange) = site("download-checksums")?;
    let (spec, other) = (hours("BTCUSDT", "2025-03-01"), hours("BTCUSDT", "2025-03-02"));
    exchange.publish(&spec);
    exchange.publish(&other);
    exchange.put(&checksum_path(&spec), format!("{}  {}.zip", "0".repeat(64), spec.stem()).as_bytes());
    for _ in 0..2 {
        let report = download(&project, 1, &[])?;
        assert!(report.to_string().contains("does not match its .CHECKSUM at the exchange"), "{report:#}");
        assert!(on_disk(&project, &spec.path()).is_none());
        assert_landed(&project, &other)?;
    }
    exchange.publish(&spec);
    assert_eq!(counts(&download(&project, 0, &[])?), [1, 1, 0, 0]);
    assert_landed(&project, &spec)?;

    // A correction that is none leaves the good one where it is.
    exchange.put(&spec.path(), &spec.clone().seed(1).zip());
    assert_eq!(counts(&download(&project, 1, &[])?), [0, 1, 0, 1]);
    assert_landed(&project, &spec)?;
    exchange.publish(&spec.clone().seed(1));
    assert_eq!(counts(&download(&project, 0, &[])?), [1, 1, 0, 0]);
    assert_landed(&project, &spec.clone().seed(1))?;

    // An archive whose checksum is not out yet waits for it, and need not come twice.
    let late = hours("LATEUSDT", "2025-03-01");
    exchange.put(&late.path(), &late.zip());
    let args = ["--symbols", "LATEUSDT", "--to", "2025-03-01"];
    let report = download(&project, 1, &args)?;
    assert!(report.to_string().contains("without its .CHECKSUM"), "{report:#}");
    assert!(on_disk(&project, &late.path()).is_none());
    exchange.asked();
    exchange.put(&checksum_path(&late), format!("{}  {}.zip", sha256(&late.zip()), late.stem()).as_bytes());
    assert_eq!(counts(&download(&project, 0, &args)?), [1, 0, 0, 0]);
    assert_landed(&project, &late)?;
    assert!(exchange.asked().iter().all(|asked| asked.method == "HEAD" || asked.path.ends_with(".CHECKSUM")));
    Ok(())
}

#[test]
fn a_crash_while_storing_leaves_archive_and_checksum_consistent() -> Result<()> {
    let (project, exchange) = site("download-crash")?;
    let args = ["download", "--from", "2025-03-01", "--to", "2025-03-01"];
    exchange.publish(&hours("BTCUSDT", "2025-03-01"));
    project.uploader(&args)?.expect_code(0)?;
    for (seed, place) in [(1, "uploader.download_checksum_removed"), (2, "uploader.download_archive_landed")] {
        let spec = hours("BTCUSDT", "2025-03-01").seed(seed);
        exchange.publish(&spec);
        let died = project.start("uploader", &args, &[("FERRY_FAILPOINT", place)])?.wait(SOON)?;
        assert_eq!(died.code, None, "{}", died.stderr);
        assert!(on_disk(&project, &spec.path()).is_some() && on_disk(&project, &checksum_path(&spec)).is_none());
        exchange.asked();
        // Also where it is not asked any more whether there is another one.
        let healed = if seed == 1 { "9999" } else { "0" };
        download(&project, 0, &["--to", "2025-03-01", "--recheck-days", healed])?;
        assert_landed(&project, &spec)?;
        // All it still needed was that.
        let bytes: usize = exchange.asked().iter().map(|asked| asked.bytes).sum();
        assert!(bytes <= 2 * 100, "{bytes}");
    }
    Ok(())
}

#[test]
fn all_symbols_are_those_the_exchange_lists() -> Result<()> {
    let (mut project, exchange) = site("download-all")?;
    project.set("download.symbols", "all")?;
    let symbols = ["AUSDT", "BUSDT", "CUSDT", "DUSDT", "币安人生USDT"];
    for symbol in symbols {
        exchange.publish(&hours(symbol, "2025-03-01"));
    }
    exchange.put("data/spot/daily/klines/index.html", b"");
    assert_eq!(counts(&download(&project, 0, &["--to", "2025-03-01"])?), [5, 0, 0, 0]);
    for symbol in symbols {
        assert_landed(&project, &hours(symbol, "2025-03-01"))?;
    }
    let doctor = project.uploader(&["doctor"])?;
    assert!(doctor.stdout.contains("ok    exchange: it lists 5 symbols"), "{}", doctor.stdout);
    Ok(())
}

#[test]
fn a_wrong_setting_or_server_is_named_at_once() -> Result<()> {
    let (mut project, exchange) = site("download-wrong")?;
    exchange.publish(&hours("BTCUSDT", "2025-03-01"));
    for (args, message) in [
        (&["--symbols", "../BTCUSDT"][..], "cannot be a symbol"),
        (&["--from", "2025-03-02", "--to", "2025-03-01"], "lies after"),
        (&["--base-url", "http://user:hunter2@127.0.0.1"], "not supported"),
    ] {
        let refused = project.uploader(&[&["download"], args].concat())?.expect_code(2)?;
        assert!(refused.stderr.contains(message) && !refused.stderr.contains("hunter2"), "{}", refused.stderr);
    }
    let away = format!("http://127.0.0.1:{}", tests::servers::free_port());
    let finished = project.uploader(&["download", "--base-url", &away])?.expect_code(3)?;
    assert!(finished.stderr.contains("cannot be reached"), "{}", finished.stderr);
    // A tree that nothing can be written to.
    project.set("local.data_dir", "/proc")?;
    let finished = project.uploader(&["download"])?.expect_code(2)?;
    assert!(finished.stderr.contains("local.data_dir: /proc cannot be written"), "{}", finished.stderr);
    project.set("download.market", serde_json::json!([]))?;
    let refused = project.uploader(&["download"])?.expect_code(2)?;
    assert!(refused.stderr.contains("download.market"), "{}", refused.stderr);
    Ok(())
}

/// A day that the service looks at, whatever the hour.
pub(crate) fn days_ago(days: i64) -> String {
    let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
    today.saturating_sub(days.days()).to_string()
}

/// The whole way of a site that is left alone, and what the exchange does meanwhile.
#[test]
fn the_service_fetches_and_publishes() -> Result<()> {
    let (mut project, exchange) = site("download-watch")?;
    project.set("download.every", "1s")?;
    project.set("download.recheck_days", 3)?;
    project.set("watch.rescan", "1s")?;
    let hand = Handmade::new(Stack::shared(), &project)?;
    let first = hours("BTCUSDT", &days_ago(2));
    exchange.publish(&first);
    project.uploader(&["download", "--from", &days_ago(2)])?.expect_code(0)?;
    mark_all(project.data_dir())?;
    project.uploader(&["upload"])?.expect_code(0)?;
    assert_eq!(hand.markers()?.len(), 1);

    let mut service = project.spawn_uploader(&["watch"])?;
    let second = hours("BTCUSDT", &days_ago(1));
    exchange.publish(&second);
    project.wait_until("the second day", SOON, || Ok(on_disk(&project, &checksum_path(&second)).is_some()))?;
    mark_all(project.data_dir())?;
    project.wait_until("its marker", SOON, || Ok(hand.markers()?.len() == 2))?;
    // Published anew: a new revision, without anybody's doing.
    let corrected = second.clone().seed(1).generated_at(&Timestamp::now().to_string());
    exchange.publish(&corrected);
    project.wait_until("its correction's marker", SOON, || Ok(hand.markers()?.len() == 3))?;
    assert_landed(&project, &corrected)?;
    assert_eq!(service.metric("marketferry_uploader_download_archives_total{outcome=\"downloaded\"}")?, 2.0);

    // What the cleanup takes away stays away.
    project.uploader(&["upload", "--cleanup"])?.expect_code(0)?;
    assert_eq!(tests::data::archives(project.data_dir())?.len(), 0);
    exchange.asked();
    let mut heads = 0;
    let mut has_asked_anew = || {
        heads += exchange.asked().iter().filter(|asked| asked.method == "HEAD" && asked.status == 200).count();
        Ok(heads >= 4)
    };
    project.wait_until("the next check of the exchange", SOON, &mut has_asked_anew)?;
    assert_eq!(tests::data::archives(project.data_dir())?.len(), 0);

    // A disk that takes no more, by a limit on the size of files; then one that does.
    let limit = |soft: &str| -> Result<()> {
        let pid = service.pid().to_string();
        let status = std::process::Command::new("prlimit").args(["--pid", &pid, &format!("--fsize={soft}:")]).status();
        assert!(status.context("prlimit, of util-linux")?.success());
        Ok(())
    };
    limit("1000")?;
    let third = hours("BTCUSDT", &days_ago(3));
    exchange.publish(&third);
    project.wait_until("the reason", SOON, || Ok(service.stderr().contains("the disk of local.data_dir is full")))?;
    assert!(on_disk(&project, &third.path()).is_none());
    limit("unlimited")?;
    project.wait_until("the third day", SOON, || Ok(on_disk(&project, &checksum_path(&third)).is_some()))?;
    assert_landed(&project, &third)?;
    service.drain(SOON)?;
    Ok(())
}

/// The machine was off for three weeks, and some of what the exchange has was not there before.
#[test]
fn the_service_fetches_days_that_appear_late() -> Result<()> {
    let (mut project, exchange) = site("download-catch-up")?;
    project.set("download.every", "1s")?;
    project.set("download.recheck_days", 3)?;
    project.set("watch.rescan", "1s")?;
    let of = |day: i64| hours("BTCUSDT", &days_ago(day));
    let landed = |day: i64| on_disk(&project, &checksum_path(&of(day))).is_some();
    // Announced and cleaned up before.
    exchange.publish(&of(25));
    project.uploader(&["download", "--from", &days_ago(25), "--to", &days_ago(25)])?.expect_code(0)?;
    mark_all(project.data_dir())?;
    project.uploader(&["upload", "--cleanup"])?.expect_code(0)?;
    assert!(!landed(25));

    [2, 10, 20, 40].into_iter().for_each(|day| exchange.publish(&of(day)));
    // What it asked for days that nothing is published of.
    let asked_of = |asked: &[Asked], day: i64| asked.iter().filter(|asked| asked.path == of(day).path()).count();
    exchange.asked();
    let mut service = project.spawn_uploader(&["watch"])?;
    project.wait_until("the days that were missed", SOON, || Ok([2, 10, 20].into_iter().all(landed)))?;
    let mut asked = exchange.asked();
    project.wait_until("later runs", SOON, || {
        asked.extend(exchange.asked());
        Ok(asked_of(&asked, 1) >= 4)
    })?;
    let times = [15, 25, 30, 31, 40].map(|day| asked_of(&asked, day));
    assert_eq!(times, [1, 0, 1, 0, 0], "once a day, no further back, and not what was cleaned up");

    // Published late, and found by whoever looks next.
    exchange.publish(&of(15));
    service.drain(SOON)?;
    let mut service = project.spawn_uploader(&["watch"])?;
    project.wait_until("the late one", SOON, || Ok(landed(15)))?;
    service.drain(SOON)?;
    assert!(!landed(25) && !landed(40));
    Ok(())
}

/// Otherwise whoever answers for the exchange could make this machine ask any server that it reaches.
#[test]
fn a_redirect_to_another_server_is_not_followed() -> Result<()> {
    let (project, exchange) = site("redirect")?;
    let elsewhere = Exchange::start()?;
    for day in ["2025-03-01", "2025-03-02"] {
        exchange.publish(&hours("BTCUSDT", day));
        elsewhere.publish(&hours("BTCUSDT", day));
    }
    let path = hours("BTCUSDT", "2025-03-01").path();
    let location = format!("Location: {}/{path}\r\n", elsewhere.url());
    exchange.fault(&path, Fault::Answer("302 Found", location.leak()), usize::MAX);
    let report = download(&project, 1, &[])?;
    assert_eq!(counts(&report), [1, 0, 0, 1], "{report}");
    assert!(report.to_string().contains("a redirect to another server"), "{report}");
    assert!(elsewhere.asked().is_empty(), "{:?}", elsewhere.asked());
    Ok(())
}
