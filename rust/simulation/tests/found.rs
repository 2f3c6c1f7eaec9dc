//! What the simulation has found, each by itself.

use std::path::Path;

use bursar_ledger::{Amounts, Now, Unit};
use bursar_simulation::call::Call;
use bursar_simulation::daemon::Daemon;
use bursar_simulation::disk::Disk;
use bursar_simulation::plan::Plan;
use bursar_simulation::random::Random;
use bursar_simulation::run::settings;
use bursar_simulation::vfs;
use bursar_store::{Durability, StoreConfig};
use tempfile::TempDir;

const NOW: Now = Now { wall_ms: 1_767_225_600_000, mono_ms: 0 };

fn folder() -> TempDir {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() { TempDir::new_in(shm) } else { TempDir::new() }.expect("a temporary folder")
}

/// Goal: what was answered outlives a kill while it is imported, and a power cut after the next
/// start. Method: the process dies when SQLite syncs its WAL; the next one reads the WAL from the
/// system's memory, drops the log behind it, and the power goes before anything else is written.
#[test]
fn the_log_stays_until_what_sqlite_read_is_on_the_disk() {
    vfs::register();
    for steps in 0..40 {
        let disk = Disk::install(Random::new(steps));
        let folder = folder();
        let config = StoreConfig {
            durability: Durability::Power,
            ..StoreConfig::new(folder.path().join("ledger.db"))
        };
        let open = || Daemon::open_stepped(config.clone(), settings(), NOW).expect("it opens").0;
        let daemon = open();
        // What it imports first makes rows that the second import finds.
        for key in 1..=2 {
            let amounts = Amounts::of(Unit::Tokens, 5);
            let call = Call::Record { path: "a", amounts, key, payload: 1 };
            daemon.call(&call, Durability::Power, NOW).kept.expect("it is answered");
            if key == 1 {
                daemon.store.step_import();
            }
        }
        let answered = daemon.store.written();
        disk.plan(|plan| plan.die_in(steps));
        daemon.store.step_import();
        disk.plan(Plan::die);
        drop(daemon);
        disk.kill();
        drop(open());
        disk.cut_power().expect("cut");
        assert_eq!(open().store.written(), answered, "dead after {steps} steps");
    }
}

/// Goal: what a killed process wrote to a new segment opens after a power cut during the next start.
/// Method: several segments are made and none is synced; the next start dies after any number of
/// steps, and the power goes with it.
#[test]
fn a_segment_is_named_on_the_disk_before_it_is_imported() {
    vfs::register();
    for seed in 0..4 {
        for steps in 0..60 {
            let disk = Disk::install(Random::new(seed * 1_000 + steps));
            let folder = folder();
            let config = StoreConfig {
                segment_bytes: 150,
                ..StoreConfig::new(folder.path().join("ledger.db"))
            };
            let open = || Daemon::open_stepped(config.clone(), settings(), NOW);
            let (daemon, _) = open().expect("it opens");
            for key in 1..=4 {
                let amounts = Amounts::of(Unit::Tokens, 5);
                let call = Call::Record { path: "a", amounts, key, payload: 1 };
                daemon.call(&call, Durability::Process, NOW).kept.expect("it is answered");
            }
            disk.plan(Plan::die);
            drop(daemon);
            disk.kill();
            disk.plan(|plan| plan.die_in(steps));
            drop(open());
            disk.cut_power().expect("cut");
            let opened = open().map(drop);
            assert_eq!(opened, Ok(()), "seed {seed}, dead after {steps} steps");
        }
    }
}

/// Goal: a power cut in the middle of a sync of several new segments, of whose names it keeps some,
/// is no damage. Method: the sync dies after any number of steps.
#[test]
fn no_segment_is_marked_as_synced_before_the_names_of_those_before_it_are() {
    vfs::register();
    for seed in 0..40 {
        for steps in 0..16 {
            let disk = Disk::install(Random::new(seed * 1_000 + steps));
            let folder = folder();
            let config = StoreConfig {
                segment_bytes: 150,
                ..StoreConfig::new(folder.path().join("ledger.db"))
            };
            let open = || Daemon::open_stepped(config.clone(), settings(), NOW);
            let (daemon, _) = open().expect("it opens");
            for key in 1..=6 {
                let amounts = Amounts::of(Unit::Tokens, 5);
                let call = Call::Record { path: "a", amounts, key, payload: 1 };
                daemon.call(&call, Durability::Process, NOW).kept.expect("it is answered");
            }
            disk.plan(|plan| plan.die_in(steps));
            daemon.store.step_sync();
            disk.plan(Plan::die);
            drop(daemon);
            disk.cut_power().expect("cut");
            let opened = open().map(drop);
            assert_eq!(opened, Ok(()), "seed {seed}, dead after {steps} steps");
        }
    }
}
