//! R2, R3 and R17 under real threads.

use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use bursar_ledger::{Admission, Unit};

use crate::common::{World, ask, exactly, stepped, tokens};

const THREADS: usize = 8;

/// Runs `f(thread)` in all threads at once.
fn at_once(f: impl Fn(usize) + Sync) {
    let barrier = Barrier::new(THREADS);
    thread::scope(|scope| {
        for number in 0..THREADS {
            let (barrier, f) = (&barrier, &f);
            scope.spawn(move || {
                barrier.wait();
                f(number);
            });
        }
    });
}

#[test]
fn r02_two_thousand_reserves_of_one_on_a_limit_of_100_admit_exactly_100() {
    for _ in 0..20 {
        let world = World::tokens(&[("a", 100), ("a/b", 120), ("a/b/c", 150)]);
        let admitted = AtomicUsize::new(0);
        at_once(|_| {
            for _ in 0..2_000 / THREADS {
                if world.hold("a/b/c", tokens(1)).is_ok() {
                    admitted.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        assert_eq!(admitted.into_inner(), 100);
        for path in ["a", "a/b", "a/b/c"] {
            assert_eq!(world.tokens_of(path), (100, 0), "{path}");
        }
    }
}

/// Goal: a call that fits is never refused for the sake of one that is itself refused in the end.
/// Method: half of the threads ask for amounts that all fit `a` together; the other half ask, at a
/// sibling whose own budget is too small, for so much that `a` is full while they are half-way.
#[test]
fn r03_doomed_calls_do_not_cause_false_refusals() {
    for round in 0..60 {
        let fitting: i64 = (0..THREADS as i64 / 2).map(|n| 50 * (n + 1)).sum();
        // Budgets are charged in the order of their creation: the doomed calls pass `a` first.
        let world = World::tokens(&[("a", fitting), ("a/x", fitting), ("a/y", 1)]);
        let refused = AtomicUsize::new(0);
        at_once(|number| {
            let amount = number as i64 / 2 + 1;
            if number % 2 == 0 {
                for _ in 0..50 {
                    if world.hold("a/x", tokens(amount)).is_err() {
                        refused.fetch_add(1, Ordering::Relaxed);
                    }
                }
            } else {
                for _ in 0..400 {
                    assert!(world.hold("a/y", tokens(fitting / 2 + amount)).is_err());
                }
            }
        });
        assert_eq!(refused.into_inner(), 0, "round {round}");
        assert_eq!(world.standing("a", Unit::Tokens), (fitting, fitting, 0, 0));
        assert_eq!(world.tokens_of("a/y"), (0, 0));
    }
}

#[test]
fn r06_one_key_from_many_threads_makes_one_reservation() {
    let world = World::tokens(&[("a", 1_000)]);
    at_once(|_| {
        for key in 1..=50 {
            let mut ask = ask("a", exactly(tokens(1)));
            (ask.key, ask.payload) = (key, key);
            assert!(matches!(world.reserve(ask), Ok(Admission::Granted(_))));
        }
    });
    assert_eq!(world.tokens_of("a"), (50, 0));
}

#[test]
fn r09_every_reservation_made_by_many_threads_expires() {
    for _ in 0..20 {
        let world = World::tokens(&[("a", 1 << 40)]);
        at_once(|_| (0..400).for_each(|_| drop(world.hold("a", tokens(1)).unwrap())));
        world.wait(crate::common::TTL);
        assert_eq!(world.ledger.tick(world.now()).expired, 400 * THREADS);
        assert_eq!(world.tokens_of("a"), (0, 0));
    }
}

#[test]
fn r17_concurrent_debits_report_each_threshold_once() {
    for _ in 0..20 {
        let world = World::new();
        world.set("a", stepped(THREADS as i64 * 1_000)).unwrap();
        let ids: Vec<_> = (0..THREADS).map(|_| world.held("a/x", 1_000)).collect();
        at_once(|number| (1..=1_000).for_each(|used| drop(world.debit(ids[number], used))));
        let mut crossings = world.tape.crossings();
        crossings.sort_unstable();
        assert_eq!(crossings, [500, 800, 900]);
        assert_eq!(world.tokens_of("a"), (0, THREADS as i64 * 1_000));
    }
}

#[test]
fn r17_debits_beside_limit_changes_report_each_threshold_at_most_once() {
    for _ in 0..20 {
        let world = World::new();
        world.set("a", stepped(8_000)).unwrap();
        let ids: Vec<_> = (0..THREADS).map(|_| world.held("a/x", 1_000)).collect();
        at_once(|number| {
            if number == 0 {
                for step in 0..200 {
                    world.set("a", stepped(8_000 + step % 7 * 500)).unwrap();
                }
                world.set("a", stepped(7_000)).unwrap();
            } else {
                (1..=1_000).for_each(|used| drop(world.debit(ids[number], used)));
            }
        });
        let mut crossings = world.tape.crossings();
        crossings.sort_unstable();
        assert_eq!(crossings, [500, 800, 900]);
        assert_eq!(world.standing("a", Unit::Tokens), (7_000, 1_000, 7_000, -1_000));
    }
}
