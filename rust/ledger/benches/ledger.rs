//! What one call on the ledger costs, without a store: one JSON line per case.
//!
//! `cargo bench -p bursar-ledger` (add a case's name to run only that). Each figure is nanoseconds per
//! operation, over rounds of equal length; `floors` is its median in multiples of one uncontended
//! compare-and-swap on this machine at this moment.
#![allow(clippy::print_stdout, reason = "the figures are the output")]
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
#![allow(clippy::cast_precision_loss, reason = "figures for people")]

use std::hint::black_box;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Instant;

use bursar_ledger::path::Pattern;
use bursar_ledger::runaway::{Action, Policy};
use bursar_ledger::{
    AccountPattern, Admission, Amounts, Ask, BudgetSpec, BudgetTerms, Ending, Ledger, NoJournal,
    Now, Period, PeriodKind, ReservationId, Settings, Unit, Wish,
};

const ROUNDS: usize = 9;
const OPS: i64 = 200_000;
/// Of what is measured in pairs: how many pairs, and how many operations on each side of one.
const PAIRS: usize = 1_000;
const BLOCK: i64 = 500;
const PATH: &str = "acme/research/team/agent";
const NOW: Now = Now { wall_ms: 1_767_225_600_000, mono_ms: 1 };
/// Far enough not to be used up by any case.
const LIMIT: i64 = 1 << 60;

fn ledger(period: &Period) -> Ledger<NoJournal> {
    guarded(period, policy())
}

fn guarded(period: &Period, runaway: Policy) -> Ledger<NoJournal> {
    let patterns = ["acme", "acme/**"].map(|text| AccountPattern {
        pattern: Pattern::parse(text).expect("a pattern"),
        budgets: vec![BudgetSpec {
            unit: Unit::Tokens,
            period: period.clone(),
            terms: BudgetTerms { limit: LIMIT, thresholds: Arc::new([]), manual: false },
        }],
        runaway: None,
    });
    let settings = Settings {
        patterns: patterns.into(),
        max_accounts: 1_000,
        max_children: 1_000,
        max_reservations: 1 << 20,
        key_retention_ms: 0,
        account_idle_ms: i64::MAX,
        runaway: Arc::new(runaway),
    };
    Ledger::new(settings, NoJournal)
}

/// As the daemon has it by default.
fn policy() -> Policy {
    let most = [10, 16, 50, 100, 1_000, 100];
    Policy { action: Action::Warn, interval_ms: 300_000, most, ..Policy::off() }
}

fn ask(account: &str, amount: i64, key: u128) -> Ask<'_> {
    let most = Amounts::of(Unit::Tokens, amount);
    Ask {
        account,
        wish: Wish::Amounts { most, least: most },
        ttl_ms: 60_000,
        key,
        payload: key,
        parent: None,
        labels: Vec::new(),
        owner: None,
    }
}

fn hold(ledger: &Ledger<NoJournal>, path: &str, amount: i64, key: u128) -> ReservationId {
    match &ledger.reserve(ask(path, amount, key), NOW) {
        Ok(Admission::Granted(granted)) => granted.view.id,
        other => panic!("{other:?}"),
    }
}

fn commit(ledger: &Ledger<NoJournal>, id: ReservationId) {
    let actual = Amounts::of(Unit::Tokens, 7);
    let ending = Ending::Commit { actual, named: 1, payload: 1, success: None };
    let ended = ledger.end(id, ending, NOW);
    assert!(black_box(&ended).is_ok());
}

/// Forgets what has ended, as the host's tick does, outside of what is timed.
fn tick(ledger: &Ledger<NoJournal>) {
    ledger.tick(NOW);
}

/// Times `round` and prints the figures; returns the median.
fn case(name: &str, floor: f64, ops: i64, mut round: impl FnMut() -> f64) -> f64 {
    let only = std::env::args().nth(1).filter(|arg| !arg.starts_with('-'));
    if only.is_some_and(|only| only != name && name != "cas_floor") {
        return 0.0;
    }
    round();
    let mut figures: Vec<f64> = (0..ROUNDS).map(|_| round() / ops as f64).collect();
    figures.sort_by(f64::total_cmp);
    let (min, median, max) = (figures[0], figures[ROUNDS / 2], figures[ROUNDS - 1]);
    let floors = if floor > 0.0 { median / floor } else { 1.0 };
    println!(
        "{{\"case\":\"{name}\",\"unit\":\"ns/op\",\"min\":{min:.1},\"median\":{median:.1},\
         \"max\":{max:.1},\"floors\":{floors:.1},\"rounds\":{ROUNDS}}}"
    );
    median
}

/// Nanoseconds that `f` takes.
fn timed(f: impl FnOnce()) -> f64 {
    let start = Instant::now();
    f();
    start.elapsed().as_nanos() as f64
}

fn cas_floor() -> f64 {
    let word = AtomicI64::new(0);
    case("cas_floor", 0.0, OPS, || {
        timed(|| {
            for n in 0..OPS {
                let swapped = word.compare_exchange(n, n + 1, Ordering::SeqCst, Ordering::Relaxed);
                black_box(swapped).expect("nobody else is here");
            }
            word.store(0, Ordering::SeqCst);
        })
    })
}

/// Debits of 1 on one reservation of an account with `levels` levels.
fn debits(name: &str, floor: f64, path: &str) {
    let ledger = ledger(&Period::total());
    let id = hold(&ledger, path, LIMIT / 2, 0);
    let mut used = 0;
    case(name, floor, OPS, || {
        timed(|| {
            for _ in 0..OPS {
                used += 1;
                let debited = ledger.debit(id, &Amounts::of(Unit::Tokens, used), NOW);
                assert!(black_box(&debited).is_ok());
            }
        })
    });
}

fn reserve_and_commit(name: &str, floor: f64, keyed: bool, period: &Period) {
    let ledger = ledger(period);
    let mut key = 0;
    case(name, floor, OPS, || {
        let mut spent = 0.0;
        // Often enough that the slots in use stay as few as they are on a host that ticks.
        for _ in 0..OPS / 1_000 {
            spent += timed(|| {
                for _ in 0..1_000 {
                    key += u128::from(keyed) << 64 | u128::from(keyed);
                    commit(&ledger, hold(&ledger, PATH, 10, key));
                }
            });
            tick(&ledger);
        }
        spent
    });
}

/// What looking for runaways adds to a Reserve with its Commit: two ledgers in turn, one of which
/// looks for none; the median over pairs of blocks.
fn runaways(name: &str, period: &Period) {
    let only = std::env::args().nth(1).filter(|arg| !arg.starts_with('-'));
    if only.is_some_and(|only| only != name) {
        return;
    }
    let ledgers = [Policy::off(), policy()].map(|policy| guarded(period, policy));
    let block = |ledger: &Ledger<NoJournal>| {
        let took = timed(|| (0..BLOCK).for_each(|_| commit(ledger, hold(ledger, PATH, 10, 0))));
        tick(ledger);
        took
    };
    let pair = |n: usize| {
        let (first, second) = (block(&ledgers[n % 2]), block(&ledgers[1 - n % 2]));
        if n.is_multiple_of(2) { second / first } else { first / second }
    };
    let mut ratios: Vec<f64> = (0..PAIRS).map(pair).collect();
    ratios.sort_by(f64::total_cmp);
    let [low, median, high] = [PAIRS / 4, PAIRS / 2, PAIRS * 3 / 4].map(|rank| ratios[rank]);
    println!(
        "{{\"case\":\"{name}\",\"unit\":\"ratio\",\"lower_quartile\":{low:.4},\
         \"median\":{median:.4},\"upper_quartile\":{high:.4},\"pairs\":{PAIRS}}}"
    );
}

/// The time per pair of calls on each of two threads that share three levels of the tree.
fn two_threads(name: &str, floor: f64, keyed: bool) {
    let ledger = ledger(&Period::total());
    let mut base = 0;
    case(name, floor, OPS, || {
        base += 1_u128 << 32;
        let barrier = Barrier::new(2);
        let one = |path: &'static str, first: u128| {
            let mut key = first;
            let mut spent = 0.0;
            for _ in 0..OPS / 1_000 {
                barrier.wait();
                spent += timed(|| {
                    for _ in 0..1_000 {
                        key += u128::from(keyed) << 64 | u128::from(keyed);
                        let key = if keyed { key } else { 0 };
                        commit(&ledger, hold(&ledger, path, 10, key));
                    }
                });
                if first == base {
                    tick(&ledger);
                }
            }
            spent
        };
        thread::scope(|scope| {
            let other = scope.spawn(|| one("acme/research/team/other", base + (1 << 31)));
            let mine = one(PATH, base);
            let theirs = other.join().expect("it does not panic");
            f64::midpoint(mine, theirs)
        })
    });
}

fn main() {
    let floor = cas_floor();
    debits("debit_one_level", floor, "acme");
    debits("debit_four_levels", floor, PATH);
    let (total, day) = (Period::total(), Period::calendar(PeriodKind::Day, "UTC"));
    reserve_and_commit("reserve_commit_four_levels", floor, false, &total);
    reserve_and_commit("reserve_commit_four_levels_keyed", floor, true, &total);
    reserve_and_commit("reserve_commit_four_levels_by_day", floor, false, &day);
    runaways("runaways_total", &total);
    runaways("runaways_by_day", &day);
    two_threads("reserve_commit_two_threads", floor, false);
    two_threads("reserve_commit_two_threads_keyed", floor, true);
}
