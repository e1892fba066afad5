//! The archives of a unit as a marker names them: checked and hashed, or known from an earlier run.

use common::checksum::Sha256Sum;
use common::marker::Object;
use futures::{StreamExt, stream};

use crate::contents::unit_plan::LocalObject;
use crate::error::{PassError, UnitError};
use crate::local::check::Checked;
use crate::local::scan::{Fingerprint, LocalArchive, LocalUnit};
use crate::local::{check, layout};
use crate::site::context::{Site, blocking};

/// An archive on disk that is whole.
#[derive(Debug, Clone)]
pub(crate) struct Digested {
    pub(crate) symbol: String,
    /// Below `data_dir`.
    pub(crate) path: String,
    /// Of the file that was checked.
    pub(crate) fingerprint: Fingerprint,
    pub(crate) checked: Checked,
}

impl Digested {
    /// As a marker would name it.
    pub(crate) fn local_object(&self, site: &Site) -> LocalObject {
        LocalObject { object: self.object(site), stamped: self.checked.stamped }
    }

    pub(crate) fn object(&self, site: &Site) -> Object {
        Object {
            key: site.prefix.archive_key(&self.path),
            symbol: self.symbol.clone(),
            size: self.fingerprint.size,
            sha256: self.sha256(),
            generated_at: self.checked.generated_at,
        }
    }

    pub(crate) fn sha256(&self) -> Sha256Sum {
        self.checked.sha256
    }
}

/// The unit's archives, if all of them are known from an earlier run and have not changed.
pub(crate) fn known(site: &Site, unit: &LocalUnit) -> Option<Vec<Digested>> {
    if !unit.unreadable.is_empty() {
        return None;
    }
    unit.archives.iter().map(|archive| from_cache(site, unit, archive)).collect()
}

fn from_cache(site: &Site, unit: &LocalUnit, archive: &LocalArchive) -> Option<Digested> {
    let checked = site.cache.get(&unit.unit, &archive.symbol, archive.fingerprint)?;
    // Of a clock that was ahead when the archive was checked: no worker takes such a time.
    if check::is_ahead(checked.generated_at, common::clock::now()) {
        return None;
    }
    let path = layout::archive_path(&unit.unit, &archive.symbol);
    Some(Digested { symbol: archive.symbol.clone(), path, fingerprint: archive.fingerprint, checked })
}

/// Checks and hashes the unit's archives.
///
/// # Errors
/// The unit is held back if one archive is not whole; all that are not are named.
pub(crate) async fn digest(site: &Site, unit: &LocalUnit) -> Result<Vec<Digested>, UnitError> {
    let mut archives = Vec::with_capacity(unit.archives.len());
    let mut faults = unit.unreadable.clone();
    let mut results = stream::iter(&unit.archives).map(|archive| one(site, unit, archive)).buffered(site.checks_max);
    while let Some(result) = results.next().await {
        match result? {
            Ok(archive) => archives.push(archive),
            Err(fault) => faults.push(fault),
        }
    }
    if faults.is_empty() { Ok(archives) } else { Err(UnitError::HeldBack(faults)) }
}

async fn one(site: &Site, unit: &LocalUnit, archive: &LocalArchive) -> Result<Result<Digested, String>, PassError> {
    if let Some(known) = from_cache(site, unit, archive) {
        return Ok(Ok(known));
    }
    let path = layout::archive_path(&unit.unit, &archive.symbol);
    let _permits = site.check(archive.fingerprint.size).await?;
    let file = site.data_dir.join(&path);
    match blocking(move || check::check_file(&file, common::clock::now())).await {
        Ok((checked, fingerprint)) => {
            site.metrics.archive_read();
            site.cache.insert(&unit.unit, &archive.symbol, fingerprint, checked.clone());
            Ok(Ok(Digested { symbol: archive.symbol.clone(), path, fingerprint, checked }))
        }
        Err(fault) => {
            site.metrics.object_failed();
            Ok(Err(format!("{path} {fault}")))
        }
    }
}
