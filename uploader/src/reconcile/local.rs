//! Archives at hand that are older publications than the announced ones, as far as an earlier run has read them: a
//! comparison reads no archive.

use std::sync::Arc;

use common::marker::Object;
use common::unit::Unit;

use crate::digest;
use crate::scan;
use crate::site::{Site, blocking};
use crate::unit_plan::{OlderArchive, plan};

pub(super) async fn older(site: &Site, unit: &Unit, objects: &[Object]) -> Vec<OlderArchive> {
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
