//! Archives at hand that are older publications than the announced ones, as far as an earlier run has read them: whoever
//! only compares or looks reads no archive.

use std::sync::Arc;

use common::marker::Object;
use common::unit::Unit;
use nats::Bus;

use crate::contents::digest;
use crate::contents::unit_plan::{OlderArchive, plan};
use crate::error::{PassError, UnitError};
use crate::local::scan;
use crate::pass::report::OlderUnit;
use crate::site::context::{Site, blocking};
use crate::unit::previous;

/// Those of a unit that is announced with these objects.
pub(crate) async fn of_unit(site: &Site, unit: &Unit, objects: &[Object]) -> Vec<OlderArchive> {
    let (data_dir, cache, listed) = (site.data_dir.clone(), Arc::clone(&site.cache), unit.clone());
    let local = blocking(move || {
        cache.load(&listed);
        scan::list(&data_dir, listed, false)
    })
    .await;
    let known = digest::known(site, &local).unwrap_or_default();
    site.cache.abandon(unit);
    let here = known.iter().map(|archive| archive.local_object(site)).collect();
    plan(objects, here, site.rollback_at(unit)).older
}

/// Those of all units of which the last pass found some and that are still announced in their place; the newest periods
/// first.
pub(crate) async fn of_all_units(site: &Site, bus: &Bus) -> Result<Vec<OlderUnit>, PassError> {
    let cache = Arc::clone(&site.cache);
    let mut found = Vec::new();
    for unit in blocking(move || cache.with_older()).await {
        let latest = bus.latest_marker(&unit).await.map_err(PassError::Queue)?;
        let announced = match previous::read(site, &unit, Some(&latest)).await {
            Ok(announced) => announced.objects,
            // A pass and a comparison tell of it.
            Err(UnitError::HeldBack(_) | UnitError::Overtaken(_)) => continue,
            Err(UnitError::Pass(error)) => return Err(error),
        };
        let older = of_unit(site, &unit, &announced).await;
        if !older.is_empty() {
            found.push(OlderUnit::of(&unit, &older));
        }
    }
    Ok(found)
}
