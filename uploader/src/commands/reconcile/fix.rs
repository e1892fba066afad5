//! Bringing the two sides together again.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use common::backoff::Backoff;
use common::marker::{Content, Marker, Object};
use common::unit::Unit;
use nats::{Bus, BusErrorKind, MarkerSubject, Published};
use store::Over;

use super::bucket::{self, InBucket, Lost, Manifest};
use super::content;
use super::report::UnitFinding;
use super::trouble::Trouble;
use crate::bucket::upload;
use crate::error::UnitError;
use crate::local::check;
use crate::site::context::{Site, blocking};
use crate::unit::publish::{dates_of, is_backfill, put_current, put_read_back};
use common::output::Failure;

/// How often a unit is decided on anew because an uploader announced it in between.
const OVERTAKEN_MAX: usize = 4;

const NAMED_MEANWHILE: &str =
    "another revision was stored in the meantime: an uploader works on this unit; run this again";

/// What brings the sides of a unit together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repair {
    Nothing,
    /// The bucket's manifest goes to the stream.
    Publish,
    /// The stream's marker goes to the bucket.
    WriteBack,
    /// Neither side has what is missing.
    Impossible,
}

/// What the stream's marker names, beside a manifest that is newer.
enum StreamHas {
    /// Nothing that the manifest does not name too.
    NoMore,
    AllAndMore,
    /// The manifest names others again, or the stream's list is lost.
    Others,
}

pub(super) struct Fixer<'s> {
    pub(super) site: &'s Site,
    pub(super) bus: &'s Bus,
    /// Sequence of the stream's last message when the run began.
    pub(super) stream_end: u64,
    /// Whether this machine may have the archives.
    pub(super) data_dir: bool,
    /// Whether what is put back is read from the bucket, as it was when it was found to differ.
    pub(super) content: bool,
}

impl Fixer<'_> {
    pub(super) async fn repair(
        &self,
        unit: &Unit,
        bucket: &InBucket,
        repair: Repair,
        finding: &mut UnitFinding,
    ) -> Result<(), Trouble> {
        let done = match (repair, bucket) {
            (Repair::Nothing, _) => return Ok(()),
            (Repair::Impossible, _) => {
                let why = "neither side has what is missing; `uploader adopt` announces what lies in the bucket";
                Err(why.to_owned())
            }
            (Repair::Publish, InBucket::Whole(manifest)) => match self.stream_has(unit, manifest).await? {
                StreamHas::NoMore => self.publish(unit, manifest).await?,
                StreamHas::AllAndMore => self.write_back(unit).await?,
                StreamHas::Others => {
                    let why = "the stream's marker names archives that the bucket's does not; `uploader adopt` announces \
                               all that lie in the bucket";
                    Err(why.to_owned())
                }
            },
            (Repair::Publish, _) => Err("there is no manifest to publish".to_owned()),
            (Repair::WriteBack, _) => self.write_back(unit).await?,
        };
        // What was lost and could not be put back has its own line.
        if finding.fixed == Some(false) {
            return Ok(());
        }
        match done {
            Ok(what) => finding.mended(what),
            Err(why) => finding.not_mended(why),
        }
        Ok(())
    }

    /// Whether a unit would have less than before with this manifest, though it is newer: one of two uploaders with
    /// different archives of it was refused by the stream and then died.
    async fn stream_has(&self, unit: &Unit, manifest: &Manifest) -> Result<StreamHas, Trouble> {
        let latest = self.bus.latest_marker(unit).await.map_err(Failure::from)?;
        let Some(marker) = latest.marker.filter(|marker| marker.bucket == self.site.store.bucket()) else {
            return Ok(StreamHas::NoMore);
        };
        let announced = match marker.content {
            Content::Objects(objects) => objects,
            Content::Manifest(_) => match bucket::manifest(self.site, unit, &marker.revision, false).await? {
                InBucket::Whole(found) => found.objects().to_vec(),
                InBucket::Absent | InBucket::Faulty(_) => return Ok(StreamHas::Others),
            },
        };
        let keys = |objects: &[Object]| objects.iter().map(|object| object.key.clone()).collect::<HashSet<_>>();
        let (stream, bucket) = (keys(&announced), keys(manifest.objects()));
        Ok(match (stream.is_subset(&bucket), bucket.is_subset(&stream)) {
            (true, _) => StreamHas::NoMore,
            (false, true) => StreamHas::AllAndMore,
            (false, false) => StreamHas::Others,
        })
    }

    /// The manifest, byte for byte, where its period belongs now. All its objects were read back.
    async fn publish(&self, unit: &Unit, manifest: &Manifest) -> Result<Result<String, String>, Trouble> {
        if !manifest.is_current {
            let dates = manifest.dates.clone();
            if !put_current(self.site, &manifest.marker, &manifest.key, dates, Over::Nothing).await? {
                return Ok(Err(NAMED_MEANWHILE.into()));
            }
        }
        let revision = &manifest.marker.revision;
        let deadline = Instant::now() + self.site.publish.timeout;
        let (mut overtaken, mut attempt) = (0, 0);
        while overtaken < OVERTAKEN_MAX {
            attempt += 1;
            match self.publish_once(unit, manifest).await {
                Ok(Some(Published::Stored { .. })) => {
                    return Ok(Ok(format!("published on {}", self.subject(unit))));
                }
                Ok(Some(Published::AlreadyThere)) => return Ok(Ok("published in the meantime".into())),
                Ok(None) => return Ok(Err("a newer revision was published in the meantime; run this again".into())),
                Ok(Some(Published::Overtaken)) => overtaken += 1,
                Err(error) if matches!(error.kind, BusErrorKind::Refused | BusErrorKind::Full) => {
                    return Ok(Err(error.to_string()));
                }
                // An election takes some seconds; the same id makes trying again safe.
                Err(error) if error.kind == BusErrorKind::Unavailable && Instant::now() < deadline => {
                    tracing::warn!(%unit, %revision, %error, "publishing again");
                    let pause = Backoff::RECONNECT.delay(attempt).min(Duration::from_secs(2));
                    let stopped = self.site.shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_none();
                    if stopped {
                        return Err(Failure::from(crate::error::PassError::Stopped).into());
                    }
                }
                Err(error) => return Err(Failure::from(error).into()),
            }
        }
        Ok(Err("the stream refused the marker each time: an uploader announces this unit too; run this again".into()))
    }

    fn subject(&self, unit: &Unit) -> String {
        MarkerSubject::announcement(unit, is_backfill(unit, self.site.publish.live_days, common::clock::now()))
    }

    /// `None`: the stream has something newer.
    async fn publish_once(&self, unit: &Unit, manifest: &Manifest) -> Result<Option<Published>, nats::BusError> {
        let latest = self.bus.latest_marker(unit).await?;
        if let Some(found) = &latest.marker {
            if found.revision == manifest.marker.revision {
                return Ok(Some(Published::AlreadyThere));
            }
            if found.published_at > manifest.marker.published_at {
                return Ok(None);
            }
        }
        let backfill = is_backfill(unit, self.site.publish.live_days, common::clock::now());
        let subject = MarkerSubject::announcement(unit, backfill);
        let expected_last = if backfill { latest.backfill_sequence } else { latest.ready_sequence };
        let payload =
            manifest.marker.message(&manifest.key, &manifest.json, manifest.dates.clone(), self.bus.inline_bytes_max());
        let revision = &manifest.marker.revision;
        self.bus.republish_marker(&subject, revision, payload, expected_last, self.stream_end).await.map(Some)
    }

    /// The stream's marker becomes the bucket's manifest again, if all it names is there.
    async fn write_back(&self, unit: &Unit) -> Result<Result<String, String>, Trouble> {
        let current = self.site.store.head(&self.site.prefix.current_key(unit)).await.map_err(UnitError::from)?;
        let Some(message) = self.bus.current_marker(unit).await.map_err(Failure::from)? else {
            return Ok(Err("the marker is no longer on the stream; run this again".into()));
        };
        let marker = match Marker::parse(&message.payload) {
            Ok(marker) if marker.unit == *unit => marker,
            Ok(_) => return Ok(Err("the marker on the stream is of another unit".into())),
            Err(error) => return Ok(Err(format!("the stream's message: {error}"))),
        };
        let key = self.site.prefix.manifest_key(unit, &marker.revision);
        let (objects, json) = match &marker.content {
            Content::Objects(_) => match marker.checked_objects(&self.site.prefix, common::clock::now()) {
                Ok(objects) => (objects.to_vec(), Some(&message.payload)),
                Err(error) => return Ok(Err(format!("the marker on the stream: {error}"))),
            },
            Content::Manifest(_) => match bucket::manifest(self.site, unit, &marker.revision, false).await? {
                InBucket::Whole(manifest) => (manifest.objects().to_vec(), None),
                InBucket::Absent | InBucket::Faulty(_) => {
                    return Ok(Err(format!(
                        "the list of its objects was in {key} only; `uploader adopt` makes it again from the objects in \
                         the bucket"
                    )));
                }
            },
        };
        let lost = bucket::faulty_objects(self.site, &objects).await?;
        if let Some(first) = lost.first() {
            let (count, key, why) = (lost.len(), &first.object.key, &first.why);
            return Ok(Err(format!(
                "{count} objects that the stream's marker names are not in the bucket: {key}: {why}"
            )));
        }
        // One that is whole stays as it is: markers on the stream may be by its hash.
        if let Some(json) = json
            && !matches!(bucket::manifest(self.site, unit, &marker.revision, false).await?, InBucket::Whole(_))
        {
            let faulty = self.site.store.head(&key).await.map_err(UnitError::from)?;
            if !put_read_back(self.site, &key, json, Over::seen(faulty.as_ref())).await? {
                return Ok(Err(NAMED_MEANWHILE.into()));
            }
        }
        let dates = dates_of(self.site, &marker).await?;
        if !put_current(self.site, &marker, &key, dates, Over::seen(current.as_ref())).await? {
            return Ok(Err(NAMED_MEANWHILE.into()));
        }
        Ok(Ok(format!("written back to the bucket: {key}")))
    }

    /// Uploads again what the bucket lost and this machine still has, byte for byte; returns how many are left.
    pub(super) async fn put_back(&self, lost: Vec<Lost>, finding: &mut UnitFinding) -> Result<usize, Trouble> {
        let mut left = 0;
        for lost in lost {
            let key = &lost.object.key;
            match self.put_back_one(&lost).await? {
                Ok(()) => finding.mended(format!("{key} uploaded again from data_dir")),
                Err(why) => {
                    left += 1;
                    finding.not_mended(format!("{key} {why}"));
                }
            }
        }
        Ok(left)
    }

    async fn put_back_one(&self, lost: &Lost) -> Result<Result<(), String>, Trouble> {
        let Lost { object, stored, .. } = lost;
        let advice = "put the archive back into data_dir and run this again on that machine";
        let Ok(path) = self.site.prefix.archive_path(&object.key) else { return Ok(Err(advice.into())) };
        if !self.data_dir {
            return Ok(Err(format!("is lost, and no local.data_dir is set: {advice}")));
        }
        let sums = {
            let _permit = self.site.check(object.size).await.map_err(Failure::from)?;
            let file = self.site.data_dir.join(path);
            blocking(move || check::sum_file(&file)).await
        };
        let Ok(sums) = sums else {
            return Ok(Err(format!("is lost, and not in data_dir either: {advice}")));
        };
        if sums.sha256 != object.sha256 {
            return Ok(Err(
                "is lost, and what is in data_dir has other bytes; `uploader upload` takes it as a new revision".into(),
            ));
        }
        let place = self.site.transfer().await.map_err(Failure::from)?;
        let over = Over::seen(stored.as_ref());
        if upload::send(self.site, place, object, path, sums.parts_etag.as_deref(), over).await?.is_none() {
            return Ok(Err("was stored by an uploader or another program meanwhile; run this again".into()));
        }
        let one = std::slice::from_ref(object);
        let still = if self.content {
            content::different(self.site, bucket::check_objects(self.site, one).await?).await?
        } else {
            bucket::faulty_objects(self.site, one).await?
        };
        Ok(still.first().map_or(Ok(()), |lost| Err(format!("was uploaded and does not read back: {}", lost.why))))
    }
}
