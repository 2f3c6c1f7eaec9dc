//! The ledger, its rate card and its store as one thing that answers protobuf messages.
//!
//! An answer comes with a ticket: what has to be durable before it may leave. Who serves a connection
//! awaits it (`durable`); the embedded mode, and calls away from the data plane, block on it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bursar_ledger::rates::RateCard;
use bursar_ledger::{BudgetInfo, Ledger, Now, Overruled, Owner, Replay, ReservationId};
use bursar_store::{Case, Store, StoreConfig};
use parking_lot::{Condvar, Mutex};
use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::clock::Clock;
use crate::config::{Config, ConfigError, Durability, Reservations, StoreSection};
use crate::durable::{Durable, StoreJournal};
use crate::error::ApiError;
use crate::meters::Meters;
use crate::metrics::Reserves;
use crate::owner;

/// How often time's own work is done: expiry, and the floor of what was used.
const TICK: Duration = Duration::from_millis(50);
/// How many ticks pass between looks at idle accounts and dead owners.
const SLOW_TICKS: u32 = 20;
/// The most un-imported log before writers are slowed down: what a stop, or the next start, has to move
/// into SQLite before it is done.
const MAX_BACKLOG_BYTES: u64 = 128 << 20;
/// When a log segment is full.
const SEGMENT_BYTES: u64 = 64 << 20;

/// Why an engine cannot start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The store.
    #[error(transparent)]
    Store(#[from] bursar_store::StoreError),
    /// The accounts that the configuration names.
    #[error("the configured accounts cannot be opened: {0}")]
    Accounts(#[from] bursar_ledger::LedgerError),
    /// A thread or socket.
    #[error("{0}: {1}")]
    Io(String, std::io::Error),
}

/// An answer, and what has to be durable before it may leave.
#[derive(Debug)]
pub(crate) struct Answer<T> {
    pub(crate) body: T,
    pub(crate) ticket: u64,
    /// A hold to undo when it cannot be made durable.
    pub(crate) hold: Option<ReservationId>,
    /// A hold that was raised: its lease may be told once that is durable.
    pub(crate) raised: Option<ReservationId>,
}

impl<T> Answer<T> {
    pub(crate) fn new(body: T, ticket: u64) -> Answer<T> {
        Answer { body, ticket, hold: None, raised: None }
    }
}

/// The ledger, its rate card and its store.
#[derive(Debug)]
pub struct Engine {
    pub(crate) ledger: Ledger<StoreJournal>,
    pub(crate) rates: RateCard,
    pub(crate) allow_unpriced: bool,
    pub(crate) times: Reservations,
    pub(crate) store: Option<Arc<Store>>,
    pub(crate) store_id: u32,
    pub(crate) durable: Durable,
    pub(crate) meters: Arc<Meters>,
    /// Ended reservations that were fetched back from the store, by sequence.
    pub(crate) recalled: Mutex<HashMap<u64, ReservationId>>,
    pub(crate) max_leases: usize,
    /// What is to stay free on the store's disk.
    min_free_bytes: u64,
    pub(crate) reserves: Reserves,
    /// Pid and start time of the processes that NVML lists.
    gpu_processes: Mutex<HashSet<(u32, u64)>>,
    clock: Clock,
    recovery: String,
    overruled: Vec<String>,
    closing: AtomicBool,
    stop: Arc<(Mutex<bool>, Condvar)>,
    ticker: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl Engine {
    /// Opens the store, recovers, and starts the ticker.
    pub fn open(config: Config) -> Result<Arc<Engine>, OpenError> {
        let clock = Clock::new();
        let now = clock.now();
        let settings = config.settings()?;
        let rates = config.rate_card()?;
        let durability = config.store.durability;
        let store_config = store_config(&config.store, config.reservations.key_retention_ms);
        let (ledger, store, recovery) = if let Some(store_config) = store_config {
            recover(settings, store_config, now)?
        } else {
            let ledger = Ledger::new(settings, StoreJournal(None));
            (ledger, None, "no store: everything is forgotten at the end".to_owned())
        };
        let overruled = ledger.configure(now)?.iter().map(describe_overruled).collect();
        let meters = Arc::<Meters>::default();
        ledger.observe(Arc::clone(&meters) as Arc<dyn bursar_ledger::Observer>);
        let store_id = store.as_ref().map_or(0, |store| store.store_id());
        let engine = Arc::new(Engine {
            ledger,
            rates,
            allow_unpriced: config.allow_unpriced,
            times: config.reservations,
            durable: Durable::new(store.clone(), durability),
            meters,
            store,
            store_id,
            recalled: Mutex::default(),
            max_leases: config.limits.max_leases,
            min_free_bytes: config.store.min_free_bytes,
            reserves: Reserves::default(),
            gpu_processes: Mutex::default(),
            clock,
            recovery,
            overruled,
            closing: AtomicBool::new(false),
            stop: Arc::default(),
            ticker: Mutex::new(None),
        });
        engine.start_ticker()?;
        Ok(engine)
    }

    /// What recovery found, in a line.
    pub fn recovery(&self) -> &str {
        &self.recovery
    }

    /// The configured limits that do not count, as an operator has set others; a line each.
    pub fn overruled(&self) -> &[String] {
        &self.overruled
    }

    /// Why the store takes nothing more, if so.
    pub fn failure(&self) -> Option<String> {
        self.durable.check().err().map(|error| error.message)
    }

    /// Whether so little room is left for the store that nothing is held anew.
    pub fn is_store_nearly_full(&self) -> bool {
        self.ledger.is_store_full()
    }

    /// Stops the ticker and leaves a clean store. Holds are kept: they are in the store.
    pub fn close(&self) -> Result<(), ApiError> {
        if self.closing.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        *self.stop.0.lock() = true;
        self.stop.1.notify_all();
        if let Some(ticker) = self.ticker.lock().take() {
            let _ended = ticker.join();
        }
        self.ledger.log_used(self.now());
        match &self.store {
            Some(store) => store.close().map_err(ApiError::from),
            None => Ok(()),
        }
    }

    /// The time, held at the latest that the ledger ever saw: nothing that has expired is good again.
    pub(crate) fn now(&self) -> Now {
        let now = self.clock.now();
        Now { wall_ms: self.ledger.time(now.wall_ms), ..now }
    }

    /// Refuses work that could not be kept.
    pub(crate) fn check_open(&self) -> Result<(), ApiError> {
        if self.closing.load(Ordering::Acquire) {
            return Err(ApiError::shutting_down());
        }
        self.durable.check()
    }

    /// A hash that tells payloads apart; never 0.
    pub(crate) fn hash(&self, bytes: &[u8]) -> u128 {
        xxh3_128_with_seed(bytes, u64::from(self.store_id)).max(1)
    }

    /// Undoes a hold that could not be made durable.
    pub(crate) fn undo(&self, hold: Option<ReservationId>) {
        if let Some(id) = hold {
            self.ledger.undo(id, self.now());
        }
    }

    /// Tells the client of a lease that its hold was raised, which is durable by now.
    pub(crate) fn publish(&self, raised: Option<ReservationId>) {
        if let Some(id) = raised {
            self.ledger.publish(id, u64::MAX);
        }
    }

    fn start_ticker(self: &Arc<Engine>) -> Result<(), OpenError> {
        let engine = Arc::downgrade(self);
        let stop = Arc::clone(&self.stop);
        let run = move || {
            let mut count: u32 = 0;
            loop {
                let mut stopped = stop.0.lock();
                if !*stopped {
                    stop.1.wait_for(&mut stopped, TICK);
                }
                let Some(engine) = engine.upgrade().filter(|_| !*stopped) else { return };
                drop(stopped);
                count = count.wrapping_add(1);
                engine.tick(count);
            }
        };
        let thread = std::thread::Builder::new().name("bursar-ticker".into()).spawn(run);
        let thread = thread.map_err(|error| OpenError::Io("the ticker thread".into(), error))?;
        *self.ticker.lock() = Some(thread);
        Ok(())
    }

    fn tick(&self, count: u32) {
        if self.durable.check().is_err() {
            return;
        }
        self.look_for_room();
        let now = self.now();
        self.ledger.tick(now);
        if count.is_multiple_of(2) {
            self.ledger.log_used(now);
        }
        if count.is_multiple_of(SLOW_TICKS) {
            self.ledger.retire_idle(now);
            self.ledger.look_for_crowd();
            for (id, owner) in self.ledger.kept() {
                if !owner.is_some_and(|owner| self.may_hold_capacity(&owner)) {
                    let _gone = self.ledger.owner_gone(id, now);
                }
            }
        }
        self.write();
    }

    /// Where the store's disk cannot be looked at, what was seen last counts.
    fn look_for_room(&self) {
        if let Some(Ok(room)) = self.store.as_ref().map(|store| store.room()) {
            self.ledger.set_store_full(room.is_below(self.min_free_bytes));
        }
    }

    /// Names the processes that NVML lists, by pid and start time: what they hold is not returned, even
    /// when they seem to be gone (R9).
    pub fn set_gpu_processes(&self, processes: impl IntoIterator<Item = (u32, u64)>) {
        *self.gpu_processes.lock() = processes.into_iter().collect();
    }

    fn may_hold_capacity(&self, owner: &Owner) -> bool {
        let listed = || self.gpu_processes.lock().contains(&(owner.pid, owner.start_ticks));
        owner::is_alive(owner) || listed()
    }

    /// Writes what the journal has taken to the log.
    pub(crate) fn write(&self) {
        // A failure is kept by the store, and every call asks for it.
        let _written = self.store.as_ref().map(|store| store.write());
    }
}

fn store_config(section: &StoreSection, key_retention_ms: i64) -> Option<StoreConfig> {
    Some(StoreConfig {
        path: section.path.clone()?,
        durability: match section.durability {
            Durability::Process => bursar_store::Durability::Process,
            Durability::Power => bursar_store::Durability::Power,
            Durability::Memory => bursar_store::Durability::Memory,
        },
        entry_retention_ms: section.entry_retention_s.saturating_mul(1000),
        key_retention_ms,
        sync_interval_ms: section.sync_interval_ms,
        segment_bytes: SEGMENT_BYTES,
        max_backlog_bytes: MAX_BACKLOG_BYTES,
    })
}

type Recovered = (Ledger<StoreJournal>, Option<Arc<Store>>, String);

fn recover(
    settings: bursar_ledger::Settings,
    config: StoreConfig,
    now: Now,
) -> Result<Recovered, OpenError> {
    let mut replay = Replay::new(settings, StoreJournal(None), now);
    let (store, recovery) = Store::open(config, now.wall_ms, &mut |record| {
        replay.apply(record).map_err(|error| error.to_string())
    })?;
    let store = Arc::new(store);
    let mut ledger = replay.finish(recovery.high_ids());
    ledger.set_journal(StoreJournal(Some(Arc::clone(&store))));
    Ok((ledger, Some(store), describe(&recovery)))
}

fn describe_overruled(one: &Overruled) -> String {
    let BudgetInfo { path, unit, period, .. } = &*one.budget;
    let (unit, limit, configured) = (unit.name(), one.limit, one.configured);
    format!(
        "{path}: the limit of {limit} {unit}, period {period}, was set by an operator and stays; the \
         configuration's {configured} does not count: `bursar account set` changes it"
    )
}

/// What recovery found, for the log of the daemon.
fn describe(recovery: &bursar_store::Recovery) -> String {
    let found = match recovery.case {
        Case::Fresh => return "a new store was made".to_owned(),
        Case::CleanStart => "the store was closed cleanly",
        Case::TornTail => "the log ended in a record that was never finished, which was dropped",
        Case::LogBehindInMemory => "the log was lost, as memory durability allows",
        _ => "the store was not closed, and is whole",
    };
    let upgraded = recovery.upgraded_from.map_or_else(String::new, |version| {
        format!(
            "; its tables were of version {version}, and a copy of it as it was is kept beside it"
        )
    });
    format!("{found}; {} records were taken over from the log{upgraded}", recovery.imported)
}
