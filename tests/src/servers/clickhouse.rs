//! ClickHouse, and questions to it over plain HTTP.

use std::{
    fs,
    io::BufRead,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::{PORT_TRIES, START_DEADLINE, STOP_DEADLINE, ports::free_port, random_hex};
use crate::setup;
use crate::{
    Context, Failure, Result, http,
    process::{Process, Program},
};

pub struct ClickHouse {
    dir: PathBuf,
    sql: SqlClient,
    /// XML of the profile and of the quota of the user [`ClickHouse::LIMITED`].
    limits: (String, String),
    process: Option<Process>,
}

/// Where to ask and as whom; stays good over a restart of the server.
#[derive(Clone)]
pub struct SqlClient {
    address: SocketAddr,
    user: String,
    password: String,
    timeout: Duration,
}

impl ClickHouse {
    /// A server whose data are below `dir`.
    pub fn start(dir: &Path) -> Result<ClickHouse> {
        fs::create_dir_all(dir).context(format!("making {}", dir.display()))?;
        let sql = SqlClient {
            address: (Ipv4Addr::LOCALHOST, 0).into(),
            user: "ferry".to_owned(),
            password: random_hex()?,
            timeout: http::TIMEOUT,
        };
        let limits = (String::new(), String::new());
        let mut server = ClickHouse { dir: dir.to_owned(), sql, limits, process: None };
        for attempt in 1.. {
            server.sql.address.set_port(free_port());
            match server.launch() {
                Err(failure) if attempt < PORT_TRIES && is_port_used(&failure) => continue,
                result => return result.map(|()| server),
            }
        }
        unreachable!("the loop returns at the last attempt");
    }

    pub fn host(&self) -> &'static str {
        "127.0.0.1"
    }

    pub fn port(&self) -> u16 {
        self.sql.address.port()
    }

    pub fn user(&self) -> &str {
        &self.sql.user
    }

    pub fn password(&self) -> &str {
        &self.sql.password
    }

    /// A user with the same password, with all rights that its profile and quota leave it.
    pub const LIMITED: &str = "limited";

    /// Gives that user another profile and quota, as the XML of `users.xml`, and starts the server again.
    pub fn limit(&mut self, profile: &str, quota: &str) -> Result<()> {
        self.limits = (profile.to_owned(), quota.to_owned());
        self.restart()
    }

    pub fn sql(&self) -> &SqlClient {
        &self.sql
    }

    pub fn query(&self, sql: &str) -> Result<String> {
        self.sql.query(sql)
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

    /// Starts again on the same port and data, after [`ClickHouse::stop`] or [`ClickHouse::kill`] or instead of a stop.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.launch()
    }

    /// `STOP` freezes the server with its connections open, `CONT` lets it go on.
    pub fn signal(&mut self, name: &str) -> Result<()> {
        self.process.as_mut().ok_or_else(|| Failure::new("ClickHouse is not running"))?.signal(name)
    }

    fn launch(&mut self) -> Result<()> {
        let installed = setup::ensure()?;
        let mut command = Command::new(&installed.python);
        command
            .arg(&installed.clickhouse)
            .arg("--dir")
            .arg(&self.dir)
            .args(["--http-port", &self.port().to_string()])
            .args(["--parent", &std::process::id().to_string()]);
        let mut process = Process::spawn_raw(
            Program {
                name: "ClickHouse".to_owned(),
                path: installed.clickhouse.clone(),
                args: Vec::new(),
                env: vec![
                    ("FERRY_CLICKHOUSE_USER".to_owned(), self.user().to_owned()),
                    ("FERRY_CLICKHOUSE_PASSWORD".to_owned(), self.password().to_owned()),
                    ("FERRY_CLICKHOUSE_PROFILE".to_owned(), self.limits.0.clone()),
                    ("FERRY_CLICKHOUSE_QUOTA".to_owned(), self.limits.1.clone()),
                ],
                dir: self.dir.clone(),
            },
            command,
        )?;
        process.wait_for_line("READY ", START_DEADLINE)?;
        // The password is ours alone, so an answer to it is an answer from our server.
        self.query("SELECT 1")?;
        self.process = Some(process);
        Ok(())
    }
}

impl SqlClient {
    /// For a server that somebody else runs.
    pub fn new(address: SocketAddr, user: &str, password: &str) -> SqlClient {
        SqlClient { address, user: user.to_owned(), password: password.to_owned(), timeout: http::TIMEOUT }
    }

    /// For statements that take longer than a minute.
    pub fn with_timeout(&self, timeout: Duration) -> SqlClient {
        SqlClient { timeout, ..self.clone() }
    }

    /// Runs one statement; the reply as text, tab separated unless the statement says otherwise.
    pub fn query(&self, sql: &str) -> Result<String> {
        self.ask(sql)?.text()
    }

    /// Runs one statement and hands over the reply line by line, so that it may be longer than memory is wide.
    pub fn query_lines(&self, sql: &str, mut each: impl FnMut(&str) -> Result<()>) -> Result<()> {
        let mut body = self.ask(sql)?.body;
        let mut line = String::new();
        while body.read_line(&mut line).context("reading a reply of ClickHouse")? > 0 {
            each(line.trim_end_matches('\n'))?;
            line.clear();
        }
        Ok(())
    }

    fn ask(&self, sql: &str) -> Result<http::Response> {
        let credentials = [("X-ClickHouse-User", self.user.as_str()), ("X-ClickHouse-Key", &self.password)];
        // Without wait_end_of_query an error that comes up late is text at the end of a reply of status 200.
        let response = http::post(self.address, "/?wait_end_of_query=1", &credentials, sql.as_bytes(), self.timeout)?;
        match response.status {
            200 => Ok(response),
            status => Err(Failure::new(format!("ClickHouse: {status}: {}{sql}", response.text()?))),
        }
    }
}

fn is_port_used(failure: &Failure) -> bool {
    failure.to_string().contains("Address already in use")
}
