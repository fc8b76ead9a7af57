//! Metrics read back, so that a status says what a scrape says.

use std::collections::BTreeMap;

use prometheus::Registry;
use prometheus::proto::MetricType;

/// One series of a gauge or a counter.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Without `weft_control_`.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

/// Those whose names begin with `weft_control_` and `begins`.
pub(super) fn of(registry: &Registry, begins: &str) -> Vec<Sample> {
    let mut samples = Vec::new();
    for family in registry.gather() {
        let Some(name) = family.name().strip_prefix("weft_control_").filter(|name| name.starts_with(begins)) else {
            continue;
        };
        for metric in family.get_metric() {
            let value = match family.get_field_type() {
                MetricType::GAUGE => metric.get_gauge().get_value(),
                MetricType::COUNTER => metric.get_counter().get_value(),
                _ => continue,
            };
            let labels = metric.get_label().iter().map(|label| (label.name().to_owned(), label.value().to_owned()));
            samples.push(Sample { name: name.to_owned(), labels: labels.collect(), value });
        }
    }
    samples
}

#[cfg(test)]
mod tests {
    use crate::metrics::Metrics;

    #[test]
    fn a_series_is_read_with_its_labels() {
        let metrics = Metrics::new().unwrap();
        metrics.token_reviews.with_label_values(&["ok"]).inc();
        metrics.streams.set(7);
        let samples = metrics.samples("token_reviews_total");
        assert_eq!(samples.len(), 1);
        assert_eq!((samples[0].labels["outcome"].as_str(), samples[0].value), ("ok", 1.0));
        assert_eq!(metrics.samples("connected_proxies")[0].value.to_string(), "7");
    }
}
