//! Every pair of what happens to one window, in every interleaving: charge, rollback, rollover, limit
//! change, expiry.
//!
//! Run with `make test-loom`. The window starts with 4 of 5 held, so that the one that is left over
//! decides: a charge of it beside a rollback is never refused, and beside another charge one is.

use std::sync::Arc;

use loom::thread;

use crate::budget::{Budget, BudgetInfo, BudgetTerms};
use crate::charge::{Charges, LANES};
use crate::period::{Calendar, Period, PeriodKind};
use crate::rolling::Span;
use crate::unit::Unit;
use crate::window::Window;

const LIMIT: i64 = 5;
const LOWERED: i64 = 3;
const HELD: i64 = 4;
const USED: i64 = 1;
const HOUR_MS: i64 = 3_600_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    /// Takes what is left.
    Charge,
    /// Takes what is left, fails at the next window, and gives it back.
    Rollback,
    /// The first call of the next hour.
    Rollover,
    /// The limit falls below what is held.
    Limit,
    /// The hold ends at what was debited of it.
    Expiry,
}

const ACTS: [Act; 5] = [Act::Charge, Act::Rollback, Act::Rollover, Act::Limit, Act::Expiry];

#[derive(Clone)]
struct World {
    budget: Arc<Budget>,
    window: Arc<Window>,
    exhausted: Arc<Window>,
    charges: Arc<Charges>,
}

fn budget(id: u32, limit: i64) -> Arc<Budget> {
    let period = Period::calendar(PeriodKind::Hour, "UTC");
    let calendar = Calendar::new(&period).unwrap();
    let info = BudgetInfo { id, account: id, path: "acme".into(), unit: Unit::Tokens, period };
    Arc::new(Budget::new(info, calendar, terms(limit), &Arc::default()))
}

fn terms(limit: i64) -> BudgetTerms {
    BudgetTerms { limit, thresholds: Arc::new([]), manual: false }
}

impl World {
    fn new() -> World {
        let budget = budget(1, LIMIT);
        let window = budget.window(0, |_, _| 1);
        let exhausted = self::budget(2, 0).window(0, |_, _| 2);
        let world = World { budget, window, exhausted, charges: Arc::new(Charges::new()) };
        assert!(world.charge(0, &[(&world.window, HELD)]));
        world
    }

    /// Charges in a lane: a thread's own, or the one that is shared.
    fn charge(&self, lane: usize, takings: &[(&Arc<Window>, i64)]) -> bool {
        self.charges.charge_in(lane, &takings.iter().copied()).is_ok()
    }

    /// Does it; returns what was taken for good from the first window.
    fn act(&self, act: Act, number: u64) -> i64 {
        let takings = [(&self.window, 1), (&self.exhausted, 1)];
        let lane = usize::try_from(number).unwrap() % LANES;
        match act {
            Act::Charge => i64::from(self.charge(lane, &takings[..1])),
            Act::Rollback => {
                assert!(!self.charge(lane, &takings));
                0
            }
            Act::Rollover => {
                self.budget.window(HOUR_MS, |_, _| 10 + number);
                0
            }
            Act::Limit => {
                self.budget.set_terms(terms(LOWERED), |_, _| {}).unwrap();
                0
            }
            Act::Expiry => {
                let _no_thresholds = self.window.spend_held(USED, 0, Span::at(0));
                self.window.give_back(HELD - USED);
                0
            }
        }
    }
}

fn check(world: &World, acts: [Act; 2], taken: i64) {
    let did = |act| acts.contains(&act);
    let standing = world.window.standing();
    let ended = if did(Act::Expiry) { HELD - USED } else { 0 };
    assert_eq!(world.window.remaining(), standing.limit - HELD - taken + ended, "{acts:?}");
    assert_eq!(standing.spent, if did(Act::Expiry) { USED } else { 0 }, "{acts:?}");
    let limit = if did(Act::Limit) { LOWERED } else { LIMIT };
    if did(Act::Rollover) {
        let next = world.budget.window(HOUR_MS, |_, _| unreachable!("there is one"));
        assert_eq!(
            next.remaining(),
            limit,
            "nothing of the last hour counts in this one: {acts:?}"
        );
        assert!([LIMIT, limit].contains(&standing.limit), "{acts:?}");
    } else {
        assert_eq!(standing.limit, limit, "{acts:?}");
    }
    if did(Act::Charge) && !did(Act::Limit) {
        assert_eq!(taken, 1, "what fits is admitted, once: {acts:?}");
    }
    // Nothing is left under way: what no longer fits is refused at once, and what is left is taken.
    let left = world.window.remaining();
    assert!(!world.charge(0, &[(&world.window, left + 1)]));
    assert!(world.charge(0, &[(&world.window, left)]));
    assert_eq!(world.window.remaining(), 0);
}

#[test]
fn loom_every_pair_of_changes_to_one_window_adds_up() {
    for (at, first) in ACTS.into_iter().enumerate() {
        // An expiry happens once: its reservation's lock sees to that.
        let twice = |second: &Act| !(first == Act::Expiry && *second == Act::Expiry);
        for second in ACTS.into_iter().skip(at).filter(twice) {
            loom::model(move || {
                let world = World::new();
                let other = world.clone();
                let thread = thread::spawn(move || other.act(first, 1));
                let mine = world.act(second, 2);
                let taken = mine + thread.join().unwrap();
                check(&world, [first, second], taken);
            });
        }
    }
}
