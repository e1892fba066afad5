//! A setting works, or is refused by its key before anything is connected to; a setting that `doctor` passes works.

use tests::Result;
use tests::data::mark_all;
use tests::project::Project;
use tests::proxy::{Fate, Fault};
use tests::servers::Stack;

use crate::scenario::{SOON, hours, proxy_of_bucket};

fn write_day(project: &Project) -> Result<()> {
    for symbol in ["AAAUSDT", "BBBUSDT"] {
        hours(symbol, "2025-03-01").write(project.data_dir())?;
    }
    mark_all(project.data_dir()).map(drop)
}

/// As an `.env` file with the line ends of Windows gives them.
#[test]
fn values_with_white_space_around_them_work() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "white-space")?;
    write_day(&project)?;
    let credentials = stack.s3.credentials();
    let id = format!("{}\r", credentials.access_key_id);
    let secret = format!(" {}\r\n", credentials.secret_access_key);
    let endpoint = format!("{} \r", stack.s3.endpoint());
    let bucket = format!("\t{}\r", stack.s3.bucket());
    let user = format!("{}\r", stack.clickhouse.user());
    let env = [
        ("R2_ACCESS_KEY_ID", id.as_str()),
        ("R2_SECRET_ACCESS_KEY", &secret),
        ("R2_ENDPOINT", &endpoint),
        ("R2_BUCKET", &bucket),
        ("CLICKHOUSE_USER", &user),
    ];
    for (binary, args) in [("puller", &["migrate"][..]), ("uploader", &["doctor"]), ("uploader", &["upload"])] {
        project.start(binary, args, &env)?.wait(SOON)?.expect_code(0)?;
    }
    project.start("puller", &["pull"], &env)?.wait(SOON)?.expect_code(0)?;
    project.check_tables(48)
}

#[test]
fn unusable_values_are_refused_by_their_key() -> Result<()> {
    let project = Project::new(Stack::shared(), "refused-values")?;
    for (name, value, said) in [
        ("R2_ACCESS_KEY_ID", "AKIA\nX", "storage.r2.access_key_id: holds a line break"),
        ("R2_SECRET_ACCESS_KEY", "a b", "storage.r2.secret_access_key: holds a blank"),
        ("R2_ENDPOINT", "http://127.0.0.1:9000#x", "storage.r2.endpoint: 'http://127.0.0.1:9000#x' is not an address"),
        ("R2_ENDPOINT", "127.0.0.1:9000", "storage.r2.endpoint: must begin with http:// or https://"),
        ("R2_ENDPOINT", "http:://127.0.0.1", "storage.r2.endpoint: must begin with http:// or https://"),
        ("R2_BUCKET", "archive/download", "storage.r2.bucket: 'archive/download' is not the name of a bucket"),
        ("R2_PREFIX", "'download'", "storage.r2.prefix: begins or ends with a quotation mark"),
        ("LOCAL_DATA_DIR", "\"/srv/data\"", "local.data_dir: begins or ends with a quotation mark"),
        ("LOCAL_STATE_DIR", "~/state", "local.state_dir: '~/state' is used as it is written"),
        ("NATS_URL", "http://127.0.0.1:4222", "nats.url: must begin with nats:// or tls://"),
        ("CLICKHOUSE_HOST", "http://127.0.0.1:8123", "clickhouse.host: is a URL; write clickhouse.host: 127.0.0.1"),
        ("CLICKHOUSE_HOST", "127.0.0.1:8123", "clickhouse.host: carries a port"),
        ("CLICKHOUSE_HOST", "http://u:hunter2@ch:8123", "clickhouse.host: holds an @"),
        ("R2_ENDPOINT", "https://u:hun/ter2@host", "storage.r2.endpoint: holds an @"),
        ("CLICKHOUSE_PASSWORD", "hunter2 ", "clickhouse.password: begins or ends with white space"),
        ("CLICKHOUSE_HOST", "127.0.0.1,", "clickhouse.host: '127.0.0.1,' is not the name or address of a host"),
        (
            "CLICKHOUSE_HOST",
            "$HOST",
            "clickhouse.host: '$HOST' is not the name or address of a host: variables are not",
        ),
        (
            "FERRY__LOG__LEVEL",
            "loud",
            "log.level: 'loud' is no level: it is none of off, error, warn, info, debug, trace",
        ),
        (
            "FERRY__LOG",
            "x",
            "log: is a section, and FERRY__LOG gives it a value: set its keys, e.g. FERRY__LOG__FORMAT",
        ),
        ("FERRY__NATS__REPLICAS", "2", "nats.replicas: 2 is not 1, 3 or 5"),
        ("FERRY__PULER__SLOTS", "2", "puler.slots: unknown key (of FERRY__PULER__SLOTS); did you mean puller.slots?"),
        ("FERRY__NATS__PASSWORD", "hun\tter2", "nats.password: holds a line break or another control character"),
    ] {
        for (binary, args) in [("puller", ["status"]), ("uploader", ["upload"])] {
            let refused = project.start(binary, &args, &[(name, value)])?.wait(SOON)?.expect_code(2)?;
            assert!(refused.stderr.contains(said), "{binary} {name}={value:?}: {}", refused.stderr);
            assert!(!refused.stderr.contains("ter2") && !refused.stderr.contains("panicked"), "{}", refused.stderr);
        }
    }
    Ok(())
}

/// A bucket that refuses one kind of request, as R2 was reported to refuse GETs with `x-amz-checksum-mode`.
#[test]
fn doctor_names_the_request_that_a_bucket_refuses() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "requests")?;
    write_day(&project)?;
    project.puller(&["migrate"])?.expect_code(0)?;
    let bucket = proxy_of_bucket(&mut project, stack)?;
    for (fault, said) in [
        (Fault::aimed_at_header("if-none-match", Fate::NotImplemented), None),
        (Fault::aimed_at_header("x-amz-copy-source", Fate::NotImplemented), None),
        (Fault::aimed("?uploads", u64::MAX, Fate::NotImplemented), Some("CreateMultipartUpload")),
        (Fault::aimed("partNumber=", u64::MAX, Fate::NotImplemented), Some("UploadPart")),
        (Fault::aimed("PUT /", u64::MAX, Fate::NotImplemented), Some("PUT of")),
        (Fault::aimed("HEAD /", u64::MAX, Fate::NotImplemented), Some("HEAD of")),
        (Fault::aimed("GET /", u64::MAX, Fate::NotImplemented), Some("501")),
    ] {
        bucket.set(fault.clone());
        let code = if said.is_some() { 4 } else { 0 };
        let doctor = project.uploader(&["doctor"])?.expect_code(code)?;
        assert!(said.is_none_or(|said| doctor.stdout.contains(said)), "{fault:?}: {}", doctor.stdout);
    }
    // What doctor passes works: no request of the work carries the header that a bucket may refuse.
    bucket.set(Fault::aimed_at_header("x-amz-checksum-mode", Fate::NotImplemented));
    for (binary, args) in
        [("uploader", ["doctor"]), ("puller", ["doctor"]), ("uploader", ["upload"]), ("puller", ["pull"])]
    {
        project.start(binary, &args, &[])?.wait(SOON)?.expect_code(0)?;
    }
    // The second revision reads current.json and the manifest, which is where such an answer was met.
    hours("CCCUSDT", "2025-03-01").write(project.data_dir())?;
    project.uploader(&["upload"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    project.check_tables(48)
}

/// All of them use one object, since none deletes any.
#[test]
fn concurrent_doctors_find_nothing_wrong() -> Result<()> {
    let project = Project::new(Stack::shared(), "doctors")?;
    write_day(&project)?;
    project.puller(&["migrate"])?.expect_code(0)?;
    let doctors: Result<Vec<_>> = (0..4).map(|_| project.start("uploader", &["doctor"], &[])).collect();
    for mut doctor in doctors? {
        doctor.wait(SOON)?.expect_code(0)?;
    }
    Ok(())
}
