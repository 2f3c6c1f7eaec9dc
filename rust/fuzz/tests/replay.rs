//! The driver that needs no nightly toolchain: every input that is kept, and then changes of them drawn
//! from a seed, for `BURSAR_FUZZ_SECONDS` each. `BURSAR_SEED` plays a run again.
//!
//! What makes a target panic is written to `target/fuzz/` and belongs into `rust/fuzz/corpus/` with a
//! name that says what it was.
#![expect(clippy::print_stdout, reason = "the seed, to play a failure again")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{env, fs, panic};

use bursar_fuzz::mutate::{Rng, mutate};
use bursar_fuzz::{TARGETS, Target, target};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name)
}

fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}: a whole number is needed")))
}

fn seed() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "a seed is not part of what is tested")]
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    number("BURSAR_SEED").unwrap_or(u64::from(now.subsec_nanos()))
}

fn inputs(name: &str) -> Vec<Vec<u8>> {
    let files = fs::read_dir(folder(name)).expect("each target has a corpus");
    let mut files: Vec<_> = files.map(|file| file.expect("readable").path()).collect();
    files.sort();
    files.iter().map(|file| fs::read(file).expect("readable")).collect()
}

/// Runs one input; one that fails is written out first.
fn run(name: &str, target: Target, input: &[u8]) {
    if let Err(failed) = panic::catch_unwind(|| target(input)) {
        let found = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/fuzz");
        fs::create_dir_all(&found).expect("the target folder can be written");
        fs::write(found.join(name), input).expect("the target folder can be written");
        println!(
            "{name}: the input is in target/fuzz/{name}: {:?}",
            input.escape_ascii().to_string()
        );
        panic::resume_unwind(failed);
    }
}

fn fuzz(name: &str) {
    let target = target(name).expect("it is one of the targets");
    let inputs = inputs(name);
    assert!(!inputs.is_empty(), "{name} has no corpus");
    run(name, target, b"");
    for input in &inputs {
        run(name, target, input);
    }
    let (seed, seconds) = (seed(), number("BURSAR_FUZZ_SECONDS").unwrap_or(1));
    println!("BURSAR_SEED={seed}");
    let (mut rng, mut count) = (Rng::new(seed), 0_u64);
    #[expect(clippy::disallowed_methods, reason = "how long it runs is no part of what is tested")]
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(seconds) {
        run(name, target, &mutate(&inputs, &mut rng));
        count += 1;
    }
    println!("{name}: {count} inputs");
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(#[test] fn $name() { fuzz(stringify!($name)); })*

        #[test]
        fn each_target_is_run_and_each_corpus_is_a_targets() {
            let names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
            assert_eq!(names, [$(stringify!($name)),*]);
            let folders = fs::read_dir(folder("")).expect("there is a corpus");
            let mut folders: Vec<_> = folders.map(|one| one.expect("readable").file_name()).collect();
            folders.sort();
            assert_eq!(folders, names);
        }
    };
}

targets! {
    access answer engine envoy lease_frames lease_pages log paths process_name prompt records
    request route stream token_file
}

#[test]
fn a_target_that_is_wrong_is_found_out() {
    // Fails on a number that no input holds: changes of one have to come upon it.
    let wrong: Target = |input| assert!(!input.windows(2).any(|pair| pair == [0xFF, 0x7F]));
    let mut rng = Rng::new(1);
    let found = (0..20_000)
        .map(|_| mutate(&[b"data: {}\n\n".to_vec()], &mut rng))
        .any(|input| panic::catch_unwind(|| wrong(&input)).is_err());
    assert!(found);
}
