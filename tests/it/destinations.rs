//! Several destinations: each with its own progress, and none delays another.

use std::time::Duration;

use serde_json::json;
use tests::data::{ArchiveSpec, Market, mark_all};
use tests::project::Project;
use tests::proxy::Proxy;
use tests::servers::Stack;
use tests::truth::Truth;
use tests::{Context, Result};

use crate::handmade::Handmade;
use crate::scenario::{btc, listed_letters, loopback, upload};

fn clickhouse(stack: &Stack, name: &str, database: &str) -> serde_json::Value {
    json!({
        "name": name, "type": "clickhouse", "host": stack.clickhouse.host(), "port": stack.clickhouse.port(),
        "database": database, "user": stack.clickhouse.user(), "password": stack.clickhouse.password(),
    })
}

#[test]
fn a_destination_that_is_down_delays_no_other() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "destinations")?;
    let copy = project.dir().join("copy");
    std::fs::create_dir_all(&copy).context("a folder")?;
    let second = format!("{}_second", project.database());
    let mut down = clickhouse(stack, "down", "nowhere");
    down["port"] = json!(9);
    let files = json!({ "name": "files", "type": "directory", "path": copy });
    project.set("destinations", json!([clickhouse(stack, "second", &second), files, down]))?;
    upload(&project, ["2025-03-01", "2025-03-02"].map(btc))?;

    let worker = project.spawn_puller(&["run"])?;
    project.wait_for_archives(2, Duration::from_secs(60))?;
    let truth = Truth::of_tree(project.data_dir())?;
    project.wait_until("the second database", Duration::from_secs(60), || {
        Ok(truth.compare_ledger(project.sql(), &second, project.prefix()).is_ok())
    })?;
    truth.compare_rows(project.sql(), &second, 48)?;
    project.wait_until("the files", Duration::from_secs(60), || Ok(tests::data::archives(&copy)?.len() == 2))?;
    project.check_tables(48)?;
    // One server of four is away, which the exit code says.
    let status = project.puller(&["status", "--json"])?.expect_code(3)?.json()?;
    let pending: Vec<_> = (0..4).map(|index| status["destinations"][index]["pending"].as_u64()).collect();
    assert_eq!(pending, [Some(0), Some(0), Some(0), Some(2)], "{status}");
    drop(worker);

    // A destination that goes leaves a consumer that doctor names and `migrate --prune` removes.
    project.set("destinations", json!([]))?;
    let doctor = project.puller(&["doctor"])?.expect_code(4)?;
    assert!(doctor.stdout.contains("ingest-down") && doctor.stdout.contains("--prune"), "{}", doctor.stdout);
    project.puller(&["migrate", "--prune"])?.expect_code(0)?;
    project.puller(&["doctor"])?.expect_code(0).map(drop)
}

/// Somebody's folder where an archive belongs: that archive is a dead letter, the others are kept.
#[test]
fn a_folder_in_an_archives_place_delays_no_other_destination() -> Result<()> {
    let mut project = Project::new(Stack::shared(), "in-the-way")?;
    let copy = project.dir().join("copy");
    let blocked = btc("2025-03-02");
    std::fs::create_dir_all(copy.join(blocked.path())).context("a folder")?;
    project.set("clickhouse", json!({}))?;
    project.set("destinations", json!([{ "name": "files", "type": "directory", "path": copy }]))?;
    upload(&project, ["2025-03-01", "2025-03-02", "2025-03-03"].map(btc))?;
    let pull = project.puller(&["pull", "--json"])?.expect_code(1)?.json()?;
    let files = &pull["destinations"][0];
    assert_eq!((&files["archives"], &files["dead_letters"]), (&json!(2), &json!(1)), "{pull:#}");
    assert_eq!(listed_letters(&project, &[])?[0]["unit"], blocked.unit());
    std::fs::remove_dir(copy.join(blocked.path())).context("removing the folder")?;
    project.puller(&["dead", "retry", "--all"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    assert_eq!(tests::data::archives(&copy)?.len(), 3);
    Ok(())
}

#[test]
fn a_new_destination_loads_its_initial_days() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "initial-days")?;
    upload(&project, ["2019-01-01", "2025-03-01"].map(btc))?;
    project.puller(&["pull"])?.expect_code(0)?;
    // `primary` has everything.
    project.check_tables(48)?;

    let second = format!("{}_second", project.database());
    let mut destination = clickhouse(stack, "second", &second);
    destination["initial_days"] = json!(2000);
    project.set("destinations", json!([destination]))?;
    // What a pull passes over is said, before and after.
    let planned = project.puller(&["pull", "--dry-run", "--json"])?.expect_code(0)?.json()?;
    let planned_of = |day: &str| {
        let mut findings = planned["findings"].as_array().into_iter().flatten();
        findings.find(|found| found["from"] == day).map(|found| found["state"].clone())
    };
    assert_eq!((planned_of("2019-01-01"), planned_of("2025-03-01")), (Some(json!("too_old")), Some(json!("queued"))));
    assert_eq!(planned["destinations"][1]["too_old"], 1, "{planned:#}");
    let planned = project.puller(&["pull", "--dry-run"])?.expect_code(0)?.stdout;
    assert!(planned.contains("second: 2 markers pending, 1 of them older than initial_days"), "{planned}");
    let pulled = project.puller(&["pull", "--json"])?.expect_code(0)?.json()?;
    let second_of = |figure: &str| &pulled["destinations"][1][figure];
    assert_eq!((second_of("units"), second_of("too_old"), second_of("archives")), (&json!(2), &json!(1), &json!(1)));
    let periods = format!("SELECT period FROM {second}.archives FINAL ORDER BY period FORMAT TSV");
    assert_eq!(project.query(&periods)?.trim(), "2025-03-01");
    // What it does not want is not missing, and `verify --fix` does not load it.
    let verify = project.puller(&["verify", "--fix", "--destination", "second", "--json"])?.expect_code(0)?.json()?;
    let archives = &verify["destinations"][0]["archives"];
    assert_eq!((&archives["too_old"], &archives["not_loaded"]), (&json!(1), &json!(0)), "{verify}");
    assert_eq!(verify["destinations"][0]["replays_sent"], 0, "{verify}");
    let explain =
        project.puller(&["explain", "binance/spot/klines/1h/2019-01-01", "--json"])?.expect_code(0)?.json()?;
    assert_eq!(explain["destinations"][1]["state"], "too_old", "{explain}");
    // What is announced from now on comes whatever its period, and the rest when it is asked for.
    upload(&project, ["2018-01-01"].map(btc))?;
    project.puller(&["pull"])?.expect_code(0)?;
    assert_eq!(project.query(&periods)?.trim(), "2018-01-01\n2025-03-01");
    project.puller(&["replay", "--destination", "second"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    Truth::of_tree(project.data_dir())?.compare_ledger(project.sql(), &second, project.prefix())
}

/// What is known of one destination is told, whatever cannot be asked of another; the exit code says that something cannot.
#[test]
fn an_unreachable_destination_hides_no_answer_of_the_others() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "others-answers")?;
    upload(&project, ["2025-03-01", "2025-03-03"].map(btc))?;
    project.puller(&["pull"])?.expect_code(0)?;
    // No server, and no consumers either.
    let mut down = clickhouse(stack, "down", "nowhere");
    down["port"] = json!(9);
    project.set("nats.manage", false)?;
    project.set("destinations", json!([down]))?;
    let unit = "binance/spot/klines/1h/2025-03-01";
    let ask = |args: &[&str], code: i32| project.puller(&[args, &["--json"]].concat())?.expect_code(code)?.json();
    let status = ask(&["status"], 3)?;
    assert_eq!((&status["destinations"][0]["pending"], &status["destinations"][0]["error"]), (&json!(0), &json!(null)));
    assert_eq!(status["destinations"][1]["error"]["class"], "unreachable", "{status}");
    let explain = ask(&["explain", unit], 3)?;
    assert_eq!(explain["destinations"][0]["state"], "loaded", "{explain}");
    assert_eq!(explain["destinations"][1]["error"]["class"], "unreachable", "{explain}");
    let gaps = ask(&["gaps"], 3)?;
    assert_eq!(gaps["findings"][0]["from"], "2025-03-02", "{gaps}");
    let verify = ask(&["verify"], 3)?;
    assert_eq!(verify["destinations"][0]["archives"]["verified"], 2, "{verify}");
    assert_eq!(verify["destinations"][1]["error"]["class"], "unreachable", "{verify}");
    assert_eq!(ask(&["history"], 3)?["findings"].as_array().map(Vec::len), Some(2));
    let dry = ask(&["pull", "--dry-run"], 4)?;
    assert_eq!(
        (&dry["destinations"][0]["pending"], &dry["destinations"][1]["error"]["class"]),
        (&json!(0), &json!("missing"))
    );
    for command in ["pause", "resume"] {
        assert_eq!(ask(&[command], 4)?["destinations"][0]["destination"], "primary");
    }
    // Where only the server is away, the queue is asked all the same.
    let migrate = ask(&["migrate"], 3)?;
    assert_eq!(migrate["destinations"][0]["destination"], "primary", "{migrate}");
    let explain = ask(&["explain", unit], 3)?;
    assert_eq!(explain["destinations"][1]["messages"][0]["standing"], "pending", "{explain}");
    Ok(())
}

/// Durables are made anew, by people and by programs: what was announced meanwhile is no history.
#[test]
fn units_announced_while_consumers_were_gone_are_loaded() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "consumers-anew")?;
    let second = format!("{}_second", project.database());
    let copy = project.dir().join("copy");
    std::fs::create_dir_all(&copy).context("a folder")?;
    let mut database = clickhouse(stack, "second", &second);
    database["initial_days"] = json!(2000);
    let files = json!({ "name": "files", "type": "directory", "path": copy, "initial_days": 2000 });
    upload(&project, ["2019-01-01"].map(btc))?;
    project.set("destinations", json!([database, files]))?;
    project.puller(&["pull"])?.expect_code(0)?;
    let periods = |expected: &str| -> Result<()> {
        let sql = format!("SELECT period FROM {second}.archives FINAL ORDER BY period FORMAT TSV");
        assert_eq!(project.query(&sql)?.trim(), expected, "in the database");
        let stored = if copy.join("data").exists() { tests::data::archives(&copy)?.len() } else { 0 };
        assert_eq!(stored, expected.lines().count(), "in the folder");
        Ok(())
    };
    periods("")?;

    // Tables are dated to the second.
    std::thread::sleep(Duration::from_millis(1_100));
    // Announced, and not delivered yet. Of the database's durables none is left, of the folder's one.
    upload(&project, ["2018-01-01"].map(btc))?;
    let hand = Handmade::new(stack, &project)?;
    let durables = [
        ("MARKERS", "ingest-second"),
        ("MARKERS", "backfill-second"),
        ("REPLAYS", "replay-second"),
        ("MARKERS", "ingest-files"),
        ("MARKERS", "backfill-files"),
    ];
    for (stream, durable) in durables {
        hand.act(async |jetstream| {
            jetstream.delete_consumer_from_stream(durable, stream).await.map(drop).context("deleting a consumer")
        })?;
    }
    project.puller(&["pull"])?.expect_code(0)?;
    periods("2018-01-01")?;

    // On a stream that was lost everything is announced again, history too.
    hand.delete_stream("MARKERS")?;
    project.puller(&["migrate"])?.expect_code(0)?;
    project.uploader(&["reconcile", "--fix"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    periods("2018-01-01")
}

#[test]
fn rows_and_answers_are_compressed_where_configured() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "compression")?;
    let server = loopback(stack.clickhouse.port());
    let (plain, packed) = (Proxy::start(server)?, Proxy::start(server)?);
    let second = format!("{}_second", project.database());
    let mut destination = clickhouse(stack, "second", &second);
    destination["port"] = json!(packed.address().port());
    destination["compression"] = json!("lz4");
    project.set("clickhouse.port", plain.address().port())?;
    project.set("destinations", json!([destination]))?;
    for number in 0..200 {
        let symbol = format!("S{number:03}USDT");
        let interval = if number < 20 { "1m" } else { "1d" };
        ArchiveSpec::new(Market::Spot, &symbol, interval, "2025-03-01").write(project.data_dir())?;
    }
    mark_all(project.data_dir())?;
    project.uploader(&["upload"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    project.check_tables(28_980)?;
    let truth = Truth::of_tree(project.data_dir())?;
    truth.compare_rows(project.sql(), &second, 28_980)?;
    truth.compare_ledger(project.sql(), &second, project.prefix())?;
    let (sent, sent_packed) = (plain.asked_bytes(), packed.asked_bytes());
    assert!(sent_packed < sent * 6 / 10, "{sent_packed} bytes instead of {sent}");

    // Answers: what the ledger says of 180 archives.
    let (before, before_packed) = (plain.reply_bytes(), packed.reply_bytes());
    project.puller(&["verify"])?.expect_code(0)?;
    let (answers, answers_packed) = (plain.reply_bytes() - before, packed.reply_bytes() - before_packed);
    assert!(answers_packed < answers * 9 / 10, "{answers_packed} bytes instead of {answers}");

    project.set("clickhouse.compression", "zip")?;
    let refused = project.puller(&["pull"])?.expect_code(2)?;
    assert!(refused.stderr.contains("clickhouse.compression: 'zip' is not one of: none, lz4"), "{}", refused.stderr);
    Ok(())
}
