//! What was spent within the last so-and-so long.
//!
//! The length is cut into [`BUCKETS`] buckets. A spending leaves with its bucket, at most one bucket's
//! length late and never early: within any stretch of the length, no more than the limit is spent.

use crate::period::{Period, PeriodKind};
use crate::sync::{AtomicI64, Mutex, Ordering};

/// How many buckets a length is cut into.
pub const BUCKETS: i64 = 64;
/// The live buckets, the one in progress, and one that is being emptied.
const RING: usize = 66;

/// The buckets of one rolling window.
#[derive(Debug)]
pub(crate) struct Rolling {
    bucket_ms: i64,
    /// The newest bucket that has left.
    left: AtomicI64,
    /// Held while buckets leave, once per bucket's length, and while one is taken back from.
    leaving: Mutex<()>,
    spent: [AtomicI64; RING],
}

/// When an amount was spent: at some time since `since_ms`, and `now_ms` at the latest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    pub(crate) since_ms: i64,
    pub(crate) now_ms: i64,
}

impl Span {
    /// For what is being spent.
    pub(crate) fn at(now_ms: i64) -> Span {
        Span { since_ms: now_ms, now_ms }
    }
}

/// The length of one bucket.
pub fn bucket_ms(length_ms: i64) -> i64 {
    (length_ms + BUCKETS - 1).div_euclid(BUCKETS)
}

impl Rolling {
    /// The buckets, if the period is a rolling one.
    pub(crate) fn of(period: &Period) -> Option<Rolling> {
        (period.kind == PeriodKind::Rolling).then(|| Rolling {
            bucket_ms: bucket_ms(period.length_ms),
            left: AtomicI64::new(0),
            leaving: Mutex::new(()),
            spent: std::array::from_fn(|_| AtomicI64::new(0)),
        })
    }

    fn bucket(&self, index: i64) -> &AtomicI64 {
        let slot = usize::try_from(index.rem_euclid(66)).expect("a remainder of 66");
        &self.spent[slot]
    }

    /// Counts a spending. `roll` must have been called with the same time.
    pub(crate) fn add(&self, now_ms: i64, amount: i64) {
        self.bucket(now_ms.div_euclid(self.bucket_ms)).fetch_add(amount, Ordering::AcqRel);
    }

    /// Counts a spending (negative: takes it back), and returns how much of it.
    pub(crate) fn spend(&self, amount: i64, span: Span) -> i64 {
        if amount < 0 {
            return -self.take_back(-amount, span.since_ms);
        }
        self.add(span.now_ms, amount);
        amount
    }

    /// Takes a spending back, if none of it can have left yet, and returns how much that is. Which
    /// bucket it was spent in is not known: the oldest ones lose it, so the rest leaves no earlier than
    /// it should. Once some of it may have left, what is here may be others', so none is taken.
    pub(crate) fn take_back(&self, amount: i64, since_ms: i64) -> i64 {
        // None leaves meanwhile: it would be given back twice.
        let _leaving = self.leaving.lock();
        let left = self.left.load(Ordering::Acquire);
        if since_ms.div_euclid(self.bucket_ms) <= left {
            return 0;
        }
        let mut rest = amount;
        for index in left + 1..=left + BUCKETS + 1 {
            let (ok, fail) = (Ordering::AcqRel, Ordering::Acquire);
            let taken =
                self.bucket(index).fetch_update(ok, fail, |spent| Some(spent - rest.min(spent)));
            let before = taken.expect("never declined");
            rest -= rest.min(before);
        }
        amount - rest
    }

    /// Puts buckets back as they stood: (start in ms, spent). Before any `roll`.
    pub(crate) fn restore(&self, buckets: &[(i64, i64)]) {
        let Some(oldest) = buckets.iter().map(|(start_ms, _)| *start_ms).min() else {
            return;
        };
        self.left.store(oldest.div_euclid(self.bucket_ms) - 1, Ordering::Release);
        for (start_ms, amount) in buckets {
            self.add(*start_ms, *amount);
        }
    }

    /// Empties the buckets that have left the period and returns what was in them.
    pub(crate) fn roll(&self, now_ms: i64) -> i64 {
        let last = now_ms.div_euclid(self.bucket_ms) - BUCKETS - 1;
        if self.left.load(Ordering::Acquire) >= last {
            return 0;
        }
        let _leaving = self.leaving.lock();
        let left = self.left.load(Ordering::Acquire);
        // After a long pause every bucket has left; each slot needs emptying only once.
        let first = (left + 1).max(last - 65);
        let sum = (first..=last).map(|i| self.bucket(i).swap(0, Ordering::AcqRel)).sum();
        self.left.store(last.max(left), Ordering::Release);
        sum
    }
}

#[cfg(all(test, not(bursar_loom)))]
mod tests {
    use super::*;

    /// Buckets of one millisecond.
    fn rolling() -> Rolling {
        Rolling::of(&Period::rolling(BUCKETS)).expect("it rolls")
    }

    #[test]
    fn the_buckets_of_a_length_cover_it() {
        let lengths = [1, 63, 64, 65, 128, 129, 3_600_000];
        assert_eq!(lengths.map(bucket_ms), [1, 1, 1, 2, 2, 3, 56_250]);
    }

    #[test]
    fn what_is_taken_back_is_the_oldest_that_is_left_and_the_newest_as_well() {
        let rolling = rolling();
        assert_eq!(rolling.roll(1_000), 0);
        rolling.add(1_000, 10);
        assert_eq!(rolling.roll(1_064), 0);
        rolling.add(1_064, 10);
        assert_eq!(rolling.take_back(7, 1_000), 7, "of the older ones");
        assert_eq!(rolling.roll(1_065), 3);
        assert_eq!(rolling.take_back(99, 1_000), 0, "it may have left");
        assert_eq!(rolling.take_back(99, 1_001), 10);
        assert_eq!(rolling.roll(1_200), 0);
    }

    #[test]
    fn restored_buckets_leave_when_they_would_have() {
        let rolling = rolling();
        rolling.restore(&[]);
        rolling.restore(&[(1_010, 5), (1_000, 7)]);
        let left = [1_000, 1_064, 1_065, 1_074, 1_075, 1_076].map(|now_ms| rolling.roll(now_ms));
        assert_eq!(left, [0, 0, 7, 0, 5, 0]);
    }
}
