//! `uploader reconcile`: the bucket's manifests against the stream, both ways.
//!
//! Bucket and stream say the same in health: `current.json` of each unit names the revision of its newest marker. Each
//! is enough to bring back what the other lost, the bucket because it has every manifest, the stream as far as its
//! markers hold their lists themselves. Held in memory are names and revisions, a few hundred bytes a unit, never lists
//! of objects.

mod bucket;
mod content;
mod fix;
mod report;
mod trouble;

use std::collections::{BTreeMap, BTreeSet};

use common::checksum::Sha256Sum;
use common::config::Config;
use common::marker::Marker;
use common::output::Failure;
use common::unit::Unit;
use futures::{StreamExt, stream};
use jiff::Timestamp;
use nats::{Bus, StreamMarker};

use crate::announced::standing;
use crate::error::PassError;
use crate::pass::older;
use crate::site::context::Site;

use bucket::{InBucket, Listed, Lost};
use clap::Args;
use common::bwlimit::BwLimit;
use common::output::ListArgs;
use common::unit_filter::UnitFilter;
use fix::{Fixer, Repair};
pub(crate) use report::ReconcileReport;
use report::{Sign, UnitFinding};
use trouble::Trouble;

pub(super) const RECONCILE_EXAMPLES: &str = "\
Lines:
  = unit   the same on both sides (only with --verbose)
  + unit   in the bucket, not on the stream
  - unit   on the stream, not in the bucket
  * unit   revisions differ
  ! unit   a manifest or an object is lost or damaged; it is named

Exit 0 without differences, 4 with some; with --fix 0, or 1 if something could not be fixed.

Examples:
  uploader reconcile
  uploader reconcile --quick --json
  uploader reconcile --content --market um --from 2026-02 --bwlimit 2M
  uploader reconcile --fix           after the stream was deleted or NATS lost its store";

#[derive(Debug, Args)]
pub struct Reconcile {
    /// Publish what the stream lacks, write back what the bucket lacks; makes the stream if it is gone
    #[arg(long)]
    pub(crate) fix: bool,
    /// Do not look at the objects of units whose marker stands; what --fix publishes is looked at all the same
    #[arg(long)]
    pub(crate) quick: bool,
    /// Also read every announced object from the bucket, and compare its bytes with the marker
    ///
    /// A byte that changed in the bucket is found by nothing else at this site: its metadata stay as they were. With --fix
    /// such an object is uploaded again where local.data_dir has it.
    #[arg(long, conflicts_with = "quick")]
    pub(crate) content: bool,
    #[command(flatten)]
    pub(crate) filter: UnitFilter,
    #[command(flatten)]
    pub(crate) list: ListArgs,
    /// How fast bytes may come and go, instead of storage.bwlimit: 10M, 512K, off, or a timetable '08:00,512K 19:00,off'
    #[arg(long, value_name = "LIMIT")]
    pub(super) bwlimit: Option<BwLimit>,
}

/// Units looked at side by side; each waits for some answers of the bucket.
const UNITS_MAX: usize = 16;
/// How often a unit is compared anew because an uploader announced it meanwhile.
const MOVED_MAX: usize = 3;

/// The newest message of a unit on the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct OnStream {
    sequence: u64,
    /// `None`: the message is not a marker this version reads.
    content: Option<(Sha256Sum, Timestamp)>,
}

impl OnStream {
    fn of(message: &StreamMarker) -> Self {
        let marker = Marker::parse(&message.payload).ok();
        Self { sequence: message.sequence, content: marker.map(|marker| (marker.revision, marker.published_at)) }
    }
}

/// Compares, and with `--fix` repairs; says how it went.
pub(crate) async fn run(site: &Site, config: &Config, args: &Reconcile, verbose: bool) -> ReconcileReport {
    let mut report = ReconcileReport::new(args.fix, args.content);
    if let Err(failure) = compare_all(site, config, args, verbose, &mut report).await {
        report.fail(failure);
    }
    site.progress.end();
    report.end();
    report
}

async fn compare_all(
    site: &Site,
    config: &Config,
    args: &Reconcile,
    verbose: bool,
    report: &mut ReconcileReport,
) -> Result<(), Failure> {
    site.bucket_is_there().await?;
    // Not `site.queue`: that makes streams that are not there, and comparing must change nothing.
    let bus = Bus::connect(&config.nats, &format!("uploader-reconcile-{}", std::process::id())).await?;
    let mut there = bus.has_stream().await?;
    report.stream_was_missing = !there;
    if !there && args.fix {
        if !config.nats.manage {
            return Err(Failure::missing("there is no stream MARKERS, and nats.manage is false")
                .advice("have an operator run `puller migrate`, then run this again"));
        }
        bus.create_streams().await?;
        tracing::warn!("there was no stream MARKERS: it was deleted, or NATS has lost its store; it is made");
        there = true;
    }
    if there && let Some(newest) = bus.newest_announcement().await? {
        standing::compare(site, &newest)?;
    }
    let mut announced: BTreeMap<Unit, OnStream> = BTreeMap::new();
    let mut stream_end = 0;
    if there {
        bus.check_markers().await?;
        stream_end = bus.last_sequence().await?;
        bus.survey(|message| {
            let found = OnStream::of(&message);
            let newest = announced.entry(message.subject.unit).or_insert(found);
            if found.sequence > newest.sequence {
                *newest = found;
            }
        })
        .await?;
    }
    let listed = bucket::list(site).await?;
    let filter = &args.filter;
    let mut units: BTreeSet<&Unit> = announced.keys().chain(listed.keys()).collect();
    let all = units.len() as u64;
    units.retain(|unit| filter.matches(unit));
    if units.is_empty() && !filter.is_empty() {
        return Err(PassError::NoMatch(Box::new(filter.clone()), Some(all)).into());
    }
    site.progress.begin(units.len(), 0);
    let data_dir = config.local.data_dir.is_some();
    let run = ReconcileRun {
        site,
        bus: &bus,
        args,
        there,
        fixer: Fixer { site, bus: &bus, stream_end, data_dir, content: args.content },
    };
    let findings = stream::iter(units)
        .take_until(site.shutdown.cancelled())
        .map(|unit| run.unit(unit, listed.get(unit), announced.get(unit).copied()))
        .buffered(UNITS_MAX);
    let mut findings = std::pin::pin!(findings);
    while let Some(finding) = findings.next().await {
        site.progress.unit_done();
        report.add(finding?, verbose);
    }
    bus.close().await;
    if site.shutdown.is_cancelled() { Err(PassError::Stopped.into()) } else { Ok(()) }
}

struct ReconcileRun<'s> {
    site: &'s Site,
    bus: &'s Bus,
    args: &'s Reconcile,
    /// Whether there is a stream to ask.
    there: bool,
    fixer: Fixer<'s>,
}

impl ReconcileRun<'_> {
    /// One unit, compared and repaired.
    async fn unit(
        &self,
        unit: &Unit,
        listed: Option<&Listed>,
        announced: Option<OnStream>,
    ) -> Result<UnitFinding, Failure> {
        self.site.progress.doing(unit.to_string());
        let result = async {
            let mut compared = self.compare(unit, listed, announced).await?;
            for _ in 0..MOVED_MAX {
                let Some((listed, announced)) = self.moved(unit, listed, &compared).await? else { break };
                compared = self.compare(unit, Some(&listed), announced).await?;
            }
            let Compared { bucket, mut finding, mut repair, lost, .. } = compared;
            if !lost.is_empty() {
                finding.lose(&lost);
                if self.args.fix {
                    let left = self.fixer.put_back(lost, &mut finding).await?;
                    if left > 0 {
                        repair = Repair::Impossible;
                    }
                }
            }
            if let InBucket::Whole(manifest) = &bucket
                && self.fixer.data_dir
            {
                finding.older = older::of_unit(self.site, unit, manifest.objects()).await;
            }
            if self.args.fix {
                self.fixer.repair(unit, &bucket, repair, &mut finding).await?;
            }
            Ok(finding)
        };
        match result.await {
            Ok(finding) => Ok(finding),
            Err(Trouble::Unit(reasons)) => {
                let mut finding = UnitFinding::new(unit, Sign::Faulty, "could not be looked at");
                finding.details.extend(reasons);
                if self.args.fix {
                    finding.fixed = Some(false);
                }
                Ok(finding)
            }
            Err(Trouble::Stop(stop)) => Err(stop),
        }
    }
}

impl ReconcileRun<'_> {
    /// Compares the two sides of a unit, and the bucket's objects with what its manifest says.
    async fn compare(
        &self,
        unit: &Unit,
        listed: Option<&Listed>,
        mut announced: Option<OnStream>,
    ) -> Result<Compared, Trouble> {
        let bucket = bucket::read(self.site, unit, listed, announced.is_some()).await?;
        let (mut finding, mut repair) = judge(unit, &bucket, announced);
        if finding.sign != Sign::Same && self.there {
            // The stream was read before the bucket, and an uploader may be at work.
            announced = self.on_stream(unit).await?;
            (finding, repair) = judge(unit, &bucket, announced);
        }
        let mut lost = Vec::new();
        let checks_objects = !self.args.quick || self.args.fix && repair == Repair::Publish;
        if let InBucket::Whole(manifest) = &bucket
            && checks_objects
        {
            lost = if self.args.content {
                content::different(self.site, bucket::check_objects(self.site, manifest.objects()).await?).await?
            } else {
                bucket::faulty_objects(self.site, manifest.objects()).await?
            };
        }
        Ok(Compared { bucket, announced, finding, repair, lost })
    }

    /// Where an uploader has announced the unit since its objects were compared with a manifest: what to compare it by now.
    /// The objects are those of a newer revision then, and nothing is lost.
    async fn moved(
        &self,
        unit: &Unit,
        listed: Option<&Listed>,
        compared: &Compared,
    ) -> Result<Option<(Listed, Option<OnStream>)>, Trouble> {
        let InBucket::Whole(manifest) = &compared.bucket else { return Ok(None) };
        if compared.lost.is_empty() {
            return Ok(None);
        }
        let current = bucket::current_revision(self.site, unit).await?;
        let announced = if self.there { self.on_stream(unit).await? } else { None };
        let revision =
            |on_stream: Option<OnStream>| on_stream.and_then(|on_stream| on_stream.content).map(|(it, _)| it);
        let is_named = current == manifest.is_current.then_some(manifest.marker.revision);
        if is_named && revision(announced) == revision(compared.announced) {
            return Ok(None);
        }
        let listed = listed.cloned().unwrap_or_default().with_current(current.is_some());
        Ok(Some((listed, announced)))
    }

    async fn on_stream(&self, unit: &Unit) -> Result<Option<OnStream>, Trouble> {
        Ok(self.bus.current_marker(unit).await.map_err(Failure::from)?.as_ref().map(OnStream::of))
    }
}

/// How a unit compares.
struct Compared {
    bucket: InBucket,
    /// The marker it was compared with.
    announced: Option<OnStream>,
    finding: UnitFinding,
    repair: Repair,
    /// Objects that are not as the manifest says.
    lost: Vec<Lost>,
}

/// What the two sides together mean, and what would bring them together.
fn judge(unit: &Unit, bucket: &InBucket, stream: Option<OnStream>) -> (UnitFinding, Repair) {
    let finding = |sign, what: &str| UnitFinding::new(unit, sign, what);
    match (bucket, stream) {
        (InBucket::Absent, None) => (finding(Sign::Same, "gone on both sides"), Repair::Nothing),
        (InBucket::Absent, Some(_)) => {
            (finding(Sign::StreamOnly, "on the stream, not in the bucket"), Repair::WriteBack)
        }
        (InBucket::Faulty(why), stream) => {
            let repair = stream.and_then(|stream| stream.content).map_or(Repair::Impossible, |_| Repair::WriteBack);
            (finding(Sign::Faulty, why), repair)
        }
        (InBucket::Whole(manifest), None) => {
            let what = if manifest.is_current { "" } else { "; current.json is missing" };
            (finding(Sign::BucketOnly, &format!("in the bucket, not on the stream{what}")), Repair::Publish)
        }
        (InBucket::Whole(_), Some(OnStream { content: None, sequence })) => {
            let what = format!(
                "message {sequence} of the stream is not a marker this version reads: update this program, or find out \
                 who publishes there"
            );
            (finding(Sign::Faulty, &what), Repair::Impossible)
        }
        (InBucket::Whole(manifest), Some(OnStream { content: Some((revision, published_at)), .. })) => {
            let marker = &manifest.marker;
            if marker.revision == revision {
                return (finding(Sign::Same, "the same"), Repair::Nothing);
            }
            let (newer, repair) = if published_at > marker.published_at {
                ("the stream's is newer", Repair::WriteBack)
            } else {
                ("the bucket's is newer", Repair::Publish)
            };
            let what = format!(
                "revisions differ, {newer}: bucket {} of {}, stream {} of {published_at}",
                short(&marker.revision),
                marker.published_at,
                short(&revision)
            );
            (finding(Sign::Differ, &what), repair)
        }
    }
}

/// The first twelve digits, as people compare them.
fn short(revision: &Sha256Sum) -> String {
    revision.to_string().chars().take(12).collect()
}
