//! The protocol on one lease's two words. See `layout` for the words and the steps.
//!
//! The usage word is changed by read-modify-write only, by both sides; the control word is stored
//! by the daemon alone, under its lock on the reservation. `loom_word` runs every interleaving.

use crate::layout::COUNT_MAX;
use crate::sync::{AtomicU64, Ordering};

const CLOSED: u64 = 1 << 63;
const EPOCH_SHIFT: u32 = 48;
const EPOCH: u64 = ((1 << 15) - 1) << EPOCH_SHIFT;
const VERDICT_SHIFT: u32 = 48;
const VERDICT: u64 = 7 << VERDICT_SHIFT;
const ENDED: u64 = 1 << 51;

/// What came of a step.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It is debited; the verdict says how to go on (0 OK, 1 WARN, 2 DEGRADE, 3 STOP).
    Debited(u8),
    /// It does not fit what is granted; nothing was debited.
    Exhausted {
        /// What is debited.
        used: u64,
        /// What is granted.
        granted: u64,
    },
    /// The daemon is at work on the lease: try again.
    Closed,
    /// The lease is over.
    Ended,
}

/// The control word, read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Control {
    /// So much may be debited in all.
    pub granted: u64,
    /// How to go on.
    pub verdict: u8,
    /// Whether the lease is over.
    pub ended: bool,
}

impl Control {
    fn unpack(word: u64) -> Control {
        Control {
            granted: word & COUNT_MAX,
            verdict: ((word & VERDICT) >> VERDICT_SHIFT).to_le_bytes()[0],
            ended: word & ENDED != 0,
        }
    }

    fn pack(self) -> u64 {
        let ended = if self.ended { ENDED } else { 0 };
        self.granted.min(COUNT_MAX) | u64::from(self.verdict.min(3)) << VERDICT_SHIFT | ended
    }

    /// Reads it. Relaxed: the word says all by itself, and the client's memory is read-only, where
    /// other loads are not defined.
    #[inline]
    pub fn load(control: &AtomicU64) -> Control {
        Control::unpack(control.load(Ordering::Relaxed))
    }

    /// Writes it: the daemon, under its lock. It is before `open` in a client's eyes, see there.
    pub fn store(self, control: &AtomicU64) {
        control.store(self.pack(), Ordering::Release);
    }
}

/// A client's step: debits `count`, all of it or nothing.
#[inline]
pub fn step(usage: &AtomicU64, control: &AtomicU64, count: u64) -> Step {
    // Acquire pairs with `open`: who sees the new epoch sees the control word from before it.
    let mut seen = usage.load(Ordering::Acquire);
    loop {
        let now = Control::load(control);
        if seen & CLOSED != 0 || now.ended {
            return if now.ended { Step::Ended } else { Step::Closed };
        }
        let used = seen & COUNT_MAX;
        if count > now.granted.saturating_sub(used) {
            return Step::Exhausted { used, granted: now.granted };
        }
        // Release: what the client did before its debit is not seen after it.
        let (ok, fail) = (Ordering::AcqRel, Ordering::Acquire);
        match usage.compare_exchange_weak(seen, seen + count, ok, fail) {
            Ok(_) => return Step::Debited(now.verdict),
            Err(changed) => seen = changed,
        }
    }
}

/// What the usage word says is used: a claim.
#[inline]
pub fn used(usage: &AtomicU64) -> u64 {
    usage.load(Ordering::Acquire) & COUNT_MAX
}

/// Lets no further step succeed, and returns what is used in the end. A repeat changes nothing.
pub fn close(usage: &AtomicU64) -> u64 {
    usage.fetch_or(CLOSED, Ordering::AcqRel) & COUNT_MAX
}

/// Lets steps succeed again, from `used` on. The new epoch makes every step fail that loaded its grant
/// before the closing.
pub fn open(usage: &AtomicU64, used: u64) {
    let (ok, fail) = (Ordering::AcqRel, Ordering::Acquire);
    let opened = |word: u64| {
        let epoch = (word & EPOCH).wrapping_add(1 << EPOCH_SHIFT) & EPOCH;
        Some(epoch | used.min(COUNT_MAX))
    };
    let _before = usage.fetch_update(ok, fail, opened);
}

#[cfg(all(test, not(bursar_loom)))]
mod tests {
    use super::*;

    fn words(used: u64, granted: u64) -> (AtomicU64, AtomicU64) {
        let (usage, control) = (AtomicU64::new(0), AtomicU64::new(0));
        open(&usage, used);
        Control { granted, verdict: 0, ended: false }.store(&control);
        (usage, control)
    }

    #[test]
    fn steps_stop_at_the_exact_count() {
        let (usage, control) = words(0, 3);
        assert_eq!(step(&usage, &control, 2), Step::Debited(0));
        assert_eq!(step(&usage, &control, 2), Step::Exhausted { used: 2, granted: 3 });
        assert_eq!(step(&usage, &control, 1), Step::Debited(0));
        assert_eq!(used(&usage), 3);
        assert_eq!(step(&usage, &control, 0), Step::Debited(0));
    }

    #[test]
    fn a_closed_lease_takes_no_step_and_keeps_its_count() {
        let (usage, control) = words(1, 9);
        assert_eq!(close(&usage), 1);
        assert_eq!(close(&usage), 1);
        assert_eq!(step(&usage, &control, 1), Step::Closed);
        Control { granted: 9, verdict: 3, ended: true }.store(&control);
        assert_eq!(step(&usage, &control, 1), Step::Ended);
        assert_eq!(used(&usage), 1);
    }

    #[test]
    fn a_grant_below_what_is_used_underflows_nowhere() {
        let (usage, control) = words(7, 3);
        assert_eq!(step(&usage, &control, 1), Step::Exhausted { used: 7, granted: 3 });
    }

    #[test]
    fn the_largest_count_fits_and_one_more_does_not() {
        let (usage, control) = words(COUNT_MAX - 1, COUNT_MAX);
        assert_eq!(step(&usage, &control, 1), Step::Debited(0));
        let full = Step::Exhausted { used: COUNT_MAX, granted: COUNT_MAX };
        assert_eq!(step(&usage, &control, 1), full);
        assert_eq!(step(&usage, &control, u64::MAX), full);
    }

    #[test]
    fn epochs_wrap_without_touching_the_count() {
        let (usage, control) = words(5, 10);
        for _ in 0..70_000 {
            let used = close(&usage);
            open(&usage, used);
        }
        assert_eq!(used(&usage), 5);
        assert_eq!(step(&usage, &control, 1), Step::Debited(0));
    }

    #[test]
    fn a_control_word_is_read_as_it_was_written() {
        for verdict in 0..4 {
            for ended in [false, true] {
                let control = Control { granted: COUNT_MAX - 7, verdict, ended };
                let word = AtomicU64::new(0);
                control.store(&word);
                assert_eq!(Control::load(&word), control);
            }
        }
    }
}
