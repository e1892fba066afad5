//! The servers of the harness: they start, answer, keep their data over a restart and a kill, and stop.

use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use aws_sdk_s3::primitives::ByteStream;
use tests::process::{Process, Program};
use tests::servers::{Account, ClickHouse, Nats, RunDir, S3, Stack};
use tests::{Context, Result};

#[tokio::test(flavor = "multi_thread")]
async fn nats_keeps_its_streams_over_a_restart_and_a_kill() -> Result<()> {
    let dir = RunDir::new("nats")?;
    let mut server = Nats::start(dir.path())?;
    let account = server.account()?;
    let port = server.port();
    let stream = async_nats::jetstream::stream::Config {
        name: "KEPT".into(),
        subjects: vec!["kept".into()],
        ..Default::default()
    };
    create(&account, stream).await?;
    publish(&account, "one").await?;

    server.restart()?;
    assert_eq!(server.port(), port);
    publish(&account, "two").await?;

    server.kill()?;
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "a killed server answers");
    server.restart()?;
    let jetstream = jetstream(&account).await?;
    let stream = jetstream.get_stream("KEPT").await.context("getting the stream")?;
    assert_eq!(stream.cached_info().state.messages, 2);

    server.stop()?;
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "a stopped server answers");
    Ok(())
}

/// Not by the URL: async-nats 0.51 leaves the credentials in one unused.
async fn jetstream(account: &Account) -> Result<async_nats::jetstream::Context> {
    let options = async_nats::ConnectOptions::with_user_and_password(account.user.clone(), account.password.clone());
    Ok(async_nats::jetstream::new(options.connect(&account.url).await.context("connecting")?))
}

async fn create(account: &Account, stream: async_nats::jetstream::stream::Config) -> Result<()> {
    let jetstream = jetstream(account).await?;
    jetstream.create_stream(stream).await.context("creating a stream")?;
    Ok(())
}

async fn publish(account: &Account, payload: &'static str) -> Result<()> {
    // Held until the end: the connection goes with it.
    let jetstream = jetstream(account).await?;
    let ack = jetstream.publish("kept", payload.into()).await.context("publishing")?;
    ack.await.context("the acknowledgement")?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_of_one_nats_server_do_not_see_each_others_streams() -> Result<()> {
    let stack = Stack::shared();
    let mut names = Vec::new();
    for _ in 0..2 {
        let account = stack.nats.account()?;
        let jetstream = jetstream(&account).await?;
        let stream = async_nats::jetstream::stream::Config {
            name: "SAME".into(),
            subjects: vec!["same".into()],
            ..Default::default()
        };
        let created = jetstream.create_stream(stream).await.context("creating a stream")?;
        assert_eq!(created.cached_info().state.messages, 0, "somebody else's stream");
        jetstream.publish("same", "x".into()).await.context("publishing")?.await.context("the acknowledgement")?;
        names.push(account.user);
    }
    assert_ne!(names[0], names[1]);
    Ok(())
}

#[test]
fn clickhouse_keeps_its_tables_over_a_restart_and_a_kill() -> Result<()> {
    let dir = RunDir::new("clickhouse")?;
    let mut server = ClickHouse::start(dir.path())?;
    let port = server.port();
    server.query("CREATE DATABASE kept")?;
    server.query("CREATE TABLE kept.numbers (number UInt64) ENGINE = MergeTree ORDER BY number")?;
    server.query("INSERT INTO kept.numbers SELECT number FROM numbers(1000)")?;

    server.restart()?;
    assert_eq!(server.port(), port);
    assert_eq!(server.query("SELECT count() FROM kept.numbers")?, "1000\n");

    server.kill()?;
    assert!(server.query("SELECT 1").is_err(), "a killed server answers");
    server.restart()?;
    assert_eq!(server.query("SELECT sum(number) FROM kept.numbers")?, "499500\n");

    let unknown = server.query("SELECT * FROM kept.nothing").expect_err("there is no such table");
    assert!(unknown.to_string().contains("UNKNOWN_TABLE"), "{unknown}");

    server.stop()?;
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "a stopped server answers");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_keeps_its_objects_over_a_restart_and_refuses_a_wrong_secret() -> Result<()> {
    let dir = RunDir::new("s3")?;
    let mut server = S3::start(dir.path())?;
    let (client, bucket, endpoint) = (server.client(), server.bucket(), server.endpoint());
    let put = client.put_object().bucket(bucket).key("a/币安.zip").metadata("sha256", "abc");
    put.body(ByteStream::from_static(b"content")).send().await.map_err(|e| format!("{e:?}")).context("putting")?;

    server.restart()?;
    assert_eq!(server.endpoint(), endpoint);
    let got = client.get_object().bucket(bucket).key("a/币安.zip").send().await.context("getting")?;
    assert_eq!(got.metadata().and_then(|metadata| metadata.get("sha256")).map(String::as_str), Some("abc"));
    assert_eq!(got.body.collect().await.context("reading")?.into_bytes().as_ref(), b"content");

    let other = S3::start(&dir.path().join("other"))?;
    let stranger = client.config().to_builder().endpoint_url(other.endpoint()).build();
    let refused = aws_sdk_s3::Client::from_conf(stranger).head_bucket().bucket(bucket).send().await;
    assert!(refused.is_err(), "credentials of one server open another");

    server.stop()?;
    assert!(TcpStream::connect_timeout(&server.address(), Duration::from_secs(1)).is_err(), "a stopped server answers");
    Ok(())
}

/// Even when nothing of ours gets to run at the end: SIGKILL, a time limit of CI.
#[test]
fn servers_die_with_the_process_that_started_them() -> Result<()> {
    let mut demo = Process::spawn(Program {
        name: "demo stack".to_owned(),
        path: env!("CARGO_BIN_EXE_demo").into(),
        args: vec!["stack".into()],
        env: Vec::new(),
        dir: std::env::temp_dir(),
    })?;
    // The last of the exports; what comes on stderr after it may be read before them.
    demo.wait_for_line("CLICKHOUSE__PASSWORD", Duration::from_secs(120))?;
    let exports = demo.stdout();
    let ports: Vec<u16> = exports
        .lines()
        .filter(|line| ["__ENDPOINT=", "NATS__URL=", "CLICKHOUSE__PORT="].iter().any(|key| line.contains(key)))
        .filter_map(|line| line.rsplit(['=', ':']).next()?.parse().ok())
        .collect();
    assert_eq!(ports.len(), 3, "{exports}");
    let answers = || ports.iter().filter(|port| TcpStream::connect(("127.0.0.1", **port)).is_ok()).count();
    assert_eq!(answers(), 3);

    demo.kill9()?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while answers() > 0 {
        assert!(Instant::now() < deadline, "a server outlived its parent");
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
