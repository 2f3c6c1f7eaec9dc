//! The simulation can fail: each planted bug is found, and how many seeds that took is printed.
//!
//! Built with `--cfg bursar_canary` only (`make test-canary`).
#![cfg(bursar_canary)]
#![allow(clippy::print_stdout, reason = "how long each one sang")]

use std::process::Command;

/// The bugs, and what each one is.
const CANARIES: [(&str, &str); 9] = [
    ("early-answer", "a call is answered before what it did is synced"),
    ("repeat-twice", "a repeat is done a second time"),
    ("no-undo", "a hold stays when the store has failed"),
    ("forgotten-fact", "one record in sixteen is passed over by the import"),
    ("unsynced-name", "a new segment's name is never synced"),
    ("lost-floor", "what was debited is not told after a restart"),
    ("crossing-twice", "a restart forgets which thresholds were reported"),
    ("reused-id", "a name that a power cut took is given out again"),
    ("older-key", "a key that was used again means the older one after a restart"),
];
const SEEDS_MAX: &str = "30000";

fn play(canary: &str, seeds: &str) -> (bool, String) {
    let simulation = env!("CARGO_BIN_EXE_bursar-simulation");
    let played = Command::new(simulation)
        .args(["--seed", "0", "--seeds", seeds])
        .env("BURSAR_CANARY", canary)
        .env("RUST_BACKTRACE", "0")
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&played.stdout).into_owned();
    let told = String::from_utf8_lossy(&played.stderr).into_owned();
    let why = told.lines().skip_while(|line| !line.contains("panicked")).nth(1);
    let what = said.lines().next().unwrap_or("it ended without a word").to_owned();
    (played.status.success(), format!("{what}: {}", why.unwrap_or("no panic")))
}

#[test]
fn every_planted_bug_is_found() {
    let (fine, said) = play("none", "300");
    assert!(fine, "without a bug: {said}");
    let mut missed = Vec::new();
    for (canary, what) in CANARIES {
        let (fine, said) = play(canary, SEEDS_MAX);
        println!("{canary} ({what}): {said}");
        if fine {
            missed.push(canary);
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
