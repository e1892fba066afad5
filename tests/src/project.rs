//! The product as a user has it: two binaries, a configuration file, a data_dir.
//!
//! Projects on one stack do not see each other: each has its own NATS account, ClickHouse database and bucket prefix.

mod metrics;
mod yaml;

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    net::{Ipv4Addr, SocketAddr},
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    Context, Failure, Result, http,
    process::{Finished, Process, Program},
    servers::{Account, RunDir, SqlClient, Stack, free_port, random_hex},
    truth::Truth,
};

/// For commands that come to an end by themselves.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(180);

pub struct Project {
    config: Value,
    database: String,
    prefix: String,
    account: Account,
    sql: SqlClient,
    dir: PathBuf,
    data_dir: PathBuf,
    _scratch: Option<RunDir>,
}

/// A process that serves until it is stopped; a [`Process`] with the address of its `/metrics`.
pub struct Service {
    process: Process,
    http: SocketAddr,
}

impl Project {
    /// For a test: a scratch directory, and retries and leases short enough to wait for.
    pub fn new(stack: &Stack, label: &str) -> Result<Project> {
        let scratch = RunDir::new(label)?;
        let mut project = Project::in_dir(stack, scratch.path(), label)?;
        project._scratch = Some(scratch);
        for (key, value) in [
            ("puller.ack_wait", "6s"),
            ("puller.shutdown_grace", "15s"),
            ("retry.initial", "250ms"),
            ("retry.max", "2s"),
            ("retry.missing_object", "3s"),
        ] {
            project.set(key, value)?;
        }
        project.set("retry.attempts", 3)?;
        Ok(project)
    }

    /// With the product's defaults, and everything below `dir`, which stays.
    pub fn in_dir(stack: &Stack, dir: &Path, label: &str) -> Result<Project> {
        let unique = format!("{}_{}", label.replace(|c: char| !c.is_ascii_alphanumeric(), "_"), &random_hex()?[..8]);
        let database = format!("ferry_{unique}");
        let prefix = format!("tests/{unique}");
        let account = stack.nats.account()?;
        let data_dir = dir.join("data_dir");
        fs::create_dir_all(&data_dir).context(format!("making {}", data_dir.display()))?;
        let config = json!({
            "local": { "data_dir": text(&data_dir)?, "state_dir": text(&dir.join("state"))? },
            "storage": {
                "type": "r2",
                "r2": {
                    "bucket": stack.s3.bucket(),
                    "prefix": prefix,
                    "endpoint": stack.s3.endpoint(),
                    "region": "auto",
                    "access_key_id": stack.s3.credentials().access_key_id,
                    "secret_access_key": stack.s3.credentials().secret_access_key,
                    "path_style": true,
                },
            },
            "nats": { "url": account.url, "user": account.user, "password": account.password },
            "clickhouse": {
                "host": stack.clickhouse.host(),
                "port": stack.clickhouse.port(),
                "database": database,
                "user": stack.clickhouse.user(),
                "password": stack.clickhouse.password(),
            },
        });
        let project = Project {
            config,
            database,
            prefix,
            account,
            sql: stack.clickhouse.sql().clone(),
            dir: dir.to_owned(),
            data_dir,
            _scratch: None,
        };
        project.write_config()?;
        Ok(project)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    pub fn database(&self) -> &str {
        &self.database
    }

    /// The bucket prefix, `storage.r2.prefix`.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    pub fn account(&self) -> &Account {
        &self.account
    }

    /// From now on its streams are in another account.
    pub fn move_to(&mut self, account: Account) -> Result<()> {
        for (key, value) in [("url", &account.url), ("user", &account.user), ("password", &account.password)] {
            self.set(&format!("nats.{key}"), value.as_str())?;
        }
        self.account = account;
        Ok(())
    }

    pub fn sql(&self) -> &SqlClient {
        &self.sql
    }

    pub fn config_path(&self) -> PathBuf {
        self.dir.join("config.yaml")
    }

    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Sets `section.key` and writes the file; a process that runs already keeps what it read.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) -> Result<()> {
        let mut place = &mut self.config;
        for part in key.split('.') {
            if place.is_null() {
                *place = json!({});
            }
            let section = place
                .as_object_mut()
                .ok_or_else(|| Failure::new(format!("{key} goes through a value that is no section")))?;
            place = section.entry(part).or_insert(Value::Null);
        }
        *place = value.into();
        self.write_config()
    }

    fn write_config(&self) -> Result<()> {
        let path = self.config_path();
        fs::write(&path, yaml::to_string(&self.config)).context(format!("writing {}", path.display()))
    }

    /// Runs `uploader ARGS --config …` to its end; the exit code is for the caller to judge.
    pub fn uploader(&self, args: &[&str]) -> Result<Finished> {
        self.start("uploader", args, &[])?.wait(COMMAND_TIMEOUT)
    }

    /// Runs `puller ARGS --config …` to its end; the exit code is for the caller to judge.
    pub fn puller(&self, args: &[&str]) -> Result<Finished> {
        self.start("puller", args, &[])?.wait(COMMAND_TIMEOUT)
    }

    pub fn spawn_uploader(&self, args: &[&str]) -> Result<Service> {
        self.spawn("uploader", args, &[])
    }

    pub fn spawn_puller(&self, args: &[&str]) -> Result<Service> {
        self.spawn("puller", args, &[])
    }

    /// Starts a service with an `http.listen` of its own and more environment, e.g. `FERRY__PULLER__SLOTS`.
    pub fn spawn(&self, binary: &str, args: &[&str], env: &[(&str, &str)]) -> Result<Service> {
        let http = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let listen = http.to_string();
        let env: Vec<_> = [("FERRY__HTTP__LISTEN", listen.as_str())].iter().chain(env).copied().collect();
        Ok(Service { process: self.start(binary, args, &env)?, http })
    }

    /// Starts a binary with nothing but the configuration file and `env`.
    pub fn start(&self, binary: &str, args: &[&str], env: &[(&str, &str)]) -> Result<Process> {
        self.spawn_program(binary_path(binary)?, self.words(args), [&[binary], args].concat().join(" "), env)
    }

    /// Starts another program with `words` and after them the command line that [`Project::start`] would run.
    pub fn start_by(&self, words: &[&OsStr], binary: &str, args: &[&str], env: &[(&str, &str)]) -> Result<Process> {
        let (program, words) = words.split_first().ok_or_else(|| Failure::new("no program"))?;
        let mut all: Vec<OsString> = words.iter().map(Into::into).collect();
        all.push(binary_path(binary)?.into());
        all.extend(self.words(args));
        let name = format!("{} by {}", [&[binary], args].concat().join(" "), program.display());
        self.spawn_program(program.into(), all, name, env)
    }

    /// Starts a shell script with the command line that [`Project::start`] would run as its arguments.
    pub fn start_by_script(&self, script: &str, binary: &str, args: &[&str]) -> Result<Process> {
        self.start_by(&["/bin/sh".as_ref(), "-c".as_ref(), script.as_ref(), "sh".as_ref()], binary, args, &[])
    }

    fn words(&self, args: &[&str]) -> Vec<OsString> {
        args.iter().map(Into::into).chain(["--config".into(), self.config_path().into()]).collect()
    }

    fn spawn_program(&self, path: PathBuf, args: Vec<OsString>, name: String, env: &[(&str, &str)]) -> Result<Process> {
        let env = env.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        Process::spawn(Program { name, path, args, env, dir: self.dir.clone() })
    }

    /// Asks ClickHouse; `{db}` in the statement is this project's database.
    pub fn query(&self, sql: &str) -> Result<String> {
        self.sql.query(&sql.replace("{db}", &self.database))
    }

    /// How many archives the ledger has; 0 also when there is no ledger yet.
    pub fn archives_loaded(&self) -> Result<u64> {
        let ledger = "SELECT count() FROM system.tables WHERE database = '{db}' AND name = 'archives'";
        if self.query(ledger)?.trim() == "0" {
            return Ok(0);
        }
        let count = self.query("SELECT count() FROM {db}.archives FINAL")?;
        count.trim().parse().context(format!("count of archives: {count:?}"))
    }

    /// Waits until the ledger has at least `count` archives.
    pub fn wait_for_archives(&self, count: u64, timeout: Duration) -> Result<()> {
        self.wait_until(&format!("{count} archives in the ledger"), timeout, || Ok(self.archives_loaded()? >= count))
    }

    /// Polls a condition; the deadline's failure names it.
    pub fn wait_until(&self, what: &str, timeout: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
        let start = Instant::now();
        while !condition()? {
            if start.elapsed() > timeout {
                return Err(Failure::new(format!("not within {timeout:?}: {what}")));
            }
            thread::sleep(Duration::from_millis(25));
        }
        Ok(())
    }

    /// Compares `klines_latest` with all archives of the data_dir, value for value, and `archives` with the files. The
    /// archives have `rows_min` rows at least, or nothing would be compared where nothing was written.
    pub fn check_tables(&self, rows_min: usize) -> Result<()> {
        self.check_tables_against(&Truth::of_tree(&self.data_dir)?, rows_min)
    }

    /// The same with other archives than those of the data_dir.
    pub fn check_tables_against(&self, truth: &Truth, rows_min: usize) -> Result<()> {
        truth.compare_rows(&self.sql, &self.database, rows_min)?;
        truth.compare_ledger(&self.sql, &self.database, &self.prefix)
    }
}

impl Service {
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// Whether `/readyz` answers 200; it does not before the service listens.
    pub fn is_ready(&self) -> bool {
        http::get(self.http, "/readyz").is_ok_and(|ready| ready.status == 200)
    }

    /// Whether `/readyz` gives a reason that has all these words.
    pub fn is_not_ready_for(&self, words: &[&str]) -> bool {
        let reasons = self.reasons();
        !reasons.is_empty() && words.iter().all(|word| reasons.contains(word))
    }

    /// The reasons for which `/readyz` does not answer 200; none while it does, or while nothing listens.
    pub fn reasons(&self) -> String {
        let answer = http::get(self.http, "/readyz").ok().filter(|ready| ready.status != 200);
        answer.and_then(|answer| answer.text().ok()).unwrap_or_default()
    }

    /// The text of `/metrics`.
    pub fn metrics(&self) -> Result<String> {
        http::get_text(self.http, "/metrics")
    }

    /// The sum over all samples of a series, a metric's name with or without labels; fails when it is not exported.
    pub fn metric(&self, series: &str) -> Result<f64> {
        metrics::sum(&self.metrics()?, series)
    }

    /// Polls a series, which need not be exported at first: families without samples are not.
    pub fn wait_for_metric(&self, series: &str, timeout: Duration, fits: impl Fn(f64) -> bool) -> Result<()> {
        let start = Instant::now();
        loop {
            let found = self.metric(series);
            if found.as_ref().is_ok_and(|value| fits(*value)) {
                return Ok(());
            }
            if start.elapsed() > timeout {
                return Err(Failure::new(format!("not within {timeout:?}: {series} is {found:?}")));
            }
            thread::sleep(Duration::from_millis(25));
        }
    }
}

impl Deref for Service {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl DerefMut for Service {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// The binary beside the running executable: `target/<profile>/NAME`, from there or from `deps` below it.
pub fn binary_path(name: &str) -> Result<PathBuf> {
    let here = env::current_exe().context("finding the running executable")?;
    here.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|path| path.is_file()).ok_or_else(|| {
        Failure::new(format!("no {name} beside {}: build it first (`make test` and `make demo` do)", here.display()))
    })
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| Failure::new(format!("{} is not UTF-8", path.display())))
}
