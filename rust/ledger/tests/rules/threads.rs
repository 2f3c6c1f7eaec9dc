//! R2, R3 and R17 under real threads.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
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
/// Method: one thread holds all that `a` has, again and again; the others ask for mixed amounts at a
/// sibling whose own budget is too small. Budgets are charged in the order of their creation, so each
/// of them is half-way, with `a` no longer whole, before it is refused.
#[test]
fn r03_doomed_calls_do_not_cause_false_refusals() {
    let world = World::tokens(&[("a", 100), ("a/x", 100), ("a/y", 0), ("a/z", 0)]);
    let done = AtomicBool::new(false);
    let refused = AtomicUsize::new(0);
    at_once(|number| {
        if number == 0 {
            for _ in 0..20_000 {
                match world.hold("a/x", tokens(100)) {
                    Ok(granted) => drop(world.release(granted.view.id)),
                    Err(_) => drop(refused.fetch_add(1, Ordering::Relaxed)),
                }
                if world.ledger.reservation_count() > 5_000 {
                    world.wait(crate::common::RETENTION);
                    world.ledger.tick(world.now());
                }
            }
            done.store(true, Ordering::Relaxed);
        }
        let path = ["a/y", "a/z"][number % 2];
        while !done.load(Ordering::Relaxed) {
            assert!(world.hold(path, tokens(number as i64)).is_err());
        }
    });
    assert_eq!(refused.into_inner(), 0);
    assert_eq!(world.standing("a", Unit::Tokens), (100, 0, 0, 100));
}

/// As above, while the calls that fit come from half of the threads and fill `a` exactly.
#[test]
fn r03_all_that_fit_together_are_admitted_beside_doomed_calls() {
    for round in 0..60 {
        let fitting: i64 = (0..THREADS as i64 / 2).map(|n| 50 * (n + 1)).sum();
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

/// Goal: however expiry, Commit, Release and a late piece of a nested hold meet, each hold is settled
/// once. Method: all threads end the same reservations, one of them by ticks.
#[test]
fn r09_expiry_commit_and_release_settle_once() {
    for _ in 0..20 {
        let world = World::tokens(&[("a", 1 << 40), ("a/b", 1 << 40)]);
        let ids: Vec<_> = (0..100)
            .flat_map(|_| {
                let parent = world.held("a", 10);
                [parent, world.nest("a/b", parent, tokens(4)).unwrap().id]
            })
            .collect();
        world.wait(crate::common::TTL);
        at_once(|number| {
            for id in &ids {
                match number % 3 {
                    0 => drop(world.ledger.tick(world.now())),
                    1 => drop(world.commit(*id, 3)),
                    _ => drop(world.release(*id)),
                }
            }
        });
        assert_eq!(world.tokens_of("a"), (0, 600));
        assert_eq!(world.tokens_of("a/b"), (0, 300));
    }
}

#[test]
fn r16_nested_holds_made_and_returned_by_many_threads_add_up() {
    let world = World::tokens(&[("a", 1_000), ("a/b", 1_000)]);
    let parent = world.held("a", 100);
    at_once(|number| {
        for _ in 0..300 {
            if let Ok(child) = world.nest("a/b", parent, tokens(20)) {
                world.debit(child.id, 1);
                drop(world.release(child.id));
            } else if number == 0 {
                world.extend(parent, 150);
            }
        }
    });
    let (held, spent) = world.tokens_of("a");
    let (below_held, below_spent) = world.tokens_of("a/b");
    assert_eq!((below_held, below_spent), (0, spent));
    assert_eq!(world.view(parent).granted, tokens(held));
    world.release(parent);
    assert_eq!(world.tokens_of("a"), (0, spent));
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
        assert_eq!(crossings, [500, 800, 900, 1_000]);
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
        assert_eq!(crossings, [500, 800, 900, 1_000]);
        assert_eq!(world.standing("a", Unit::Tokens), (7_000, 1_000, 7_000, -1_000));
    }
}

/// Goal: who looks at an account does not open it anew. Method: one thread lists accounts all the time,
/// another uses one and retires it.
#[test]
fn r15_an_account_that_retires_while_it_is_listed_stays_away() {
    let world = World::new();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    world.ledger.accounts("", None, 100, world.now());
                }
            });
        }
        let come_back = (0..300).filter(|_| {
            world.release(world.held("a/x", 1));
            world.ledger.retire("a/x", world.now()).unwrap();
            thread::yield_now();
            world.ledger.account_id("a/x").is_some()
        });
        let come_back = come_back.count();
        is_over.store(true, Ordering::Relaxed);
        assert_eq!(come_back, 0);
    });
}
