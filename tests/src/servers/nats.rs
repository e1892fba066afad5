//! nats-server with JetStream, and accounts to keep tests apart.

use std::{
    fmt::Write,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use serde_json::Value;

use super::{PORT_TRIES, Roles, STOP_DEADLINE, poll, ports::free_port, random_hex};
use crate::setup;
use crate::{
    Context, Failure, Result, http,
    process::{Process, Program},
};

/// A NATS account of its own: stream names in it clash with nobody's.
#[derive(Clone, Debug)]
pub struct Account {
    /// Without credentials, for `nats.url` beside `nats.user` and `nats.password`.
    pub url: String,
    pub user: String,
    pub password: String,
}

impl Account {
    /// With credentials, for `NATS_URL`.
    pub fn url_with_credentials(&self) -> String {
        let address = self.url.trim_start_matches("nats://");
        format!("nats://{}:{}@{address}", self.user, self.password)
    }
}

pub struct Nats {
    dir: PathBuf,
    port: u16,
    monitor_port: u16,
    /// Sent back by the server, so that an answer from another one is not taken for ours.
    server_name: String,
    password: String,
    accounts: usize,
    handed_out: AtomicUsize,
    cluster: Option<ClusterPart>,
    /// What the `jetstream` of each account is set to.
    account_jetstream: String,
    /// More lines of its configuration.
    more: String,
    /// Its users come from `users.conf` beside its configuration; else each account has one with a password.
    has_roles: bool,
    process: Option<Process>,
}

/// How a server finds the others of its cluster.
struct ClusterPart {
    port: u16,
    /// Cluster ports of all of them.
    routes: Vec<u16>,
}

impl Nats {
    /// A server with one account; what it stores is below `dir`.
    pub fn start(dir: &Path) -> Result<Nats> {
        Nats::start_with_accounts(dir, 1)
    }

    pub fn start_with_accounts(dir: &Path, accounts: usize) -> Result<Nats> {
        fs::create_dir_all(dir).context(format!("making {}", dir.display()))?;
        Nats::not_started(dir, accounts, random_hex()?)?.start_on_free_ports()
    }

    /// A server with one account whose `jetstream` is set to this, and with more lines of configuration.
    pub fn start_configured(dir: &Path, account_jetstream: &str, more: &str) -> Result<Nats> {
        fs::create_dir_all(dir).context(format!("making {}", dir.display()))?;
        let mut nats = Nats::not_started(dir, 1, random_hex()?)?;
        (nats.account_jetstream, nats.more) = (account_jetstream.to_owned(), format!("{more}\n"));
        nats.start_on_free_ports()
    }

    /// A server with the users of `deploy/nats/users.conf`.
    pub fn start_with_roles(dir: &Path) -> Result<(Nats, Roles)> {
        fs::create_dir_all(dir).context(format!("making {}", dir.display()))?;
        let roles = Roles::make(dir)?;
        let mut nats = Nats::not_started(dir, 0, random_hex()?)?;
        nats.has_roles = true;
        Ok((nats.start_on_free_ports()?, roles))
    }

    fn start_on_free_ports(mut self) -> Result<Nats> {
        for attempt in 1.. {
            (self.port, self.monitor_port) = (free_port(), free_port());
            match self.launch() {
                Err(failure) if attempt < PORT_TRIES && is_port_used(&failure) => continue,
                result => return result.map(|()| self),
            }
        }
        unreachable!("the loop returns at the last attempt");
    }

    /// Three servers that replicate their streams, each with one account of the same password.
    pub fn start_cluster(dir: &Path) -> Result<Vec<Nats>> {
        let password = random_hex()?;
        let routes: Vec<u16> = (0..3).map(|_| free_port()).collect();
        let mut servers = Vec::new();
        for (number, port) in routes.iter().enumerate() {
            let dir = dir.join(number.to_string());
            fs::create_dir_all(&dir).context(format!("making {}", dir.display()))?;
            let mut nats = Nats::not_started(&dir, 1, password.clone())?;
            (nats.port, nats.monitor_port) = (free_port(), free_port());
            nats.cluster = Some(ClusterPart { port: *port, routes: routes.clone() });
            nats.spawn()?;
            servers.push(nats);
        }
        // None is healthy before two of them have met.
        servers.iter_mut().try_for_each(Nats::await_ready)?;
        Ok(servers)
    }

    fn not_started(dir: &Path, accounts: usize, password: String) -> Result<Nats> {
        Ok(Nats {
            dir: dir.to_owned(),
            port: 0,
            monitor_port: 0,
            server_name: format!("nats-{}", random_hex()?),
            password,
            accounts,
            handed_out: AtomicUsize::new(0),
            cluster: None,
            account_jetstream: "enabled".to_owned(),
            more: String::new(),
            has_roles: false,
            process: None,
        })
    }

    /// The name it has in its cluster.
    pub fn name(&self) -> &str {
        &self.server_name
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// `/varz`, `/jsz`, `/healthz` and the like are here.
    pub fn monitor(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.monitor_port).into()
    }

    /// The next account that nobody has yet.
    pub fn account(&self) -> Result<Account> {
        let number = self.handed_out.fetch_add(1, Ordering::Relaxed);
        if number >= self.accounts {
            return Err(Failure::new(format!("all {} NATS accounts are handed out", self.accounts)));
        }
        Ok(Account { url: self.url(), user: format!("t{number}"), password: self.password.clone() })
    }

    /// None while it does not run.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            // Ctrl-C at a terminal reaches it too, and then it may be gone already.
            if process.is_running() {
                process.sigterm()?;
            }
            process.wait(STOP_DEADLINE)?;
        }
        Ok(())
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().map_or(Ok(()), |mut process| process.kill9())
    }

    /// Starts again on the same port and store, after [`Nats::stop`] or [`Nats::kill`] or instead of a stop.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.launch()
    }

    /// `STOP` freezes the server with its connections open, `CONT` lets it go on.
    pub fn signal(&mut self, name: &str) -> Result<()> {
        self.process.as_mut().ok_or_else(|| Failure::new("nats-server is not running"))?.signal(name)
    }

    fn launch(&mut self) -> Result<()> {
        self.spawn()?;
        let ready = self.await_ready();
        if ready.is_err() {
            self.process = None;
        }
        ready
    }

    fn spawn(&mut self) -> Result<()> {
        let config = self.dir.join("nats.conf");
        fs::write(&config, self.config()?).context(format!("writing {}", config.display()))?;
        let process = Process::spawn(Program {
            name: "nats-server".to_owned(),
            path: setup::ensure()?.nats_server.clone(),
            args: vec!["--config".into(), config.into()],
            env: Vec::new(),
            dir: self.dir.clone(),
        })?;
        self.process = Some(process);
        Ok(())
    }

    fn await_ready(&mut self) -> Result<()> {
        poll("nats-server", || {
            let process = self.process.as_mut().ok_or_else(|| Failure::new("nats-server is not running"))?;
            if !process.is_running() {
                let end = process.wait(STOP_DEADLINE)?;
                return Err(Failure::new(format!("nats-server did not start\n{}", end.stderr)));
            }
            Ok(self.is_ready().then_some(()))
        })
    }

    fn is_ready(&self) -> bool {
        let varz = http::get_text(self.monitor(), "/varz");
        let Ok(varz) = varz.and_then(|text| serde_json::from_str::<Value>(&text).context("/varz")) else {
            return false;
        };
        varz["server_name"] == *self.server_name && http::get_text(self.monitor(), "/healthz").is_ok()
    }

    fn config(&self) -> Result<String> {
        let quoted = |text: &str| Value::from(text).to_string();
        let store = self.dir.join("store");
        let store = store.to_str().ok_or_else(|| Failure::new("the path is not UTF-8"))?;
        // 2 s unless it says otherwise, which a client on a busy machine may need for its CONNECT; the server then refuses
        // it with another error than that of a wrong password.
        let authorization = if self.has_roles { "" } else { "authorization { timeout: 60 }\n" };
        let mut config = format!(
            "server_name: {}\nhost: 127.0.0.1\nport: {}\nhttp: \"127.0.0.1:{}\"\n\
             jetstream {{ store_dir: {}, sync_interval: always, max_file_store: 8TB }}\n{authorization}",
            quoted(&self.server_name),
            self.port,
            self.monitor_port,
            quoted(store),
        );
        config.push_str(&self.more);
        if self.has_roles {
            config.push_str("include \"users.conf\"\n");
            return Ok(config);
        }
        config.push_str("accounts {\n");
        for number in 0..self.accounts {
            writeln!(
                config,
                "  t{number} {{ jetstream: {}, users: [{{ user: t{number}, password: {} }}] }}",
                self.account_jetstream,
                quoted(&self.password)
            )
            .expect("writing to a string cannot fail");
        }
        config.push_str("}\n");
        if let Some(ClusterPart { port, routes }) = &self.cluster {
            let routes: Vec<String> = routes.iter().map(|port| format!("\"nats://127.0.0.1:{port}\"")).collect();
            let routes = routes.join(", ");
            writeln!(config, "cluster {{ name: ferry, listen: \"127.0.0.1:{port}\", routes: [{routes}] }}")
                .expect("writing to a string cannot fail");
        }
        Ok(config)
    }
}

fn is_port_used(failure: &Failure) -> bool {
    failure.to_string().contains("address already in use")
}
