//! One of each server.

use std::{path::Path, sync::OnceLock};

use super::{ClickHouse, Nats, RunDir, S3};
use crate::Result;

/// NATS, ClickHouse and S3, running.
///
/// Fields are public: `stack.nats.kill()` is what a test of NATS going away does to a stack of its own.
pub struct Stack {
    pub nats: Nats,
    pub clickhouse: ClickHouse,
    pub s3: S3,
    // Last, for fields are dropped in order: the servers are gone before their files.
    dir: Option<RunDir>,
}

/// As many tests as one process can hand an account to; an account that is not used costs the server a few kB.
const ACCOUNTS: usize = 512;

impl Stack {
    /// A stack of one's own, in a scratch directory that goes with it.
    pub fn own() -> Result<Stack> {
        let dir = RunDir::new("stack")?;
        let mut stack = Stack::start(dir.path())?;
        stack.dir = Some(dir);
        Ok(stack)
    }

    /// A stack whose files are below `dir` and stay there.
    pub fn start(dir: &Path) -> Result<Stack> {
        Stack::with_s3(dir, dir, S3::start(&dir.join("s3"))?)
    }

    /// The same with an S3 server that runs already, and ClickHouse's files in another place.
    pub fn with_s3(dir: &Path, clickhouse_dir: &Path, s3: S3) -> Result<Stack> {
        Ok(Stack {
            nats: Nats::start_with_accounts(&dir.join("nats"), ACCOUNTS)?,
            clickhouse: ClickHouse::start(&clickhouse_dir.join("clickhouse"))?,
            s3,
            dir: None,
        })
    }

    /// Stops the servers in order; a drop kills them.
    pub fn stop(&mut self) -> Result<()> {
        self.nats.stop()?;
        self.clickhouse.stop()?;
        self.s3.stop()
    }

    /// The stack that all tests of this process share.
    ///
    /// # Panics
    /// When it cannot be started: then no test that needs it has a meaning.
    pub fn shared() -> &'static Stack {
        static SHARED: OnceLock<Stack> = OnceLock::new();
        SHARED.get_or_init(|| Stack::own().unwrap_or_else(|failure| panic!("{failure}")))
    }
}
