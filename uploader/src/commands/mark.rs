//! Completion marks for units whose archives are here, for a downloader that makes none.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::{self, ErrorKind};
use std::path::Path;

use clap::Args;
use common::config::When;
use common::output::{Failure, Finding, ListArgs, Reply, count, list};
use common::unit::Unit;
use common::unit_filter::{UnitFilter, UnitPrefix};
use tokio_util::sync::CancellationToken;

use crate::local::arrivals::FileEvents;
use crate::local::complete::CompletenessRule;
use crate::local::marks;
use crate::local::seen::Seen;
use crate::local::tree::Walk;

pub(super) const MARK_EXAMPLES: &str = "\
Examples:
  uploader mark binance/um/klines/1h/2026-02-14
  uploader mark --market um --interval 1h --from 2026-02-01 --dry-run
  uploader mark --unit binance/spot/klines/1d --json";

/// What to mark.
#[derive(Debug, Clone, Args)]
pub struct Mark {
    /// Units, e.g. binance/um/klines/1h/2026-02-14
    #[arg(value_name = "UNIT")]
    units: Vec<Unit>,
    #[command(flatten)]
    filter: UnitFilter,
    /// Say what would be marked, and do nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    list: ListArgs,
}

/// Marks the units that were named, or those with archives that the filters take. A unit without archives is refused.
///
/// # Errors
/// Nothing was asked for, the filters match nothing, or `data_dir` cannot be written to.
pub(crate) fn run(data_dir: &Path, args: &Mark, when: When, stop: &CancellationToken) -> Result<Reply, Failure> {
    args.filter.check()?;
    if args.units.is_empty() && args.filter.is_empty() {
        let failure = Failure::usage("no unit is named, and no filter given");
        return Err(failure
            .advice("a mark says that no archive of its unit is missing, so name units or filters: uploader mark --market um --from 2026-02-01"));
    }
    if !args.units.is_empty() && !args.filter.is_empty() {
        return Err(Failure::usage("units and filters go together in no mark: name units, or give filters"));
    }
    for unit in &args.units {
        UnitPrefix::from(unit).check_words().map_err(Failure::usage)?;
    }
    let (rule, events) = (CompletenessRule::default(), FileEvents::default());
    let walk = Walk { data_dir, rule: &rule, events: &events, folders: None, puts_back: false, stop };
    let named: BTreeSet<&Unit> = args.units.iter().collect();
    let found = if args.filter.is_empty() {
        walk.units(args.units.clone())
    } else {
        walk.everything(args.units.clone(), &args.filter)
    };
    let mut units: Vec<(Unit, Seen)> = found.units;
    let is_there = |seen: &Seen| seen.archives > 0 || !seen.unreadable.is_empty();
    let allows = |unit: &Unit| !args.filter.is_empty() && args.filter.matches(unit);
    units.retain(|(unit, seen)| named.contains(unit) || is_there(seen) && allows(unit));
    if stop.is_cancelled() {
        return Err(Failure::stopped("stopped by a signal before any unit was marked"));
    }
    if units.is_empty() && found.unreadable.is_empty() {
        return Err(Failure::no_match(format!(
            "no unit in {} has archives that these filters take",
            data_dir.display()
        )));
    }
    let mut tally = Tally { ignored: when == When::Complete, ..Tally::default() };
    for (at, (unit, seen)) in units.iter().enumerate() {
        if stop.is_cancelled() {
            return Err(Failure::stopped(format!(
                "stopped by a signal after {at} of {}",
                count(units.len() as u64, "unit")
            )));
        }
        let finding = mark(data_dir, unit, seen, args.dry_run)?;
        tally.add(&finding);
        tally.findings.push(finding);
    }
    tally.problems = found.problems.into_iter().chain(found.unreadable).collect();
    Ok(tally.into_reply(args))
}

/// Marks one unit.
fn mark(data_dir: &Path, unit: &Unit, seen: &Seen, dry_run: bool) -> Result<Finding, Failure> {
    let archives = count(seen.archives as u64, "archive");
    if let Some(unreadable) = seen.unreadable.first() {
        return Ok(Finding::of_unit(unit, "refused", format!("its archives cannot all be read: {unreadable}")));
    }
    if seen.archives == 0 {
        return Ok(Finding::of_unit(unit, "refused", "no archive of it is in local.data_dir"));
    }
    if marks::is_marked(data_dir, unit) {
        return Ok(Finding::of_unit(unit, "already_marked", archives).sign("="));
    }
    let Some(name) = marks::name_of(unit) else {
        return Ok(Finding::of_unit(unit, "refused", "marks are of archives of binance: spot, um and cm"));
    };
    if !dry_run && let Err(error) = create(&data_dir.join(&name)) {
        let failure = Failure::failed(format!("{} cannot be made: {error}", data_dir.join(&name).display()));
        return Err(failure.advice("this user must be allowed to write to local.data_dir, and the disk must have room"));
    }
    Ok(Finding::of_unit(unit, "marked", archives).sign("+"))
}

/// A mark's content is ignored. One that appeared meanwhile says the same.
fn create(path: &Path) -> io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

#[derive(Default)]
struct Tally {
    marked: u64,
    already_marked: u64,
    refused: u64,
    findings: Vec<Finding>,
    problems: Vec<String>,
    /// Whether the configuration says that marks do not count.
    ignored: bool,
}

impl Tally {
    fn add(&mut self, finding: &Finding) {
        match finding.state.as_str() {
            "marked" => self.marked += 1,
            "already_marked" => self.already_marked += 1,
            _ => self.refused += 1,
        }
    }

    fn into_reply(self, args: &Mark) -> Reply {
        let failure = self.failure();
        let shown: Vec<Finding> =
            self.findings.iter().filter(|finding| finding.state != "already_marked").cloned().collect();
        let mut lines = list(&shown, args.list.all);
        lines.extend(self.problems.iter().cloned());
        let would = if args.dry_run { "would be " } else { "" };
        let (marked, already) = (count(self.marked, "unit"), self.already_marked);
        lines.push(format!("{marked} {would}marked, {already} marked before, {} refused", self.refused));
        if self.ignored {
            lines.push(
                "publish.when is complete, so no other command reads these marks: set it to marked or both".into(),
            );
        }
        Reply::default()
            .field("dry_run", &args.dry_run)
            .field("ignored", &self.ignored)
            .field("marked", &self.marked)
            .field("already_marked", &self.already_marked)
            .field("refused", &self.refused)
            .field("problems", &self.problems)
            .findings(self.findings)
            .text(lines.join("\n"))
            .failed(failure)
    }

    /// Why not all of it was done.
    fn failure(&self) -> Option<Failure> {
        let refused = (self.refused > 0).then(|| format!("{} refused", count(self.refused, "unit")));
        let problems = (!self.problems.is_empty())
            .then(|| format!("{} in local.data_dir left out", count(self.problems.len() as u64, "name")));
        let parts: Vec<String> = refused.into_iter().chain(problems).collect();
        (!parts.is_empty()).then(|| Failure::failed(parts.join("; ")))
    }
}
