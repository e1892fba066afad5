//! Three NATS servers, R3: the leaders die under load.

use std::time::Duration;

use serde_json::{Value, json};
use tests::data::{ArchiveSpec, Market, mark_all};
use tests::project::Project;
use tests::servers::{Nats, RunDir, Stack};
use tests::{Context, Failure, Result, http};

const SOON: Duration = Duration::from_secs(120);

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
fn leaders_die_under_load() -> Result<()> {
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
    project.wait_until("an empty queue", SOON, || {
        let status = project.puller(&["status", "--json"])?;
        let Ok(status) = status.expect_code(0).and_then(|status| status.json()) else { return Ok(false) };
        Ok(["pending", "in_hand", "parked"].iter().all(|key| status["destinations"][0][key] == 0)
            && status["destinations"][0]["dead"] == 0)
    })?;
    project.check_tables()
}
