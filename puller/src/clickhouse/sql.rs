//! Filters of the command line as conditions on the columns of a unit.

use common::unit_filter::{UnitFilter, UnitPrefix};

use crate::clickhouse::client::quoted;

/// On a table with the columns of a unit; `period` is a day or a month.
pub(crate) fn filter_condition(filter: &UnitFilter) -> String {
    let mut conditions = vec!["1".to_owned()];
    conditions.extend(filter.unit.as_ref().map(prefix_condition));
    for (column, words) in [("market", &filter.market), ("dataset", &filter.dataset), ("interval", &filter.interval)] {
        conditions.extend(one_of(column, words));
    }
    let (from, to) = filter.days();
    // A month's name is shorter than its days': it must end on or after `from`, and begin on or before `to`.
    let first_day = "toDate(if(length(period) = 7, concat(period, '-01'), period))";
    if let Some(from) = from {
        let last_day = format!("if(length(period) = 7, toLastDayOfMonth({first_day}), {first_day})");
        conditions.push(format!("{last_day} >= toDate('{from}')"));
    }
    if let Some(to) = to {
        conditions.push(format!("{first_day} <= toDate('{to}')"));
    }
    conditions.join(" AND ")
}

pub(crate) fn symbols_condition(symbols: &[String]) -> String {
    one_of("symbol", symbols).unwrap_or_else(|| "1".to_owned())
}

pub(crate) fn prefix_condition(prefix: &UnitPrefix) -> String {
    let columns = ["exchange", "market", "dataset", "interval", "period"];
    let conditions = columns.iter().zip(prefix.segments()).map(|(column, segment)| match *column {
        "period" => format!("startsWith(period, {})", quoted(segment)),
        column => format!("{column} = {}", quoted(segment)),
    });
    conditions.collect::<Vec<_>>().join(" AND ")
}

fn one_of(column: &str, words: &[String]) -> Option<String> {
    let quoted: Vec<String> = words.iter().map(|word| quoted(word)).collect();
    (!words.is_empty()).then(|| format!("{column} IN ({})", quoted.join(", ")))
}
