//! What an account may go on spending without a look at its counts.
//!
//! A look takes the lock of the counts and goes through every window of a chain. Nearly all looks find
//! nothing, so whoever looks leaves so much leeway that nothing can be found: for this chain, for these
//! limits, until the interval is over. Ends draw from it, with one compare-and-swap for each unit, and
//! look only where it is not enough. What was drawn is taken back and counted before the next look
//! compares anything: findings are what they would be without it.
//!
//! `give` and `take_back` are called under the lock of the counts, `draw` by anybody.

use crate::fact::ChainId;
use crate::sync::{AtomicI64, AtomicU64, Ordering};
use crate::unit::{Amounts, UNIT_COUNT, Unit};

/// What leeway holds for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Holds {
    /// For the windows of this chain.
    pub(crate) chain: ChainId,
    /// For the limits after so many changes.
    pub(crate) limits: u64,
}

/// No chain has this name.
const NONE: ChainId = 0;

/// What is left of it, unit by unit.
#[derive(Debug)]
pub(crate) struct Leeway {
    /// `NONE` before anything else changes: who drew of what is given anew sees that.
    chain: AtomicU64,
    limits: AtomicU64,
    /// The first millisecond at which it does not hold.
    until_ms: AtomicI64,
    left: [AtomicI64; UNIT_COUNT],
}

impl Leeway {
    pub(crate) fn none() -> Leeway {
        Leeway {
            chain: AtomicU64::new(NONE),
            limits: AtomicU64::new(0),
            until_ms: AtomicI64::new(0),
            left: std::array::from_fn(|_| AtomicI64::new(0)),
        }
    }

    /// Draws the amounts of these units.
    ///
    /// Where somebody has to look it returns the units, by their bits, that were not drawn and are
    /// still to be counted.
    #[inline]
    pub(crate) fn draw(
        &self,
        amounts: impl Fn(Unit) -> i64,
        units: u8,
        holds: &Holds,
        now_ms: i64,
    ) -> Result<(), u8> {
        if !self.holds(holds) || now_ms >= self.until_ms.load(Ordering::Relaxed) {
            return Err(units);
        }
        let mut short = 0;
        for unit in Unit::among(units) {
            let amount = amounts(unit);
            if amount != 0 && !self.take(unit, amount) {
                short |= 1 << unit.index();
            }
        }
        // It may have been given anew meanwhile, for another chain or other limits.
        if short == 0 && self.holds(holds) { Ok(()) } else { Err(short) }
    }

    #[inline]
    fn holds(&self, holds: &Holds) -> bool {
        // Acquire pairs with `give`: what is left, and until when, is at least as new.
        self.chain.load(Ordering::Acquire) == holds.chain
            && self.limits.load(Ordering::Relaxed) == holds.limits
    }

    #[inline]
    fn take(&self, unit: Unit, amount: i64) -> bool {
        let left = &self.left[unit.index()];
        // AcqRel pairs with `give`: who takes of what is given anew sees for what.
        let (ok, fail) = (Ordering::AcqRel, Ordering::Relaxed);
        let mut seen = left.load(Ordering::Relaxed);
        while seen >= amount {
            match left.compare_exchange_weak(seen, seen - amount, ok, fail) {
                Ok(_) => return true,
                Err(other) => seen = other,
            }
        }
        false
    }

    /// Gives so much, after `take_back`.
    pub(crate) fn give(&self, amounts: &Amounts, holds: &Holds, until_ms: i64) {
        self.limits.store(holds.limits, Ordering::Relaxed);
        self.until_ms.store(until_ms, Ordering::Relaxed);
        for unit in Unit::each() {
            self.left[unit.index()].store(amounts.get(unit), Ordering::Release);
        }
        self.chain.store(holds.chain, Ordering::Release);
    }

    /// Ends it; returns what was drawn of what was given.
    pub(crate) fn take_back(&self, given: &Amounts) -> Amounts {
        self.chain.store(NONE, Ordering::Relaxed);
        let drawn = |(unit, amount): (Unit, i64)| {
            let left = self.left[unit.index()].swap(0, Ordering::AcqRel);
            (unit, amount.saturating_sub(left))
        };
        given.iter().map(drawn).collect()
    }
}

#[cfg(all(test, not(bursar_loom)))]
mod tests {
    use super::*;

    const DAY: Holds = Holds { chain: 7, limits: 3 };
    const TOKENS: u8 = 1;

    fn draw(leeway: &Leeway, amount: i64, holds: Holds, now_ms: i64) -> Result<(), u8> {
        leeway.draw(|_| amount, TOKENS, &holds, now_ms)
    }

    #[test]
    fn it_is_drawn_to_the_last_and_what_was_drawn_comes_back() {
        let (leeway, given) = (Leeway::none(), Amounts::of(Unit::Tokens, 10));
        assert_eq!(draw(&leeway, 1, DAY, 0), Err(TOKENS));
        leeway.give(&given, &DAY, 100);
        assert_eq!(draw(&leeway, 4, DAY, 0), Ok(()));
        assert_eq!(draw(&leeway, 7, DAY, 0), Err(TOKENS));
        assert_eq!(draw(&leeway, 6, DAY, 99), Ok(()));
        assert_eq!(draw(&leeway, i64::MAX, DAY, 99), Err(TOKENS));
        assert_eq!(leeway.take_back(&given), given);
        assert_eq!(draw(&leeway, 1, DAY, 0), Err(TOKENS));
    }

    #[test]
    fn it_holds_for_its_chain_its_limits_and_its_time_only() {
        let (leeway, given) = (Leeway::none(), Amounts::of(Unit::Tokens, 10));
        leeway.give(&given, &DAY, 100);
        for (holds, now_ms) in
            [(Holds { chain: 8, ..DAY }, 0), (Holds { limits: 4, ..DAY }, 0), (DAY, 100)]
        {
            assert_eq!(draw(&leeway, 1, holds, now_ms), Err(TOKENS));
        }
        assert_eq!(leeway.take_back(&given), Amounts::ZERO);
    }

    #[test]
    fn of_several_units_those_that_are_short_are_to_be_counted() {
        let given = [(Unit::Tokens, 10), (Unit::UsdNanos, 2)].into_iter().collect();
        let leeway = Leeway::none();
        leeway.give(&given, &DAY, 100);
        assert_eq!(leeway.draw(|_| 5, 0b11, &DAY, 0), Err(0b10));
        assert_eq!(leeway.take_back(&given), Amounts::of(Unit::Tokens, 5));
    }
}
