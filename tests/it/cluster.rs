//! Three NATS servers with replicas: leaders that die or freeze under load lose nothing and stop nobody.

use std::time::Duration;

use serde_json::{Value, json};
use tests::data::{ArchiveSpec, Market, mark_all};
use tests::project::Project;
use tests::servers::{Nats, RunDir, Stack};
use tests::{Context, Failure, Result, http};

use crate::scenario::{SOON, is_drained, status};

#[derive(Clone, Copy)]
enum Leader {
    OfMarkers,
    OfIngestConsumer,
}

/// Which server leads, as any of them knows.
fn leader(servers: &[Nats], of: Leader) -> Result<usize> {
    for server in servers {
        let Ok(text) = http::get_text(server.monitor(), "/jsz?accounts=true&streams=true&consumers=true") else {
            continue;
        };
        let jsz: Value = serde_json::from_str(&text).context("/jsz")?;
        let streams = jsz["account_details"].as_array().into_iter().flatten();
        let streams = streams.flat_map(|account| account["stream_detail"].as_array().into_iter().flatten());
        for stream in streams.filter(|stream| stream["name"] == "MARKERS") {
            let name = match of {
                Leader::OfMarkers => &stream["cluster"]["leader"],
                Leader::OfIngestConsumer => {
                    let consumers = stream["consumer_detail"].as_array().into_iter().flatten();
                    let found = consumers.into_iter().find(|consumer| consumer["name"] == "backfill-primary");
                    found.map_or(&Value::Null, |consumer| &consumer["cluster"]["leader"])
                }
            };
            if let Some(index) = servers.iter().position(|server| name == server.name()) {
                return Ok(index);
            }
        }
    }
    Err(Failure::new("nobody knows a leader"))
}

#[test]
fn leaders_that_die_under_load_lose_no_marker() -> Result<()> {
    let dir = RunDir::new("cluster")?;
    let mut servers = Nats::start_cluster(dir.path())?;
    let mut project = Project::new(Stack::shared(), "cluster")?;
    let account = servers[0].account()?;
    project.set("nats.url", json!(servers.iter().map(Nats::url).collect::<Vec<_>>()))?;
    project.set("nats.user", account.user)?;
    project.set("nats.password", account.password)?;
    project.set("nats.replicas", 3)?;
    project.set("puller.ack_wait", "3s")?;
    project.set("retry.attempts", 24)?;
    project.puller(&["migrate"])?.expect_code(0)?;

    let _workers = [project.spawn_puller(&["run"])?, project.spawn_puller(&["run"])?];
    let mut days = 0;
    for of in [Leader::OfMarkers, Leader::OfIngestConsumer] {
        for _ in 0..6 {
            days += 1;
            for symbol in ["AAAUSDT", "BBBUSDT"] {
                ArchiveSpec::new(Market::Spot, symbol, "1m", &format!("2025-03-{days:02}"))
                    .write(project.data_dir())?;
            }
        }
        mark_all(project.data_dir())?;
        let mut uploader = project.start("uploader", &["upload"], &[])?;
        let killed = leader(&servers, of)?;
        servers[killed].kill()?;
        let uploaded = uploader.wait(SOON)?;
        // Announcing may take longer than an election; then the next run goes on.
        if uploaded.code != Some(0) {
            project.wait_until("everything announced", SOON, || Ok(project.uploader(&["upload"])?.code == Some(0)))?;
        }
        project.wait_for_archives(2 * days, SOON)?;
        servers[killed].restart()?;
    }
    // While another server is elected, nobody answers.
    project.wait_until("an empty queue", SOON, || Ok(is_drained(&project).unwrap_or(false)))?;
    assert_eq!(status(&project, "primary")?["dead"], 0);
    project.check_tables(34_560)
}

/// A server that is frozen keeps its connections open, and answers nothing: another one leads, and everybody goes on.
#[test]
fn a_frozen_leader_stops_nobody() -> Result<()> {
    let dir = RunDir::new("frozen")?;
    let mut servers = Nats::start_cluster(dir.path())?;
    let mut project = Project::new(Stack::shared(), "frozen")?;
    let account = servers[0].account()?;
    project.set("nats.url", json!(servers.iter().map(Nats::url).collect::<Vec<_>>()))?;
    project.set("nats.user", account.user)?;
    project.set("nats.password", account.password)?;
    project.set("nats.replicas", 3)?;
    project.set("puller.ack_wait", "4s")?;
    project.set("puller.slots", 1)?;
    project.set("retry.attempts", 24)?;
    project.puller(&["migrate"])?.expect_code(0)?;
    let announce = |days: std::ops::RangeInclusive<u32>| -> Result<()> {
        for day in days {
            let at = format!("2025-{:02}-{:02}", 1 + day / 28, 1 + day % 28);
            for symbol in ["AAAUSDT", "BBBUSDT", "CCCUSDT"] {
                ArchiveSpec::new(Market::Spot, symbol, "15m", &at).write(project.data_dir())?;
            }
        }
        mark_all(project.data_dir())?;
        project.uploader(&["upload"])?.expect_code(0).map(drop)
    };
    announce(0..=119)?;
    let frozen = leader(&servers, Leader::OfIngestConsumer)?;
    let mut workers = Vec::new();
    for _ in 0..4 {
        workers.push(project.spawn_puller(&["run"])?);
    }
    project.wait_until("some progress", SOON, || Ok(project.archives_loaded()? > 0))?;
    servers[frozen].signal("STOP")?;
    let loaded = project.archives_loaded()?;
    let gone_on = project.wait_for_archives(360, Duration::from_secs(60));
    servers[frozen].signal("CONT")?;
    assert!(loaded < 240, "the backlog must be there while the leader is not: {loaded}");
    gone_on?;
    // Idle ones too.
    let frozen = leader(&servers, Leader::OfMarkers)?;
    servers[frozen].signal("STOP")?;
    std::thread::sleep(Duration::from_secs(20));
    servers[frozen].signal("CONT")?;
    announce(120..=127)?;
    project.wait_for_archives(384, Duration::from_secs(15))?;
    let restarted = "marketferry_puller_pull_restarts_total{destination=\"primary\"}";
    for worker in &mut workers {
        assert_eq!(worker.metric(restarted)?, 0.0);
        worker.drain(SOON)?;
    }
    project.check_tables(36_864)
}
