//! Kill -9 at any instant: every acknowledged record is there afterwards, once.
//!
//! This binary runs itself as the process to be killed. The child appends records, writes, and only
//! then names the last sequence on its standard output; each record carries a number of its own, so
//! that a loss, a repetition or a mix-up shows.
#![allow(clippy::print_stdout, reason = "the child's acknowledgements")]

mod support;

use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use bursar_ledger::fact::Fact;
use bursar_store::{Durability, EntryKind, StoreConfig, check_store};
use support::*;

const STORE: &str = "BURSAR_TEST_KILL_STORE";
const DURABILITY: &str = "BURSAR_TEST_KILL_DURABILITY";

fn kill_config(path: &str, durability: &str) -> StoreConfig {
    StoreConfig {
        durability: Durability::parse(durability).expect("a durability"),
        segment_bytes: 20_000,
        sync_interval_ms: 3,
        ..StoreConfig::new(path)
    }
}

/// A record that is told from every other: the limit is its number.
fn numbered(number: u64) -> bursar_ledger::fact::Record {
    let mut record = world();
    let is_second = |fact: &Fact| matches!(fact, Fact::BudgetSet { budget: 2, .. });
    record.facts.retain(is_second);
    if let [Fact::BudgetSet { limit, .. }] = record.facts.as_mut_slice() {
        *limit = i64::try_from(number).expect("small");
    }
    record
}

#[test]
#[ignore = "the process that is killed; run by the tests below"]
fn child() {
    let Ok(path) = std::env::var(STORE) else { return };
    let durability = std::env::var(DURABILITY).expect("set");
    let store = open(&kill_config(&path, &durability));
    let mut random = Random::new(std::process::id().into());
    let mut out = std::io::stdout();
    loop {
        let mut last = 0;
        for _ in 0..=random.below(6) {
            let number = store.written() + 1;
            last = store.append(&numbered(if last == 0 { number } else { last + 1 }));
        }
        store.write().expect("written");
        if durability == "power" {
            store.wait_synced(last).expect("synced");
        }
        writeln!(out, "\nack {last}").expect("said");
    }
}

struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        Random(seed | 1)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

fn survive(durability: &str, rounds: u64) {
    let stores = if std::env::var_os("BURSAR_LONG").is_some() { 25 } else { 1 };
    for _ in 0..stores {
        survive_with_one_store(durability, rounds);
    }
}

fn survive_with_one_store(durability: &str, rounds: u64) {
    let folder = folder();
    let path = folder.path().join("ledger.db");
    let path = path.to_str().expect("text");
    let seed = RandomState::new().hash_one(durability);
    println!("seed {seed}");
    let mut random = Random::new(seed);
    let mut before = 0;
    for round in 0..rounds {
        let mut child = Command::new(std::env::current_exe().expect("this binary"))
            .args(["--exact", "child", "--ignored", "--nocapture", "--test-threads=1"])
            .env(STORE, path)
            .env(DURABILITY, durability)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let reading = std::thread::spawn(move || {
            let acks = lines.map_while(Result::ok).filter_map(|line| {
                line.strip_prefix("ack ").and_then(|seq| seq.parse::<u64>().ok())
            });
            acks.last().unwrap_or(0)
        });
        std::thread::sleep(Duration::from_millis(5 + random.below(150)));
        child.kill().expect("killed");
        child.wait().expect("gone");
        let acknowledged = reading.join().expect("read").max(before);
        let config = kill_config(path, durability);
        let store = open(&config);
        let rows = entries(&store);
        let last = store.written();
        assert!(last >= acknowledged, "round {round}: {acknowledged} acknowledged, {last} there");
        assert_eq!(rows.len() as u64, last, "round {round}");
        for (row, seq) in rows.iter().zip(1..) {
            let is = (row.sequence, row.row, row.kind, row.amount);
            assert_eq!(is, (seq, 0, EntryKind::Limit, i64::try_from(seq).expect("small")));
        }
        assert_eq!(check_store(&config.path).expect("checked"), []);
        before = last;
        if random.below(4) == 0 {
            store.close().expect("closed");
        }
    }
    assert!(before > rounds, "the children did something");
}

#[test]
fn in_process_durability_what_was_written_survives() {
    survive("process", 14);
}

#[test]
fn in_power_durability_what_was_synced_survives() {
    survive("power", 10);
}

#[test]
fn in_memory_durability_what_was_written_survives_too() {
    survive("memory", 6);
}
