//! Kill -9 under load, where the kill is a power cut: what is not synced is in the process only.
//!
//! Goal: in `power` durability everything that was answered is there, once, after any number of
//! kills. Method: this binary runs itself as the process to be killed. The child's disk is a
//! write-back cache below log and SQLite alike: a sync writes sector by sector, in any order, and the
//! kill may come between two. Four threads record amounts that are the number of the call, some by
//! reserving and committing, and name each one on the standard output once it is answered. Each has
//! an account of its own, so the sum of its entries says which calls are there: those that were
//! answered and at most the one under way, which the next child asks for again by the same key.
#![allow(clippy::print_stdout, reason = "the child's acknowledgements, and what the kills came to")]

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use bursar_ledger::{Admission, Amounts, Now, PeriodKind, Settings, Unit};
use bursar_simulation::call::Call;
use bursar_simulation::daemon::{Daemon, Said};
use bursar_simulation::disk::Disk;
use bursar_simulation::random::Random;
use bursar_simulation::run::settings;
use bursar_simulation::vfs;
use bursar_store::{Durability, Store, StoreConfig, check_store};
use tempfile::TempDir;

const STORE: &str = "BURSAR_TEST_KILL_STORE";
/// The number of the next call of each thread.
const NEXT: &str = "BURSAR_TEST_KILL_NEXT";
const SEED: &str = "BURSAR_TEST_KILL_SEED";
const PATHS: [&str; 4] = ["a/x", "a/b", "a/b/c", "a"];
const NOW: Now = Now { wall_ms: 1_767_225_600_000, mono_ms: 0 };
/// So many kills of one store.
const KILLS_OF_ONE: u64 = 25;

fn config(path: &Path) -> StoreConfig {
    StoreConfig {
        durability: Durability::Power,
        segment_bytes: 30_000,
        sync_interval_ms: 3,
        ..StoreConfig::new(path)
    }
}

#[test]
#[ignore = "the process that is killed; run by the tests below"]
fn child() {
    let Ok(path) = std::env::var(STORE) else { return };
    let seed = std::env::var(SEED).expect("set").parse().expect("a number");
    let next = std::env::var(NEXT).expect("set");
    let next: Vec<u64> = next.split(',').map(|text| text.parse().expect("a number")).collect();
    Disk::install_write_back(Random::new(seed));
    vfs::register();
    // No time passes: each one that has ended is remembered, and takes a place.
    let settings = Settings { max_reservations: 1 << 20, ..settings() };
    let (daemon, _) = Daemon::open(config(Path::new(&path)), settings, NOW).expect("it opens");
    let limit =
        Call::Limit { path: "a", unit: Unit::Tokens, kind: PeriodKind::Total, limit: 1 << 50 };
    daemon.call(&limit, Durability::Power, NOW).kept.expect("it is kept");
    std::thread::scope(|scope| {
        for (thread, next) in next.into_iter().enumerate() {
            let daemon = &daemon;
            scope.spawn(move || {
                for number in next.. {
                    spend(daemon, thread, number);
                }
            });
        }
    });
}

/// Spends so much once, and says so.
fn spend(daemon: &Daemon, thread: usize, number: u64) {
    let amounts = Amounts::of(Unit::Tokens, i64::try_from(number).expect("small"));
    let (path, payload) = (PATHS[thread], u128::from(number));
    let key = (thread as u128 + 1) << 64 | payload;
    let call = |call| {
        let called = daemon.call(&call, Durability::Power, NOW);
        called.kept.expect("it is kept");
        called.said.expect("it was asked")
    };
    if number.is_multiple_of(3) {
        let (most, least) = (amounts, amounts);
        let said = call(Call::Reserve { path, most, least, parent: None, key, payload });
        let Said::Reserve(Ok(Admission::Granted(granted))) = said else { panic!("{said:?}") };
        let named = 1 << Unit::Tokens.index();
        let id = granted.view.id;
        let said = call(Call::Commit { id, actual: amounts, named, payload });
        assert!(matches!(said, Said::End(Ok(_))), "{said:?}");
    } else {
        let said = call(Call::Record { path, amounts, key, payload });
        assert!(matches!(said, Said::Record(Ok(_))), "{said:?}");
    }
    // One write: the line is there whole, or not at all.
    let line = format!("\nack {thread} {number}\n");
    std::io::stdout().write_all(line.as_bytes()).expect("said");
}

/// Starts a child, kills it after a while, and returns the last number that each thread named.
fn kill_one(path: &Path, next: &[u64; 4], random: &mut Random) -> BTreeMap<usize, u64> {
    let mut child = Command::new(std::env::current_exe().expect("this binary"))
        .args(["--exact", "child", "--ignored", "--nocapture", "--test-threads=1"])
        .env(STORE, path)
        .env(NEXT, next.map(|number| number.to_string()).join(","))
        .env(SEED, random.number().to_string())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let reading = std::thread::spawn(move || {
        let mut last = BTreeMap::new();
        for line in lines.map_while(Result::ok) {
            let mut words = line.split(' ');
            let (Some("ack"), Some(thread), Some(number)) =
                (words.next(), words.next(), words.next())
            else {
                continue;
            };
            let parsed = (thread.parse::<usize>(), number.parse::<u64>());
            if let (Ok(thread), Ok(number)) = parsed {
                last.insert(thread, number);
            }
        }
        last
    });
    std::thread::sleep(Duration::from_millis(2 + random.below(120)));
    child.kill().expect("killed");
    let ended = child.wait().expect("gone");
    assert_eq!(ended.code(), None, "it was killed, and did not end by itself");
    reading.join().expect("read")
}

/// Opens the store on the real disk and returns (sum, count) of what each thread's account spent.
fn spent(path: &Path) -> [(u64, u64); 4] {
    let (store, _) = Store::open(config(path), NOW.wall_ms, &mut |_| Ok(())).expect("it opens");
    store.import_through(u64::MAX).expect("imported");
    assert_eq!(check_store(path).expect("checked"), [], "windows and their entries");
    let conn = rusqlite::Connection::open(path).expect("opened");
    PATHS.map(|account| {
        let query = "SELECT coalesce(sum(amount), 0), count(*) FROM entries
            WHERE kind = 'spend' AND account = ?1";
        conn.query_row(query, [account], |row| Ok((row.get(0)?, row.get(1)?))).expect("read")
    })
}

/// What was answered is there once, and besides at most the call that was under way.
fn check(path: &Path, next: [u64; 4]) {
    for (thread, (sum, count)) in spent(path).into_iter().enumerate() {
        let answered = next[thread] - 1;
        assert!(
            count == answered || count == answered + 1,
            "{}: {answered} answered, {count} there",
            PATHS[thread]
        );
        assert_eq!(sum, count * (count + 1) / 2, "{}: each number once", PATHS[thread]);
    }
}

fn survive(kills: u64) {
    let seed = RandomState::new().hash_one("seed");
    println!("seed {seed}");
    let mut random = Random::new(seed);
    let mut answered = 0;
    for first in (0..kills).step_by(usize::try_from(KILLS_OF_ONE).expect("small")) {
        let shm = Path::new("/dev/shm");
        let folder = if shm.is_dir() { TempDir::new_in(shm) } else { TempDir::new() };
        let folder = folder.expect("a temporary folder");
        let path = folder.path().join("ledger.db");
        let mut next = [1_u64; 4];
        for kill in first..kills.min(first + KILLS_OF_ONE) {
            for (thread, last) in kill_one(&path, &next, &mut random) {
                next[thread] = last + 1;
            }
            // Often it starts again on what the kill left, without anybody looking first.
            if random.percent(40) || kill + 1 == kills.min(first + KILLS_OF_ONE) {
                check(&path, next);
            }
        }
        answered += next.iter().map(|next| next - 1).sum::<u64>();
    }
    println!("{kills} kills, {answered} calls answered, 0 lost, 0 doubled");
    assert!(answered > kills, "the children did something");
}

#[test]
fn a_kill_that_is_a_power_cut_loses_and_doubles_nothing() {
    let long = std::env::var_os("BURSAR_LONG").is_some();
    survive(if long { 1_000 } else { 50 });
}
