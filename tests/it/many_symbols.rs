//! A unit of as many symbols as README promises: its list is in the manifest, and queries name all of them.

use tests::data::{ArchiveSpec, Market, mark_all};
use tests::project::Project;
use tests::servers::Stack;
use tests::{Context, Result};

const SYMBOLS: usize = 20_000;
const CORRECTED: usize = 5_000;

fn spec(number: usize) -> ArchiveSpec {
    ArchiveSpec::new(Market::Spot, &format!("SYMBOL{number:05}USDT"), "12h", "2025-03-01")
}

#[test]
fn a_unit_of_twenty_thousand_symbols_is_published_loaded_and_corrected() -> Result<()> {
    let mut project = Project::new(Stack::shared(), "many-symbols")?;
    project.set("corrections.shrink_limit", 0.6)?;
    let write = |spec: ArchiveSpec| spec.write_unchecked(project.data_dir(), &spec.zip()).map(drop);
    (0..SYMBOLS).try_for_each(|number| write(spec(number)))?;
    mark_all(project.data_dir())?;
    project.uploader(&["upload"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    assert_eq!(project.archives_loaded()?, SYMBOLS as u64);

    // One of two rows is gone from each: what is left of the former ones is found among all symbols.
    for number in (0..SYMBOLS).rev().take(CORRECTED) {
        write(spec(number).seed(1).missing([1]).generated_at("2025-03-05T00:00:00Z"))?;
    }
    project.uploader(&["upload"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    project.check_tables(35_000)?;
    let rows = project.query("SELECT count() FROM {db}.klines_latest")?;
    assert_eq!(rows.trim().parse::<usize>().context("a count")?, 2 * SYMBOLS - CORRECTED);
    project.puller(&["verify"])?.expect_code(0).map(drop)
}
