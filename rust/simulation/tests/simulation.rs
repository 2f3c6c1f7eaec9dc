//! Seeds hold what is promised, and a seed is always the same run.
//!
//! The seeds are always the same, with `BURSAR_LONG` others each time: the first is printed.
//! `BURSAR_SEEDS` says how many; `BURSAR_SEED` plays one only.
#![allow(clippy::print_stdout, reason = "totals, and the seed that fails")]

use std::hash::{BuildHasher, RandomState};
use std::panic::catch_unwind;

use bursar_simulation::plan::Counts;
use bursar_simulation::run::{STEPS, run};
use bursar_simulation::totals::Totals;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

fn play(seeds: impl Iterator<Item = u64>, totals: &mut Totals) {
    for seed in seeds {
        let played = catch_unwind(|| run(seed, STEPS));
        let (one, _) = played.unwrap_or_else(|_| panic!("BURSAR_SEED={seed} plays it again"));
        totals.add(&one);
    }
}

#[test]
fn what_was_answered_is_there_once_whatever_the_disk_does() {
    let mut totals = Totals::default();
    if let Some(seed) = number("BURSAR_SEED") {
        return play(std::iter::once(seed), &mut totals);
    }
    let long = std::env::var_os("BURSAR_LONG").is_some();
    let count = number("BURSAR_SEEDS").unwrap_or(if long { 100_000 } else { 200 });
    let first = if long { RandomState::new().hash_one("seed") >> 16 } else { 0 };
    println!("{count} seeds from {first}");
    play(first..first + count, &mut totals);
    println!("{totals}");
    assert!(totals.power_cuts > 0 && totals.kills > 0, "something went wrong");
    if count >= 1_000 {
        let Counts { deaths, faults, .. } = totals.disk;
        let each = deaths.iter().chain(&faults).all(|times| *times > 0);
        assert!(each && totals.read_only > 0, "everything that can go wrong did");
    }
}

#[test]
fn a_seed_is_always_the_same_run() {
    for seed in 0..20 {
        assert_eq!(run(seed, STEPS), run(seed, STEPS), "seed {seed}");
    }
}
