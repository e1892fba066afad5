//! The real servers: nats-server, ClickHouse, and S3 in process, on free ports of the loopback; and sshd where a test
//! asks for one.
//!
//! [`Stack`] is one of each. [`Stack::shared`] is started once per process, for all tests that do not disturb it: a
//! test that stops, kills or freezes a server starts its own, which the types ask for (`stop` takes `&mut self`).
//! A start returns when the server has answered a real request as itself, so no test needs to wait or sleep.

mod clickhouse;
mod nats;
mod ports;
mod roles;
mod run_dir;
mod s3;
mod sshd;
mod stack;

pub use crate::setup::{ensure as ensure_installed, repository};
pub use clickhouse::{ClickHouse, SqlClient};
pub use nats::{Account, Nats};
pub use ports::free_port;
pub use roles::Roles;
pub use run_dir::RunDir;
pub use s3::{Credentials, NO_COPIES, S3, serve_s3};
pub use sshd::Sshd;
pub use stack::Stack;

use std::{fs, io::Read, thread, time::Duration, time::Instant};

use crate::{Context, Failure, Result};

/// How long a server may take from start to its first answer; generous, for a busy machine.
const START_DEADLINE: Duration = Duration::from_secs(60);
const STOP_DEADLINE: Duration = Duration::from_secs(30);
/// Ports are tried until one is free in fact and not only by the look of it.
const PORT_TRIES: usize = 5;

/// Tries until `probe` says `Some`, an error or the deadline comes.
fn poll<T>(what: &str, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    while start.elapsed() < START_DEADLINE {
        if let Some(answer) = probe()? {
            return Ok(answer);
        }
        thread::sleep(Duration::from_millis(5));
    }
    Err(Failure::new(format!("{what} did not answer within {START_DEADLINE:?}")))
}

/// 128 random bits as hex, for passwords and names.
pub(crate) fn random_hex() -> Result<String> {
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .context("reading /dev/urandom")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
