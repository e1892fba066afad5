//! What is wanted of each figure, and whether it is so.

use serde_json::{Value, json};

use crate::{
    figures::{Figure, Figures},
    growth, latency,
    plan::{
        Contender::{CronPerFile, CronPerUnit, Limit, Ours, S3Function},
        Plan,
    },
    scaling, upload,
};

pub(crate) struct Target {
    name: &'static str,
    at_least: f64,
    aim: f64,
    unit: &'static str,
    /// None where the scenario was not run.
    measured: Option<f64>,
    judged: bool,
}

/// `puller.memory`, the default.
const MEMORY_MIB: f64 = 512.0;
/// How much slower a unit may be when there is much already.
const GROWTH_MAX: f64 = 1.25;

pub(crate) fn all(figures: &Figures, plan: &Plan) -> Vec<Target> {
    let median = |scenario: &str, contender: &str, metric: &str| figures.median(scenario, contender, metric);
    let wall = |scenario: &str, contender: &str| median(scenario, contender, "wall");
    // How many times faster we are.
    let faster = |scenario: &str, other: &str| Some(wall(scenario, other)? / wall(scenario, Ours.name())?);
    let rate = |scenario: &str| median(scenario, Ours.name(), "units");
    let day = "ingest/day-1m";
    let slower = |scenario: &str| Some(wall(scenario, growth::FULL)? / wall(scenario, growth::EMPTY)?);
    let backlog = |metric: &str| {
        Some((median(growth::BACKLOG, growth::SHORT, metric)?, median(growth::BACKLOG, growth::LONG, metric)?))
    };
    let worst_rss = figures
        .list()
        .iter()
        .filter(|figure| figure.metric == "peak RSS" && is_worker(figure))
        .map(|figure| figure.range().1)
        .reduce(f64::max);
    let one = scaling::workers_of_one_slot(1);
    let eight = scaling::workers_of_one_slot(8);
    let scaled = || Some(wall(scaling::SCENARIO, &one)? / wall(scaling::SCENARIO, &eight)?);
    let judged = !plan.quick && !cfg!(debug_assertions);
    let target = |name, at_least, aim, unit, measured| Target { name, at_least, aim, unit, measured, judged };
    vec![
        target("1m day against (a), one insert a unit", 14.0, 22.0, "×", faster(day, CronPerUnit.name())),
        target("1m day against one insert a file", 45.0, 70.0, "×", faster(day, CronPerFile.name())),
        target("1m day against (b)", 1.5, 2.2, "×", faster(day, S3Function.name())),
        target("1m day, share of (c)", 0.55, 0.85, "", faster(day, Limit.name())),
        target(
            "1m day, client CPU per million rows",
            0.5,
            0.4,
            "s",
            median(day, Ours.name(), "client CPU per million rows"),
        ),
        target("4 × 1h, 365 units", 300.0, 600.0, "units/s", rate("ingest/units-365")),
        target("4 × 1h, 2,000 units and more", 500.0, 1000.0, "units/s", rate("ingest/units-2000")),
        target("idle latency, p50", 30.0, 15.0, "ms", median(latency::SCENARIO, latency::OURS, "p50")),
        target("idle latency, p99", 120.0, 60.0, "ms", median(latency::SCENARIO, latency::OURS, "p99")),
        target("80 ms to S3: 8 workers of one slot against 1", 6.0, 7.5, "×", scaled()),
        target(
            "80 ms to S3: one worker of default slots",
            100.0,
            250.0,
            "units/s",
            median(scaling::SCENARIO, &scaling::worker_of_slots(None), "units"),
        ),
        target(
            "upload against rclone",
            1.3,
            1.8,
            "×",
            wall(upload::FIRST, upload::RCLONE)
                .zip(wall(upload::FIRST, upload::OURS))
                .map(|(rclone, ours)| rclone / ours),
        ),
        target("upload with nothing to do", 1.0, 0.3, "s", wall(upload::AGAIN, upload::OURS)),
        target("1m day into a full database", GROWTH_MAX, 1.0, "times as long", slower(growth::DAY)),
        target("60 small units into a full database", GROWTH_MAX, 1.0, "times as long", slower(growth::SMALL)),
        target(
            "a unit of a long backlog",
            GROWTH_MAX,
            1.0,
            "times as long",
            backlog("units").map(|(short, long)| short / long),
        ),
        target(
            "start-up with a long backlog",
            GROWTH_MAX,
            1.0,
            "times as long",
            backlog("start to first unit").map(|(short, long)| long / short),
        ),
        target("peak RSS of a worker", MEMORY_MIB, MEMORY_MIB, "MiB", worst_rss),
    ]
}

/// Whether it is of `puller`, rather than of the uploader or of a peer.
fn is_worker(figure: &Figure) -> bool {
    let has_peers = figure.scenario.starts_with("ingest/");
    !figure.scenario.starts_with(upload::FIRST) && (!has_peers || figure.contender == Ours.name())
}

impl Target {
    pub(crate) fn verdict(&self) -> &'static str {
        // Times and sizes are to be small, rates large: the two columns tell which.
        let small = matches!(self.unit, "s" | "ms" | "MiB" | "times as long");
        let within = |measured: f64, bound: f64| if small { measured <= bound } else { measured >= bound };
        match self.measured {
            None => "not run",
            // Unoptimised, or too small.
            Some(_) if !self.judged => "not judged",
            Some(measured) if within(measured, self.aim) => "aim met",
            Some(measured) if within(measured, self.at_least) => "met",
            Some(_) => "NOT MET",
        }
    }

    pub(crate) fn cells(&self) -> [String; 5] {
        let text = |value: f64| format!("{value} {}", self.unit).trim().to_owned();
        let measured =
            self.measured.map_or_else(String::new, |value| format!("{value:.3} {}", self.unit).trim().to_owned());
        [self.name.to_owned(), text(self.at_least), text(self.aim), measured, self.verdict().to_owned()]
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "name": self.name, "at_least": self.at_least, "aim": self.aim, "unit": self.unit,
            "measured": self.measured, "verdict": self.verdict(),
        })
    }
}
