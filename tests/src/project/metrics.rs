//! One number out of the text of `/metrics`.

use crate::{Context, Failure, Result};

/// The sum over all samples of a series: a sample's name, with labels in braces if only samples that have all of them count.
///
/// Fails when the text has neither a sample of that name nor its family's `# TYPE` line, or has samples of that name and
/// none has a label of that name: a misspelt name must not pass for 0. A value of a label that no sample has is 0, for an
/// outcome is exported once there was one.
pub(super) fn sum(text: &str, series: &str) -> Result<f64> {
    let (name, wanted) = split(series);
    let samples: Vec<(Vec<&str>, &str)> = text.lines().filter_map(|line| sample(line, name)).collect();
    if samples.is_empty() && !has_type(text, name) {
        let names: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        return Err(Failure::new(format!("no metric {name} is exported; these are: {}", names.join(", "))));
    }
    for label in &wanted {
        let key = |label: &str| label.split('=').next().unwrap_or_default().to_owned();
        let known = samples.iter().any(|(labels, _)| labels.iter().any(|other| key(other) == key(label)));
        if !known && !samples.is_empty() {
            return Err(Failure::new(format!("no sample of {name} has the label of {label}")));
        }
    }
    let counted = samples.iter().filter(|(labels, _)| wanted.iter().all(|label| labels.contains(label)));
    counted.map(|(_, value)| value.parse::<f64>().context(format!("{series} is {value:?}"))).sum()
}

/// The labels and the value of a line that is a sample of this name.
fn sample<'a>(line: &'a str, name: &str) -> Option<(Vec<&'a str>, &'a str)> {
    let (series, value) = line.rsplit_once(' ')?;
    let (found, labels) = split(series);
    (found == name).then_some((labels, value))
}

/// `name{a="b",c="d"}` as its name and its labels. No value of a label has a comma in it.
fn split(series: &str) -> (&str, Vec<&str>) {
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    (name, labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty()).collect())
}

/// A counter's family is its name without `_total`, a histogram's without what its samples end in.
fn has_type(text: &str, name: &str) -> bool {
    let families: Vec<&str> =
        ["", "_total", "_count", "_sum", "_bucket"].iter().filter_map(|end| name.strip_suffix(end)).collect();
    let mut types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    types.any(|family| families.contains(&family))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_what_is_named_and_refuses_what_is_not_exported() {
        let text = "# TYPE units counter\nunits_total{outcome=\"good\",site=\"a\"} 2\nunits_total{outcome=\"good\",site=\"b\"} 3\n\
                    units_totals 9\n# TYPE quiet counter\n# TYPE waiting gauge\nwaiting 4\n# EOF\n";
        let found = |series: &str| sum(text, series).ok();
        assert_eq!(found("units_total"), Some(5.0));
        assert_eq!(found("units_total{site=\"b\"}"), Some(3.0));
        assert_eq!(found("units_total{site=\"a\",outcome=\"good\"}"), Some(2.0));
        assert_eq!(found("units_total{outcome=\"bad\"}"), Some(0.0));
        assert_eq!(found("quiet_total{outcome=\"good\"}"), Some(0.0));
        assert_eq!(found("waiting"), Some(4.0));
        assert_eq!(found("units_total{result=\"good\"}"), None);
        assert_eq!(found("unit_total"), None);
        assert_eq!(found("wait"), None);
    }
}
