//! What commands begin with.

use std::path::PathBuf;

use common::config::Config;
use common::output::Failure;
use common::unit::Unit;
use common::unit_filter::UnitPrefix;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use crate::site::context::Site;
use crate::site::metrics::Metrics;
use crate::site::progress::Progress;

/// What a pass works with.
pub(crate) fn site(
    config: &Config,
    registry: &mut Registry,
    progress: Progress,
    shutdown: CancellationToken,
) -> Result<Site, Failure> {
    Ok(Site::new(config, data_dir(config)?, Metrics::new(registry), progress, shutdown))
}

pub(crate) fn data_dir(config: &Config) -> Result<PathBuf, Failure> {
    let not_set = || Failure::config("local.data_dir is not set (the folder with the archives)");
    config.local.data_dir.clone().ok_or_else(not_set)
}

/// Whether units named on the command line can exist.
pub(crate) fn check_words(units: &[Unit]) -> Result<(), Failure> {
    units.iter().try_for_each(|unit| UnitPrefix::from(unit).check_words().map_err(Failure::usage))
}
