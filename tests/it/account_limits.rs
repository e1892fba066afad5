//! Limits of a ClickHouse account: one that is too low is named and waited for, and causes no dead letter; one that would
//! change an answer is overridden.

use std::time::Duration;

use tests::data::{ArchiveSpec, Market, mark_all};
use tests::project::Project;
use tests::servers::{ClickHouse, Stack};
use tests::{Context, Failure, Result};

use crate::handmade::Handmade;
use crate::scenario::{SOON, is_checked};

/// Two units of one day each, of two months.
fn upload_day(project: &Project, day: usize) -> Result<()> {
    for month in ["2025-01", "2025-02"] {
        for symbol in ["BTCUSDT", "ETHUSDT", "BNBUSDT", "SOLUSDT"] {
            ArchiveSpec::new(Market::Spot, symbol, "1m", &format!("{month}-{day:02}")).write(project.data_dir())?;
        }
    }
    mark_all(project.data_dir())?;
    project.uploader(&["upload"])?.expect_code(0).map(drop)
}

#[test]
fn a_limit_of_the_account_is_named_and_spends_no_attempt() -> Result<()> {
    let mut stack = Stack::own()?;
    let mut project = Project::new(&stack, "limits")?;
    project.set("puller.group.linger", "200ms")?;
    project.puller(&["migrate"])?.expect_code(0)?;
    project.set("clickhouse.user", ClickHouse::LIMITED)?;
    let fixed = |name: &str, value: &str| {
        format!("<{name}>{value}</{name}><constraints><{name}><const/></{name}></constraints>")
    };
    let breaks = "<max_rows_to_read>5000</max_rows_to_read><read_overflow_mode>break</read_overflow_mode>";
    let queries = "<interval><duration>86400</duration><queries>12</queries></interval>";
    let mut archives = 0;
    for (number, (profile, quota, named)) in [
        ("<max_rows_to_read>5000</max_rows_to_read>", "", "max_rows_to_read"),
        (breaks, "", "max_rows_to_read"),
        ("<max_bytes_to_read>300000</max_bytes_to_read>", "", "max_bytes_to_read"),
        ("<max_result_rows>3</max_result_rows>", "", "max_result_rows"),
        ("<max_memory_usage>100000</max_memory_usage>", "", "max_memory_usage"),
        ("<readonly>1</readonly>", "", "readonly"),
        (&fixed("use_query_cache", "1"), "", "use_query_cache"),
        (&fixed("async_insert", "1"), "", "async_insert"),
        ("", queries, "quota"),
    ]
    .into_iter()
    .enumerate()
    {
        stack.clickhouse.limit(profile, quota)?;
        upload_day(&project, number + 1)?;
        let mut worker = project.spawn_puller(&["run"])?;
        project
            .wait_until(&format!("a worker that names {named}"), SOON, || Ok(worker.is_not_ready_for(&[named])))
            .map_err(|failure| Failure::new(format!("{profile}{quota}: {failure}\n{}", worker.stderr())))?;
        let doctor = project.puller(&["doctor", "--json"])?.expect_code(4)?.json()?;
        assert!(is_checked(&doctor, named), "{profile}{quota}: {doctor:#}");
        // Some tries more, and nothing is spent.
        std::thread::sleep(Duration::from_secs(2));
        stack.clickhouse.limit("", "")?;
        archives += 8;
        project
            .wait_for_archives(archives, SOON)
            .map_err(|failure| Failure::new(format!("{profile}{quota}: {failure}\n{}", worker.stderr())))?;
        worker.drain(SOON)?;
        let spent = project.query("SELECT count() FROM {db}.ingest_log WHERE outcome IN ('retry', 'dead_letter')")?;
        assert_eq!(spent.trim(), "0", "{profile}{quota}");
    }
    let hand = Handmade::new(&stack, &project)?;
    assert_eq!(hand.dead_letters()?.len(), 0);
    project.check_tables(103_680)
}

/// Doctor alone: to wait until a statement runs into these would take too much data or time.
#[test]
fn doctor_names_a_limit_that_larger_units_would_exceed() -> Result<()> {
    let mut stack = Stack::own()?;
    let mut project = Project::new(&stack, "low-limits")?;
    project.puller(&["migrate"])?.expect_code(0)?;
    project.set("clickhouse.user", ClickHouse::LIMITED)?;
    project.puller(&["doctor"])?.expect_code(0)?;
    let low = [
        ("max_execution_time", "10"),
        ("max_result_bytes", "1000000"),
        ("max_rows_to_group_by", "100000"),
        ("max_rows_in_set", "1000"),
        ("max_ast_elements", "5000"),
        ("max_partitions_per_insert_block", "10"),
        ("max_memory_usage", "500000000"),
    ];
    let profile: String = low.iter().map(|(name, value)| format!("<{name}>{value}</{name}>")).collect();
    stack.clickhouse.limit(&profile, "")?;
    let doctor = project.puller(&["doctor"])?.expect_code(4)?;
    for (name, value) in low {
        assert!(doctor.stdout.contains(&format!("{name} = {value}")), "{name}: {}", doctor.stdout);
    }
    Ok(())
}

#[test]
fn a_profile_that_would_change_answers_is_overridden() -> Result<()> {
    let mut stack = Stack::own()?;
    let mut project = Project::new(&stack, "odd-profile")?;
    project.puller(&["migrate"])?.expect_code(0)?;
    project.set("clickhouse.user", ClickHouse::LIMITED)?;
    let odd = [
        ("use_query_cache", "1"),
        ("query_cache_min_query_runs", "0"),
        ("query_cache_nondeterministic_function_handling", "save"),
        ("query_cache_system_table_handling", "save"),
        ("async_insert", "1"),
        ("wait_for_async_insert", "0"),
        ("async_insert_busy_timeout_max_ms", "60000"),
        ("async_insert_busy_timeout_min_ms", "60000"),
        ("final", "1"),
        ("limit", "1"),
        ("empty_result_for_aggregation_by_empty_set", "1"),
    ];
    let profile: String = odd.iter().map(|(name, value)| format!("<{name}>{value}</{name}>")).collect();
    stack.clickhouse.limit(&profile, "")?;
    for day in 1..=2 {
        upload_day(&project, day)?;
        project.puller(&["pull"])?.expect_code(0)?;
        project.check_tables(11_520)?;
        project.puller(&["verify"])?.expect_code(0)?;
    }
    project.puller(&["doctor"])?.expect_code(0)?;
    // Also a command that only looks sees what is there now.
    let attempts = |expected: usize| -> Result<()> {
        let history = project.puller(&["history", "--json"])?.expect_code(0)?;
        let shown = history.stdout.matches("\"stream_sequence\"").count();
        assert_eq!(shown, expected, "{}", history.stdout);
        Ok(())
    };
    attempts(4)?;
    upload_day(&project, 3)?;
    project.puller(&["pull"])?.expect_code(0)?;
    attempts(6).context("history after another pull")
}
