//! Configuration: one YAML file for both binaries, then `FERRY__SECTION__KEY`, then the older environment names.
//!
//! Every problem is reported at once, before any connection is made. A key is known because [`Config::load`]
//! reads it: there is no second list.

mod address;
mod download;
mod error;
mod log;
mod overlap;
mod reader;
mod secret;
mod sections;
mod small_file;
mod source;
mod storage;
mod stream_limits;
mod text;

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

pub use download::{Download, Symbols};
pub use error::ConfigError;
pub use log::{LogFormat, LogSettings};
pub use secret::Secret;
pub use sections::{
    ClickHouse, Compression, Corrections, Destination, DestinationKind, Group, Local, MIRROR, Nats, Publish, Puller,
    Retry, Watch, When,
};
pub use storage::{Bucket, Place, Rsync, Storage};
pub use stream_limits::StreamLimits;

use crate::backoff::{Backoff, Growth};
use reader::Reader;

/// Name of the destination that the `clickhouse` section describes.
pub const PRIMARY: &str = "primary";
/// History a new destination starts with, unless told otherwise: five years.
const INITIAL_DAYS: u32 = 1825;

/// What the command at hand cannot do without. A missing key is an error only where it is needed: the one that
/// creates the tables has no use for the bucket's credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    Storage,
    DataDir,
    Destination,
}

#[derive(Debug, Clone)]
pub struct Config {
    pub local: Local,
    pub storage: Storage,
    pub download: Download,
    pub publish: Publish,
    pub watch: Watch,
    pub nats: Nats,
    /// `primary`, if the section `clickhouse` names a host, and those listed under `destinations`.
    pub destinations: Vec<Destination>,
    pub puller: Puller,
    pub retry: Retry,
    pub corrections: Corrections,
    pub log: LogSettings,
    /// Where /livez, /readyz and /metrics are served; none: nowhere.
    pub http_listen: Option<SocketAddr>,
}

impl Config {
    /// Reads the file named by `--config`, else by `$FERRY_CONFIG`, else `./config.yaml` if there is one, and
    /// the environment.
    ///
    /// # Errors
    /// The file cannot be read, or holds anything wrong: all of it, one line each.
    pub fn load(path: Option<&Path>, needs: &[Need]) -> Result<Self, ConfigError> {
        Self::read(path, &source::environment(std::env::vars_os())?, needs)
    }

    /// Where a service of this configuration serves /livez and /readyz, whatever else is wrong with it.
    ///
    /// # Errors
    /// The file cannot be read, or `http.listen` is no address.
    pub fn load_http_listen(path: Option<&Path>) -> Result<Option<SocketAddr>, ConfigError> {
        let mut r = Reader::new(source::tree(path, &source::environment(std::env::vars_os())?)?);
        let listen = http_listen(&mut r);
        r.finish_unread()?;
        Ok(listen)
    }

    fn read(path: Option<&Path>, environment: &[(String, String)], needs: &[Need]) -> Result<Self, ConfigError> {
        let mut r = Reader::new(source::tree(path, environment)?);
        for name in source::required_and_not_set(environment) {
            r.problem(&name, "is not set (put it into .env)");
        }
        let (all_destinations, unlisted) = destinations(&mut r);
        let config = Self {
            local: Local { data_dir: r.path("local.data_dir"), state_dir: r.path("local.state_dir") },
            storage: Storage::read(&mut r, needs.contains(&Need::Storage)),
            download: Download::read(&mut r),
            publish: Publish {
                when: r.choice(
                    "publish.when",
                    &[("marked", When::Marked), ("complete", When::Complete), ("both", When::Both)],
                ),
                quiet_period: r.duration("publish.settle", Duration::from_secs(600)),
                grace: r.duration("publish.grace", Duration::from_secs(6 * 3600)),
                live_days: r.integer("publish.live_days", 3, 0, 36_500),
                timeout: r.duration("publish.timeout", Duration::from_secs(60)),
                cleanup_after: r
                    .is_set("publish.cleanup_after")
                    .then(|| r.duration("publish.cleanup_after", Duration::ZERO)),
                keep_days: r.integer("publish.keep_days", 0, 0, 36_500),
            },
            watch: Watch {
                rescan: r.duration("watch.rescan", Duration::from_secs(60)),
                min_age: r.duration("watch.min_age", Duration::from_secs(3)),
            },
            nats: Nats::read(&mut r),
            destinations: all_destinations,
            puller: Puller {
                destinations: r.strings("puller.destinations"),
                slots: r.integer("puller.slots", 128, 1, 1024),
                memory: r.bytes("puller.memory", 512 << 20),
                ack_wait: r.duration("puller.ack_wait", Duration::from_secs(60)),
                stall_timeout: r.duration("puller.stall_timeout", Duration::from_secs(300)),
                shutdown_grace: r.duration("puller.shutdown_grace", Duration::from_secs(30)),
                group: Group {
                    rows: r.integer("puller.group.rows", 500_000, 1, 1_000_000),
                    bytes: r.bytes("puller.group.bytes", 64 << 20),
                    linger: r.duration("puller.group.linger", Duration::from_millis(25)),
                },
            },
            retry: Retry::read(&mut r),
            corrections: Corrections { shrink_limit: r.share("corrections.shrink_limit", 0.2) },
            log: LogSettings {
                level: r.text("log.level").unwrap_or_else(|| "info".into()),
                format: r.choice("log.format", &[("text", LogFormat::Text), ("json", LogFormat::Json)]),
                dir: r.path("local.log_dir"),
            },
            http_listen: http_listen(&mut r),
        };
        for (key, problem) in overlap::problems(&config.local, &config.storage, &config.destinations[unlisted..]) {
            r.problem(&key, &problem);
        }
        if let Err(problem) = log::check_level(&config.log.level) {
            r.problem("log.level", &problem);
        }
        if config.nats.replicas.is_multiple_of(2) {
            let problem = format!(
                "{} is not 1, 3 or 5: an even number of copies outlives no more servers than one less",
                config.nats.replicas
            );
            r.problem("nats.replicas", &problem);
        }
        if config.puller.ack_wait < Duration::from_secs(1) {
            r.problem("puller.ack_wait", "must be at least 1s");
        }
        if config.puller.memory < 16 << 20 {
            r.problem("puller.memory", "must be at least 16MiB");
        }
        for name in &config.puller.destinations {
            if config.destination(name).is_none() {
                r.problem("puller.destinations", &format!("names '{name}', which is not configured"));
            }
        }
        if needs.contains(&Need::DataDir) && config.local.data_dir.is_none() {
            r.problem("local.data_dir", "is not set (the folder with the archives)");
        }
        if needs.contains(&Need::Destination) && config.destinations.is_empty() {
            r.problem("clickhouse.host", "is not set, and destinations lists none: there is nowhere to load to");
        }
        r.finish(&source::variables(environment))?;
        Ok(config)
    }

    pub fn destination(&self, name: &str) -> Option<&Destination> {
        self.destinations.iter().find(|destination| destination.name == name)
    }

    /// The directory destination that `puller pull --no-ingest` fills: `local.data_dir`, unless `destinations`
    /// has a `mirror` of its own.
    pub fn mirror(&self) -> Option<Destination> {
        if let Some(own) = self.destination(MIRROR) {
            return Some(own.clone());
        }
        let path = self.local.data_dir.clone()?;
        Some(Destination { name: MIRROR.into(), kind: DestinationKind::Directory { path }, initial_days: None })
    }
}

impl Nats {
    fn read(r: &mut Reader) -> Self {
        let urls = r.nats_urls("nats.url");
        for problem in urls.iter().filter_map(|url| address::check_nats(url).err()) {
            r.problem("nats.url", &problem);
        }
        let urls: Vec<Secret> = urls.into_iter().map(Secret::new).collect();
        Self {
            urls: if urls.is_empty() { vec![Secret::new("nats://127.0.0.1:4222")] } else { urls },
            user: r.text("nats.user"),
            password: r.password("nats.password"),
            role: r.optional_token("nats.role"),
            nkey_file: r.path("nats.nkey_file"),
            credentials_file: r.path("nats.credentials_file"),
            ca_file: r.path("nats.tls.ca_file"),
            cert_file: r.path("nats.tls.cert_file"),
            key_file: r.path("nats.tls.key_file"),
            replicas: r.integer("nats.replicas", 1, 1, 5),
            limits: StreamLimits::read(r),
            manage: r.flag("nats.manage", true),
        }
    }
}

impl Retry {
    fn read(r: &mut Reader) -> Self {
        let linear = r.choice("retry.mode", &[("exponential", false), ("linear", true)]);
        let factor = r.number("retry.factor", 2.0, 1.0, 100.0);
        Self {
            backoff: Backoff {
                initial: r.duration("retry.initial", Duration::from_secs(15)),
                growth: if linear { Growth::Linear } else { Growth::Exponential { factor } },
                max: r.duration("retry.max", Duration::from_secs(1800)),
            },
            attempts: r.integer(
                "retry.attempts",
                const { NonZeroU32::new(6).expect("not zero") },
                NonZeroU32::MIN,
                const { NonZeroU32::new(24).expect("not zero") },
            ),
            missing_object: r.duration("retry.missing_object", Duration::from_secs(900)),
        }
    }
}

impl ClickHouse {
    fn read(r: &mut Reader, section: &str, host: String) -> Self {
        let key = |name: &str| format!("{section}.{name}");
        let secure = r.flag(&key("secure"), false);
        let host = address::host(&host, section).unwrap_or_else(|problem| {
            // One that is not set is said by whoever needs it.
            if !host.is_empty() {
                r.problem(&key("host"), &problem);
            }
            host
        });
        Self {
            host,
            port: r.integer(&key("port"), if secure { 8443 } else { 8123 }, 1, u16::MAX),
            database: r.identifier(&key("database"), "marketferry"),
            user: r.text(&key("user")).unwrap_or_else(|| "default".into()),
            password: r.password(&key("password")).unwrap_or_else(|| Secret::new("")),
            secure,
            compression: r.choice(&key("compression"), &[("none", Compression::None), ("lz4", Compression::Lz4)]),
        }
    }
}

fn http_listen(r: &mut Reader) -> Option<SocketAddr> {
    r.parsed("http.listen", "an address and a port, e.g. 127.0.0.1:9100")
}

/// All destinations, and how many of them, at the beginning, are not from the list.
fn destinations(r: &mut Reader) -> (Vec<Destination>, usize) {
    let mut all = Vec::new();
    // Read also without a host, so that every key of the section is known.
    let host = r.text("clickhouse.host");
    let primary = ClickHouse::read(r, "clickhouse", host.clone().unwrap_or_default());
    if host.is_some() {
        all.push(Destination { name: PRIMARY.into(), kind: DestinationKind::ClickHouse(primary), initial_days: None });
    }
    let unlisted = all.len();
    for index in 0..r.list_len("destinations") {
        let section = format!("destinations.{index}");
        let name = r.token(&format!("{section}.name"), "the destination's name, e.g. backup");
        let directory = r.choice(&format!("{section}.type"), &[("clickhouse", false), ("directory", true)]);
        let initial_days = Some(r.integer(&format!("{section}.initial_days"), INITIAL_DAYS, 0, 36_500));
        let kind = if directory {
            let path = r.required(&format!("{section}.path"), "the folder the archives are kept in");
            DestinationKind::Directory { path: path.into() }
        } else {
            let host = r.required(&format!("{section}.host"), "the ClickHouse server");
            DestinationKind::ClickHouse(ClickHouse::read(r, &section, host))
        };
        if all.iter().any(|other: &Destination| other.name == name) {
            r.problem(&format!("{section}.name"), &format!("'{name}' is used twice"));
        }
        all.push(Destination { name, kind, initial_days });
    }
    (all, unlisted)
}

#[cfg(test)]
mod tests;
