use super::*;

fn environment(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn read(yaml: &str, pairs: &[(&str, &str)], needs: &[Need]) -> Result<Config, ConfigError> {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), yaml).expect("written");
    Config::read(source::tree(Some(file.path()), &environment(pairs))?, needs)
}

#[test]
fn nothing_set_means_the_defaults() {
    let config = read("", &[], &[]).expect("reads");
    assert_eq!(config.storage.transfers, 8);
    assert_eq!(config.storage.prefix, Prefix::new("download"));
    assert_eq!(config.puller.memory, 512 << 20);
    assert_eq!(config.nats.urls, [Secret::new("nats://127.0.0.1:4222")]);
    assert_eq!(config.retry.backoff.base_delay(2), Duration::from_secs(30));
    assert!(config.destinations.is_empty());
}

#[test]
fn the_example_file_is_read_and_names_every_key() {
    let example = include_str!("../../../config.example.yaml");
    let config = read(example, &[], &[Need::Storage, Need::DataDir, Need::Destination]).expect("reads");
    assert_eq!(config.destinations.iter().map(|d| d.name.as_str()).collect::<Vec<_>>(), ["primary"]);
    // Taking the comment marks off the optional keys gives a file that is read too.
    let all: String =
        example.lines().map(|line| line.strip_prefix("#~ ").unwrap_or(line)).collect::<Vec<_>>().join("\n");
    let config = read(&all, &[], &[]).expect("reads with everything set");
    assert_eq!(config.destinations.len(), 3);
}

#[test]
fn the_example_environment_is_read() {
    let example = include_str!("../../../.env.example");
    let pairs: Vec<(&str, &str)> = example
        .lines()
        .map(|line| line.trim_start_matches("# "))
        .filter_map(|line| line.split_once('='))
        .filter(|(key, _)| key.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'))
        .collect();
    assert!(pairs.len() >= 16, "{pairs:?}");
    let config = read("", &pairs, &[Need::Storage, Need::DataDir, Need::Destination]).expect("reads");
    assert_eq!(config.storage.bucket, "market-archives");
}

#[test]
fn the_environment_beats_the_file_and_the_older_names_beat_both() {
    let yaml = "storage: {r2: {bucket: from-file, transfers: 2}}\nclickhouse: {host: file-host}";
    let bucket = |pairs: &[(&str, &str)]| read(yaml, pairs, &[]).expect("reads").storage.bucket;
    assert_eq!(bucket(&[]), "from-file");
    assert_eq!(bucket(&[("FERRY__STORAGE__R2__BUCKET", "from-ferry")]), "from-ferry");
    assert_eq!(bucket(&[("R2_BUCKET", "older")]), "older");
    assert_eq!(bucket(&[("R2_BUCKET", "older"), ("FERRY__STORAGE__R2__BUCKET", "from-ferry")]), "older");
    assert_eq!(bucket(&[("R2_BUCKET", "")]), "from-file");
    assert_eq!(read(yaml, &[("R2_TRANSFERS", "16")], &[]).expect("reads").storage.transfers, 16);
}

#[test]
fn destinations_come_from_the_file_or_the_environment() {
    let yaml = "clickhouse: {host: a}\ndestinations:\n  - {name: copy, type: directory, path: /srv/copy}\n  - {name: b, host: b, secure: true}";
    let config = read(yaml, &[], &[]).expect("reads");
    let names: Vec<&str> = config.destinations.iter().map(|d| d.name.as_str()).collect();
    assert_eq!(names, ["primary", "copy", "b"]);
    let DestinationKind::ClickHouse(b) = &config.destinations[2].kind else { panic!("not ClickHouse") };
    assert_eq!((b.port, b.database.as_str()), (8443, "marketferry"));

    let pairs = [
        ("FERRY__DESTINATIONS__0__NAME", "copy"),
        ("FERRY__DESTINATIONS__0__TYPE", "directory"),
        ("FERRY__DESTINATIONS__0__PATH", "/srv/copy"),
    ];
    let config = read("", &pairs, &[]).expect("reads");
    assert_eq!(config.destinations[0].name, "copy");
}

#[test]
fn every_problem_is_reported_at_once() {
    let yaml = "storage: {r2: {bukket: x, transfers: many}}\nnats: {replicas: 9}\nretry: {initial: soon}\nlog: {format: xml}\n\
                puller: {destinations: [nowhere], memory: 1KiB}\nclickhouse: {host: h, database: 'a;b'}\ncolour: red";
    let message = read(yaml, &[], &[Need::Storage, Need::DataDir]).expect_err("wrong").to_string();
    for expected in [
        "storage.r2.bukket: unknown key; did you mean storage.r2.bucket?",
        "storage.r2.transfers: 'many' is not a whole number",
        "storage.r2.bucket: is not set",
        "storage.r2.secret_access_key: is not set",
        "local.data_dir: is not set",
        "nats.replicas: 9 is not between 1 and 5",
        "retry.initial: 'soon' is not a duration",
        "log.format: 'xml' is not one of: text, json",
        "puller.destinations: names 'nowhere'",
        "puller.memory: must be at least 16MiB",
        "clickhouse.database: 'a;b' is not a name",
        "colour: unknown key",
    ] {
        assert!(message.contains(expected), "{expected}\nin\n{message}");
    }
}

#[test]
fn an_unreadable_file_is_named() {
    let message = read("a: [", &[], &[]).expect_err("wrong").to_string();
    assert!(message.contains("/"), "{message}");
    let missing = source::tree(Some(Path::new("/nonexistent/config.yaml")), &[]).expect_err("missing").to_string();
    assert!(missing.contains("/nonexistent/config.yaml"), "{missing}");
}

#[test]
fn secrets_are_not_printed() {
    let pairs = [("R2_SECRET_ACCESS_KEY", "hunter2"), ("CLICKHOUSE_HOST", "h"), ("CLICKHOUSE_PASSWORD", "hunter2")];
    let config = read("nats: {password: hunter2, url: 'nats://user:hunter2@host:4222'}", &pairs, &[]).expect("reads");
    assert!(!format!("{config:?}").contains("hunter2"), "{config:?}");
}
