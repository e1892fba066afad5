//! A fault that has passed when a small question is asked is nobody's: the unit is tried once more before it is blamed.

use tests::Result;
use tests::data::ArchiveSpec;
use tests::project::Project;
use tests::proxy::{Act, Fault};
use tests::servers::Stack;

use crate::handmade::Handmade;
use crate::scenario::{DENIED, TOO_MUCH_MEMORY, btc, proxy_of_bucket, proxy_of_clickhouse};

fn spec() -> ArchiveSpec {
    btc("2025-03-01")
}

/// Loads one unit through a fault that is met so many times; returns how its attempts ended, sorted.
fn attempts(label: &str, words: &[&str], times: u64, act: Act) -> Result<String> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, label)?;
    let bucket = proxy_of_bucket(&mut project, stack)?;
    let clickhouse = proxy_of_clickhouse(&mut project, stack)?;
    let hand = Handmade::new(stack, &project)?;
    let placed = hand.place(&spec(), &spec().zip())?;
    hand.publish_marker(&spec().unit(), &[placed])?;
    let fault = Fault::with_words(words, times, act);
    for proxy in [&bucket, &clickhouse] {
        proxy.set(fault.clone());
    }
    project.puller(&["pull"])?.expect_code(0)?;
    assert_eq!(bucket.met() + clickhouse.met(), times, "{label}");
    assert_eq!(project.archives_loaded()?, 1);
    let attempts = "SELECT arrayStringConcat(arraySort(groupArray(outcome)), ' ') FROM {db}.ingest_log";
    Ok(project.query(attempts)?.trim().to_owned())
}

#[test]
fn an_object_refused_with_all_others_spends_no_attempt() -> Result<()> {
    // A refused request is made twice: by the short way, and by the library.
    assert_eq!(attempts("passing-403", &["GET ", "BTCUSDT-1h"], 2, DENIED)?, "loaded");
    // And once more for a second fault, which is the object's own.
    assert_eq!(attempts("lasting-403", &["GET ", "BTCUSDT-1h"], 4, DENIED)?, "loaded retry");
    Ok(())
}

#[test]
fn a_query_that_fails_with_all_others_spends_no_attempt() -> Result<()> {
    let words = ["cityHash64", "BTCUSDT"];
    assert_eq!(attempts("passing-241", &words, 1, TOO_MUCH_MEMORY)?, "loaded");
    assert_eq!(attempts("lasting-241", &words, 2, TOO_MUCH_MEMORY)?, "loaded retry");
    Ok(())
}
