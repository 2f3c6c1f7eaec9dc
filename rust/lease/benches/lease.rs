//! What one step of a lease costs in Rust: one JSON line per case.
//!
//! `cargo bench -p bursar-lease`. Nanoseconds a step, over rounds of equal length; the floor is one
//! uncontended compare-and-swap on this machine at this moment.
#![allow(clippy::print_stdout, reason = "the figures are the output")]
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
#![allow(clippy::cast_precision_loss, reason = "figures for people")]

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bursar_lease::layout::COUNT_MAX;
use bursar_lease::pages::{ClientPages, DaemonPages};
use bursar_lease::word::{Control, Step};

const ROUNDS: usize = 9;
const STEPS: u64 = 1_000_000;

fn case(name: &str, mut round: impl FnMut()) {
    round();
    let mut figures: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            round();
            start.elapsed().as_nanos() as f64 / STEPS as f64
        })
        .collect();
    figures.sort_by(f64::total_cmp);
    println!(
        "{{\"case\":\"{name}\",\"unit\":\"ns/op\",\"min\":{:.2},\"median\":{:.2},\"max\":{:.2}}}",
        figures[0],
        figures[ROUNDS / 2],
        figures[ROUNDS - 1]
    );
}

fn main() {
    let word = AtomicU64::new(0);
    case("cas_floor", || {
        word.store(0, Ordering::SeqCst);
        for n in 0..STEPS {
            let swapped = word.compare_exchange(n, n + 1, Ordering::SeqCst, Ordering::Relaxed);
            black_box(swapped).expect("nobody else is here");
        }
    });
    let (daemon, fds) = DaemonPages::create().expect("shared memory");
    let client = ClientPages::open(&fds).expect("the pages are whole");
    daemon.tell(Control { granted: COUNT_MAX, verdict: 0, ended: false });
    daemon.open(0);
    case("debit_rust", || {
        for _ in 0..STEPS {
            assert_eq!(black_box(client.step(1)), Step::Debited(0));
        }
    });
}
