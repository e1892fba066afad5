//! The harness: real servers, the two real binaries, archives in Binance's format, and an independent reading of them.
//!
//! The scenario tests in `it/` and `make demo` share it. It knows the product only by what is public (binaries,
//! configuration keys, tables) and none of its crates, so that it cannot repeat the product's mistakes.
//!
//! - [`servers`] starts nats-server, ClickHouse and an S3 server, and kills and restarts them on purpose.
//! - [`project`] runs `uploader` and `puller` against them, each test in its own NATS account, database and prefix.
//! - [`proxy`] stands before a server and misbehaves on demand.
//! - [`exchange`] serves archives as the exchange does, and misbehaves on demand.
//! - [`other_client`] is an S3 client that is not the product's, to fill buckets and to compare them with files.
//! - [`dice`] chooses at random, and the same again from a seed.
//! - [`data`] makes archives, good and hostile. [`truth`] reads archives and compares them with `klines_latest` and `archives`.
//!
//! [`times`] notes how long each scenario takes.
//!
//! Everything here blocks: in a `#[tokio::test]` call it from the multi-threaded flavour, or not at all from async code.
//! Whatever is started dies with this process, however that ends. Servers that cannot be started fail the test. Only
//! what needs root is skipped without it, which [`root::is_root`] says and CI takes for a failure.
//!
//! ```no_run
//! use tests::{data::{ArchiveSpec, Market}, project::Project, servers::Stack};
//! use std::time::Duration;
//!
//! # fn main() -> tests::Result<()> {
//! let project = Project::new(Stack::shared(), "two-days")?;
//! for day in ["2025-02-01", "2025-02-02"] {
//!     ArchiveSpec::new(Market::Spot, "BTCUSDT", "1h", day).write(project.data_dir())?;
//! }
//! tests::data::mark_all(project.data_dir())?;
//!
//! project.uploader(&["upload"])?.expect_code(0)?;
//! let mut worker = project.spawn_puller(&["run"])?;
//! project.wait_for_archives(2, Duration::from_secs(30))?;
//! worker.sigterm()?;
//! assert_eq!(worker.wait(Duration::from_secs(30))?.code, Some(0));
//!
//! project.check_tables(48)?;
//! # Ok(()) }
//! ```

pub mod data;
pub mod dice;
pub mod exchange;
pub mod http;
pub mod other_client;
pub mod process;
pub mod project;
pub mod proxy;
pub mod root;
pub mod servers;
mod setup;
pub mod times;
pub mod truth;

use std::fmt;

/// Why the harness could not do what it was asked; the text is all there is to know.
///
/// `Debug` prints the same text as `Display`, so that an `unwrap` in a test, or `?` out of one, stays readable.
pub struct Failure(String);

pub type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    pub fn new(text: impl Into<String>) -> Failure {
        Failure(text.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

/// Says what was being done when an error came up.
pub trait Context<T> {
    fn context(self, doing: impl fmt::Display) -> Result<T>;
}

impl<T, E: fmt::Display> Context<T> for std::result::Result<T, E> {
    fn context(self, doing: impl fmt::Display) -> Result<T> {
        self.map_err(|error| Failure(format!("{doing}: {error}")))
    }
}
