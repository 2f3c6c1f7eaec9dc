//! Counts that any thread may raise at no cost that can be measured.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::v1::refusal::Reason;

/// Upper bounds of a histogram's buckets, in nanoseconds, and as OpenMetrics writes them in seconds.
pub(super) const BOUNDS: [(u64, &str); 15] = [
    (10_000, "1e-05"),
    (25_000, "2.5e-05"),
    (50_000, "5e-05"),
    (100_000, "0.0001"),
    (250_000, "0.00025"),
    (500_000, "0.0005"),
    (1_000_000, "0.001"),
    (2_500_000, "0.0025"),
    (5_000_000, "0.005"),
    (10_000_000, "0.01"),
    (25_000_000, "0.025"),
    (100_000_000, "0.1"),
    (500_000_000, "0.5"),
    (2_500_000_000, "2.5"),
    (10_000_000_000, "10.0"),
];

/// How long something took, each time.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    /// Not cumulative; the last one has no bound.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum_ns: AtomicU64,
}

/// A histogram at one moment, or several of them together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Spread {
    pub(super) buckets: [u64; BOUNDS.len() + 1],
    pub(super) sum_ns: u64,
}

impl Histogram {
    #[inline]
    pub(crate) fn record(&self, took_ns: u64) {
        let bucket = BOUNDS.iter().position(|(bound, _)| took_ns <= *bound);
        self.buckets[bucket.unwrap_or(BOUNDS.len())].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(took_ns, Ordering::Relaxed);
    }

    pub(super) fn add_to(&self, spread: &mut Spread) {
        for (sum, bucket) in spread.buckets.iter_mut().zip(&self.buckets) {
            *sum += bucket.load(Ordering::Relaxed);
        }
        spread.sum_ns += self.sum_ns.load(Ordering::Relaxed);
    }
}

/// Reasons of refusals: the numbers of the wire, without 0.
const REASONS: usize = 5;

/// What Reserve has answered, however it was asked.
#[derive(Debug, Default)]
pub(crate) struct Reserves {
    admitted: AtomicU64,
    repeated: AtomicU64,
    refused: [AtomicU64; REASONS],
}

impl Reserves {
    /// A hold was admitted, or told of again to a call that was repeated.
    #[inline]
    pub(crate) fn granted(&self, again: bool) {
        let count = if again { &self.repeated } else { &self.admitted };
        count.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn refused(&self, reason: Reason) {
        let number = usize::try_from(i32::from(reason)).unwrap_or(0);
        if let Some(count) = number.checked_sub(1).and_then(|index| self.refused.get(index)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn admitted(&self) -> u64 {
        self.admitted.load(Ordering::Relaxed)
    }

    pub(super) fn repeated(&self) -> u64 {
        self.repeated.load(Ordering::Relaxed)
    }

    /// Refusals by reason, as the wire names it.
    pub(super) fn by_reason(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.refused.iter().zip(1..).map(|(count, number)| {
            let reason = Reason::try_from(number).unwrap_or_default().as_str_name();
            (reason.trim_start_matches("REASON_"), count.load(Ordering::Relaxed))
        })
    }
}

/// Descriptors of Envoy's by the rule that fits, those that none fits in the last row, and by whether
/// they were over the limit.
#[derive(Debug)]
pub(crate) struct Descriptors(Vec<[AtomicU64; 2]>);

impl Descriptors {
    /// None so far, for so many rules.
    pub(crate) fn new(rules: usize) -> Descriptors {
        Descriptors((0..=rules).map(|_| Default::default()).collect())
    }

    pub(crate) fn count(&self, rule: Option<usize>, is_over: bool) {
        let row = rule.unwrap_or(self.0.len() - 1);
        self.0[row][usize::from(is_over)].fetch_add(1, Ordering::Relaxed);
    }

    /// How many were refused since no rule fits them.
    pub(crate) fn unmatched(&self) -> u64 {
        self.0[self.0.len() - 1][1].load(Ordering::Relaxed)
    }

    /// (the rule's place, or "none"; within the limit, over it)
    pub(super) fn by_rule(&self) -> impl Iterator<Item = (String, [u64; 2])> {
        let none = self.0.len() - 1;
        self.0.iter().enumerate().map(move |(row, counts)| {
            let rule = if row == none { "none".to_owned() } else { row.to_string() };
            (rule, counts.each_ref().map(|count| count.load(Ordering::Relaxed)))
        })
    }
}

/// How an upstream of the proxy has answered: by class of the status, and not at all.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    by_class: [AtomicU64; CLASSES.len()],
    latency: Histogram,
}

/// The classes of a status; what no server may send counts as no answer.
pub(super) const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

impl Answers {
    /// An answer with that status began, after so long; 0: there was none.
    pub(crate) fn count(&self, status: u16, took_ns: u64) {
        let class = self.by_class.get(usize::from(status / 100)).unwrap_or(&self.by_class[0]);
        class.fetch_add(1, Ordering::Relaxed);
        self.latency.record(took_ns);
    }

    pub(super) fn by_class(&self) -> [u64; CLASSES.len()] {
        self.by_class.each_ref().map(|count| count.load(Ordering::Relaxed))
    }

    pub(super) fn latency(&self) -> Spread {
        let mut spread = Spread::default();
        self.latency.add_to(&mut spread);
        spread
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_at_a_bound_is_within_it_and_what_passes_all_is_kept() {
        let histogram = Histogram::default();
        for took_ns in [0, 10_000, 10_001, 10_000_000_000, 10_000_000_001, u64::MAX / 4] {
            histogram.record(took_ns);
        }
        let mut spread = Spread::default();
        histogram.add_to(&mut spread);
        histogram.add_to(&mut spread);
        assert_eq!(spread.buckets[..2], [4, 2]);
        assert_eq!(spread.buckets[BOUNDS.len() - 1..], [2, 4]);
        assert_eq!(spread.buckets.iter().sum::<u64>(), 12);
    }

    #[test]
    fn what_no_rule_fits_and_what_nobody_answers_has_a_count_of_its_own() {
        let descriptors = Descriptors::new(2);
        for (rule, is_over) in [(Some(1), false), (None, true), (None, true), (None, false)] {
            descriptors.count(rule, is_over);
        }
        let counted: Vec<_> = descriptors.by_rule().collect();
        let expected = [("0", [0, 0]), ("1", [1, 0]), ("none", [1, 2])];
        assert_eq!(counted, expected.map(|(rule, counts)| (rule.to_owned(), counts)));
        assert_eq!(descriptors.unmatched(), 2);
        let answers = Answers::default();
        for status in [0, 200, 204, 429, 503, 999] {
            answers.count(status, 1);
        }
        assert_eq!(answers.by_class(), [2, 0, 2, 0, 1, 1]);
        assert_eq!(answers.latency().buckets[0], 6);
    }

    #[test]
    fn bounds_ascend_and_are_written_as_they_are() {
        assert!(BOUNDS.windows(2).all(|pair| pair[0].0 < pair[1].0));
        for (bound_ns, text) in BOUNDS {
            let seconds: f64 = text.parse().expect("a number");
            #[expect(clippy::cast_precision_loss, reason = "small numbers")]
            let told = bound_ns as f64 / 1e9;
            assert!((seconds - told).abs() < 1e-12, "{text}");
        }
    }

    #[test]
    fn every_reason_of_the_wire_has_a_count() {
        let reserves = Reserves::default();
        let reasons: Vec<_> = (1..).map_while(|number| Reason::try_from(number).ok()).collect();
        for reason in &reasons {
            reserves.refused(*reason);
        }
        let counted: Vec<_> = reserves.by_reason().collect();
        assert_eq!(counted.len(), reasons.len());
        assert!(counted.iter().all(|(name, count)| *count == 1 && !name.is_empty()), "{counted:?}");
    }
}
