//! The table for people, the JSON for programs.

use std::{collections::BTreeSet, fs, path::Path};

use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use serde_json::json;
use tests::{Context, Result};

use crate::{
    figures::{Figure, Figures},
    machine::Machine,
    plan::{Contender, Plan},
    targets,
};

pub(crate) fn table(machine: &Machine, plan: &Plan, figures: &Figures) -> String {
    let mut text = machine.lines();
    if plan.quick {
        text.push_str("QUICK: sizes are tiny, no figure means anything; all rows were compared.\n");
    }
    for (scenario, workload) in figures.workloads() {
        text.push_str(&format!("{scenario}: {workload}\n"));
    }
    let mut timed = new_table(&[
        "scenario",
        "contender",
        "n",
        "wall s",
        "min–max",
        "rate",
        "our wall is",
        "client CPU s",
        "per M rows",
        "ClickHouse",
        "S3",
        "NATS",
        "RSS MiB",
    ]);
    for (scenario, contender) in timed_pairs(figures) {
        timed.add_row(timed_row(figures, scenario, contender));
    }
    align_right(&mut timed, 2..13);
    let mut others = new_table(&["scenario", "of", "what", "n", "median", "min–max", "unit"]);
    for figure in figures.list().iter().filter(|figure| !is_in_timed_table(figures, figure)) {
        let (min, max) = figure.range();
        others.add_row([
            figure.scenario.clone(),
            figure.contender.clone(),
            figure.metric.to_owned(),
            figure.values.len().to_string(),
            short(figure.median()),
            format!("{}–{}", short(min), short(max)),
            figure.unit.to_owned(),
        ]);
    }
    align_right(&mut others, 3..6);
    let mut at_least = new_table(&["target", "at least", "aim", "measured", ""]);
    for target in targets::all(figures, plan) {
        at_least.add_row(target.cells());
    }
    align_right(&mut at_least, 1..4);
    text.push_str(&format!("\n{timed}\n\n{others}\n\n{at_least}\n"));
    figures.remarks().iter().for_each(|note| text.push_str(&format!("{note}\n")));
    text
}

pub(crate) fn write_json(path: &Path, machine: &Machine, plan: &Plan, figures: &Figures) -> Result<()> {
    let targets: Vec<_> = targets::all(figures, plan).iter().map(targets::Target::json).collect();
    let report = json!({
        "machine": machine.json(), "quick": plan.quick, "rounds": plan.rounds, "workloads": figures.workloads(), "figures": figures.json(),
        "targets": targets, "notes": figures.remarks(),
    });
    let text = serde_json::to_string_pretty(&report).context("writing JSON")?;
    fs::write(path, text + "\n").context(format!("writing {}", path.display()))
}

/// Scenario and contender of every measured wall time, in the order of measuring.
fn timed_pairs(figures: &Figures) -> Vec<(&str, &str)> {
    let mut seen = BTreeSet::new();
    let pairs = figures.list().iter().filter(|figure| figure.metric == "wall");
    pairs
        .map(|figure| (figure.scenario.as_str(), figure.contender.as_str()))
        .filter(|pair| seen.insert(*pair))
        .collect()
}

fn is_in_timed_table(figures: &Figures, figure: &Figure) -> bool {
    figures.get(&figure.scenario, &figure.contender, "wall").is_some()
}

fn timed_row(figures: &Figures, scenario: &str, contender: &str) -> Vec<String> {
    let median = |metric: &str| figures.median(scenario, contender, metric);
    let cell = |metric: &str| median(metric).map_or_else(String::new, short);
    let wall = figures.get(scenario, contender, "wall");
    let range = wall.map_or_else(String::new, |wall| format!("{}–{}", short(wall.range().0), short(wall.range().1)));
    // Rows where units are large, units where they are many.
    let rate = ["archives", "rows", "units"]
        .iter()
        .filter_map(|metric| figures.get(scenario, contender, metric))
        .map(|figure| format!("{} {}", short(figure.median()), figure.unit))
        .collect::<Vec<_>>()
        .join("\n");
    let ours = figures.median(scenario, Contender::Ours.name(), "wall");
    let ratio = match (ours, wall) {
        (Some(ours), Some(wall)) if contender != Contender::Ours.name() => format!("{:.2}×", ours / wall.median()),
        _ => String::new(),
    };
    vec![
        scenario.to_owned(),
        contender.to_owned(),
        wall.map_or(0, |wall| wall.values.len()).to_string(),
        cell("wall"),
        range,
        rate,
        ratio,
        cell("client CPU"),
        cell("client CPU per million rows"),
        cell("ClickHouse CPU"),
        cell("S3 CPU"),
        cell("NATS CPU"),
        cell("peak RSS"),
    ]
}

/// Three digits that count, or all of the whole ones.
fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size < 10.0 => format!("{value:.3}"),
        size if size < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

fn new_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(header);
    table
}

fn align_right(table: &mut Table, columns: std::ops::Range<usize>) {
    for column in columns {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}
