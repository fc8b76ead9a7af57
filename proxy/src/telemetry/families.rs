//! The words of Prometheus's text format: families of counters, gauges and histograms.

use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};

/// Values of one metric.
#[derive(Default)]
pub struct Values(Vec<Metric>);

/// Names and values of labels.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

impl Values {
    /// One counter.
    pub fn counter(&mut self, labels: Labels<'_>, value: f64) {
        let mut counter = Counter::default();
        counter.set_value(value);
        let mut metric = labelled(labels);
        metric.set_counter(counter);
        self.0.push(metric);
    }

    /// One gauge.
    pub fn gauge(&mut self, labels: Labels<'_>, value: f64) {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        let mut metric = labelled(labels);
        metric.set_gauge(gauge);
        self.0.push(metric);
    }

    /// One histogram: the upper bounds of its buckets, how many each holds (one more than bounds: the rest), and the sum of all values.
    pub fn histogram(&mut self, labels: Labels<'_>, bounds: &[f64], counts: &[u64], sum: f64) {
        let mut histogram = Histogram::default();
        let mut seen = 0;
        let buckets = bounds.iter().zip(counts).map(|(bound, count)| {
            seen += count;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound);
            bucket.set_cumulative_count(seen);
            bucket
        });
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(counts.iter().sum());
        histogram.set_sample_sum(sum);
        let mut metric = labelled(labels);
        metric.set_histogram(histogram);
        self.0.push(metric);
    }

    /// None of them.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn labelled(labels: Labels<'_>) -> Metric {
    let pair = |(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    Metric::from_label(labels.iter().map(pair).collect())
}

/// A metric with its help and all its values.
pub fn family(name: &str, help: &str, kind: MetricType, values: Values) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(values.0);
    family
}
