//! Figures, printed: `cargo test --release -p bursar-store --test figures -- --ignored
//! --nocapture`.
//!
//! They fail only by generous ceilings; machines differ.
#![allow(clippy::print_stdout, reason = "printing is what they are for")]
#![allow(clippy::disallowed_methods, reason = "they measure time")]

mod support;

use std::time::{Duration, Instant};

use bursar_store::{Durability, EntryFilter};
use support::*;

/// CPU time of this process; other processes disturb it less than they do the wall clock.
fn cpu_ms() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("procfs");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
    let ticks: u64 = [11, 12].map(|n| fields[n].parse::<u64>().expect("a number")).iter().sum();
    ticks * 10
}

fn per(what: &str, count: u64, took: Duration) {
    let nanos = took.as_nanos() / u128::from(count.max(1));
    println!("{what}: {nanos} ns each, {} ms in all", took.as_millis());
}

#[test]
#[ignore = "a measurement"]
fn appending_and_writing() {
    let folder = tempfile::tempdir().expect("a folder on the disk");
    for durability in [Durability::Process, Durability::Memory] {
        let mut config = config_with(&folder, durability);
        config.path = folder.path().join(durability.name());
        config.max_backlog_bytes = 4 << 30;
        let store = open(&config);
        add(&store, &world());
        let count = 200_000;
        let records: Vec<_> = (1..=1000).map(|n| reserve(n, 5)).collect();
        let start = Instant::now();
        for i in 0..count {
            store.append(&records[i % 1000]);
        }
        per("append", count as u64, start.elapsed());
        store.write().expect("written");
        let start = Instant::now();
        for i in 0..count {
            store.append(&records[i % 1000]);
            store.write().expect("written");
        }
        per("append + write, one by one", count as u64, start.elapsed());
        let start = Instant::now();
        for i in 0..count {
            store.append(&records[i % 1000]);
            if i % 16 == 15 {
                store.write().expect("written");
            }
        }
        per("append + write, by 16", count as u64, start.elapsed());
    }
}

#[test]
#[ignore = "a measurement"]
fn importing_and_starting() {
    let folder = tempfile::tempdir().expect("a folder on the disk");
    let mut config = config_with(&folder, Durability::Process);
    config.max_backlog_bytes = 4 << 30;
    let store = open(&config);
    add(&store, &world());
    let pairs = 125_000;
    let (start, cpu) = (Instant::now(), cpu_ms());
    for sequence in 1..=pairs {
        store.append(&reserve(sequence, 100));
        store.append(&settle(sequence, 100, 70));
        store.write().expect("written");
    }
    for sequence in pairs + 1..=pairs + 100_000 {
        let mut record = reserve(sequence, 1);
        if let [bursar_ledger::fact::Fact::Reserved(reserved)] = record.facts.as_mut_slice() {
            reserved.id.slot = u32::try_from(sequence).expect("small");
        }
        store.append(&record);
        store.write().expect("written");
    }
    per("append + write", 2 * pairs + 100_000, start.elapsed());
    let rows = 6 * pairs + 200_000;
    store.import_through(store.written()).expect("imported");
    let took = start.elapsed();
    println!("{} rows/s imported", u128::from(rows) * 1000 / took.as_millis());
    per("until a record is imported", 2 * pairs + 100_000, took);
    println!("{} ms of CPU in all", cpu_ms() - cpu);
    let reader = store.reader().expect("reader");
    let start = Instant::now();
    let last = reader.entries(&EntryFilter::default(), None, 100_000).expect("entries");
    per("reading an entry", last.len() as u64, start.elapsed());
    drop(store);
    let (start, cpu) = (Instant::now(), cpu_ms());
    let mut told = 0;
    let (store, recovery) = bursar_store::Store::open(config.clone(), T0, &mut |_| {
        told += 1;
        Ok(())
    })
    .expect("it opens");
    let took = start.elapsed();
    println!("{recovery:?}: {told} records told in {} ms", took.as_millis());
    println!("start: {} ms of CPU", cpu_ms() - cpu);
    assert!(took < Duration::from_secs(20));
    let start = Instant::now();
    store.close().expect("closed");
    println!("closed in {} ms", start.elapsed().as_millis());
    println!("{} bytes", config.path.metadata().expect("file").len());
}
