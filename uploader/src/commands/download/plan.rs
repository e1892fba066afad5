//! Which units a run is about.

use common::config::Download;
use common::unit::{Period, Token, Unit};
use jiff::ToSpan;
use jiff::civil::Date;

use crate::local::layout::{DATASET, EXCHANGE};

/// Before it Binance had nothing to publish.
const FIRST_DAY: Date = jiff::civil::date(2017, 1, 1);
/// They do not fit into a day.
const MONTHLY_ONLY: [&str; 3] = ["3d", "1w", "1mo"];

/// Days, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DayRange {
    pub(crate) from: Date,
    pub(crate) to: Date,
}

/// The archives of each day, or those of whole months.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Span {
    Days,
    Months,
}

impl DayRange {
    /// What was asked for; what was not: yesterday, or for months the last whole one.
    pub(crate) fn new(from: Option<Period>, to: Option<Period>, span: Span, today: Date) -> Self {
        let yesterday = today.saturating_sub(1.day());
        let latest = match span {
            Span::Days => yesterday,
            Span::Months => today.first_of_month().saturating_sub(1.day()),
        };
        match (from, to) {
            (None, None) => Self { from: latest, to: latest },
            (Some(from), None) => Self { from: from.first_day(), to: yesterday },
            (None, Some(to)) => Self { from: to.first_day(), to: to.last_day() },
            (Some(from), Some(to)) => Self { from: from.first_day(), to: to.last_day() },
        }
    }
}

/// The units of these days that have ended and can exist at the exchange, the newest first.
pub(crate) fn units(download: &Download, span: Span, range: DayRange, today: Date) -> Vec<Unit> {
    let yesterday = today.saturating_sub(1.day());
    let range = DayRange { from: range.from.max(FIRST_DAY), to: range.to.min(yesterday) };
    let mut units = Vec::new();
    for period in periods(span, range, yesterday) {
        for market in &download.markets {
            for dataset in &download.datasets {
                for interval in &download.intervals {
                    if exists(market, dataset, interval, span) {
                        units.push(unit(market, dataset, interval, period));
                    }
                }
            }
        }
    }
    units
}

/// What the service looks at each time: the days of `download.recheck_days`, at least yesterday, and the last whole
/// month, or two, of the intervals that exist by month only. Now and then those of `download.catch_up_days`.
pub(crate) fn recent(download: &Download, catching_up: bool, today: Date) -> Vec<Unit> {
    let first = first_day(download, catching_up, today);
    let mut recent = units(download, Span::Days, DayRange { from: first, to: today }, today);
    let by_month = download.intervals.iter().filter(|interval| MONTHLY_ONLY.contains(&interval.as_str()));
    let by_month = Download { intervals: by_month.cloned().collect(), ..download.clone() };
    let first = first.first_of_month().saturating_sub(1.day());
    recent.extend(units(&by_month, Span::Months, DayRange { from: first, to: today }, today));
    recent
}

/// How far back the service looks.
pub(crate) fn first_day(download: &Download, catching_up: bool, today: Date) -> Date {
    let days = download.recheck_days.max(1);
    let days = if catching_up { days.max(download.catch_up_days) } else { days };
    today.saturating_sub(i64::from(days).days())
}

fn periods(span: Span, range: DayRange, yesterday: Date) -> Vec<Period> {
    let mut periods = Vec::new();
    let mut day = range.to;
    while day >= range.from {
        let first = day.first_of_month();
        match span {
            Span::Days => periods.push(Period::Day(day)),
            Span::Months if day.last_of_month() <= yesterday => periods.push(Period::Month(first)),
            Span::Months => {}
        }
        let before = if span == Span::Days { day } else { first };
        day = before.saturating_sub(1.day());
    }
    periods
}

fn exists(market: &str, dataset: &str, interval: &str, span: Span) -> bool {
    let spot = market == "spot";
    (dataset == DATASET || !spot)
        // Every sighting of seconds is of spot.
        && (interval != "1s" || spot)
        && (span == Span::Months || !MONTHLY_ONLY.contains(&interval))
}

fn unit(market: &str, dataset: &str, interval: &str, period: Period) -> Unit {
    let token =
        |name: &str| name.parse::<Token>().expect("the configuration takes known names only, all of them tokens");
    Unit {
        exchange: token(EXCHANGE),
        market: token(market),
        dataset: token(dataset),
        interval: token(interval),
        period,
    }
}

#[cfg(test)]
mod tests {
    use common::config::Symbols;
    use jiff::civil::date;

    use super::*;

    const TODAY: Date = date(2026, 3, 2);

    fn settings(markets: &[&str], datasets: &[&str], intervals: &[&str]) -> Download {
        let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        Download {
            symbols: Symbols::All,
            intervals: texts(intervals),
            markets: texts(markets),
            datasets: texts(datasets),
            base_url: "http://127.0.0.1".to_owned(),
            list_url: "http://127.0.0.1".to_owned(),
            every: None,
            recheck_days: 3,
            catch_up_days: 30,
            timeout: std::time::Duration::from_secs(1),
        }
    }

    fn names(units: &[Unit]) -> Vec<String> {
        units.iter().map(|unit| unit.to_string().replacen("binance/", "", 1)).collect()
    }

    fn range(from: &str, to: &str, span: Span) -> DayRange {
        let period = |text: &str| (!text.is_empty()).then(|| text.parse().expect(text));
        DayRange::new(period(from), period(to), span, TODAY)
    }

    #[test]
    fn nothing_said_means_yesterday_or_the_last_whole_month() {
        let hourly = settings(&["um"], &["klines"], &["1h"]);
        let check = |from, to, span, expected: &[&str]| {
            assert_eq!(names(&units(&hourly, span, range(from, to, span), TODAY)), expected, "{from} to {to}");
        };
        check("", "", Span::Days, &["um/klines/1h/2026-03-01"]);
        check("", "", Span::Months, &["um/klines/1h/2026-02"]);
        check("2026-02-27", "2026-02-28", Span::Days, &["um/klines/1h/2026-02-28", "um/klines/1h/2026-02-27"]);
        check("2026-02-28", "", Span::Days, &["um/klines/1h/2026-03-01", "um/klines/1h/2026-02-28"]);
        check("", "2026-02-03", Span::Days, &["um/klines/1h/2026-02-03"]);
        // Whole months that overlap and have ended; March has not.
        check("2026-01-31", "2026-03-31", Span::Months, &["um/klines/1h/2026-02", "um/klines/1h/2026-01"]);
        check("2026-03", "", Span::Months, &[]);
        // Neither the future nor the time before there was anything.
        check("2026-03-02", "2030-01-01", Span::Days, &[]);
        assert_eq!(units(&hourly, Span::Days, range("0001-01-01", "", Span::Days), TODAY).len(), 3347);
    }

    #[test]
    fn what_cannot_exist_is_not_asked_for() {
        let all = settings(&["spot", "um"], &["klines", "markPriceKlines"], &["1s", "1h", "1w"]);
        let days = units(&all, Span::Days, range("", "", Span::Days), TODAY);
        let expected = ["spot/klines/1s", "spot/klines/1h", "um/klines/1h", "um/markPriceKlines/1h"];
        assert_eq!(names(&days), expected.map(|unit| format!("{unit}/2026-03-01")));
        let months = units(&all, Span::Months, range("", "", Span::Months), TODAY);
        assert_eq!(names(&months).iter().filter(|unit| unit.contains("/1w/")).count(), 3);
    }

    #[test]
    fn the_service_looks_at_the_last_days_and_by_month_at_what_has_no_days() {
        let both = settings(&["um"], &["klines"], &["1h", "1w"]);
        let expected = [
            "um/klines/1h/2026-03-01",
            "um/klines/1h/2026-02-28",
            "um/klines/1h/2026-02-27",
            "um/klines/1w/2026-02",
            "um/klines/1w/2026-01",
        ];
        assert_eq!(names(&recent(&both, false, TODAY)), expected);
        let caught_up = names(&recent(&both, true, TODAY));
        assert_eq!((caught_up.len(), caught_up[0].as_str()), (33, expected[0]));
        assert_eq!(
            caught_up[29..],
            ["um/klines/1h/2026-01-31", "um/klines/1w/2026-02", "um/klines/1w/2026-01", "um/klines/1w/2025-12"]
        );
        let never = Download { catch_up_days: 0, ..both };
        assert_eq!(names(&recent(&never, true, TODAY)), expected);
    }
}
