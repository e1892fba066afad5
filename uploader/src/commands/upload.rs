//! `uploader upload`: one pass, then exit.

use clap::Args;
use common::bwlimit::BwLimit;
use common::config::{Config, Publish};
use common::output::{Failure, ListArgs, Reply};
use common::unit::Unit;
use common::unit_filter::UnitFilter;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use crate::cli::context::{check_words, site};
use crate::pass::memory::UnitMemory;
use crate::pass::run as pass;
use crate::pass::scope::{Scope, Watching};
use crate::site::context::Accepted;
use crate::site::progress::Progress;
use crate::unit::cleanup::{self, Policy};
use crate::unit::process::Mode;

pub(super) const UPLOAD_EXAMPLES: &str = "\
Examples:
  uploader upload
  uploader upload --dry-run --market um --interval 1h
  uploader upload --from 2026-02-01 --to 2026-02-14
  uploader upload --cleanup --keep-days 7 --json
  uploader upload --accept-rollback binance/um/klines/1h/2026-02-14
  uploader upload --bwlimit 2M";

#[derive(Debug, Args)]
pub struct Upload {
    /// Print what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Remove archives from disk once a marker that names them is acknowledged and the bucket has them
    ///
    /// Their .CHECKSUM files go with them, marks and folders stay. Without it, publish.cleanup_after counts. Not with
    /// storage.type rsync, where the archives are the stored objects themselves.
    #[arg(long)]
    cleanup: bool,
    /// Keep archives whose period ended less than N days ago [default: publish.keep_days]
    #[arg(long, value_name = "N")]
    keep_days: Option<u32>,
    /// Publish the archives of this unit that are older than the announced ones, dated as published now; only this unit
    ///
    /// The archive that the exchange generated last keeps winning: one that comes back as it was before is named and not
    /// taken, until somebody says here that it is right. May be given several times, and not with filters.
    #[arg(long, value_name = "UNIT", conflicts_with = "UnitFilter")]
    accept_rollback: Vec<Unit>,
    /// Announce units from this bucket and prefix that are announced from another one
    ///
    /// Without it nothing is uploaded while the stream's units are announced from elsewhere: a wrong storage.r2.prefix
    /// looks like an empty bucket.
    #[arg(long)]
    accept_move: bool,
    #[command(flatten)]
    pub(crate) filter: UnitFilter,
    #[command(flatten)]
    pub(crate) list: ListArgs,
    /// How fast bytes may go, instead of storage.bwlimit: 10M, 512K, off, or a timetable '08:00,512K 19:00,off'
    #[arg(long, value_name = "LIMIT")]
    pub(super) bwlimit: Option<BwLimit>,
}

impl Upload {
    /// # Errors
    /// Arguments that are wrong in themselves.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        self.filter.check()?;
        check_words(&self.accept_rollback)
    }

    pub(crate) fn scope(&self) -> Scope {
        if self.accept_rollback.is_empty() {
            Scope::Everything(self.filter.clone())
        } else {
            Scope::Units(self.accept_rollback.clone())
        }
    }

    pub(crate) fn accepted(&self) -> Accepted {
        let rollbacks = self.accept_rollback.iter().cloned().collect();
        Accepted { move_here: self.accept_move, bucket_is_whole: false, rollbacks }
    }

    pub(crate) fn mode(&self, publish: &Publish) -> Mode {
        Mode { dry_run: self.dry_run, cleanup: Policy::of(publish, self.cleanup, self.keep_days), service: false }
    }
}

pub(super) async fn run(
    config: &Config,
    upload: &Upload,
    progress: Progress,
    shutdown: CancellationToken,
) -> Result<Reply, Failure> {
    upload.check()?;
    let mode = upload.mode(&config.publish);
    cleanup::allowed(&config.storage, mode.cleanup).map_err(Failure::usage)?;
    let mut site = site(config, &mut Registry::default(), progress, shutdown)?;
    site.accepted = upload.accepted();
    site.queue.read_only = mode.dry_run;
    let report = pass::run(&site, &upload.scope(), mode, &mut UnitMemory::default(), &Watching::default()).await;
    site.queue.close().await;
    Ok(report.into_reply(upload.list.all))
}
