//! Metrics as Prometheus reads them.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::App;
use crate::limits;
use crate::runtime::{Histogram, Metrics, Sample, Value};

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

impl App {
    /// Answers GET requests on a path with the metrics of all cores, in the text format of OpenMetrics that
    /// Prometheus reads (feature `prometheus`). Each name begins with `sockring_`, each sample says of which
    /// core it is. A core that does not answer within a second is missing. They are served also when the
    /// server is [full](Self::when_full).
    ///
    /// They tell how busy the server is and what it drops: do not show them to everybody.
    ///
    /// ```no_run
    /// # fn set_up(app: &sockring::app::App) {
    /// app.serve_metrics("/metrics");
    /// # }
    /// ```
    pub fn serve_metrics(&self, pattern: &str) -> &Self {
        let app = self.clone();
        self.when_full().get(pattern, move |_, response| {
            let mut measuring = app.metrics();
            async move {
                let all = monoio::time::timeout(limits::MEASURING, &mut measuring).await;
                let metrics = all.unwrap_or_else(|_| measuring.so_far());
                response.header("Content-Type", CONTENT_TYPE).end(openmetrics(metrics));
            }
        })
    }
}

/// The text of the metrics.
fn openmetrics(metrics: Metrics) -> String {
    let mut registry = Registry::with_prefix("sockring");
    registry.register_collector(Box::new(Encoded(metrics)));
    let mut out = String::new();
    if text::encode(&mut out, &registry).is_err() {
        // It writes to memory only, which cannot fail.
        out.clear();
    }
    out
}

#[derive(Debug)]
struct Encoded(Metrics);

type Labels = Vec<(&'static str, String)>;
/// One of the samples of a name, and all of them.
type Family<'a> = (&'a Sample, Vec<(Labels, Value)>);

impl Collector for Encoded {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut families: BTreeMap<&str, Family<'_>> = BTreeMap::new();
        for (core, sample) in self.0.cores().flat_map(|(core, all)| all.iter().map(move |one| (core, one))) {
            let mut labels = vec![("core", core.to_string())];
            labels.extend(sample.label.map(|(label, value)| (label, value.to_owned())));
            let (_, samples) = families.entry(sample.name).or_insert_with(|| (sample, Vec::new()));
            // Several servers of one App count the same things.
            match samples.iter_mut().find(|(known, _)| *known == labels) {
                Some((_, value)) => *value = together(*value, sample.value),
                None => samples.push((labels, sample.value)),
            }
        }
        for (name, (first, samples)) in families {
            let kind = match first.value {
                Value::Counter(_) => MetricType::Counter,
                Value::Gauge(_) => MetricType::Gauge,
                Value::Times(_) => MetricType::Histogram,
            };
            let mut family = encoder.encode_descriptor(name, first.help, None, kind)?;
            for (labels, value) in &samples {
                encode(family.encode_family(labels)?, value)?;
            }
        }
        Ok(())
    }
}

fn together(one: Value, other: Value) -> Value {
    match (one, other) {
        (Value::Counter(a), Value::Counter(b)) => Value::Counter(a + b),
        (Value::Gauge(a), Value::Gauge(b)) => Value::Gauge(a + b),
        (one, _) => one,
    }
}

fn encode(mut encoder: MetricEncoder<'_>, value: &Value) -> fmt::Result {
    match value {
        Value::Counter(number) => encoder.encode_counter::<NoLabelSet, _, u64>(number, None),
        Value::Gauge(number) => encoder.encode_gauge(number),
        Value::Times(times) => {
            let sum = times.sum().as_secs_f64();
            encoder.encode_histogram::<NoLabelSet>(sum, times.count(), &seconds(times), None)
        }
    }
}

fn seconds(times: &Histogram) -> Vec<(f64, u64)> {
    let bound =
        |longest: Option<std::time::Duration>| longest.map_or(f64::INFINITY, |time| time.as_secs_f64());
    times.buckets().map(|(longest, count)| (bound(longest), count)).collect()
}
