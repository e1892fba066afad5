//! `explain` and `history`: the state of a unit, and its attempts.

use serde_json::{Value, json};
use tests::Result;
use tests::project::Project;
use tests::servers::Stack;

use crate::handmade::{Handmade, Placed};
use crate::scenario::{btc, upload};

#[test]
fn history_lists_attempts_newest_first() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "history")?;
    let hand = Handmade::new(stack, &project)?;
    let nothing = project.puller(&["history"])?.expect_code(0)?;
    assert!(nothing.stdout.contains("nothing was tried"), "{}", nothing.stdout);
    let absent = Placed::of(&project, &btc("2025-03-01"), &btc("2025-03-01").zip());
    hand.publish_marker(&btc("2025-03-01").unit(), std::slice::from_ref(&absent))?;
    project.puller(&["pull"])?.expect_code(1)?;
    upload(&project, [btc("2025-03-02")])?;
    project.puller(&["pull"])?.expect_code(0)?;

    let outcomes = |args: &[&str]| -> Result<Vec<String>> {
        let rows = project.puller(&[&["history", "--json"], args].concat())?.expect_code(0)?.json()?;
        Ok(rows["findings"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|row| row["state"].as_str().unwrap_or("?").to_owned())
            .collect())
    };
    assert_eq!(outcomes(&[])?, ["loaded", "dead_letter", "retry", "retry"]);
    assert_eq!(outcomes(&["--failed"])?, ["dead_letter", "retry", "retry"]);
    assert_eq!(outcomes(&["--limit", "1"])?, ["loaded"]);
    assert_eq!(outcomes(&["binance/spot/klines/1h/2025-03-02"])?, ["loaded"]);
    assert_eq!(outcomes(&["binance/spot", "--limit", "2"])?, ["loaded", "dead_letter"]);
    project.puller(&["history", "binance/um"])?.expect_code(4)?;
    let text = project.puller(&["history", "--failed"])?.expect_code(0)?.stdout;
    assert!(text.contains("OUTCOME") && text.contains("missing: "), "{text}");
    project.puller(&["history", "--destination", "elsewhere"])?.expect_code(2)?;
    project.puller(&["history", "a/b/c/d/e/f"])?.expect_code(2)?;
    Ok(())
}

#[test]
fn explain_names_the_state_of_a_unit() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "explain")?;
    let hand = Handmade::new(stack, &project)?;
    let unit = btc("2025-03-01").unit();
    let explain = |code, state: &str, words: &str| -> Result<Value> {
        let text = project.puller(&["explain", &unit])?.expect_code(code)?.stdout;
        let first = text.lines().next().unwrap_or_default();
        assert!(first.starts_with(&unit) && first.contains(words), "{text}");
        let json = project.puller(&["explain", &unit, "--json"])?.expect_code(code)?.json()?;
        assert_eq!(json["destinations"][0]["state"], state, "{json}");
        Ok(json)
    };
    project.puller(&["explain", "binance/um"])?.expect_code(2)?;
    explain(4, "unknown", "never announced")?;
    let placed = Placed::of(&project, &btc("2025-03-01"), &btc("2025-03-01").zip());
    hand.publish_marker(&unit, std::slice::from_ref(&placed))?;
    let pending = explain(4, "pending", "waits to be delivered")?;
    assert_eq!(pending["destinations"][0]["missing"][0]["object_key"], json!(placed.key));
    assert_eq!(pending["marker"]["archives"], 1);
    project.puller(&["pause"])?.expect_code(0)?;
    explain(4, "pending", "primary is paused")?;
    project.puller(&["resume"])?.expect_code(0)?;

    project.puller(&["pull"])?.expect_code(1)?;
    let dead = explain(4, "dead", "puller dead show 1")?;
    assert_eq!(dead["destinations"][0]["attempts"].as_array().map(Vec::len), Some(3), "{dead}");
    assert_eq!(dead["destinations"][0]["messages"][0]["standing"], "acknowledged", "{dead}");
    project.puller(&["dead", "discard", "1", "--reason", "to see what is said"])?.expect_code(0)?;
    explain(4, "not_loaded", "nobody is going to load the rest")?;

    hand.put(&placed.key, &btc("2025-03-01").zip())?;
    hand.publish_marker(&unit, &[placed])?;
    project.puller(&["pull"])?.expect_code(0)?;
    let loaded = explain(0, "loaded", "primary has its only archive, verified")?;
    assert_eq!(loaded["destinations"][0]["attempts"][0]["state"], "loaded", "{loaded}");
    Ok(())
}
