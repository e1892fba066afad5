//! An object key belongs to one unit: an archive of another market is not loaded, whatever a marker says.

use serde_json::{Value, json};
use tests::data::{ArchiveSpec, Market, archives, sha256};
use tests::project::Project;
use tests::servers::Stack;
use tests::{Context, Result};

use crate::handmade::{Handmade, Placed};

fn spec(market: Market, day: usize) -> ArchiveSpec {
    ArchiveSpec::new(market, "BTCUSDT", "1h", &format!("2025-03-{day:02}"))
}

/// Publishes a marker whose list is in its manifest.
fn publish_manifest(hand: &Handmade<'_>, unit: &str, objects: &[Placed]) -> Result<()> {
    let mut marker = hand.marker(unit, objects);
    let manifest = marker.to_string();
    let revision = marker["revision"].as_str().unwrap_or_default().to_owned();
    let key = format!("{}/_markers/{unit}/{revision}.json", hand.project.prefix());
    hand.put(&key, manifest.as_bytes())?;
    marker["objects"] = Value::Null;
    marker["manifest"] = json!({ "key": key, "sha256": sha256(manifest.as_bytes()) });
    hand.publish(unit, marker.to_string().as_bytes())
}

#[test]
fn an_archive_of_another_market_is_refused() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "foreign-keys")?;
    let copy = project.dir().join("copy");
    std::fs::create_dir_all(&copy).context("a folder")?;
    project.set("destinations", json!([{ "name": "files", "type": "directory", "path": copy }]))?;
    let hand = Handmade::new(stack, &project)?;
    let place = |market, day| -> Result<Placed> { hand.place(&spec(market, day), &spec(market, day).zip()) };
    // The file names are those of the unit.
    hand.publish_marker(&spec(Market::Um, 1).unit(), &[place(Market::Spot, 1)?])?;
    publish_manifest(&hand, &spec(Market::Um, 2).unit(), &[place(Market::Spot, 2)?])?;
    for market in [Market::Spot, Market::Um, Market::Cm] {
        hand.publish_marker(&spec(market, 3).unit(), &[place(market, 3)?])?;
        publish_manifest(&hand, &spec(market, 4).unit(), &[place(market, 4)?])?;
    }

    let pull = project.puller(&["pull", "--json"])?.expect_code(1)?.json()?;
    for destination in 0..2 {
        assert_eq!(pull["destinations"][destination]["archives"], 6, "{pull:#}");
    }
    let letters = hand.dead_letters()?;
    assert_eq!(letters.len(), 4, "{letters:#?}");
    for letter in &letters {
        assert_eq!(letter.class, "refused", "{}", letter.error);
        assert!(letter.error.contains("…/data/futures/um/daily/klines/BTCUSDT/1h/"), "{}", letter.error);
    }
    assert_eq!(archives(&copy)?.len(), 6);
    let days = format!(
        "SELECT market, toDate(open_time) AS day, count() FROM {}.klines_latest GROUP BY ALL ORDER BY ALL FORMAT TSV",
        project.database()
    );
    let expected: String = ["cm", "spot", "um"]
        .iter()
        .flat_map(|market| (3..=4).map(move |day| format!("{market}\t2025-03-{day:02}\t24\n")))
        .collect();
    assert_eq!(project.query(&days)?.trim(), expected.trim());
    Ok(())
}
