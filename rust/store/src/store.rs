//! The store as its callers see it.
//!
//! `append` and `write` are the hot path: memory and one write(2), no waking of anybody. All else
//! is done by the threads; who has to know waits on their numbers. A stepped store has no
//! threads: the caller does their work when it likes, or when it would have to wait for it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::{fmt, io};

use bursar_ledger::canary;
use bursar_ledger::fact::Record;
use parking_lot::Mutex;

use crate::config::StoreConfig;
use crate::database::end_session;
use crate::error::{At, StoreError};
use crate::files::{FILES, Files, Lock, segments};
use crate::importing::{self, Importing};
use crate::open::{Opened, Recovery, open};
use crate::reader::Reader;
use crate::room::Room;
use crate::shared::Shared;
use crate::syncing;

/// An open store. Dropping it ends it as a crash would, with everything appended written; closing
/// it leaves everything in the database.
pub struct Store {
    shared: Arc<Shared>,
    background: Mutex<Option<Background>>,
    /// Whether the caller is the background.
    stepped: bool,
    _lock: Lock,
}

/// What a store has done since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Figures {
    /// The bytes written to the log.
    pub written_bytes: u64,
    /// Those that are not in the database yet, and their records.
    pub backlog_bytes: u64,
    /// See `backlog_bytes`.
    pub backlog_records: u64,
    /// How often the log was brought to the disk, and how long that took in all.
    pub syncs: u64,
    /// See `syncs`.
    pub sync_ns: u64,
}

/// Who syncs and imports: the caller, where there are no threads.
struct Background {
    importing: Arc<Mutex<Importing>>,
    threads: Vec<JoinHandle<()>>,
    told_failure: bool,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("path", &self.shared.config.path)
            .field("written", &self.written())
            .field("synced", &self.synced())
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Opens or creates the store. Tells `apply` where everything stood, records in an order that
    /// the ledger can follow; what was in the log only is part of that.
    pub fn open(
        config: StoreConfig,
        now_ms: i64,
        apply: &mut dyn FnMut(&Record) -> Result<(), String>,
    ) -> Result<(Store, Recovery), StoreError> {
        Store::open_with(config, now_ms, FILES, apply)
    }

    /// For tests: as `open`, on these files.
    pub fn open_with(
        config: StoreConfig,
        now_ms: i64,
        files: Files,
        apply: &mut dyn FnMut(&Record) -> Result<(), String>,
    ) -> Result<(Store, Recovery), StoreError> {
        Store::open_and(config, now_ms, files, apply, start)
    }

    /// For tests: as `open_with`, without threads. `step_sync` and `step_import` do their work.
    pub fn open_stepped(
        config: StoreConfig,
        now_ms: i64,
        files: Files,
        apply: &mut dyn FnMut(&Record) -> Result<(), String>,
    ) -> Result<(Store, Recovery), StoreError> {
        Store::open_and(config, now_ms, files, apply, |_, _| Ok(Vec::new()))
    }

    fn open_and(
        config: StoreConfig,
        now_ms: i64,
        files: Files,
        apply: &mut dyn FnMut(&Record) -> Result<(), String>,
        start: impl FnOnce(
            &Arc<Mutex<Importing>>,
            &Arc<Shared>,
        ) -> Result<Vec<JoinHandle<()>>, StoreError>,
    ) -> Result<(Store, Recovery), StoreError> {
        let Opened { lock, importer, log, store_id, recovery } =
            open(&config, now_ms, files, apply)?;
        let shared = Arc::new(Shared::new(config, store_id, log));
        let importing = Arc::new(Mutex::new(Importing::new(importer, &shared)?));
        let threads = start(&importing, &shared)?;
        let stepped = threads.is_empty();
        let background = Mutex::new(Some(Background { importing, threads, told_failure: false }));
        Ok((Store { shared, background, stepped, _lock: lock }, recovery))
    }

    /// Of a stepped store: brings what is written to the disk, as the sync thread would.
    pub fn step_sync(&self) {
        if !self.stepped || self.shared.is_memory() {
            return;
        }
        if let Some(background) = &mut *self.background.lock() {
            syncing::step(&self.shared, &mut background.told_failure);
        }
    }

    /// Of a stepped store: moves what is on the disk into the database, as the import thread would.
    pub fn step_import(&self) {
        if !self.stepped {
            return;
        }
        if let Some(background) = &*self.background.lock() {
            background.importing.lock().step(&self.shared, || true, || true);
        }
    }

    /// Takes a record into the batch that the next `write` writes, and returns its sequence. Memory
    /// only; cannot fail. When the store has failed, nothing is written any more.
    #[inline]
    pub fn append(&self, record: &Record) -> u64 {
        self.shared.log.append(record)
    }

    /// Writes the batch with one write(2). On return everything appended before is in the log, or
    /// nothing of the batch is and the store has failed for good. Held up for some milliseconds
    /// while the import is too far behind.
    pub fn write(&self) -> Result<(), StoreError> {
        self.shared.write()
    }

    /// The last sequence that is written.
    pub fn written(&self) -> u64 {
        self.shared.log.written()
    }

    /// The last sequence that is known to be on the disk. In memory durability: that is written.
    pub fn synced(&self) -> u64 {
        self.shared.importable()
    }

    /// What it has done in this session.
    pub fn figures(&self) -> Figures {
        let shared = &self.shared;
        let imported = shared.imported.load(Ordering::Acquire);
        Figures {
            written_bytes: shared.log.written_bytes(),
            backlog_bytes: shared.backlog(),
            backlog_records: self.written().saturating_sub(imported),
            syncs: shared.syncs.load(Ordering::Relaxed),
            sync_ns: shared.sync_ns.load(Ordering::Relaxed),
        }
    }

    /// How much it can still take.
    pub fn room(&self) -> io::Result<Room> {
        Room::of(&self.shared)
    }

    /// Why the store takes nothing more, if so.
    pub fn failure(&self) -> Option<StoreError> {
        self.shared.log.failure()
    }

    /// Has `f` called by the sync thread after each fdatasync with the last synced sequence, and
    /// once after a failure with the one before. Replaces an earlier one. Never called in memory
    /// durability.
    pub fn on_synced(&self, f: Box<dyn Fn(u64) + Send + Sync>) {
        *self.shared.listener.lock() = Some(Arc::new(f));
    }

    /// Wakes the sync thread at once.
    pub fn request_sync(&self) {
        self.shared.want_sync();
        self.step_sync();
    }

    /// Writes, and waits until everything up to `seq` is on the disk. In memory durability: is
    /// written.
    pub fn wait_synced(&self, seq: u64) -> Result<(), StoreError> {
        self.write()?;
        if self.shared.is_memory() || canary::sings("early-answer") {
            return Ok(());
        }
        let seq = seq.min(self.written());
        if self.synced() < seq {
            self.request_sync();
        }
        self.shared.wait(&self.shared.synced, seq)
    }

    /// Waits until everything up to `seq` can be read from the database.
    pub fn import_through(&self, seq: u64) -> Result<(), StoreError> {
        self.wait_synced(seq)?;
        let seq = seq.min(self.written());
        if self.shared.imported.load(Ordering::Acquire) >= seq {
            return Ok(());
        }
        self.step_import();
        self.shared.wait_imported(seq)
    }

    /// A reader of the history, on a connection of its own.
    pub fn reader(&self) -> Result<Reader, StoreError> {
        Reader::open(&self.shared.config.path)
    }

    /// Names the store for good; made at its creation.
    pub fn store_id(&self) -> u32 {
        self.shared.store_id
    }

    /// Brings everything into the database, leaves an empty log, and ends. A second call does
    /// nothing. After a failure it only ends, and answers the failure.
    pub fn close(&self) -> Result<(), StoreError> {
        let failed_before = self.shared.log.write().err();
        // From here on nothing is written, so nothing can be deleted that is not imported.
        self.shared.log.fail(StoreError::Closed);
        let Some(importing) = self.stop() else { return Ok(()) };
        if let Some(failure) = failed_before {
            return Err(failure);
        }
        if !self.shared.is_memory() {
            syncing::sync(&self.shared)?;
        }
        importing.lock().drain(&self.shared, || true)?;
        end_session(&importing.lock().importer.conn)?;
        drop(importing);
        let folder = self.shared.log.folder();
        let segments = segments(folder)?;
        self.shared
            .log
            .files
            .remove_in_order(folder, segments.iter().map(|(_, path)| path.as_path()))
    }

    /// Ends the threads; `None` when they have ended before.
    fn stop(&self) -> Option<Arc<Mutex<Importing>>> {
        let background = self.background.lock().take()?;
        self.shared.stop();
        for thread in background.threads {
            // One that panicked has said so; there is nothing to add.
            drop(thread.join());
        }
        Some(background.importing)
    }
}

/// What a thread does.
type Work = Box<dyn FnOnce(&Arc<Shared>) + Send>;

/// Starts the threads.
fn start(
    importing: &Arc<Mutex<Importing>>,
    shared: &Arc<Shared>,
) -> Result<Vec<JoinHandle<()>>, StoreError> {
    let mut threads = Vec::new();
    let mut spawn = |name: &str, work: Work| {
        let own = Arc::clone(shared);
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || work(&own));
        let thread = thread.at("start a thread for", &shared.config.path);
        threads.push(thread.inspect_err(|_| shared.stop())?);
        Ok(())
    };
    let (with_time, urgent) = (Arc::clone(importing), Arc::clone(importing));
    spawn("bursar-import", Box::new(move |shared| importing::run(&with_time, shared)))?;
    spawn("bursar-urgent", Box::new(move |shared| importing::run_urgent(&urgent, shared)))?;
    if !shared.is_memory() {
        spawn("bursar-sync", Box::new(syncing::run))?;
    }
    Ok(threads)
}

impl Drop for Store {
    fn drop(&mut self) {
        // Whoever needs to know whether this worked calls `close` or `write`.
        drop(self.shared.log.write());
        self.shared.log.fail(StoreError::Closed);
        self.stop();
    }
}
