//! What the callers and the background threads share, and how they wake each other.
//!
//! Numbers move first, then `bell` is locked and rung: who waits looks at the numbers under that
//! lock, so no ringing is missed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::config::{Durability, StoreConfig};
use crate::error::StoreError;
use crate::log::LogWriter;

/// How long a writer is held up at most when the backlog is full, a step at a time.
const HOLD_UP_STEPS: u32 = 20;
const HOLD_UP_STEP: Duration = Duration::from_millis(1);
/// The backlog that is imported while the one thread that has the time for it cleans up.
const WORTH_IMPORTING_BYTES: u64 = 2 << 20;
/// A waiter looks at least this often whether the store has failed.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Called with the last synced sequence.
pub(crate) type Listener = Box<dyn Fn(u64) + Send + Sync>;

/// An open store, as its threads see it.
pub(crate) struct Shared {
    pub(crate) config: StoreConfig,
    pub(crate) store_id: u32,
    pub(crate) log: LogWriter,
    pub(crate) synced: AtomicU64,
    pub(crate) imported: AtomicU64,
    /// The bytes of the log that are imported, of those written in this session.
    pub(crate) imported_bytes: AtomicU64,
    /// The bytes of the database that hold nothing: rows are written there first.
    pub(crate) spare_bytes: AtomicU64,
    /// How often the log was synced, and how long that took in all.
    pub(crate) syncs: AtomicU64,
    pub(crate) sync_ns: AtomicU64,
    pub(crate) listener: Mutex<Option<Arc<Listener>>>,
    /// Whether what is over is deleted more slowly than it should be.
    pub(crate) cleanup_late: AtomicBool,
    /// How many wait for the import.
    hurried: AtomicU32,
    bell: Mutex<Wanted>,
    to_sync: Condvar,
    to_import: Condvar,
    to_hurry: Condvar,
    progress: Condvar,
}

/// What the threads are asked to do.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wanted {
    pub(crate) stop: bool,
    sync: bool,
}

/// Held by a thread while it runs: should it panic, everybody hears of it.
pub(crate) struct Alive {
    shared: Arc<Shared>,
    thread: &'static str,
}

impl Alive {
    pub(crate) fn new(shared: &Arc<Shared>, thread: &'static str) -> Alive {
        Alive { shared: Arc::clone(shared), thread }
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.fail(StoreError::Died { thread: self.thread });
            self.shared.tell();
        }
    }
}

impl Shared {
    pub(crate) fn new(config: StoreConfig, store_id: u32, log: LogWriter) -> Shared {
        let last = log.written();
        Shared {
            config,
            store_id,
            log,
            synced: AtomicU64::new(last),
            imported: AtomicU64::new(last),
            imported_bytes: AtomicU64::new(0),
            spare_bytes: AtomicU64::new(0),
            syncs: AtomicU64::new(0),
            sync_ns: AtomicU64::new(0),
            listener: Mutex::new(None),
            cleanup_late: AtomicBool::new(false),
            hurried: AtomicU32::new(0),
            bell: Mutex::new(Wanted::default()),
            to_sync: Condvar::new(),
            to_import: Condvar::new(),
            to_hurry: Condvar::new(),
            progress: Condvar::new(),
        }
    }

    pub(crate) fn is_memory(&self) -> bool {
        self.config.durability == Durability::Memory
    }

    /// How far the log may be imported.
    pub(crate) fn importable(&self) -> u64 {
        if self.is_memory() { self.log.written() } else { self.synced.load(Ordering::Acquire) }
    }

    /// Writes the batch, after being held up a little when the import is far behind.
    pub(crate) fn write(&self) -> Result<(), StoreError> {
        if self.backlog() > self.config.max_backlog_bytes {
            self.ring_urgent();
            for _ in 0..HOLD_UP_STEPS {
                std::thread::sleep(HOLD_UP_STEP);
                if self.backlog() <= self.config.max_backlog_bytes {
                    break;
                }
            }
        }
        self.log.write().inspect_err(|_| self.want_sync())
    }

    /// The bytes that are written and not yet imported.
    pub(crate) fn backlog(&self) -> u64 {
        self.log.written_bytes().saturating_sub(self.imported_bytes.load(Ordering::Relaxed))
    }

    pub(crate) fn want_sync(&self) {
        self.bell.lock().sync = true;
        self.to_sync.notify_one();
    }

    /// Waits until everything up to `seq` is imported, for which it hurries.
    pub(crate) fn wait_imported(&self, seq: u64) -> Result<(), StoreError> {
        self.hurried.fetch_add(1, Ordering::AcqRel);
        self.ring_urgent();
        let done = self.wait(&self.imported, seq);
        self.hurried.fetch_sub(1, Ordering::AcqRel);
        done
    }

    /// Whether somebody waits for the import, or writers will soon.
    pub(crate) fn is_import_urgent(&self) -> bool {
        let half = self.config.max_backlog_bytes / 2;
        // A few records at a time would cost many times as much.
        let most = if self.is_cleanup_urgent() { half.min(WORTH_IMPORTING_BYTES) } else { half };
        self.hurried.load(Ordering::Acquire) > 0 || self.backlog() > most
    }

    /// Whether the database grows on what it should be rid of.
    pub(crate) fn is_cleanup_urgent(&self) -> bool {
        self.cleanup_late.load(Ordering::Relaxed)
    }

    fn ring_urgent(&self) {
        drop(self.bell.lock());
        self.to_hurry.notify_one();
    }

    /// Asks both threads to end.
    pub(crate) fn stop(&self) {
        self.bell.lock().stop = true;
        self.to_sync.notify_all();
        self.to_import.notify_all();
        self.to_hurry.notify_all();
        self.progress.notify_all();
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.bell.lock().stop
    }

    /// For the sync thread: sleeps until it is wanted or the interval is over.
    pub(crate) fn await_sync(&self, interval: Duration) -> Wanted {
        let mut wanted = self.bell.lock();
        if !wanted.stop && !wanted.sync {
            self.to_sync.wait_for(&mut wanted, interval);
        }
        wanted.sync = false;
        *wanted
    }

    /// For the import thread: sleeps until it is stopped or the interval is over.
    pub(crate) fn await_import(&self, interval: Duration) -> Wanted {
        let mut wanted = self.bell.lock();
        if !wanted.stop {
            self.to_import.wait_for(&mut wanted, interval);
        }
        *wanted
    }

    /// For the thread that hurries: sleeps until it has to; it looks for itself now and then.
    pub(crate) fn await_urgent(&self, interval: Duration) -> Wanted {
        let mut wanted = self.bell.lock();
        let is_idle = || {
            let is_behind = || self.imported.load(Ordering::Acquire) < self.importable();
            let has_work = self.is_import_urgent() && is_behind() || self.is_cleanup_urgent();
            !has_work || self.log.failure().is_some()
        };
        while !wanted.stop && is_idle() {
            self.to_hurry.wait_for(&mut wanted, interval);
        }
        *wanted
    }

    /// For the threads: tells the waiters that a number has moved.
    pub(crate) fn ring(&self) {
        drop(self.bell.lock());
        self.progress.notify_all();
    }

    /// Fails for good, and tells everybody.
    pub(crate) fn fail(&self, failure: StoreError) {
        self.log.fail(failure);
        self.ring();
    }

    /// Tells the listener, who then looks whether the store has failed.
    pub(crate) fn tell(&self) {
        let listener = self.listener.lock().clone();
        if let Some(listener) = listener {
            listener(self.synced.load(Ordering::Acquire));
        }
    }

    /// Waits until a number has reached `seq`, or the store has failed.
    pub(crate) fn wait(&self, number: &AtomicU64, seq: u64) -> Result<(), StoreError> {
        let mut wanted = self.bell.lock();
        loop {
            if number.load(Ordering::Acquire) >= seq {
                return Ok(());
            }
            if let Some(failure) = self.log.failure() {
                return Err(failure);
            }
            if wanted.stop {
                return Err(StoreError::Closed);
            }
            self.progress.wait_for(&mut wanted, LOOK_AGAIN);
        }
    }
}
