//! Charges on several windows at once: all of them or none (R1), and nobody refused for the sake of a
//! charge that is itself refused in the end (R3).
//!
//! A charge takes from one window after the other, and gives back what it took when one of them is
//! short. While it may still give back it is *under way*, which it shows in a lane of its thread. It
//! never waits while it is under way, so charges may come in any order.
//!
//! A charge that finds a window short gives back, ends, and waits until all that were under way have
//! ended. If no taking was given back to that window since it looked (the window counts those), then
//! all that it saw taken was taken for good: it is refused. Otherwise it tries again.
//!
//! Why that is enough: who sees a taking (the compare-and-swap of `remaining`) also sees its charge
//! under way, for that is shown before; who sees that charge ended also sees what it gave back counted,
//! for that is done before. Acquire and release suffice; nothing here needs one order of all words.

use std::sync::Arc;

use crossbeam_utils::CachePadded;

use crate::sync::{AtomicU64, Ordering, own_lane, yield_now};
use crate::window::Window;

/// How many lanes there are. Each belongs to one thread, except the last one, which later threads
/// share: that is as exact and a little slower.
pub(crate) const LANES: usize = if cfg!(bursar_loom) { 2 } else { 32 };
const SHARED: usize = LANES - 1;

/// How many charges are under way, by lane.
#[derive(Debug)]
pub(crate) struct Charges {
    lanes: [CachePadded<AtomicU64>; LANES],
}

/// How a charge fails: the window that is short, and by how much.
#[derive(Debug, Clone)]
pub(crate) struct Shortage {
    /// The limiting window.
    pub window: Arc<Window>,
    /// What the charge asks of it.
    pub amount: i64,
    /// By how much that passes what is left.
    pub shortfall: i64,
}

impl Charges {
    pub(crate) fn new() -> Charges {
        Charges { lanes: std::array::from_fn(|_| CachePadded::new(AtomicU64::new(0))) }
    }

    /// Takes the amounts from all of the windows, or from none.
    #[inline]
    pub(crate) fn charge<'a>(
        &self,
        takings: &(impl Iterator<Item = (&'a Arc<Window>, i64)> + Clone),
    ) -> Result<(), Shortage> {
        self.charge_in(own_lane().min(SHARED), takings)
    }

    /// As above, in a given lane.
    #[inline]
    pub(crate) fn charge_in<'a>(
        &self,
        lane: usize,
        takings: &(impl Iterator<Item = (&'a Arc<Window>, i64)> + Clone),
    ) -> Result<(), Shortage> {
        loop {
            self.begin(lane);
            let taken = take_all(takings.clone());
            self.end(lane);
            let Err((window, short)) = taken else {
                return Ok(());
            };
            self.wait_for_all();
            if window.rollbacks() == short.rollbacks {
                let Short { amount, shortfall, .. } = short;
                return Err(Shortage { window: Arc::clone(window), amount, shortfall });
            }
        }
    }

    #[inline]
    fn begin(&self, lane: usize) {
        // What is taken from now on is taken with release: who sees it sees this.
        if lane == SHARED {
            self.lanes[lane].fetch_add(1, Ordering::Relaxed);
        } else {
            self.lanes[lane].store(1, Ordering::Relaxed);
        }
    }

    #[inline]
    fn end(&self, lane: usize) {
        if lane == SHARED {
            self.lanes[lane].fetch_sub(1, Ordering::Release);
        } else {
            self.lanes[lane].store(0, Ordering::Release);
        }
    }

    /// Waits until every charge that is under way now has ended.
    #[cold]
    fn wait_for_all(&self) {
        for lane in &self.lanes {
            while lane.load(Ordering::Acquire) != 0 {
                yield_now();
            }
        }
    }
}

/// Why a window cannot be taken from.
pub(crate) struct Short {
    /// What was asked of it.
    pub(crate) amount: i64,
    /// By how much the amount passes what is left.
    pub(crate) shortfall: i64,
    /// How many takings had been given back to the window when it was found short.
    pub(crate) rollbacks: u64,
}

#[inline]
fn take_all<'a>(
    takings: impl Iterator<Item = (&'a Arc<Window>, i64)> + Clone,
) -> Result<(), (&'a Arc<Window>, Short)> {
    for (taken, (window, amount)) in takings.clone().enumerate() {
        if let Err(short) = window.take(amount) {
            for (earlier, amount) in takings.take(taken) {
                earlier.untake(amount);
            }
            return Err((window, short));
        }
    }
    Ok(())
}

#[cfg(all(test, not(bursar_loom)))]
mod tests {
    use super::*;

    #[test]
    fn threads_that_share_a_lane_are_all_waited_for() {
        let charges = Charges::new();
        charges.begin(SHARED);
        charges.begin(SHARED);
        charges.end(SHARED);
        assert_eq!(charges.lanes[SHARED].load(Ordering::SeqCst), 1);
        charges.end(SHARED);
        charges.wait_for_all();
    }
}
