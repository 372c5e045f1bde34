//! Makes metrics: a name, what it says, its labels, and a handle to count with.
//!
//! To be called within [`Recorder::with`](crate::Recorder::with), which says whose metric it is. The handle is kept where
//! the thing counted passes; making one costs a look-up. Invariant: no metric without a description. What it does not
//! do: choose the buckets of histograms, which the recorder must know before.

pub use metrics::{Counter, Gauge, Histogram};
use metrics::{Label, describe_counter, describe_gauge, describe_histogram};

/// A label's name and value. Values that are not known beforehand must be bounded in number.
pub type NameAndValue<'a> = (&'static str, &'a str);

/// A counter, which only grows.
pub fn counter(name: &'static str, says: &'static str, labels: &[NameAndValue<'_>]) -> Counter {
    describe_counter!(name, says);
    metrics::counter!(name, of(labels))
}

/// A gauge, which is set.
pub fn gauge(name: &'static str, says: &'static str, labels: &[NameAndValue<'_>]) -> Gauge {
    describe_gauge!(name, says);
    metrics::gauge!(name, of(labels))
}

/// A histogram, in the unit that its name ends with.
pub fn histogram(name: &'static str, says: &'static str, labels: &[NameAndValue<'_>]) -> Histogram {
    describe_histogram!(name, says);
    metrics::histogram!(name, of(labels))
}

fn of(labels: &[NameAndValue<'_>]) -> Vec<Label> {
    labels.iter().map(|(name, value)| Label::new(*name, (*value).to_owned())).collect()
}
