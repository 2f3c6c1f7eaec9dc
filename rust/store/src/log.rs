//! The log while the store is open: the pending batch, the segment that is written, the marks.
//!
//! Appending and writing are apart so that many calls share one write(2). `pending` is locked for
//! an encoding, `active` for a write; who takes both takes `active` first, so batches reach the
//! file in the order of their sequences. A write that fails is truncated away before `active` is
//! released: nobody ever appends behind a torn record. Syncing happens elsewhere (`sync`), on
//! handles taken from here.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bursar_ledger::fact::Record;
use parking_lot::Mutex;

use crate::error::StoreError;
use crate::files::{Files, LogFile, segment_path, write_all_at};
use crate::frame::{self, HEADER_BYTES, Header, MAX_RECORD_BYTES, SLOT_OFFSET, Synced};

/// A buffer that has grown beyond this is given back after the batch.
const KEEP_BUFFER_BYTES: usize = 1 << 20;

/// One file of the log.
pub(crate) struct Segment {
    pub(crate) path: PathBuf,
    pub(crate) header: Header,
    file: Box<dyn LogFile>,
    /// Up to here whole frames are written.
    pub(crate) written: AtomicU64,
    /// Up to here frames are known to be on the disk.
    pub(crate) synced: AtomicU64,
    /// Whether its name and header are known to be on the disk.
    pub(crate) durable: AtomicBool,
}

impl Segment {
    /// Makes the file of an empty segment.
    pub(crate) fn create(
        folder: &Path,
        header: Header,
        files: &Files,
    ) -> Result<Segment, StoreError> {
        let path = segment_path(folder, header.first);
        let written = (files.create)(&path).and_then(|file| {
            write_all_at(&*file, &header.encode(), 0)?;
            Ok(file)
        });
        let file = written.map_err(|error| StoreError::io("create the segment", &path, &error))?;
        let start = HEADER_BYTES as u64;
        let (written, synced) = (AtomicU64::new(start), AtomicU64::new(start));
        Ok(Segment { path, header, file, written, synced, durable: AtomicBool::new(false) })
    }

    /// Syncs it and notes in its header that it is synced up to `synced`.
    pub(crate) fn sync(&self, synced: Synced) -> Result<(), StoreError> {
        self.sync_data()?;
        self.note_synced(synced)
    }

    /// Returns once what was written is on the disk; says so to nobody.
    pub(crate) fn sync_data(&self) -> Result<(), StoreError> {
        self.file.sync_data().map_err(|error| self.unsynced(&error))
    }

    /// Notes in its header that it is synced up to `synced`.
    pub(crate) fn note_synced(&self, synced: Synced) -> Result<(), StoreError> {
        let noted = write_all_at(&*self.file, &self.header.slot(synced), SLOT_OFFSET);
        noted.map_err(|error| self.unsynced(&error))?;
        self.synced.store(synced.offset, Ordering::Release);
        Ok(())
    }

    fn unsynced(&self, error: &io::Error) -> StoreError {
        StoreError::Sync { path: self.path.clone(), reason: error.to_string() }
    }
}

/// What is appended and not yet written.
struct Pending {
    buf: Vec<u8>,
    /// The sequence of the next record.
    next: u64,
}

/// What is written to.
struct Active {
    /// From the oldest that is not wholly imported to the one that is written, which is the last.
    segments: Vec<Arc<Segment>>,
    /// The buffer that `pending` does not use.
    spare: Vec<u8>,
}

/// The log of an open store.
pub(crate) struct LogWriter {
    folder: PathBuf,
    store_id: u32,
    segment_bytes: u64,
    /// How its files are changed.
    pub(crate) files: Files,
    pending: Mutex<Pending>,
    active: Mutex<Active>,
    /// The last sequence that is written. Changed under `active`.
    written: AtomicU64,
    /// The bytes ever written, for the backlog.
    written_bytes: AtomicU64,
    failed: AtomicBool,
    failure: Mutex<Option<StoreError>>,
}

/// Where the log stands.
pub(crate) struct Mark {
    /// The last sequence that is written.
    pub(crate) seq: u64,
    /// The end of its frame in the last segment.
    pub(crate) offset: u64,
    /// All segments, oldest first.
    pub(crate) segments: Vec<Arc<Segment>>,
}

impl LogWriter {
    /// Starts behind `last` with an empty segment.
    pub(crate) fn new(
        first: Segment,
        folder: &Path,
        segment_bytes: u64,
        files: Files,
    ) -> LogWriter {
        let Header { store_id, first: next, version: _ } = first.header;
        LogWriter {
            folder: folder.to_owned(),
            store_id,
            segment_bytes,
            files,
            pending: Mutex::new(Pending { buf: Vec::new(), next }),
            active: Mutex::new(Active { segments: vec![Arc::new(first)], spare: Vec::new() }),
            written: AtomicU64::new(next - 1),
            written_bytes: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            failure: Mutex::new(None),
        }
    }

    /// Takes a record into the batch. A failed log gives out sequences and keeps nothing.
    #[inline]
    pub(crate) fn append(&self, record: &Record) -> u64 {
        let mut pending = self.pending.lock();
        let seq = pending.next;
        pending.next += 1;
        // Relaxed: what slips in after the failure is dropped by `write`.
        if self.failed.load(Ordering::Relaxed) {
            return seq;
        }
        if let Err(bytes) = frame::push(&mut pending.buf, seq, record) {
            // The ledger has moved on and the log cannot follow.
            self.fail(StoreError::TooLarge { bytes, max: MAX_RECORD_BYTES });
        }
        seq
    }

    /// Writes the batch. On return all that was appended before is written, or the log has failed.
    pub(crate) fn write(&self) -> Result<(), StoreError> {
        let mut active = self.active.lock();
        let mut batch = std::mem::take(&mut active.spare);
        let next = {
            let mut pending = self.pending.lock();
            std::mem::swap(&mut pending.buf, &mut batch);
            pending.next
        };
        let done = if self.failed.load(Ordering::Acquire) {
            Err(self.failure().unwrap_or(StoreError::Closed))
        } else if batch.is_empty() {
            Ok(())
        } else {
            self.write_batch(&mut active, &batch, next - 1)
        };
        batch.clear();
        if batch.capacity() <= KEEP_BUFFER_BYTES {
            active.spare = batch;
        }
        done
    }

    fn write_batch(&self, active: &mut Active, batch: &[u8], last: u64) -> Result<(), StoreError> {
        let segment = self.segment_for(active, batch.len() as u64)?;
        let start = segment.written.load(Ordering::Relaxed);
        if let Err(error) = write_all_at(&*segment.file, batch, start) {
            if segment.file.set_len(start).is_err() {
                // Part of a record may be in the file, and nobody may ever append behind it.
                std::process::abort();
            }
            let failure =
                StoreError::Append { path: segment.path.clone(), reason: error.to_string() };
            self.fail(failure.clone());
            return Err(failure);
        }
        // Release pairs with the reader of the mark: the frames are in the file before it moves.
        segment.written.store(start + batch.len() as u64, Ordering::Release);
        self.written.store(last, Ordering::Release);
        self.written_bytes.fetch_add(batch.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// The segment to write to: the last one, or a new one when that is full.
    fn segment_for(&self, active: &mut Active, bytes: u64) -> Result<Arc<Segment>, StoreError> {
        let last = active.segments.last().expect("there is always one");
        let written = last.written.load(Ordering::Relaxed);
        if written == HEADER_BYTES as u64 || written + bytes <= self.segment_bytes {
            return Ok(Arc::clone(last));
        }
        let first = self.written.load(Ordering::Relaxed) + 1;
        let header = Header::new(self.store_id, first);
        let made = Segment::create(&self.folder, header, &self.files);
        let made = Arc::new(made.inspect_err(|failure| self.fail(failure.clone()))?);
        active.segments.push(Arc::clone(&made));
        Ok(made)
    }

    /// What is written now.
    pub(crate) fn mark(&self) -> Mark {
        let active = self.active.lock();
        let seq = self.written.load(Ordering::Relaxed);
        let last = active.segments.last().expect("there is always one");
        let offset = last.written.load(Ordering::Relaxed);
        Mark { seq, offset, segments: active.segments.clone() }
    }

    /// Takes the segments off the list that hold nothing behind `applied`, and whose successor is
    /// durable: there is always a durable segment that says where the log goes on.
    pub(crate) fn retire(&self, applied: u64) -> Vec<Arc<Segment>> {
        let mut active = self.active.lock();
        let ends = |pair: &[Arc<Segment>]| {
            pair[1].header.first <= applied + 1 && pair[1].durable.load(Ordering::Acquire)
        };
        let count = active.segments.windows(2).take_while(|pair| ends(pair)).count();
        active.segments.drain(..count).collect()
    }

    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    pub(crate) fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Relaxed)
    }

    /// Fails for good; the first failure stays.
    pub(crate) fn fail(&self, failure: StoreError) {
        self.failure.lock().get_or_insert(failure);
        self.failed.store(true, Ordering::Release);
    }

    pub(crate) fn failure(&self) -> Option<StoreError> {
        if self.failed.load(Ordering::Acquire) { self.failure.lock().clone() } else { None }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }
}
