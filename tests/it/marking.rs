//! `uploader mark`: a mark is written only for a unit that has archives.

use tests::Result;
use tests::data::{ArchiveSpec, Market};
use tests::project::Project;
use tests::servers::Stack;

use crate::scenario::{SOON, hours};

fn marks(project: &Project) -> Result<Vec<String>> {
    let mut names: Vec<String> = std::fs::read_dir(project.data_dir())
        .map_err(|error| tests::Failure::new(error.to_string()))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("_SUCCESS"))
        .collect();
    names.sort();
    Ok(names)
}

#[test]
fn units_with_archives_are_marked_and_published_and_others_refused() -> Result<()> {
    let project = Project::new(Stack::shared(), "marking")?;
    for day in ["2025-03-01", "2025-03-02", "2025-03-03"] {
        hours("AAAUSDT", day).write(project.data_dir())?;
    }
    ArchiveSpec::new(Market::Um, "AAAUSDT", "1h", "2025-03-01").write(project.data_dir())?;
    project.puller(&["migrate"])?.expect_code(0)?;

    // A mark is somebody's word: it is not given for everything by default, nor for what is not there.
    project.uploader(&["mark"])?.expect_code(2)?;
    project.uploader(&["mark", "--market", "futures"])?.expect_code(2)?;
    project.uploader(&["mark", "--market", "cm"])?.expect_code(4)?;
    project.uploader(&["mark", "binance/spot/klines/1h/2025-03-01", "--dry-run"])?.expect_code(0)?;
    assert!(marks(&project)?.is_empty());
    let refused = project.uploader(&["mark", "binance/spot/klines/1h/2025-03-09", "--json"])?.expect_code(1)?.json()?;
    assert_eq!((&refused["refused"], &refused["findings"][0]["state"]), (&1.into(), &"refused".into()), "{refused}");
    let error = &refused["error"];
    assert_eq!((&error["class"], &error["text"]), (&"failed".into(), &"1 unit refused".into()), "{refused}");

    // A word that does not exist is not taken for the nearest one.
    for unit in ["kraken/spot/klines/1h/2025-03-01", "binance/swap/klines/1h/2025-03-01"] {
        let refused = project.uploader(&["mark", unit, "binance/spot/klines/1h/2025-03-01"])?.expect_code(2)?;
        assert!(refused.stderr.contains("did you mean"), "{}", refused.stderr);
    }
    assert!(marks(&project)?.is_empty());

    let both = ["mark", "binance/spot/klines/1h/2025-03-01", "binance/um/klines/1h/2025-03-01", "--json"];
    let marked = project.uploader(&both)?.expect_code(0)?.json()?;
    assert_eq!(marked["marked"], 2, "{marked}");
    assert_eq!(marks(&project)?, ["_SUCCESS__2025-03-01__spot__1h", "_SUCCESS__2025-03-01__um__1h"]);

    let rest = ["mark", "--market", "spot", "--from", "2025-03-01", "--json"];
    let marked = project.uploader(&rest)?.expect_code(0)?.json()?;
    assert_eq!((&marked["marked"], &marked["already_marked"]), (&2.into(), &1.into()), "{marked}");
    assert_eq!(marks(&project)?.len(), 4);

    project.uploader(&["upload"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    project.check_tables(96)?;

    // Where archives alone count, nobody reads the marks.
    let when = [("FERRY__PUBLISH__WHEN", "complete")];
    let args = ["mark", "--market", "um", "--json"];
    let marked = project.start("uploader", &args, &when)?.wait(SOON)?.expect_code(0)?;
    assert_eq!(marked.json()?["ignored"], true);
    let marked = project.start("uploader", &args[..3], &when)?.wait(SOON)?.expect_code(0)?;
    assert!(marked.stdout.contains("publish.when is complete"), "{}", marked.stdout);
    Ok(())
}
