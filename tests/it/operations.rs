//! Health, metrics, logs and doctor: how an operator learns what is wrong.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use tests::project::{Project, Service};
use tests::servers::Stack;
use tests::{Context, Failure, Result, http};

use crate::scenario::{SOON, assert_units, btc, is_checked, march, setting, upload, write};

#[test]
fn silent_clients_are_disconnected_from_the_endpoint() -> Result<()> {
    let project = Project::new(Stack::shared(), "silent")?;
    let watcher = project.spawn_uploader(&["watch"])?;
    let served = || http::get(watcher.http(), "/livez").is_ok_and(|response| response.status == 200);
    project.wait_until("the endpoint", SOON, || Ok(served()))?;
    let files = || Ok::<_, Failure>(std::fs::read_dir(format!("/proc/{}/fd", watcher.pid())).context("fd")?.count());
    let before = files()?;
    // Nothing at all, and half of a request.
    let mut silent = Vec::new();
    for text in ["", "GET /metrics HTTP/1.1\r\nHost: a\r\n"].iter().cycle().take(200) {
        let mut connection = TcpStream::connect(watcher.http()).context("connecting")?;
        connection.write_all(text.as_bytes()).context("writing")?;
        connection.set_read_timeout(Some(SOON)).context("a time-out")?;
        silent.push(connection);
    }
    assert!(files()? <= before + 40, "{} files are open, {before} before", files()?);
    let first = silent.iter_mut().next().ok_or_else(|| Failure::new("no connection"))?;
    let begun = Instant::now();
    assert_eq!(first.read(&mut [0]).context("reading")?, 0, "it was answered");
    assert!(begun.elapsed() < Duration::from_secs(10), "closed after {:?}", begun.elapsed());
    // All the silent ones come before it, and have their time.
    project.wait_until("an answer", SOON, || Ok(served()))
}

#[test]
fn a_service_reports_health_and_metrics() -> Result<()> {
    let project = Project::new(Stack::shared(), "health")?;
    write(&project, [march(1), march(2)])?;
    project.uploader(&["upload"])?.expect_code(0)?;
    let mut worker = project.spawn_puller(&["run"])?;
    project.wait_for_archives(2, Duration::from_secs(30))?;
    assert_eq!(http::get(worker.http(), "/livez")?.status, 200);
    assert_eq!(http::get(worker.http(), "/readyz")?.status, 200);
    worker.wait_for_metric(r#"marketferry_puller_rows_inserted_total{destination="primary"}"#, SOON, |rows| {
        rows == 48.0
    })?;
    assert_eq!(worker.metric(r#"marketferry_puller_deliveries_total{destination="primary",outcome="loaded"}"#)?, 2.0);
    assert_eq!(
        worker.metric(r#"marketferry_puller_stage_duration_seconds_count{destination="primary",stage="fetch"}"#)?,
        2.0
    );

    let status = project.puller(&["status", "--json"])?.expect_code(0)?.json()?;
    assert_eq!(status["destinations"][0]["workers"].as_array().map(Vec::len), Some(1), "{status}");
    assert!(status["destinations"][0]["last_loaded"].is_string(), "{status}");
    assert!(status["destinations"][0]["oldest_unfinished"].is_null(), "{status}");
    let text = project.puller(&["status"])?.expect_code(0)?.stdout;
    assert!(text.contains("DESTINATION") && text.contains("primary"), "{text}");
    let listen = worker.http().to_string();
    let healthcheck = |args: &[&str]| {
        project.start("puller", args, &[("FERRY__HTTP__LISTEN", &listen)])?.wait(Duration::from_secs(30))
    };
    assert_eq!(healthcheck(&["healthcheck"])?.expect_code(0)?.stdout, "ready\n");
    assert_eq!(healthcheck(&["healthcheck", "--live"])?.expect_code(0)?.stdout, "alive\n");
    worker.drain(Duration::from_secs(30))?;
    let gone = healthcheck(&["healthcheck"])?.expect_code(1)?;
    assert!(gone.stderr.contains("nothing listens on"), "{}", gone.stderr);

    let mut watcher = project.spawn_uploader(&["watch"])?;
    project.wait_until("a ready uploader", Duration::from_secs(30), || Ok(watcher.is_ready()))?;
    assert_eq!(http::get(watcher.http(), "/livez")?.status, 200);
    assert_eq!(watcher.metric(r#"marketferry_uploader_units_total{outcome="unchanged"}"#)?, 2.0);
    watcher.drain(Duration::from_secs(30))?;
    Ok(())
}

/// A server that is away stops pulling, spends no attempt and is waited for.
#[test]
fn a_server_that_is_away_is_named_and_spends_no_attempt() -> Result<()> {
    let mut stack = Stack::own()?;
    let project = Project::new(&stack, "away")?;
    write(&project, [march(1), march(2)])?;
    project.puller(&["migrate"])?.expect_code(0)?;
    project.uploader(&["upload"])?.expect_code(0)?;

    stack.clickhouse.stop()?;
    let mut worker = project.spawn_puller(&["run"])?;
    let reason = |service: &Service, part: &str| Ok(service.is_not_ready_for(&[part]));
    project.wait_until("the reason", Duration::from_secs(30), || reason(&worker, "ClickHouse at"))?;
    stack.clickhouse.restart()?;
    project.wait_for_archives(2, Duration::from_secs(60))?;

    // The bucket goes away with a marker pending.
    let mut worker = {
        worker.drain(Duration::from_secs(30))?;
        upload(&project, [btc("2025-03-03")])?;
        stack.s3.stop()?;
        project.spawn_puller(&["run"])?
    };
    project.wait_until("the reason", Duration::from_secs(60), || reason(&worker, "storage.r2.endpoint"))?;
    stack.s3.restart()?;
    project.wait_for_archives(3, Duration::from_secs(60))?;

    // NATS goes away while both services are idle.
    let mut watcher = project.spawn("uploader", &["watch"], &[])?;
    let services = [&worker, &watcher];
    project.wait_until("both services", Duration::from_secs(60), || Ok(services.into_iter().all(Service::is_ready)))?;
    stack.nats.kill()?;
    for service in services {
        project.wait_until("the reason", Duration::from_secs(30), || reason(service, "nats: not connected for"))?;
    }
    stack.nats.restart()?;
    project.wait_until("both services", Duration::from_secs(30), || Ok(services.into_iter().all(Service::is_ready)))?;
    watcher.drain(Duration::from_secs(30))?;
    upload(&project, [btc("2025-03-04")])?;
    project.wait_for_archives(4, Duration::from_secs(60))?;
    worker.drain(Duration::from_secs(30))?;
    let attempts = format!("SELECT max(attempt) FROM {}.ingest_log WHERE outcome = 'loaded'", project.database());
    assert_eq!(project.query(&attempts)?.trim(), "1");
    project.check_tables(96)
}

#[test]
fn doctor_names_each_wrong_setting() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "doctor")?;
    write(&project, [march(1), march(2)])?;
    let untouched = project.puller(&["doctor"])?.expect_code(4)?;
    assert!(untouched.stdout.contains("run `puller migrate`"), "{}", untouched.stdout);
    project.puller(&["migrate"])?.expect_code(0)?;
    for finished in [project.puller(&["doctor", "--json"])?, project.uploader(&["doctor", "--json"])?] {
        let report = finished.expect_code(0)?.json()?;
        let checks = report["checks"].as_array().map_or(0, Vec::len);
        assert!(checks >= 3, "{report}");
    }
    let endpoint = stack.s3.endpoint();
    for (key, value, message) in [
        ("storage.r2.bucket", "no-such-bucket", "there is no bucket of that name"),
        ("storage.r2.secret_access_key", "wrong", "check storage.r2.access_key_id"),
        ("storage.r2.endpoint", &format!("{endpoint}/{}", stack.s3.bucket()), "carries the name of the bucket"),
        ("storage.r2.endpoint", "http://127.0.0.1:9", "check storage.r2.endpoint and the network"),
    ] {
        let before = setting(&project, key);
        project.set(key, value)?;
        for finished in [project.puller(&["doctor", "--json"])?, project.uploader(&["doctor", "--json"])?] {
            let doctor = finished.expect_code(4)?.json()?;
            assert!(is_checked(&doctor, message), "{key}: {doctor:#}");
        }
        project.set(key, before)?;
    }
    for (key, value, message) in [
        ("clickhouse.password", "wrong", "check clickhouse.user and password"),
        ("clickhouse.port", "9", "check clickhouse.host and port"),
        ("nats.password", "wrong", "check the NATS user and password"),
    ] {
        let before = setting(&project, key);
        project.set(key, value)?;
        let doctor = project.puller(&["doctor", "--json"])?.expect_code(4)?.json()?;
        assert!(is_checked(&doctor, message), "{key}: {doctor:#}");
        project.set(key, before)?;
    }
    project.set("local.data_dir", "/nonexistent/archives")?;
    let doctor = project.uploader(&["doctor", "--json"])?.expect_code(4)?.json()?;
    assert!(is_checked(&doctor, "/nonexistent/archives"), "{doctor:#}");
    Ok(())
}

#[test]
fn wrong_usage_and_settings_exit_with_2() -> Result<()> {
    let mut project = Project::new(Stack::shared(), "exit-codes")?;
    write(&project, [march(1), march(2)])?;
    project.uploader(&["--nonsense"])?.expect_code(2)?;
    project.puller(&["pull", "--max-wait", "soon"])?.expect_code(2)?;
    for binary in ["puller", "uploader"] {
        let args = ["doctor", "--config-only"];
        let report = project.start(binary, &args, &[])?.wait(Duration::from_secs(30))?.expect_code(0)?.stdout;
        assert!(report.contains("ok    storage: bucket") && !report.contains("FAIL"), "{report}");
        let missing = [("FERRY_REQUIRED", "R2_BUCKET SITE_DIR"), ("FERRY__LOCAL__DATA_DIR", "/nonexistent")];
        let report = project.start(binary, &args, &missing)?.wait(Duration::from_secs(30))?.expect_code(2)?.stderr;
        assert!(report.contains("SITE_DIR: is not set (put it into .env)"), "{report}");
    }
    project.set("puller.slotz", 3)?;
    project.set("retry.attempts", 99)?;
    for finished in [project.puller(&["status"])?, project.uploader(&["upload"])?] {
        let finished = finished.expect_code(2)?;
        assert!(
            finished.stderr.contains("puller.slotz: unknown key; did you mean puller.slots?"),
            "{}",
            finished.stderr
        );
        assert!(finished.stderr.contains("retry.attempts: 99 is not between 1 and 24"), "{}", finished.stderr);
    }
    Ok(())
}

#[test]
fn archives_uploaded_without_the_queue_are_announced_later() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "no-queue")?;
    write(&project, [march(1), march(2)])?;
    let url = setting(&project, "nats.url");
    project.set("nats.url", "nats://127.0.0.1:9")?;
    project.set("publish.timeout", "1s")?;
    project.puller(&["pull"])?.expect_code(3)?;
    let uploaded = project.uploader(&["upload", "--json"])?.expect_code(3)?;
    assert_units(&uploaded.json()?, &[("unannounced", 2)]);
    project.set("nats.url", url)?;
    let announced = project.uploader(&["upload", "--json"])?.expect_code(0)?.json()?;
    assert_units(&announced, &[("published", 2)]);
    assert_eq!(announced["archives"]["uploaded"], 0, "{announced:#}");
    project.puller(&["pull"])?.expect_code(0)?;
    project.check_tables(48)
}

#[test]
fn dry_runs_change_nothing() -> Result<()> {
    let project = Project::new(Stack::shared(), "dry-run")?;
    write(&project, [march(1), march(2)])?;
    let plan = project.uploader(&["upload", "--dry-run"])?.expect_code(0)?;
    assert!(plan.stdout.contains("binance/spot/klines/1h/2025-03-01"), "{}", plan.stdout);
    project.uploader(&["adopt", "--dry-run"])?.expect_code(0)?;
    let nothing = project.puller(&["pull", "--dry-run", "--json"])?.expect_code(0)?.json()?;
    assert_eq!(nothing["findings"].as_array().map(Vec::len), Some(0), "{nothing}");
    let status = || -> Result<String> {
        let status = project.puller(&["status", "--json"])?.expect_code(4)?.json()?;
        Ok(status["error"]["text"].as_str().unwrap_or_default().to_owned())
    };
    // No stream was made, and later no consumer.
    let before = status()?;
    assert!(before.contains("stream MARKERS") && !before.contains("ingest-primary"), "{before}");
    project.uploader(&["upload"])?.expect_code(0)?;
    for _ in 0..2 {
        let pending = project.puller(&["pull", "--dry-run", "--json"])?.expect_code(0)?.json()?;
        assert_eq!(pending["findings"].as_array().map(Vec::len), Some(2), "{pending}");
        assert_eq!(pending["findings"][0]["archives"], 1);
        assert!(status()?.contains("ingest-primary"), "{}", status()?);
    }
    project.puller(&["pull"])?.expect_code(0)?;
    project.check_tables(48)
}

#[test]
fn logs_are_structured_and_hold_no_secret() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "logs")?;
    let logs = project.dir().join("logs");
    project.set("local.log_dir", logs.to_str().unwrap_or_default())?;
    project.set("log.format", "json")?;
    project.set("log.level", "debug")?;
    write(&project, [march(1), march(2)])?;
    let uploaded = project.uploader(&["upload"])?.expect_code(0)?;
    let pulled = project.puller(&["pull"])?.expect_code(0)?;
    let mut text = format!("{}{}", uploaded.stderr, pulled.stderr);
    for line in text.lines() {
        serde_json::from_str::<serde_json::Value>(line).context(line)?;
    }
    let mut files = 0;
    for entry in std::fs::read_dir(&logs).context("the log folder")? {
        text.push_str(&std::fs::read_to_string(entry.context("an entry")?.path()).context("a log file")?);
        files += 1;
    }
    assert_eq!(files, 2, "one file a binary and day");
    for secret in [
        stack.s3.credentials().secret_access_key.as_str(),
        // It opens nothing by itself, and says whose account it is.
        stack.s3.credentials().access_key_id.as_str(),
        stack.clickhouse.password(),
        project.account().password.as_str(),
    ] {
        assert!(!secret.is_empty() && !text.contains(secret));
    }
    Ok(())
}

/// An upgrade goes table first, workers after: those of the version before go on with what the next one added.
#[test]
fn a_worker_loads_into_a_newer_schema() -> Result<()> {
    let project = Project::new(Stack::shared(), "newer-schema")?;
    project.puller(&["migrate"])?.expect_code(0)?;
    let database = project.database();
    for table in ["klines", "archives", "ingest_log"] {
        // With a default, anywhere among the columns: all that a migration may do to a table that is in use.
        let change = "ADD COLUMN added_later String DEFAULT 'none', ADD COLUMN added_first UInt8 DEFAULT 7 FIRST";
        project.query(&format!("ALTER TABLE `{database}`.{table} {change}"))?;
    }
    project.query(&format!("INSERT INTO `{database}`.schema_migrations (version) VALUES (1000)"))?;
    write(&project, [march(1), march(2)])?;
    project.uploader(&["upload"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    project.check_tables(48)?;
    // It does not undo what it does not know, and calls nothing wrong.
    project.puller(&["migrate"])?.expect_code(0)?;
    project.puller(&["doctor"])?.expect_code(0)?;
    let newest = project.query(&format!("SELECT max(version) FROM `{database}`.schema_migrations"))?;
    assert_eq!(newest.trim(), "1000");
    assert_eq!(project.query(&format!("SELECT DISTINCT added_later FROM `{database}`.klines"))?.trim(), "none");
    project.puller(&["verify"])?.expect_code(0)?;
    Ok(())
}
