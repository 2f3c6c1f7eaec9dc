//! Every interleaving of a lease's two words: steps against closing, reopening and new grants.
//!
//! Run with `make test-loom`.

use std::sync::Arc;

use loom::sync::atomic::AtomicU64;
use loom::thread;

use crate::word::{Control, Step, close, open, step, used};

struct Words {
    usage: AtomicU64,
    control: AtomicU64,
}

fn words(granted: u64) -> Arc<Words> {
    let words = Words { usage: AtomicU64::new(0), control: AtomicU64::new(0) };
    grant(&words, granted, false);
    Arc::new(words)
}

fn grant(words: &Words, granted: u64, ended: bool) {
    Control { granted, verdict: 0, ended }.store(&words.control);
}

/// Takes a step; how much it debited.
fn debit(words: &Words, count: u64) -> u64 {
    match step(&words.usage, &words.control, count) {
        Step::Debited(_) => count,
        Step::Exhausted { .. } | Step::Closed | Step::Ended => 0,
    }
}

#[test]
fn loom_two_steps_never_pass_the_grant() {
    loom::model(|| {
        let words = words(1);
        let other = Arc::clone(&words);
        let thread = thread::spawn(move || debit(&other, 1));
        let mine = debit(&words, 1);
        assert_eq!(mine + thread.join().unwrap(), 1);
        assert_eq!(used(&words.usage), 1);
    });
}

#[test]
fn loom_what_closing_returns_is_final() {
    loom::model(|| {
        let words = words(2);
        let other = Arc::clone(&words);
        let thread = thread::spawn(move || debit(&other, 1) + debit(&other, 1));
        let settled = close(&words.usage);
        grant(&words, 2, true);
        assert_eq!(thread.join().unwrap(), settled);
        assert_eq!(used(&words.usage), settled);
    });
}

#[test]
fn loom_what_was_taken_back_is_never_debited() {
    loom::model(|| {
        let words = words(2);
        let other = Arc::clone(&words);
        let thread = thread::spawn(move || debit(&other, 1) + debit(&other, 1));
        let settled = close(&words.usage);
        let granted = settled.max(1);
        grant(&words, granted, false);
        open(&words.usage, settled);
        let debited = thread.join().unwrap();
        assert_eq!(used(&words.usage), debited);
        assert!(debited <= granted, "{debited} of {granted}");
    });
}

#[test]
fn loom_a_raised_grant_is_all_there_is() {
    loom::model(|| {
        let words = words(1);
        let other = Arc::clone(&words);
        let thread = thread::spawn(move || debit(&other, 1) + debit(&other, 1));
        grant(&words, 2, false);
        let debited = thread.join().unwrap();
        assert!((1..=2).contains(&debited));
        assert_eq!(used(&words.usage), debited);
    });
}
