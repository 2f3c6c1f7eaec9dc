//! Every interleaving of the words that admission changes, two operations at a time.
//!
//! Run with `make test-loom`. What is modelled are windows, budgets and rolling buckets: all that
//! threads share without a reservation's lock.

use std::sync::Arc;

use loom::thread;

use crate::budget::{Budget, BudgetInfo, BudgetTerms};
use crate::period::{Calendar, Period, PeriodKind};
use crate::rolling::Rolling;
use crate::unit::Unit;
use crate::verdict::{Advice, Threshold, Verdict};
use crate::window::{Window, charge};

fn info(id: u32, period: Period) -> BudgetInfo {
    BudgetInfo { id, account: id, path: "acme".into(), unit: Unit::Tokens, period }
}

fn window(id: u32, limit: i64, permille: &[u16]) -> Arc<Window> {
    let info = Arc::new(info(id, Period::total()));
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
    charge(windows.iter().map(|window| (window, amount))).is_ok()
}

#[test]
fn loom_two_charges_never_pass_the_limit() {
    loom::model(|| {
        let windows = [window(1, 3, &[]), window(2, 1, &[])];
        let other = windows.clone();
        let thread = thread::spawn(move || charge_all(&other, 1));
        let mine = charge_all(&windows, 1);
        let theirs = thread.join().unwrap();
        assert!(mine ^ theirs, "exactly one fits");
        assert_eq!(windows.map(|w| w.remaining()), [2, 0]);
    });
}

#[test]
fn loom_a_doomed_charge_refuses_nobody() {
    loom::model(|| {
        let (shared, exhausted) = (window(1, 2, &[]), window(2, 0, &[]));
        let doomed = [Arc::clone(&shared), exhausted];
        let thread = thread::spawn(move || charge_all(&doomed, 2));
        assert!(charge_all(&[Arc::clone(&shared)], 2), "it fits once the doomed one is gone");
        assert!(!thread.join().unwrap());
        assert_eq!(shared.remaining(), 0);
    });
}

#[test]
fn loom_a_doomed_charge_beside_one_that_is_really_refused() {
    loom::model(|| {
        let (shared, exhausted) = (window(1, 2, &[]), window(2, 0, &[]));
        let doomed = [Arc::clone(&shared), exhausted];
        let thread = thread::spawn(move || charge_all(&doomed, 1));
        assert!(!charge_all(&[Arc::clone(&shared)], 3), "3 never fit into 2");
        assert!(!thread.join().unwrap());
        assert_eq!(shared.remaining(), 2);
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
            if window.spend_held(4, 0) { window.crossings().len() } else { 0 }
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
        let thread =
            thread::spawn(move || if other.spend_held(4, 0) { other.crossings().len() } else { 0 });
        // 4 is below half of 10 and is half of 8.
        let crossed = shared.set_limit(8, thresholds(&[500]), || {}).unwrap().len();
        assert_eq!(crossed + thread.join().unwrap(), 1);
        assert_eq!(shared.verdict(), Verdict::Warn);
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
        let other = Arc::clone(&rolling);
        let thread = thread::spawn(move || other.take_back(4));
        let left = rolling.roll(66_000);
        let taken = thread.join().unwrap();
        assert!((taken, left) == (4, 1) || (taken, left) == (0, 5));
    });
}

/// The doomed charge gives back at two windows while the other takes them: it fits, so it is admitted.
#[test]
fn loom_a_doomed_charge_over_two_windows_refuses_nobody() {
    loom::model(|| {
        let shared = [window(1, 2, &[]), window(2, 2, &[])];
        let doomed = [Arc::clone(&shared[0]), Arc::clone(&shared[1]), window(3, 0, &[])];
        let thread = thread::spawn(move || charge_all(&doomed, 1));
        assert!(charge_all(&shared, 2));
        assert!(!thread.join().unwrap());
        assert_eq!(shared.map(|w| w.remaining()), [0, 0]);
    });
}
