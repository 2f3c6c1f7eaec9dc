//! Every interleaving of the words that admission changes, two operations at a time.
//!
//! Run with `make test-loom`. What is modelled are windows, budgets, rolling buckets and the list of
//! free slots: all that threads share without a reservation's lock.

use std::sync::Arc;

use loom::thread;

use crate::budget::{Budget, BudgetInfo, BudgetTerms};
use crate::charge::Charges;
use crate::free::{FreeList, Link};
use crate::period::{Calendar, Period, PeriodKind};
use crate::rolling::{Rolling, Span};
use crate::unit::Unit;
use crate::verdict::{Advice, Threshold, Verdict};
use crate::window::Window;

fn info(id: u32, period: Period) -> BudgetInfo {
    BudgetInfo { id, account: id, path: "acme".into(), unit: Unit::Tokens, period }
}

fn window(id: u32, limit: i64, permille: &[u16]) -> Arc<Window> {
    window_of(id, Period::total(), limit, permille)
}

fn window_of(id: u32, period: Period, limit: i64, permille: &[u16]) -> Arc<Window> {
    let info = Arc::new(info(id, period));
    let (bounds, changes) = ((0, i64::MAX), Arc::default());
    Arc::new(Window::new(id.into(), info, bounds, limit, thresholds(permille), changes))
}

fn thresholds(permille: &[u16]) -> Arc<[Threshold]> {
    let threshold = |permille: &u16| Threshold {
        permille: *permille,
        verdict: Verdict::Warn,
        advice: Advice::default(),
    };
    permille.iter().map(threshold).collect()
}

fn charge_all(windows: &[Arc<Window>], amount: i64) -> bool {
    charge_in(&Charges::new(), 0, windows, amount)
}

fn charge_in(charges: &Charges, lane: usize, windows: &[Arc<Window>], amount: i64) -> bool {
    charges.charge_in(lane, &windows.iter().map(|window| (window, amount))).is_ok()
}

/// Charges `theirs` and `mine` at once, from a thread's own lane (0) or the shared one (1). Returns
/// whether they were admitted.
fn charge_both(
    lanes: [usize; 2],
    theirs: (&[Arc<Window>], i64),
    mine: (&[Arc<Window>], i64),
) -> (bool, bool) {
    let charges = Arc::new(Charges::new());
    let (others, windows, amount) = (Arc::clone(&charges), theirs.0.to_vec(), theirs.1);
    let thread = thread::spawn(move || charge_in(&others, lanes[0], &windows, amount));
    let mine = charge_in(&charges, lanes[1], mine.0, mine.1);
    (thread.join().unwrap(), mine)
}

#[test]
fn loom_two_charges_never_pass_the_limit() {
    loom::model(|| {
        let windows = [window(1, 3, &[]), window(2, 1, &[])];
        let (theirs, mine) = charge_both([0, 1], (&windows, 1), (&windows, 1));
        assert!(mine ^ theirs, "exactly one fits");
        assert_eq!(windows.map(|w| w.remaining()), [2, 0]);
    });
}

#[test]
fn loom_a_doomed_charge_refuses_nobody() {
    for lanes in [[0, 1], [1, 0], [1, 1]] {
        loom::model(move || {
            let (shared, exhausted) = (window(1, 2, &[]), window(2, 0, &[]));
            let doomed = [Arc::clone(&shared), exhausted];
            let (theirs, mine) =
                charge_both(lanes, (&doomed, 2), (std::slice::from_ref(&shared), 2));
            assert!(mine, "it fits once the doomed one is gone");
            assert!(!theirs);
            assert_eq!(shared.remaining(), 0);
        });
    }
}

#[test]
fn loom_a_doomed_charge_beside_one_that_is_really_refused() {
    loom::model(|| {
        let (shared, exhausted) = (window(1, 2, &[]), window(2, 0, &[]));
        let doomed = [Arc::clone(&shared), exhausted];
        let (theirs, mine) = charge_both([0, 1], (&doomed, 1), (std::slice::from_ref(&shared), 3));
        assert!(!mine, "3 never fit into 2");
        assert!(!theirs);
        assert_eq!(shared.remaining(), 2);
    });
}

/// Each is short where the other has taken, in the other order: one of them gives way at least, and
/// neither waits for the other for ever.
#[test]
fn loom_two_charges_in_opposite_order_do_not_wait_in_a_circle() {
    loom::model(|| {
        let windows = [window(1, 1, &[]), window(2, 1, &[])];
        let reversed = [Arc::clone(&windows[1]), Arc::clone(&windows[0])];
        let (theirs, mine) = charge_both([0, 1], (&reversed, 1), (&windows, 1));
        assert!(mine ^ theirs, "one fits, and the one that is refused saw it admitted");
        assert_eq!(windows.map(|w| w.remaining()), [0, 0]);
    });
}

/// One thread gives back and then takes for good, so the other may see either; it is refused only by
/// what was taken for good.
#[test]
fn loom_a_refusal_beside_a_doomed_charge_and_an_admitted_one_is_true() {
    loom::model(|| {
        let (shared, exhausted) = (window(1, 2, &[]), window(2, 0, &[]));
        let charges = Arc::new(Charges::new());
        let (doomed, others) = ([Arc::clone(&shared), exhausted], Arc::clone(&charges));
        let thread = thread::spawn(move || {
            assert!(!charge_in(&others, 0, &doomed, 1));
            charge_in(&others, 0, &doomed[..1], 2)
        });
        let mine = charge_in(&charges, 1, std::slice::from_ref(&shared), 1);
        assert!(mine ^ thread.join().unwrap(), "exactly one of 1 and 2 fits into 2");
    });
}

#[test]
fn loom_a_limit_change_beside_a_charge_loses_nothing() {
    loom::model(|| {
        let shared = window(1, 2, &[]);
        let other = Arc::clone(&shared);
        let thread = thread::spawn(move || charge_all(&[other], 2));
        shared.set_limit(1, thresholds(&[]), || {}).unwrap();
        let held = if thread.join().unwrap() { 2 } else { 0 };
        assert_eq!(shared.remaining(), 1 - held);
    });
}

#[test]
fn loom_two_debits_cross_a_threshold_once() {
    loom::model(|| {
        let shared = window(1, 10, &[500]);
        assert!(charge_all(&[Arc::clone(&shared)], 8));
        let debit = |window: &Window| {
            if window.spend_held(4, 0, Span::at(0)) { window.crossings().len() } else { 0 }
        };
        let other = Arc::clone(&shared);
        let thread = thread::spawn(move || debit(&other));
        let crossed = debit(&shared) + thread.join().unwrap();
        assert_eq!(crossed, 1);
        assert_eq!(shared.verdict(), Verdict::Warn);
    });
}

#[test]
fn loom_a_debit_and_a_limit_change_cross_a_threshold_once() {
    loom::model(|| {
        let shared = window(1, 10, &[500]);
        assert!(charge_all(&[Arc::clone(&shared)], 4));
        let other = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            if other.spend_held(4, 0, Span::at(0)) { other.crossings().len() } else { 0 }
        });
        // 4 is below half of 10 and is half of 8.
        let crossed = shared.set_limit(8, thresholds(&[500]), || {}).unwrap().len();
        assert_eq!(crossed + thread.join().unwrap(), 1);
        assert_eq!(shared.verdict(), Verdict::Warn);
    });
}

#[test]
fn loom_a_debit_that_crosses_reports_it_though_the_window_rolls_meanwhile() {
    loom::model(|| {
        let shared = window_of(1, Period::rolling(64_000), 10, &[500]);
        assert!(charge_all(&[Arc::clone(&shared)], 9));
        assert!(!shared.spend_held(4, 0, Span::at(1_000)));
        let other = Arc::clone(&shared);
        let thread = thread::spawn(move || other.roll(66_000));
        let crossed =
            if shared.spend_held(5, 0, Span::at(2_000)) { shared.crossings() } else { Vec::new() };
        thread.join().unwrap();
        assert_eq!(crossed, [500]);
    });
}

#[test]
fn loom_overspending_beside_a_charge_is_counted_exactly() {
    loom::model(|| {
        let shared = window(1, 2, &[]);
        let other = Arc::clone(&shared);
        let thread = thread::spawn(move || charge_all(&[other], 2));
        let overdraft = shared.take_anyway(3).unwrap();
        let held = if thread.join().unwrap() { 2 } else { 0 };
        assert_eq!(shared.remaining(), 2 - 3 - held);
        assert!(overdraft == 1 || overdraft == 3);
    });
}

#[test]
fn loom_a_rollover_opens_one_window() {
    loom::model(|| {
        let period = Period::calendar(PeriodKind::Hour, "UTC");
        let calendar = Calendar::new(&period).unwrap();
        let terms = BudgetTerms { limit: 5, thresholds: thresholds(&[]), manual: false };
        let budget = Arc::new(Budget::new(info(1, period), calendar, terms, &Arc::default()));
        budget.window(0, |_, _| 1);
        let other = Arc::clone(&budget);
        let thread = thread::spawn(move || other.window(3_600_000, |_, _| 2));
        let mine = budget.window(3_600_000, |_, _| 3);
        assert!(Arc::ptr_eq(&mine, &thread.join().unwrap()));
    });
}

#[test]
fn loom_a_rollover_beside_a_limit_change_takes_the_limit_along() {
    loom::model(|| {
        let period = Period::calendar(PeriodKind::Hour, "UTC");
        let calendar = Calendar::new(&period).unwrap();
        let terms = BudgetTerms { limit: 5, thresholds: thresholds(&[]), manual: false };
        let budget =
            Arc::new(Budget::new(info(1, period), calendar, terms.clone(), &Arc::default()));
        budget.window(0, |_, _| 1);
        let other = Arc::clone(&budget);
        let thread = thread::spawn(move || other.window(3_600_000, |_, _| 2));
        budget.set_terms(BudgetTerms { limit: 7, ..terms }, |_, _| {}).unwrap();
        assert_eq!(thread.join().unwrap().remaining(), 7);
    });
}

#[test]
fn loom_buckets_leave_once() {
    loom::model(|| {
        let rolling = Arc::new(Rolling::of(&Period::rolling(64_000)).unwrap());
        rolling.roll(1_000);
        rolling.add(1_000, 5);
        let other = Arc::clone(&rolling);
        let thread = thread::spawn(move || other.roll(66_000));
        let left = rolling.roll(67_000);
        assert_eq!(left + thread.join().unwrap(), 5);
    });
}

#[test]
fn loom_a_spending_beside_a_roll_is_neither_lost_nor_left_early() {
    loom::model(|| {
        let rolling = Arc::new(Rolling::of(&Period::rolling(64_000)).unwrap());
        rolling.roll(1_000);
        rolling.add(1_000, 5);
        let other = Arc::clone(&rolling);
        // Spent at the last moment at which the first bucket still counts.
        let thread = thread::spawn(move || {
            other.roll(65_000);
            other.add(65_000, 3);
        });
        let left = rolling.roll(66_000);
        thread.join().unwrap();
        assert_eq!((left, rolling.roll(128_000), rolling.roll(131_000)), (5, 0, 3));
    });
}

#[test]
fn loom_a_correction_beside_a_roll_gives_back_once() {
    loom::model(|| {
        let rolling = Arc::new(Rolling::of(&Period::rolling(64_000)).unwrap());
        rolling.roll(1_000);
        rolling.add(1_000, 5);
        rolling.add(2_000, 10);
        let other = Arc::clone(&rolling);
        let thread = thread::spawn(move || other.take_back(4, 1_000));
        let left = rolling.roll(66_000);
        let taken = thread.join().unwrap();
        assert!((taken, left) == (4, 1) || (taken, left) == (0, 5));
        assert_eq!(rolling.roll(67_000), 10, "another's");
    });
}

/// The doomed charge gives back at two windows while the other takes them: it fits, so it is admitted.
#[test]
fn loom_a_doomed_charge_over_two_windows_refuses_nobody() {
    loom::model(|| {
        let shared = [window(1, 2, &[]), window(2, 2, &[])];
        let doomed = [Arc::clone(&shared[0]), Arc::clone(&shared[1]), window(3, 0, &[])];
        let (theirs, mine) = charge_both([0, 1], (&doomed, 1), (&shared, 2));
        assert!(mine && !theirs);
        assert_eq!(shared.map(|w| w.remaining()), [0, 0]);
    });
}

#[test]
fn loom_a_free_slot_is_taken_once() {
    loom::model(|| {
        let links: Arc<[Link]> = [Link::new(), Link::new()].into();
        let free = Arc::new(FreeList::new());
        free.push(0, |index| &links[index as usize]);
        free.push(1, |index| &links[index as usize]);
        let (other, its_links) = (Arc::clone(&free), Arc::clone(&links));
        // Takes both and frees the top again: to the other, the same top with another one below it.
        let thread = thread::spawn(move || {
            let link = |index: u32| &its_links[index as usize];
            let taken = [other.pop(link), other.pop(link)];
            taken[0].inspect(|top| other.push(*top, link));
            taken[1]
        });
        let link = |index: u32| &links[index as usize];
        let mine = free.pop(link);
        let mut all = [thread.join().unwrap(), mine, free.pop(link)];
        all.sort_unstable();
        assert_eq!(all, [None, Some(0), Some(1)]);
        assert_eq!(free.len(link), 0);
    });
}
