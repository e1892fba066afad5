//! The service: a pass every `watch.rescan`, until it is told to stop.

use std::time::Duration;

use common::exit;
use common::http::Readiness;

use crate::pass;
use crate::report::Report;
use crate::scan::Filter;
use crate::settle::Mode;
use crate::site::Site;

/// The parts `/readyz` gives reasons for.
const PASS: &str = "pass";
const QUEUE: &str = "queue";

/// Runs until shutdown. What fails is logged, shown by `/readyz`, and tried again by the next pass.
pub(crate) async fn run(site: &Site, rescan: Duration, readiness: &Readiness) -> u8 {
    let mode = Mode { dry_run: false, cleanup: false };
    loop {
        let report = pass::run(site, &Filter::default(), mode).await;
        if site.shutdown.is_cancelled() {
            return exit::DONE;
        }
        show(&report, readiness);
        tokio::select! {
            () = site.shutdown.cancelled() => return exit::DONE,
            () = tokio::time::sleep(rescan) => {}
        }
    }
}

/// A service that has begun and not finished a pass is not ready.
pub(crate) fn starting(readiness: &Readiness) {
    readiness.not_ready(PASS, "the first pass has not ended");
}

fn show(report: &Report, readiness: &Readiness) {
    match &report.error {
        Some(error) => readiness.not_ready(PASS, error.as_str()),
        None => readiness.ready(PASS),
    }
    match report.units.unannounced {
        0 => readiness.ready(QUEUE),
        units => readiness.not_ready(QUEUE, format!("{units} units are stored and not announced")),
    }
    let units = &report.units;
    if units.published + units.unannounced + units.held_back > 0 {
        tracing::info!(
            units.published,
            units.unchanged,
            units.held_back,
            units.unannounced,
            archives.uploaded = report.archives.uploaded,
            seconds = report.seconds,
            "pass ended"
        );
    }
}
