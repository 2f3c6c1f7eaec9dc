//! What came of a run: latencies, failures, lengths of messages; as one line of JSON for the caller.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::Failure;

/// The longest latency that is told apart.
const LATENCY_MAX_NS: u64 = 60_000_000_000;

/// What a run, or a part of it, has found.
#[derive(Debug)]
pub struct Report {
    /// Latencies of the timed calls, or pairs of calls, within the measured time, in nanoseconds.
    latencies: Histogram<u64>,
    /// Of what has two parts, such as a Reserve and its Commit: the name and latencies of each.
    halves: Option<[(&'static str, Histogram<u64>); 2]>,
    /// Answers that were errors or did not say OK, and the first of them.
    failed: u64,
    first_failure: Option<String>,
    /// How long the timed requests were at most.
    request_bytes: usize,
    /// How long the timed answers were: least, most, and in all.
    response_bytes: (usize, usize, usize),
    /// How many timed answers there were, the warm-up included.
    answers: usize,
    /// Reservations to release, each followed by a line feed.
    pub(crate) open: String,
}

impl Report {
    /// An empty one, for what has no parts or these two.
    pub(crate) fn new(halves: Option<[&'static str; 2]>) -> Result<Report, Failure> {
        let halves = match halves {
            Some([first, second]) => Some([(first, histogram()?), (second, histogram()?)]),
            None => None,
        };
        Ok(Report {
            latencies: histogram()?,
            halves,
            failed: 0,
            first_failure: None,
            request_bytes: 0,
            response_bytes: (usize::MAX, 0, 0),
            answers: 0,
            open: String::new(),
        })
    }

    /// Adds what another worker has found.
    pub(crate) fn add(&mut self, other: Report) -> Result<(), Failure> {
        self.latencies.add(other.latencies)?;
        let others = other.halves.into_iter().flatten();
        for ((_, half), (_, other)) in self.halves.iter_mut().flatten().zip(others) {
            half.add(other)?;
        }
        self.failed += other.failed;
        self.first_failure = self.first_failure.take().or(other.first_failure);
        self.request_bytes = self.request_bytes.max(other.request_bytes);
        let (least, most, sum) = self.response_bytes;
        let (other_least, other_most, other_sum) = other.response_bytes;
        self.response_bytes = (least.min(other_least), most.max(other_most), sum + other_sum);
        self.answers += other.answers;
        self.open.push_str(&other.open);
        Ok(())
    }

    /// A call that counts.
    pub(crate) fn took(&mut self, start: Instant, end: Instant) {
        self.latencies.saturating_record(nanoseconds(end - start));
    }

    /// Two halves that count.
    pub(crate) fn took_pair(&mut self, first: (Instant, Instant), second: (Instant, Instant)) {
        self.took(first.0, second.1);
        for ((_, half), (start, end)) in self.halves.iter_mut().flatten().zip([first, second]) {
            half.saturating_record(nanoseconds(end - start));
        }
    }

    /// A request was that long.
    pub(crate) fn asked(&mut self, length: usize) {
        self.request_bytes = self.request_bytes.max(length);
    }

    /// An answer was that long.
    pub(crate) fn answered(&mut self, length: usize) {
        let (least, most, sum) = self.response_bytes;
        self.response_bytes = (least.min(length), most.max(length), sum + length);
        self.answers += 1;
    }

    /// An answer was an error or did not say OK.
    pub(crate) fn fail(&mut self, why: impl FnOnce() -> String) {
        self.failed += 1;
        self.first_failure.get_or_insert_with(why);
    }

    /// A reservation stays open.
    pub(crate) fn keep(&mut self, id: Option<&str>) {
        if let Some(id) = id {
            self.open.push_str(id);
            self.open.push('\n');
        }
    }

    /// Fails where an answer has.
    pub fn check(&self) -> Result<(), Failure> {
        match &self.first_failure {
            Some(first) => {
                Err(format!("{} answers failed, the first: {first}", self.failed).into())
            }
            None => Ok(()),
        }
    }

    /// The line: rates are of calls, or of pairs.
    pub fn line(&self, concurrency: usize, measured: Duration) -> serde_json::Value {
        let (least, most, sum) = self.response_bytes;
        let mut line = serde_json::json!({
            "concurrency": concurrency,
            "calls": self.latencies.len(),
            "rate": per_second(self.latencies.len(), measured),
            "p50_ns": self.latencies.value_at_quantile(0.50),
            "p90_ns": self.latencies.value_at_quantile(0.90),
            "p99_ns": self.latencies.value_at_quantile(0.99),
            "max_ns": self.latencies.max(),
            "request_bytes": self.request_bytes,
            "response_bytes": sum.checked_div(self.answers),
            "response_bytes_min": least,
            "response_bytes_max": most,
            "failed": self.failed,
        });
        for (name, half) in self.halves.iter().flatten() {
            line[format!("{name}_p50_ns")] = half.value_at_quantile(0.50).into();
            line[format!("{name}_p99_ns")] = half.value_at_quantile(0.99).into();
        }
        line
    }
}

fn histogram() -> Result<Histogram<u64>, Failure> {
    Ok(Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3)?)
}

fn nanoseconds(latency: Duration) -> u64 {
    u64::try_from(latency.as_nanos()).unwrap_or(LATENCY_MAX_NS)
}

#[expect(clippy::cast_precision_loss, reason = "far fewer calls than a float can count")]
fn per_second(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64()
}
