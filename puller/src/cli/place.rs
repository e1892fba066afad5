//! Whether this process is configured with the bucket and prefix of what is announced.

use common::output::Failure;

use crate::cli::context::Shared;

/// Asks for the newest announcement only, as the uploader does: older markers may be of a former place, and each of them is
/// judged by itself.
///
/// # Errors
/// It is of another bucket or prefix: the configuration is wrong.
pub(crate) async fn check(shared: &Shared) -> Result<(), Failure> {
    let newest = match shared.bus.newest_announcement().await {
        Ok(newest) => newest.and_then(|newest| newest.marker),
        Err(error) => {
            tracing::debug!(%error, "reading the newest marker");
            None
        }
    };
    let elsewhere =
        |marker: common::marker::Marker| marker.elsewhere(shared.fetcher.store.bucket(), &shared.config.storage.prefix);
    newest.and_then(elsewhere).map_or(Ok(()), |elsewhere| Err(Failure::config(elsewhere.to_string())))
}
