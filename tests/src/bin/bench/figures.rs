//! What was measured, value by value, and the medians.

use serde_json::{Value, json};

use crate::measured::Usage;

/// All values of one metric of one contender in one scenario.
pub(crate) struct Figure {
    pub(crate) scenario: String,
    pub(crate) contender: String,
    pub(crate) metric: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) values: Vec<f64>,
}

#[derive(Default)]
pub(crate) struct Figures {
    list: Vec<Figure>,
    workloads: Vec<(String, String)>,
    remarks: Vec<String>,
}

impl Figure {
    pub(crate) fn median(&self) -> f64 {
        quantile(&self.values, 0.5)
    }

    /// Lowest and highest.
    pub(crate) fn range(&self) -> (f64, f64) {
        (quantile(&self.values, 0.0), quantile(&self.values, 1.0))
    }
}

/// Of at least one value, by the nearest rank; between the middle two where there is no middle one.
pub(crate) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = share * (sorted.len() - 1) as f64;
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    if share == 0.5 { (sorted[below] + sorted[above]) / 2.0 } else { sorted[place.round() as usize] }
}

impl Figures {
    pub(crate) fn add(
        &mut self,
        scenario: &str,
        contender: &str,
        metric: &'static str,
        unit: &'static str,
        value: f64,
    ) {
        eprintln!("bench: {scenario}: {contender}: {metric} {value:.3} {unit}");
        self.add_all(scenario, contender, metric, unit, &[value]);
    }

    pub(crate) fn add_all(
        &mut self,
        scenario: &str,
        contender: &str,
        metric: &'static str,
        unit: &'static str,
        values: &[f64],
    ) {
        let same = |figure: &&mut Figure| {
            figure.scenario == scenario && figure.contender == contender && figure.metric == metric
        };
        match self.list.iter_mut().find(same) {
            Some(figure) => figure.values.extend(values),
            None => self.list.push(Figure {
                scenario: scenario.to_owned(),
                contender: contender.to_owned(),
                metric,
                unit,
                values: values.to_vec(),
            }),
        }
    }

    /// What a scenario works on, in words.
    pub(crate) fn describe(&mut self, scenario: &str, text: impl Into<String>) {
        let text = text.into();
        eprintln!("bench: {scenario}: {text}");
        self.workloads.push((scenario.to_owned(), text));
    }

    pub(crate) fn workloads(&self) -> &[(String, String)] {
        &self.workloads
    }

    pub(crate) fn add_usage(&mut self, scenario: &str, contender: &str, usage: &Usage) {
        self.add(scenario, contender, "wall", "s", usage.wall_s);
        if let Some(client) = usage.client {
            self.add(scenario, contender, "client CPU", "s", client.cpu_s);
            self.add(scenario, contender, "peak RSS", "MiB", client.rss_mb);
        }
        self.add(scenario, contender, "ClickHouse CPU", "s", usage.servers.clickhouse_s);
        self.add(scenario, contender, "S3 CPU", "s", usage.servers.s3_s);
        self.add(scenario, contender, "NATS CPU", "s", usage.servers.nats_s);
    }

    /// Something a reader of the figures has to know.
    pub(crate) fn remark(&mut self, text: impl Into<String>) {
        let text = text.into();
        if !self.remarks.contains(&text) {
            self.remarks.push(text);
        }
    }

    pub(crate) fn remarks(&self) -> &[String] {
        &self.remarks
    }

    pub(crate) fn list(&self) -> &[Figure] {
        &self.list
    }

    pub(crate) fn get(&self, scenario: &str, contender: &str, metric: &str) -> Option<&Figure> {
        self.list
            .iter()
            .find(|figure| figure.scenario == scenario && figure.contender == contender && figure.metric == metric)
    }

    pub(crate) fn median(&self, scenario: &str, contender: &str, metric: &str) -> Option<f64> {
        self.get(scenario, contender, metric).map(Figure::median)
    }

    pub(crate) fn json(&self) -> Vec<Value> {
        let figure = |figure: &Figure| {
            let (min, max) = figure.range();
            json!({
                "scenario": figure.scenario, "contender": figure.contender, "metric": figure.metric,
                "unit": figure.unit, "n": figure.values.len(), "median": figure.median(), "min": min, "max": max,
                "values": figure.values,
            })
        };
        self.list.iter().map(figure).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::quantile;

    #[test]
    fn quantiles_are_values_that_were_measured_or_the_middle_of_two() {
        let values = [4.0, 1.0, 3.0, 2.0];
        assert_eq!([0.0, 0.5, 0.99, 1.0].map(|share| quantile(&values, share)), [1.0, 2.5, 4.0, 4.0]);
        assert_eq!(quantile(&[7.0], 0.5), 7.0);
    }
}
