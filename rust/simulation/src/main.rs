//! Plays seeds: `--seed N` one, with its trace's hash; `--seed N --seeds COUNT` so many from there on,
//! until one fails. `BURSAR_TRACE=1` tells each step.
#![allow(clippy::print_stdout, reason = "a command says what it found")]

use std::panic::catch_unwind;
use std::process::ExitCode;

use bursar_simulation::run::{STEPS, run};
use bursar_simulation::totals::Totals;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1)?.parse::<u64>().ok()
    };
    let first = number("--seed").unwrap_or(0);
    let count = number("--seeds").unwrap_or(1);
    let mut totals = Totals::default();
    for seed in first..first.saturating_add(count) {
        let Ok((one, hash)) = catch_unwind(|| run(seed, STEPS)) else {
            println!("seed {seed} fails, the {} of {count}", totals.seeds + 1);
            return ExitCode::FAILURE;
        };
        totals.add(&one);
        if count == 1 {
            println!("trace {hash:016x}");
        }
    }
    println!("{totals}");
    ExitCode::SUCCESS
}
