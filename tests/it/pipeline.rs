//! Archives of every kind become rows, by one worker or several.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tests::data::{ArchiveSpec, Market, mark_all};
use tests::project::Project;
use tests::servers::Stack;
use tests::{Context, Result};

use crate::handmade::Handmade;
use crate::scenario::{SOON, btc, is_drained, upload};

/// Every kind of archive there is, in every form it comes in.
fn write_everything(data_dir: &Path) -> Result<()> {
    use Market::{Cm, Spot, Um};
    for symbol in ["BTCUSDT", "1000SATSUSDT", "币安人生USDT"] {
        for interval in ["1m", "1h", "1d"] {
            ArchiveSpec::new(Spot, symbol, interval, "2024-12-31").write(data_dir)?;
            ArchiveSpec::new(Spot, symbol, interval, "2025-01-01").write(data_dir)?;
            ArchiveSpec::new(Um, symbol, interval, "2025-01-01").write(data_dir)?;
        }
        ArchiveSpec::new(Spot, symbol, "1h", "2024-12").seed(3).write(data_dir)?;
        ArchiveSpec::new(Um, symbol, "1mo", "2025-01").write(data_dir)?;
        ArchiveSpec::new(Spot, symbol, "1w", "2025-01").write(data_dir)?;
    }
    for dataset in ["markPriceKlines", "indexPriceKlines", "premiumIndexKlines"] {
        ArchiveSpec::new(Um, "BTCUSDT", "1m", "2025-01-01").dataset(dataset).write(data_dir)?;
    }
    ArchiveSpec::new(Cm, "BTCUSD_PERP", "1m", "2025-01-01").write(data_dir)?;
    ArchiveSpec::new(Cm, "BTCUSD_PERP", "1m", "2025-01-02").header(false).write(data_dir)?;
    ArchiveSpec::new(Um, "ETHUSDT", "1m", "2025-01-02").header(false).crlf().write(data_dir)?;
    ArchiveSpec::new(Spot, "ETHUSDT", "1m", "2025-01-02").crlf().natural_decimals().write(data_dir)?;
    ArchiveSpec::new(Spot, "GAPUSDT", "1m", "2025-01-02").missing(100..400).write(data_dir)?;
    ArchiveSpec::new(Spot, "EARLYUSDT", "1h", "2025-01-02").rows_at_most(3).write(data_dir)?;
    Ok(())
}

#[test]
fn archives_of_every_kind_are_loaded_value_for_value() -> Result<()> {
    let project = Project::new(Stack::shared(), "every-kind")?;
    write_everything(project.data_dir())?;
    for stray in ["data/spot/daily/klines/BTCUSDT/1h/notes.txt", "data/spot/daily/klines/BTCUSDT/1h/BTCUSDT-1h.zip.tmp"]
    {
        std::fs::write(project.data_dir().join(stray), b"not an archive").context(stray)?;
    }
    let units = mark_all(project.data_dir())?.len();
    let uploaded = project.uploader(&["upload"])?.expect_code(0)?;
    let pulled = project.puller(&["pull"])?.expect_code(0)?;
    assert!(pulled.stdout.contains(&format!("{units} units")), "{}{}", uploaded.stdout, pulled.stdout);
    project.check_tables(26_583)?;
    let column = |sql: &str| project.query(&sql.replace("{db}", project.database()));
    let gap = "SELECT rows, expected_rows, missing_rows FROM {db}.archives FINAL WHERE symbol IN ('GAPUSDT', 'EARLYUSDT') \
               ORDER BY symbol FORMAT TSV";
    assert_eq!(column(gap)?.trim(), "3\t24\t21\n1140\t1440\t300");
    let coverage = "SELECT countIf(state = 'complete'), countIf(state = 'partial') FROM {db}.coverage FORMAT TSV";
    let archives =
        column("SELECT count() FROM {db}.archives FINAL FORMAT TSV")?.trim().parse::<u64>().context("a count")?;
    assert_eq!(column(coverage)?.trim(), format!("{}\t2", archives - 2));
    Ok(())
}

/// The genuine archives when they lie beside the repository, else generated ones of the same kinds.
fn source() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    beside.join("data").is_dir().then_some(beside)
}

/// A data_dir that shows the source's tree and has marks of its own.
fn show(data_dir: &Path) -> Result<()> {
    match source() {
        Some(source) => std::os::unix::fs::symlink(source.join("data"), data_dir.join("data")).context("a link")?,
        None => write_everything(data_dir)?,
    }
    mark_all(data_dir).map(drop)
}

#[test]
fn the_whole_tree_is_loaded_and_a_second_run_does_nothing() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "whole-tree")?;
    show(project.data_dir())?;
    project.uploader(&["upload"])?.expect_code(0)?;
    let hand = Handmade::new(stack, &project)?;
    let markers = hand.markers()?.len();
    project.puller(&["pull"])?.expect_code(0)?;
    project.check_tables(26_583)?;
    let attempts = || project.query(&format!("SELECT count() FROM {}.ingest_log", project.database()));
    let before = attempts()?;

    let started = Instant::now();
    let again = project.uploader(&["upload"])?.expect_code(0)?;
    assert!(again.stdout.contains("nothing to do"), "{}", again.stdout);
    let again = project.puller(&["pull"])?.expect_code(0)?;
    assert!(again.stdout.contains("nothing to do"), "{}", again.stdout);
    // No speed test: a run that did everything again would take far longer.
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    assert_eq!(hand.markers()?.len(), markers);
    assert_eq!(attempts()?, before);
    project.check_tables(26_583)
}

#[test]
fn four_workers_make_the_tables_of_one_and_a_killed_one_leaves_no_trace() -> Result<()> {
    let project = Project::new(Stack::shared(), "four-workers")?;
    show(project.data_dir())?;
    project.uploader(&["upload"])?.expect_code(0)?;
    let mut killed = project.spawn_puller(&["run"])?;
    project.wait_until("the first archives", Duration::from_secs(60), || Ok(project.archives_loaded()? > 0))?;
    killed.kill9()?;

    let workers = (0..4).map(|_| project.spawn_puller(&["run"])).collect::<Result<Vec<_>>>()?;
    // Its lease has to end before another worker gets what the killed one held.
    project.wait_until("an empty queue", Duration::from_secs(180), || is_drained(&project))?;
    for mut worker in workers {
        worker.drain(Duration::from_secs(30))?;
    }
    project.check_tables(26_583)
}

#[test]
fn no_ingest_stores_archives_as_files_and_changes_no_other() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "mirror")?;
    write_everything(project.data_dir())?;
    mark_all(project.data_dir())?;
    project.uploader(&["upload"])?.expect_code(0)?;
    let source = project.data_dir().to_owned();
    let copy = project.dir().join("copy");
    std::fs::create_dir_all(&copy).context("a folder")?;
    project.set("local.data_dir", copy.to_str().unwrap_or_default())?;
    project.puller(&["migrate"])?.expect_code(0)?;

    project.puller(&["pull", "--no-ingest"])?.expect_code(0)?;
    let mut count = 0;
    for archive in tests::data::archives(&source)? {
        let read = |root: &Path| std::fs::read(root.join(&archive.key)).context(&archive.key);
        assert_eq!(read(&source)?, read(&copy)?, "{}", archive.key);
        count += 1;
    }
    assert_eq!(tests::data::archives(&copy)?.len(), count);
    // The ClickHouse destination has not moved.
    let status = project.puller(&["status", "--json"])?.expect_code(0)?.json()?;
    assert_eq!(status["destinations"][0]["destination"], "primary");
    assert!(status["destinations"][0]["pending"].as_u64() > Some(0), "{status}");
    let again = project.puller(&["pull", "--no-ingest"])?.expect_code(0)?;
    assert!(again.stdout.contains("nothing to do"), "{}", again.stdout);
    project.puller(&["pull"])?.expect_code(0)?;
    project.set("local.data_dir", source.to_str().unwrap_or_default())?;
    project.check_tables(26_583)
}

/// A marker that comes while a pull has been open for a while is taken by that pull, and is not lost with it.
#[test]
fn an_idle_worker_loads_a_new_marker_at_once() -> Result<()> {
    let project = Project::new(Stack::shared(), "idle")?;
    let mut worker = project.spawn_puller(&["run"])?;
    upload(&project, [btc("2025-03-01")])?;
    project.wait_for_archives(1, SOON)?;
    let idle = Instant::now();
    project.wait_until("an idle time", SOON, || Ok(idle.elapsed() > Duration::from_secs(7)))?;
    upload(&project, [btc("2025-03-02")])?;
    project.wait_for_archives(2, Duration::from_secs(5))?;
    assert_eq!(project.query("SELECT max(attempt) FROM {db}.ingest_log")?.trim(), "1");
    worker.drain(SOON).map(drop)
}
