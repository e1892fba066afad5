//! `--content`: every announced object is read from the bucket and compared with the marker, byte for byte.
//!
//! A bucket's own metadata were sent with the object, and say nothing about what its disks hold now.

use common::backoff::Backoff;
use common::checksum::Summing;
use common::marker::Object;
use futures::{StreamExt, stream};
use store::StoreErrorKind;

use super::bucket::{Lost, ObjectCheck};
use crate::error::{PassError, UnitError};
use crate::site::context::Site;

/// To read an object whose body breaks off.
const ATTEMPTS: u32 = 6;

/// The objects that are not what the marker says, by what HEAD showed or else by their content, in the order given.
pub(super) async fn different(site: &Site, objects: Vec<ObjectCheck<'_>>) -> Result<Vec<Lost>, UnitError> {
    let mut lost = Vec::new();
    let mut reads = stream::iter(objects)
        .map(async |mut looked| {
            if let Some(fault) = looked.fault.take() {
                return Ok(Some(looked.lost(fault)));
            }
            let _place = site.transfer().await?;
            let why = read(site, looked.object).await?;
            site.progress.sent(looked.object.size);
            Ok::<_, UnitError>(why.map(|why| looked.lost(why)))
        })
        .buffered(site.transfers_max);
    while let Some(found) = reads.next().await {
        lost.extend(found?);
    }
    Ok(lost)
}

/// How an object's content differs, if it does; read again while the way to the bucket is at fault.
async fn read(site: &Site, object: &Object) -> Result<Option<String>, UnitError> {
    let reading = Backoff::RECONNECT.retry(
        || read_once(site, object),
        |error, attempt| {
            let passes = attempt < ATTEMPTS && error.is_of_the_link();
            if passes {
                tracing::debug!(%error, attempt, "reading again");
            }
            passes
        },
    );
    site.shutdown.run_until_cancelled(reading).await.unwrap_or(Err(PassError::Stopped.into()))
}

async fn read_once(site: &Site, object: &Object) -> Result<Option<String>, UnitError> {
    let mut download = match site.store.get(&object.key, object.size).await {
        Ok(download) => download,
        Err(error) if error.kind == StoreErrorKind::NotFound => return Ok(Some("it is not in the bucket".into())),
        Err(error) => return Err(error.into()),
    };
    let (mut summing, mut bytes) = (Summing::new(None), 0);
    while let Some(chunk) = download.chunk().await? {
        if site.shutdown.is_cancelled() {
            return Err(PassError::Stopped.into());
        }
        bytes += chunk.len() as u64;
        if bytes > object.size {
            return Ok(Some(format!("its content has more than the {} bytes announced", object.size)));
        }
        summing.update(&chunk);
    }
    if bytes < object.size {
        return Ok(Some(format!("its content has {bytes} bytes instead of {}", object.size)));
    }
    let actual = summing.finish().sha256;
    Ok((actual != object.sha256).then(|| format!("its content has sha256 {actual} instead of {}", object.sha256)))
}
