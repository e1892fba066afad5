//! Findings for people: grouped, in ranges, sorted by time, and no more of them than one can read.

use std::collections::BTreeMap;

use console::{measure_text_width, truncate_str};

use super::finding::Finding;
use super::terminal::{width, wrap_to};
use crate::catalogue::interval_rank;
use crate::text::printable;
use crate::unit::{Period, Unit};

/// Lines of a list without `--all`.
pub const LINES_MAX: usize = 50;
/// Symbols that are named of a group.
const SYMBOLS_MAX: usize = 3;
/// Lines of text below one entry.
const TEXT_LINES_MAX: usize = 3;

/// What findings must have in common to be told as one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    destination: Option<String>,
    series: Series,
    months: bool,
    sign: &'static str,
    text: String,
}

/// Exchange, market, dataset, and the intervals by their length.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Series {
    prefix: String,
    rank: usize,
    interval: String,
}

/// First and last period, by their days.
type Run = (Period, Period);

/// The findings as lines, each entry at most a few; a last line says how many entries were left out.
pub fn list(findings: &[Finding], all: bool) -> Vec<String> {
    list_within(findings, all, width())
}

fn list_within(findings: &[Finding], all: bool, width: usize) -> Vec<String> {
    let (mut runs, others) = group(findings);
    runs.sort_by(|a, b| (&a.0.destination, &a.0.series, a.1, &a.0).cmp(&(&b.0.destination, &b.0.series, b.1, &b.0)));
    let shows_destination = findings
        .iter()
        .any(|finding| finding.destination != findings.first().and_then(|first| first.destination.clone()));
    let mut entries: Vec<(&'static str, String, String)> = Vec::new();
    for (key, (first, last), symbols) in &runs {
        let Series { prefix, interval, .. } = &key.series;
        let range = if first == last { first.to_string() } else { format!("{first}..{last}") };
        let mut name = format!("{prefix}/{interval}/{range}");
        add_symbols(&mut name, symbols);
        if let (true, Some(destination)) = (shows_destination, &key.destination) {
            name.push_str(&format!("  ({destination})"));
        }
        entries.push((key.sign, name, key.text.clone()));
    }
    for finding in others {
        let name = [&finding.unit, &finding.symbol].into_iter().flatten().map(|name| printable(name));
        entries.push((finding.sign, name.collect::<Vec<_>>().join("  "), text_of(finding)));
    }
    let shown = if all { entries.len() } else { LINES_MAX };
    let left = entries.len().saturating_sub(shown);
    let mut lines: Vec<String> =
        entries.into_iter().take(shown).flat_map(|entry| lines_of(entry, all, width)).collect();
    if left > 0 {
        lines.push(format!("… and {left} more; --all lists them, --json has them one by one"));
    }
    lines
}

type Grouped<'f> = (Vec<(Key, Run, Vec<String>)>, Vec<&'f Finding>);

/// Consecutive periods become a run, then symbols with the same run become one entry.
fn group(findings: &[Finding]) -> Grouped<'_> {
    let mut periods: BTreeMap<(Key, Option<&str>), Vec<Run>> = BTreeMap::new();
    let mut others = Vec::new();
    for finding in findings {
        match key_of(finding) {
            Some((key, run)) => periods.entry((key, finding.symbol.as_deref())).or_default().push(run),
            None => others.push(finding),
        }
    }
    let mut runs: BTreeMap<(Key, Run), Vec<String>> = BTreeMap::new();
    for ((key, symbol), mut found) in periods {
        found.sort_unstable();
        let mut joined: Vec<Run> = Vec::new();
        for (first, last) in found {
            match joined.last_mut() {
                Some(open) if open.1.end() >= first.start() => open.1 = open.1.max(last),
                _ => joined.push((first, last)),
            }
        }
        for run in joined {
            runs.entry((key.clone(), run)).or_default().extend(symbol.map(printable));
        }
    }
    (runs.into_iter().map(|((key, run), symbols)| (key, run, symbols)).collect(), others)
}

fn key_of(finding: &Finding) -> Option<(Key, Run)> {
    let name = finding.unit.as_deref()?;
    let (series, run) = match name.parse::<Unit>() {
        Ok(unit) => (name.rsplit_once('/')?.0.to_owned(), (unit.period, unit.period)),
        Err(_) => {
            let day = |text: &Option<String>| text.as_deref()?.parse::<Period>().ok();
            (name.to_owned(), (day(&finding.from)?, day(&finding.to)?))
        }
    };
    let (prefix, interval) = series.rsplit_once('/')?;
    let series = Series { prefix: printable(prefix), rank: interval_rank(interval), interval: printable(interval) };
    let (destination, text) = (finding.destination.clone(), text_of(finding));
    Some((Key { destination, series, months: run.0.is_month(), sign: finding.sign, text }, run))
}

/// Each line of it is one of ours; what stands in a line may be from outside.
fn text_of(finding: &Finding) -> String {
    let text = finding.text.lines().map(printable).collect::<Vec<_>>().join("\n");
    match &finding.class {
        Some(class) if text.is_empty() => printable(class),
        Some(class) => format!("{}: {text}", printable(class)),
        None => text,
    }
}

fn add_symbols(name: &mut String, symbols: &[String]) {
    match symbols {
        [] => {}
        few if few.len() <= SYMBOLS_MAX => name.push_str(&format!(" {}", few.join(","))),
        many => {
            let first = &many[..SYMBOLS_MAX - 1];
            name.push_str(&format!(" {},… ({} symbols)", first.join(","), many.len()));
        }
    }
}

/// In one line if it fits, else the text below the name.
fn lines_of((sign, name, text): (&'static str, String, String), all: bool, width: usize) -> Vec<String> {
    let head = if sign.is_empty() { name } else { format!("{sign} {name}") };
    // A name without a space cannot be broken.
    let head = if all { head } else { truncate_str(&head, width, "…").into_owned() };
    if text.is_empty() {
        return vec![head];
    }
    if !text.contains('\n') && measure_text_width(&head) + 2 + measure_text_width(&text) <= width {
        return vec![format!("{head}  {text}")];
    }
    let below = wrap_to(&text, width.saturating_sub(4).max(20));
    let cut = !all && below.len() > TEXT_LINES_MAX;
    let shown = if cut { TEXT_LINES_MAX } else { below.len() };
    let mut lines = vec![head];
    for (index, line) in below.into_iter().take(shown).enumerate() {
        let line = if cut && index + 1 == shown { format!("{line} …") } else { line };
        let line = if all { line.into() } else { truncate_str(&line, width.saturating_sub(4), "…") };
        lines.push(format!("    {line}"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(day: u32, symbol: &str, text: &str) -> Finding {
        let unit: Unit = format!("binance/um/klines/1h/2026-02-{day:02}").parse().expect("a unit");
        Finding::of_unit(&unit, "missing", text).sign("-").symbol(symbol)
    }

    #[test]
    fn consecutive_days_and_equal_symbols_are_one_line() {
        let mut findings: Vec<Finding> = (1..=5).map(|at| day(at, "BTCUSDT", "not loaded")).collect();
        findings.extend((1..=5).map(|at| day(at, "ETHUSDT", "not loaded")));
        findings.push(day(9, "BTCUSDT", "not loaded"));
        assert_eq!(
            list_within(&findings, false, 80),
            [
                "- binance/um/klines/1h/2026-02-01..2026-02-05 BTCUSDT,ETHUSDT  not loaded",
                "- binance/um/klines/1h/2026-02-09 BTCUSDT  not loaded",
            ]
        );
    }

    #[test]
    fn intervals_are_in_the_order_of_their_length() {
        let of = |interval: &str| Finding::named(&format!("binance/um/klines/{interval}/2026-02-01"), "missing", "");
        let lines = list_within(&["1mo", "1h", "15m", "1d", "3m"].map(of), false, 80);
        let intervals: Vec<&str> = lines.iter().filter_map(|line| line.split('/').nth(3)).collect();
        assert_eq!(intervals, ["3m", "15m", "1h", "1d", "1mo"]);
    }

    #[test]
    fn a_long_list_is_cut_and_says_so() {
        let many: Vec<Finding> = (0..120).map(|at| day(at % 28 + 1, &format!("S{at}"), &format!("why {at}"))).collect();
        let lines = list_within(&many, false, 80);
        assert_eq!(lines.len(), LINES_MAX + 1);
        assert!(lines[LINES_MAX].starts_with("… and 70 more"), "{}", lines[LINES_MAX]);
        assert_eq!(list(&many, true).len(), 120);
    }

    #[test]
    fn long_texts_are_below_and_nothing_is_wider_than_the_width() {
        let hostile = format!("{} \u{1b}[2J\u{202e}", "word ".repeat(60));
        let long = Finding::named(&"long".repeat(30), "failed", "");
        let findings = [day(1, "BTC\u{202e}USDT", &hostile), Finding::new("failed", &hostile), long];
        let lines = list_within(&findings, false, 80);
        assert!(lines.iter().all(|line| measure_text_width(line) <= 80), "{lines:#?}");
        assert!(!lines.concat().contains(['\u{1b}', '\u{202e}']), "{lines:#?}");
        assert!(lines[0].ends_with("BTC\\u{202e}USDT"), "{lines:#?}");
    }
}
