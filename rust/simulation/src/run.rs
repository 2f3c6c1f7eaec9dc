//! One seed: clients, clocks, daemon and disk, a step at a time, until the disk or the plan ends the
//! process; then a restart, and on.

use std::fmt::Write as _;
use std::hash::{Hash, Hasher};
use std::path::Path;
use std::sync::Arc;

use bursar_ledger::path::Pattern;
use bursar_ledger::runaway::Policy;
use bursar_ledger::{AccountPattern, Now, Settings};
use bursar_store::{Durability, StoreConfig};
use parking_lot::Mutex;
use tempfile::TempDir;

use crate::call::{Call, Clients};
use crate::daemon::{Daemon, Said};
use crate::disk::Disk;
use crate::oracle::{Oracle, RETENTION_MS};
use crate::plan::{Fault, Plan};
use crate::random::Random;
use crate::totals::Totals;
use crate::vfs;

/// So many things happen in a run.
pub const STEPS: u64 = 80;
/// 2026-01-01T00:00:00Z.
const START_MS: i64 = 1_767_225_600_000;
const SECOND_MS: i64 = 1_000;
const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;

/// The world of one seed.
#[derive(Debug)]
struct Run {
    random: Random,
    disk: Arc<Disk>,
    clients: Clients,
    config: StoreConfig,
    daemon: Option<Daemon>,
    oracle: Oracle,
    now: Now,
    habits: Habits,
    totals: Totals,
    trace: Trace,
    _folder: TempDir,
}

/// What a seed's world is like.
#[derive(Debug)]
struct Habits {
    /// How often, in a hundred steps, the disk's background work is done.
    sync: u64,
    import: u64,
    /// How often something is about to go wrong.
    trouble: u64,
}

/// What has to be there after a restart: all that was answered; in `process` durability, where the
/// power has gone, what was synced.
#[derive(Debug, Clone, Copy, Default)]
struct Promised {
    answered: u64,
    synced: u64,
}

/// A hash of all that happened.
#[derive(Debug, Default)]
struct Trace {
    hasher: std::hash::DefaultHasher,
    line: String,
}

impl Trace {
    fn note(&mut self, what: std::fmt::Arguments<'_>) {
        self.line.clear();
        self.line.write_fmt(what).expect("a string takes all");
        if std::env::var_os("BURSAR_TRACE").is_some() {
            let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{what}\n"));
        }
        self.line.hash(&mut self.hasher);
    }
}

/// Ledgers of a simulation: accounts come to be on first use, and nothing else is configured.
pub fn settings() -> Settings {
    let patterns = ["a", "a/**"].map(|text| AccountPattern {
        pattern: Pattern::parse(text).expect("a pattern"),
        budgets: Vec::new(),
        runaway: None,
    });
    Settings {
        patterns: patterns.into(),
        max_accounts: 1_000,
        max_children: 100,
        max_reservations: 10_000,
        key_retention_ms: RETENTION_MS,
        account_idle_ms: i64::MAX,
        runaway: Arc::new(Policy::off()),
    }
}

/// SQLite's random numbers are the process's: two runs at once would draw each other's.
static TURN: Mutex<()> = Mutex::new(());

/// Plays a seed. Panics where a promise is broken.
pub fn run(seed: u64, steps: u64) -> (Totals, u64) {
    let _turn = TURN.lock();
    vfs::register();
    let mut run = Run::new(seed);
    vfs::reseed();
    run.start();
    for _ in 0..steps {
        run.step();
    }
    run.end();
    run.totals.disk = run.disk.plan(|plan| plan.counts);
    let totals = run.totals;
    run.trace.note(format_args!("{totals:?}"));
    (totals, run.trace.hasher.finish())
}

impl Run {
    fn new(seed: u64) -> Run {
        let mut random = Random::new(seed);
        let shm = Path::new("/dev/shm");
        let folder = if shm.is_dir() { TempDir::new_in(shm) } else { TempDir::new() };
        let folder = folder.expect("a temporary folder");
        let durability = match random.below(10) {
            0..5 => Durability::Power,
            5..9 => Durability::Process,
            _ => Durability::Memory,
        };
        let config = StoreConfig {
            durability,
            segment_bytes: 500 + random.below(4_000),
            key_retention_ms: RETENTION_MS,
            entry_retention_ms: if random.percent(25) { DAY_MS } else { 90 * DAY_MS },
            ..StoreConfig::new(folder.path().join("ledger.db"))
        };
        let habits = Habits {
            sync: random.pick(&[1, 10, 30]),
            import: random.pick(&[1, 5, 20]),
            trouble: random.pick(&[1, 4, 8]),
        };
        Run {
            disk: Disk::install(random.fork()),
            clients: Clients::new(random.fork()),
            config,
            daemon: None,
            oracle: Oracle::new(),
            now: Now { wall_ms: START_MS, mono_ms: 5_000 },
            habits,
            totals: Totals::default(),
            trace: Trace::default(),
            _folder: folder,
            random,
        }
    }

    fn is_dead(&self) -> bool {
        self.disk.plan(|plan| plan.is_dead())
    }

    fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().expect("it runs between restarts")
    }

    fn start(&mut self) {
        if self.random.percent(25) {
            let steps = self.random.below(120);
            self.disk.plan(|plan| plan.die_in(steps));
        }
        self.open(Promised::default());
    }

    /// One thing happens.
    fn step(&mut self) {
        self.totals.steps += 1;
        let Habits { sync, import, trouble } = self.habits;
        let die = self.random.below(100);
        if die < trouble {
            self.trouble();
        }
        match self.random.below(100 + sync + import) {
            0..70 => self.call(),
            70..80 => self.wait(),
            80..86 => self.jump(),
            86..93 => self.tick(),
            93..98 => self.log_used(),
            98..100 => return self.restart_in_order(),
            at if at < 100 + sync => self.daemon().store.step_sync(),
            _ => self.daemon().store.step_import(),
        }
        if self.is_dead() {
            return self.crash();
        }
        if self.daemon().store.failure().is_some() {
            self.totals.read_only += 1;
            // It goes on for a while, and takes nothing.
            for _ in 0..self.random.below(3) {
                self.call();
            }
            return self.restart();
        }
        self.compare();
    }

    /// Something is about to go wrong.
    fn trouble(&mut self) {
        let steps = self.random.below(40);
        match self.random.below(10) {
            0..6 => self.disk.plan(|plan| plan.die_in(steps)),
            6..9 => {
                let fault = self.random.pick(&Fault::ALL);
                self.disk.plan(|plan| plan.fault_in(steps, fault));
            }
            _ => self.disk.plan(Plan::die),
        }
    }

    fn call(&mut self) {
        let call = self.clients.next(&self.oracle.known.ids);
        let (now, durability) = (self.now, self.config.durability);
        let before = self.oracle.known.plain.clone();
        let called = self.daemon().call(&call, durability, now);
        let line = called.said.as_ref().map(summary);
        self.trace.note(format_args!("{call:?} {line:?} {}", called.kept.is_ok()));
        let Some(said) = called.said else {
            self.totals.unavailable += 1;
            self.clients.unanswered(call);
            return;
        };
        self.totals.calls += 1;
        self.oracle.answer(&call, &said, called.told, now);
        match called.kept {
            Ok(durable) => self.oracle.answered = self.oracle.answered.max(durable),
            Err(_) if self.is_dead() => self.clients.unanswered(call),
            Err(_) => {
                self.totals.unavailable += 1;
                if matches!(call, Call::Reserve { .. }) {
                    // The hold is undone: what can be read is what was there before.
                    let after = std::mem::replace(&mut self.oracle.known.plain, before);
                    let daemon = self.daemon.as_ref().expect("it runs");
                    self.oracle.compare_windows(&daemon.ledger, now);
                    self.oracle.known.plain = after;
                }
                self.clients.unanswered(call);
            }
        }
    }

    fn wait(&mut self) {
        let waits = [1, SECOND_MS, 20 * SECOND_MS, 60 * SECOND_MS, RETENTION_MS, HOUR_MS];
        let ms = self.random.pick(&waits);
        self.now.wall_ms += ms;
        self.now.mono_ms += ms;
        self.trace.note(format_args!("wait {ms}"));
    }

    /// The wall clock is set, in either direction.
    fn jump(&mut self) {
        let jumps = [-30 * DAY_MS, -DAY_MS, -HOUR_MS, -1, SECOND_MS, HOUR_MS, 2 * DAY_MS];
        let ms = self.random.pick(&jumps);
        self.now.wall_ms += ms;
        self.trace.note(format_args!("jump {ms}"));
    }

    fn tick(&mut self) {
        let now = self.now;
        let ticked = self.daemon().ledger.tick(now);
        let told = self.daemon().ledger.journal().take();
        self.oracle.tick(told, ticked.forgotten, now);
        let _kept = self.daemon().store.write();
        self.trace.note(format_args!("{ticked:?}"));
    }

    fn log_used(&mut self) {
        self.oracle.known.at(self.now);
        self.daemon().ledger.log_used(self.now);
        self.note_told();
        let _kept = self.daemon().store.write();
    }

    /// What was told apart from an operation of the model's.
    fn note_told(&mut self) {
        let told = self.daemon().ledger.journal().take();
        let plain = self.oracle.known.plain.clone();
        self.oracle.note(told, (&plain, self.oracle.known.ids.len()), None);
    }

    fn compare(&mut self) {
        let daemon = self.daemon.as_ref().expect("it runs");
        self.oracle.compare(&daemon.ledger, self.now);
        self.note_told();
    }

    /// Stops as an operator stops it.
    fn restart_in_order(&mut self) {
        self.log_used();
        let closed = self.daemon().store.close();
        self.trace.note(format_args!("closed {}", closed.is_ok()));
        if self.is_dead() {
            return self.crash();
        }
        if closed.is_ok() {
            self.totals.closed += 1;
            self.oracle.answered = self.daemon().store.written();
        }
        self.restart();
    }

    /// The process ends by itself, and the disk is mended.
    fn restart(&mut self) {
        let promised = self.promised();
        self.daemon = None;
        self.disk.kill();
        self.open(promised);
    }

    /// The process has died, or the power has gone.
    fn crash(&mut self) {
        let mut promised = self.promised();
        self.daemon = None;
        self.end_process(&mut promised);
        self.open(promised);
    }

    fn end_process(&mut self, promised: &mut Promised) {
        let cut = self.config.durability != Durability::Memory && self.random.percent(60);
        self.trace.note(format_args!("dies, power cut: {cut}"));
        if cut {
            self.totals.power_cuts += 1;
            if self.config.durability == Durability::Process {
                promised.answered = promised.synced;
            }
            self.disk.cut_power().expect("the real disk is fine");
        } else {
            self.totals.kills += 1;
            self.disk.kill();
        }
    }

    fn promised(&self) -> Promised {
        Promised { answered: self.oracle.answered, synced: self.daemon().store.synced() }
    }

    /// Starts until it has started.
    fn open(&mut self, mut promised: Promised) {
        // After a restart it sees no earlier time than before.
        self.now.wall_ms = self.now.wall_ms.max(self.oracle.known.plain.wall);
        self.now.mono_ms += self.random.amount(SECOND_MS);
        loop {
            self.plan_for_open();
            let opened = Daemon::open_stepped(self.config.clone(), settings(), self.now);
            if self.is_dead() {
                drop(opened);
                self.end_process(&mut promised);
                continue;
            }
            match opened {
                Ok((daemon, recovery)) => {
                    self.trace.note(format_args!("{:?} {}", recovery.case, recovery.imported));
                    self.totals.opened(recovery.case);
                    self.daemon = Some(daemon);
                    break;
                }
                Err(error) => {
                    let counts = self.disk.plan(|plan| plan.counts.faults);
                    let faulty = counts != self.totals.disk.faults;
                    assert!(faulty, "it does not open: {error}");
                    self.disk.kill();
                }
            }
            self.totals.disk.faults = self.disk.plan(|plan| plan.counts.faults);
        }
        let daemon = self.daemon.as_ref().expect("just opened");
        let recovered = daemon.store.written();
        self.oracle.restart(recovered, promised.answered, self.now, &daemon.ledger);
        self.compare();
    }

    /// Starting is a dangerous time, too.
    fn plan_for_open(&mut self) {
        self.totals.disk.faults = self.disk.plan(|plan| plan.counts.faults);
        let steps = self.random.below(80);
        match self.random.below(10) {
            0..2 => self.disk.plan(|plan| plan.die_in(steps)),
            2 => {
                let fault = self.random.pick(&Fault::ALL);
                self.disk.plan(|plan| plan.fault_in(steps, fault));
            }
            _ => {}
        }
    }

    /// The last restart, on a sound disk; then the database must agree with itself and the model.
    fn end(&mut self) {
        self.disk.plan(Plan::die);
        self.crash();
        self.disk.plan(Plan::heal);
        if self.daemon().store.failure().is_some() {
            self.restart();
            self.disk.plan(Plan::heal);
        }
        let daemon = self.daemon.as_ref().expect("it runs");
        daemon.store.step_sync();
        daemon.store.step_import();
        // By now there is nothing to wait for.
        let everything = daemon.store.import_through(u64::MAX);
        everything.expect("a sound disk takes all");
        let is_whole = self.config.entry_retention_ms > 30 * DAY_MS;
        self.oracle.check_history(&daemon.store, &self.config.path, is_whole);
    }
}

/// An answer in short: without what depends on the store's random name.
fn summary(said: &Said) -> String {
    match said {
        Said::Reserve(Ok(bursar_ledger::Admission::Granted(granted))) => {
            format!("{:?} {:?} {:?}", granted.view.id, granted.view.granted, granted.verdict)
        }
        Said::Reserve(Ok(bursar_ledger::Admission::Refused(refusal, _))) => format!("{refusal:?}"),
        Said::Reserve(Err(error)) => error.to_string(),
        Said::Debit(said) => format!("{:?}", said.as_ref().map(|d| (d.verdict, d.remaining))),
        Said::Extend(said) => format!("{:?}", said.as_ref().map(|e| (e.verdict, e.view.granted))),
        Said::End(said) | Said::Record(said) => {
            format!("{:?}", said.as_ref().map(|e| (e.verdict, e.view.id, e.view.spent)))
        }
        Said::Limit(said) => format!("{said:?}"),
        Said::Freeze(said) | Said::OwnerGone(said) => format!("{said:?}"),
    }
}
