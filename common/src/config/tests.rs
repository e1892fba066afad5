use std::path::PathBuf;

use super::*;
use crate::object_key::Prefix;

fn environment(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn read(yaml: &str, pairs: &[(&str, &str)], needs: &[Need]) -> Result<Config, ConfigError> {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), yaml).expect("written");
    Config::read(Some(file.path()), &environment(pairs), needs)
}

fn bucket(config: &Config) -> &Bucket {
    let Place::S3(bucket) = &config.storage.place else { panic!("not a bucket: {:?}", config.storage) };
    bucket
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
    let unmarked: Vec<&str> = example.lines().map(|line| line.strip_prefix("#~ ").unwrap_or(line)).collect();
    let without = |dropped: &[&str]| {
        let dropped = |line: &str| dropped.contains(&line.split(':').next().unwrap_or_default().trim());
        unmarked.iter().copied().filter(|line| !dropped(line)).collect::<Vec<_>>().join("\n")
    };
    let files = ["access_key_id_file", "secret_access_key_file", "password_file"];
    let config = read(&without(&files), &[], &[]).expect("reads with everything set");
    assert_eq!(config.destinations.len(), 3);
    // And with the secrets in files, which are not here.
    let secrets = ["access_key_id", "secret_access_key", "password"];
    let message = read(&without(&secrets), &[], &[]).expect_err("no such files").to_string();
    let lines: Vec<&str> = message.lines().skip(1).collect();
    assert_eq!(lines.len(), 5, "{message}");
    assert!(lines.iter().all(|line| line.contains("_file: /run/secrets/")), "{message}");
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
    assert_eq!(bucket(&config).bucket, "market-archives");
}

#[test]
fn the_environment_beats_the_file_and_the_older_names_beat_both() {
    let yaml = "storage: {r2: {bucket: from-file, transfers: 2}}\nclickhouse: {host: file-host}";
    let named = |pairs: &[(&str, &str)]| bucket(&read(yaml, pairs, &[]).expect("reads")).bucket.clone();
    assert_eq!(named(&[]), "from-file");
    assert_eq!(named(&[("FERRY__STORAGE__R2__BUCKET", "from-ferry")]), "from-ferry");
    assert_eq!(named(&[("R2_BUCKET", "older")]), "older");
    assert_eq!(named(&[("R2_BUCKET", "older"), ("FERRY__STORAGE__R2__BUCKET", "from-ferry")]), "older");
    assert_eq!(named(&[("R2_BUCKET", "")]), "from-file");
    assert_eq!(read(yaml, &[("R2_TRANSFERS", "16")], &[]).expect("reads").storage.transfers, 16);
}

#[test]
fn only_the_chosen_storage_has_needs() {
    let missing = |kind: &str, rest: &str| {
        let yaml = format!("storage: {{type: {kind}{rest}}}");
        read(&yaml, &[], &[Need::Storage]).map(|config| config.storage.place).map_err(|error| error.to_string())
    };
    let keys = |kind: &str| {
        let message = missing(kind, "").expect_err("nothing is set");
        message
            .lines()
            .skip(1)
            .map(|line| line.trim().split(':').next().unwrap_or_default().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(keys("fs"), ["storage.fs.path"]);
    assert_eq!(keys("rsync"), ["storage.rsync.host", "storage.rsync.path"]);
    assert_eq!(keys("s3").len(), 4);
    assert!(missing("ftp", "").expect_err("unknown").contains("'ftp' is not one of: r2, s3, fs, rsync"));
    let place = missing("fs", ", fs: {path: /mnt/share/ferry}").expect("reads");
    assert!(matches!(place, Place::Folder { path } if path == Path::new("/mnt/share/ferry")));
    let place = missing("rsync", ", rsync: {host: 10.0.0.7, path: /srv/binance/}").expect("reads");
    assert!(matches!(place, Place::Rsync(rsync) if rsync.path == "/srv/binance" && rsync.port == 22));
    for odd in [
        "host: -oProxyCommand=x, path: /srv",
        "host: a b, path: /srv",
        "host: h, user: -x, path: /srv",
        "host: h, path: '/srv/*'",
    ] {
        assert!(missing("rsync", &format!(", rsync: {{{odd}}}")).is_err(), "{odd}");
    }
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
    let pairs = [
        ("R2_ACCESS_KEY_ID", "hunter2"),
        ("R2_SECRET_ACCESS_KEY", "hunter2"),
        ("CLICKHOUSE_HOST", "h"),
        ("CLICKHOUSE_PASSWORD", "hunter2"),
    ];
    let config = read("nats: {password: hunter2, url: 'nats://user:hunter2@host:4222'}", &pairs, &[]).expect("reads");
    assert!(!format!("{config:?}").contains("hunter2"), "{config:?}");
}

/// What somebody has who moves in: an environment as the cron job read it, and a file that says the rest.
#[test]
fn the_cron_jobs_environment_and_file_still_do() {
    let env = [
        ("STORAGE_TYPE", "r2"),
        ("R2_ACCESS_KEY_ID", "0123456789abcdef0123456789abcdef"),
        ("R2_SECRET_ACCESS_KEY", "example-secret"),
        ("R2_ENDPOINT", "https://0123456789abcdef0123456789abcdef.r2.cloudflarestorage.com"),
        ("R2_BUCKET", "market-archives"),
        ("R2_PREFIX", "download/"),
        ("R2_TRANSFERS", "16"),
        ("LOCAL_DATA_DIR", "/srv/binance"),
        ("LOCAL_STATE_DIR", "/srv/binance/state"),
        ("LOCAL_LOG_DIR", ""),
        ("CLICKHOUSE_HOST", "10.0.0.5"),
        ("CLICKHOUSE_PORT", "8123"),
        ("CLICKHOUSE_DB", "marketferry"),
        ("CLICKHOUSE_USER", "ingest"),
        ("CLICKHOUSE_PASSWORD", "example-password"),
        ("NATS_URL", "nats://ferry:example-password@10.0.0.6:4222"),
        // Of the job's other programs.
        ("RCLONE_CONFIG_R2_TYPE", "s3"),
        ("LOCK_FILE", "/tmp/ingest.lock"),
        ("PATH", "/usr/bin"),
    ];
    let file = "\
local:
  data_dir: ./download
storage:
  type: r2
  r2: {bucket: market-archives, prefix: download, transfers: 8}
download:
  symbols: [BTCUSDT, ETHUSDT]
  intervals: [1m, 1h]
  market: um
clickhouse: {host: localhost, port: 8123, database: binance, user: default, password: ''}
";
    let needs = [Need::Storage, Need::DataDir, Need::Destination];
    let config = read(file, &env, &needs).expect("reads");
    assert_eq!(config.storage.prefix, Prefix::new("download"));
    assert_eq!((config.storage.transfers, bucket(&config).region.as_str()), (16, "auto"));
    assert_eq!(config.local.data_dir.as_deref(), Some(Path::new("/srv/binance")));
    assert_eq!(config.log.dir, None);
    let DestinationKind::ClickHouse(primary) = &config.destinations[0].kind else { panic!("not ClickHouse") };
    assert_eq!((primary.host.as_str(), primary.database.as_str()), ("10.0.0.5", "marketferry"));
    assert_eq!(config.nats.urls, [Secret::new("nats://ferry:example-password@10.0.0.6:4222")]);

    // What only the job read is told at once, each with the key it is nearest to.
    let more = "ingest: {lock_file: /tmp/ingest.lock}\nstorage: {r2: {bucket: b, buckets: c}}";
    let error = read(more, &env, &needs).expect_err("two keys too many").to_string();
    assert!(
        error.contains("ingest.lock_file: unknown key") && error.contains("did you mean storage.r2.bucket?"),
        "{error}"
    );
}

#[test]
fn secrets_may_be_in_files() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = |name: &str, content: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).expect("written");
        path.to_str().expect("UTF-8").to_owned()
    };
    let good = file("good", b"hunter2\r\n\n");
    let yaml = format!(
        "storage: {{r2: {{bucket: b, endpoint: 'http://e', access_key_id_file: {good}, secret_access_key_file: {good}}}}}\n\
         nats: {{user: u, password_file: {good}}}\n\
         destinations: [{{name: d, host: h, password_file: {good}}}]"
    );
    let pairs = [("CLICKHOUSE_HOST", "h"), ("FERRY__CLICKHOUSE__PASSWORD_FILE", good.as_str())];
    let config = read(&yaml, &pairs, &[Need::Storage]).expect("reads");
    let secret = Secret::new("hunter2");
    assert_eq!((&bucket(&config).access_key_id, &bucket(&config).secret_access_key), (&secret, &secret));
    assert_eq!(config.nats.password.as_ref(), Some(&secret));
    for destination in &config.destinations {
        let DestinationKind::ClickHouse(server) = &destination.kind else { panic!("not ClickHouse") };
        assert_eq!(server.password, secret, "{}", destination.name);
    }
    assert!(!format!("{:?}{:?}", config.nats, config.destinations).contains("hunter2"));

    let check = |path: &str, why: &str| {
        let yaml = format!(
            "storage: {{r2: {{bucket: b, endpoint: 'http://e', access_key_id: a, secret_access_key_file: '{path}'}}}}"
        );
        let message = read(&yaml, &[], &[Need::Storage]).expect_err(why).to_string();
        let line = format!("\n  storage.r2.secret_access_key_file: {path}: {why}");
        assert!(message.contains(&line) && message.lines().count() == 2, "{line}\nin\n{message}");
    };
    check(dir.path().join("absent").to_str().expect("UTF-8"), "cannot be read: No such file");
    check(dir.path().to_str().expect("UTF-8"), "cannot be read: it is a directory, not a file");
    check(&file("empty", b"\r\n"), "is empty");
    check(&file("large", &[b'x'; 65537]), "cannot be read: it is larger than 64 KiB");
    check(&file("binary", &[0xff, 0xfe]), "cannot be read: it is not text");
    check(&file("blank", b"hun ter2\n"), "holds a blank or a character that is not ASCII, which no key has");
    read(&format!("nats: {{password_file: '{}'}}", file("largest", &[b'x'; 65536])), &[], &[]).expect("fits");

    let both = format!("nats: {{password: hunter2, password_file: {good}}}");
    let message = read(&both, &[], &[]).expect_err("both").to_string();
    assert!(message.contains("nats.password: is set, and so is nats.password_file"), "{message}");
    assert!(!message.contains("hunter2"), "{message}");
}

#[test]
fn what_a_compose_file_requires_is_missed_by_its_name() {
    let pairs = [
        ("FERRY_REQUIRED", "R2_BUCKET, R2_ENDPOINT LOCAL_DATA_DIR,SITE_DIR"),
        ("R2_BUCKET", ""),
        ("R2_ENDPOINT", "http://e"),
    ];
    let message = read("colour: red", &pairs, &[]).expect_err("three are missing").to_string();
    for name in ["R2_BUCKET", "LOCAL_DATA_DIR", "SITE_DIR"] {
        assert!(message.contains(&format!("\n  {name}: is not set (put it into .env)")), "{message}");
    }
    assert!(message.contains("colour: unknown key") && !message.contains("R2_ENDPOINT"), "{message}");
    read("", &[("FERRY_REQUIRED", "R2_BUCKET"), ("R2_BUCKET", "b")], &[]).expect("reads");
}

#[test]
fn what_cannot_belong_to_a_value_is_taken_off_or_refused_by_key() {
    let yaml = "storage: {r2: {bucket: b, endpoint: 'http://e ', secret_access_key: s}}";
    let needs = [Need::Storage, Need::DataDir];
    let with = |key: &str, id: &str| read(yaml, &[("R2_ACCESS_KEY_ID", id), ("LOCAL_DATA_DIR", key)], &needs);
    let config = with("/data\r", "AKIA\r\n").expect("reads");
    assert_eq!((bucket(&config).access_key_id.reveal(), bucket(&config).endpoint.as_str()), ("AKIA", "http://e"));
    assert_eq!(config.local.data_dir, Some(PathBuf::from("/data")));
    let message = with("\"/data\"", "AK\nIA").expect_err("quotation marks").to_string();
    assert!(message.contains("local.data_dir: begins or ends with a quotation mark"), "{message}");
    assert!(message.contains("storage.r2.access_key_id: holds a line break"), "{message}");
    assert_eq!(message.matches("local.data_dir: ").count(), 1, "{message}");
    let message = with("~/data", "AKIA").expect_err("no shell").to_string();
    assert!(message.contains("local.data_dir: '~/data' is used as it is written"), "{message}");
}

#[test]
fn what_yaml_takes_for_a_number_is_no_password() {
    for (value, key) in [("000123", "password"), ("1e5", "password"), ("yes", "password"), ("0x10", "user")] {
        let message = read(&format!("clickhouse: {{host: h, {key}: {value}}}"), &[], &[]);
        if let Err(message) = message {
            assert!(message.to_string().contains(&format!("clickhouse.{key}: is a number or a flag")), "{message}");
        } else {
            // A reader of YAML 1.2 may take it for text, as it is written.
            let config = message.expect("reads");
            let DestinationKind::ClickHouse(server) = &config.destinations[0].kind else { panic!("not ClickHouse") };
            assert!(server.password.reveal() == value || server.user == value, "{value}");
        }
    }
    read("clickhouse: {host: h, password: '000123', port: 8124}", &[], &[])
        .expect("text is text, and numbers are numbers");
}

#[test]
fn addresses_are_checked_at_the_start() {
    let check = |yaml: &str, expected: &str| {
        let message = read(yaml, &[], &[]).expect_err(yaml).to_string();
        assert!(message.contains(&format!("\n  {expected}")), "{message}");
        assert!(!message.contains("hunter2"), "{message}");
    };
    check("storage: {r2: {endpoint: 'http://e#x'}}", "storage.r2.endpoint: 'http://e#x' is not an address");
    check("storage: {r2: {endpoint: 'e.example.com'}}", "storage.r2.endpoint: must begin with http:// or https://");
    check("storage: {r2: {bucket: 'b/c'}}", "storage.r2.bucket: 'b/c' is not the name of a bucket");
    check("storage: {r2: {region: 'eu west'}}", "storage.r2.region: 'eu west' is not a region");
    check("storage: {r2: {prefix: 'a//b'}}", "storage.r2.prefix: 'a//b' is not a folder");
    check("storage: {r2: {prefix: '../b'}}", "storage.r2.prefix: '../b' is not a folder");
    check("nats: {url: 'http://u:hunter2@h'}", "nats.url: must begin with nats:// or tls://");
    check("nats: {url: ['nats://a', 'nats://u:hunter2@']}", "nats.url: is not an address");
    check("nats: {url: 'nats://u:hunter2,3@h/x'}", "nats.url: is not an address");
    check(
        "clickhouse: {host: 'http://ch:8124'}",
        "clickhouse.host: is a URL; write clickhouse.host: ch, clickhouse.port: 8124",
    );
    check(
        "destinations: [{name: d, host: 'ch:9000'}]",
        "destinations.0.host: carries a port; write destinations.0.host: ch, destinations.0.port: 9000",
    );
}

#[test]
fn a_message_repeats_nothing_of_an_address_with_a_password() {
    for key in ["R2_ENDPOINT", "CLICKHOUSE_HOST", "R2_BUCKET", "FERRY__DOWNLOAD__BASE_URL", "FERRY__DOWNLOAD__LIST_URL"]
    {
        for value in [
            "http://u:hunter2@h:8123",
            "https://u:hunter2@h",
            "u:hunter2@h:8123",
            "http://u:hun/ter2@h",
            "http://u:hun#ter2@h",
        ] {
            let message = read("", &[(key, value)], &[]).expect_err(value).to_string();
            assert!(!message.contains("hun") && !message.contains("ter2"), "{key}={value}: {message}");
        }
    }
    let message = read("storage: {type: rsync, rsync: {host: 'u:hunter2@h', path: /srv}}", &[], &[]);
    assert!(!message.expect_err("a password").to_string().contains("hunter2"));
}

#[test]
fn a_section_whose_keys_are_commented_out_is_empty() {
    let yaml = "local:\nstorage:\n  type: s3\n  r2:\nnats:\n  tls:\ndestinations:\npuller: {group: }\nlog: {}";
    read(yaml, &[], &[]).expect("reads");
    for unknown in ["nat:", "nats: {tlss: }", "storage: {r: }", "puler: {}", "nats: {tlss: {}}"] {
        let message = read(unknown, &[], &[]).expect_err(unknown).to_string();
        assert!(message.contains("unknown key"), "{unknown}: {message}");
    }
}

#[test]
fn a_variable_that_is_not_text_is_refused_by_name_if_it_is_ours() {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    let odd = || OsString::from_vec(vec![b'a', 0xff]);
    let read = |name: OsString| source::environment([(name, odd()), ("PATH".into(), "/usr/bin".into())].into_iter());
    let texts = read("LS_COLORS".into()).expect("another program's");
    assert_eq!(texts, [("PATH".to_owned(), "/usr/bin".to_owned())]);
    assert_eq!(read(odd()).expect("another program's").len(), 1);
    for name in ["FERRY__NATS__PASSWORD", "R2_SECRET_ACCESS_KEY", "FERRY_CONFIG", "NATS_URL"] {
        let message = read(name.into()).expect_err(name).to_string();
        assert!(message.contains(&format!("{name}: is not text")), "{message}");
    }
}

#[test]
fn a_size_has_a_unit() {
    let read = |limit: &str| read(&format!("nats: {{limits: {{dead: {limit}}}}}"), &[], &[]);
    assert_eq!(read("512MiB").expect("a size").nats.limits.dead, 512 << 20);
    assert_eq!(read("64KiB").expect("a size").nats.limits.dead, 64 << 10);
    assert_eq!(read("1048576").expect("so many bytes").nats.limits.dead, 1 << 20);
    for (limit, said) in [
        ("512", "nats.limits.dead: '512' has no unit, and would be bytes; did you mean 512MiB?"),
        ("0", "nats.limits.dead: '0' has no unit"),
        ("0KiB", "nats.limits.dead: must be a size such as 512MiB"),
        ("9EiB", "nats.limits.dead: must be a size such as 512MiB"),
    ] {
        let message = read(limit).expect_err(limit).to_string();
        assert!(message.contains(said), "{message}");
    }
}

#[test]
fn an_unknown_section_is_answered_with_the_nearest() {
    let check = |yaml: &str, pairs: &[(&str, &str)], expected: &str| {
        let message = read(yaml, pairs, &[]).expect_err(expected).to_string();
        let lines: Vec<&str> = message.lines().skip(1).map(str::trim).collect();
        assert_eq!(lines, [expected]);
    };
    check("puler: {}", &[], "puler: unknown key; did you mean puller?");
    check("puler:", &[], "puler: unknown key; did you mean puller?");
    check("puler: {slots: 3}", &[], "puler.slots: unknown key; did you mean puller.slots?");
    check("log: loud", &[], "log: is a section, and not a value: it has keys such as log.format");
    check(
        "",
        &[("FERRY__PULLER__SLOTZ", "3")],
        "puller.slotz: unknown key (of FERRY__PULLER__SLOTZ); did you mean puller.slots?",
    );
    let said = "log: is a section, and FERRY__LOG gives it a value: set its keys, e.g. FERRY__LOG__FORMAT";
    for more in
        [&[][..], &[("FERRY__LOG__LEVEL", "debug")], &[("FERRY__LOG__FORMAT", "json"), ("FERRY__LOG__LEVEL", "")]]
    {
        for yaml in ["", "log: {level: debug}"] {
            check(yaml, &[&[("FERRY__LOG", "x")], more].concat(), said);
        }
    }
    read("", &[("FERRY__LOG", ""), ("FERRY__PULLER__DESTINATIONS", "")], &[]).expect("an empty one is not set");
}

#[test]
fn a_byte_order_mark_is_no_part_of_the_first_key() {
    let config = read("\u{feff}nats: {replicas: 3}\n", &[], &[]).expect("reads");
    assert_eq!(config.nats.replicas, 3);
}

#[test]
fn levels_and_copies_are_of_closed_sets() {
    let check = |yaml: &str, expected: &str| {
        let message = read(yaml, &[], &[]).expect_err(yaml).to_string();
        assert!(message.contains(&format!("\n  {expected}")), "{message}");
    };
    check("log: {level: loud}", "log.level: 'loud' is no level: it is none of off, error, warn, info, debug, trace");
    check("log: {level: 'info,puller=loud'}", "log.level: 'info,puller=loud' is not a list of directives");
    for level in ["info", "WARN", "off", "info,puller=debug", "puller=trace"] {
        read(&format!("log: {{level: '{level}'}}"), &[], &[]).expect(level);
    }
    for even in ["2", "4"] {
        check(&format!("nats: {{replicas: {even}}}"), &format!("nats.replicas: {even} is not 1, 3 or 5"));
    }
    read("nats: {replicas: 5}", &[], &[]).expect("an odd number");
}
