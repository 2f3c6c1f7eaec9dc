//! The import: moves the log into SQLite and deletes what is moved.
//!
//! Two threads do it in turn. One has the lowest priority and all the time there is. The other has
//! that of everybody else and imports while somebody waits or the backlog grows, and cleans up while
//! that is late, since on a host whose cores are all busy the first one hardly runs, and to raise its
//! priority again takes a privilege. The log is read back from its files, which are in the page cache,
//! so that callers never wait.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bursar_ledger::fact::Record;
use parking_lot::Mutex;

use crate::error::{At, StoreError};
use crate::frame::{FRAME_BYTES, HEADER_BYTES, Synced, read_record};
use crate::guard::Present;
use crate::import::Importer;
use crate::log::Mark;
use crate::retention::Retention;
use crate::room::spare_bytes;
use crate::scan::{FrameReader, Next};
use crate::shared::{Alive, Shared};

/// How often the log is looked at when nobody asks.
const INTERVAL: Duration = Duration::from_millis(250);
/// The bounds of one transaction, for which the one thread may have to wait for the other.
const GROUP_RECORDS: usize = 1024;
const GROUP_BYTES: u64 = 2 << 20;
/// The nice value of who is out of everybody's way.
const LOW: i32 = 19;

/// Reads the log behind what is imported.
pub(crate) struct Importing {
    pub(crate) importer: Importer,
    retention: Retention,
    present: Option<Present>,
    /// The segment that is being read, by its first sequence.
    reader: Option<(u64, FrameReader)>,
    failed: bool,
}

/// The thread that has time: runs until the store is stopped.
pub(crate) fn run(importing: &Mutex<Importing>, shared: &Arc<Shared>) {
    let _alive = Alive::new(shared, "import");
    // Where it may not, it competes with everybody else.
    rustix::process::setpriority_process(None, LOW).ok();
    let mut interval = INTERVAL;
    while !shared.await_import(interval).stop {
        let mut importing = importing.lock();
        let has_time =
            || !shared.is_stopped() && !shared.is_import_urgent() && !shared.is_cleanup_urgent();
        importing.step(shared, has_time, has_time);
        let is_due = importing.retention.is_due(&importing.importer);
        let again = is_due && !importing.failed && has_time();
        interval = if again { Duration::ZERO } else { INTERVAL };
    }
}

/// The thread that hurries: the same.
pub(crate) fn run_urgent(importing: &Mutex<Importing>, shared: &Arc<Shared>) {
    let _alive = Alive::new(shared, "urgent import");
    while !shared.await_urgent(INTERVAL).stop {
        let drains = || !shared.is_stopped() && shared.is_import_urgent();
        let cleans = || !shared.is_stopped() && shared.is_cleanup_urgent();
        importing.lock().step(shared, drains, cleans);
    }
}

impl Importing {
    pub(crate) fn new(importer: Importer, shared: &Shared) -> Result<Importing, StoreError> {
        let present = if shared.log.files.named {
            Some(Present::of(&shared.config.path, shared.log.folder())?)
        } else {
            None
        };
        let retention = Retention::new(&shared.config, importer.time_ms);
        Ok(Importing { importer, retention, present, reader: None, failed: false })
    }

    /// Imports while it `drains`, and cleans up a little if it then `cleans`.
    pub(crate) fn step(
        &mut self,
        shared: &Shared,
        drains: impl Fn() -> bool,
        cleans: impl Fn() -> bool,
    ) {
        if shared.is_memory() && shared.log.write().is_err() {
            shared.ring();
        }
        if self.failed {
            return;
        }
        let there = self.present.as_ref().map_or(Ok(()), |present| present.check(shared));
        let done = there.and_then(|()| self.drain(shared, drains)).and_then(|()| {
            if cleans() {
                self.retention.step(&mut self.importer)?;
            }
            shared.cleanup_late.store(self.retention.is_late(&self.importer), Ordering::Relaxed);
            shared.spare_bytes.store(spare_bytes(&self.importer.conn)?, Ordering::Relaxed);
            Ok(())
        });
        match done {
            // Somebody looks at the database with a lock on it: the log waits.
            Err(failure) if failure.is_busy() => {}
            Err(failure) => {
                self.failed = true;
                shared.fail(failure);
            }
            Ok(()) => {}
        }
    }

    /// Imports while there is something and it may `go_on`.
    pub(crate) fn drain(
        &mut self,
        shared: &Shared,
        go_on: impl Fn() -> bool,
    ) -> Result<(), StoreError> {
        loop {
            let target = shared.importable();
            if self.importer.applied >= target || !go_on() {
                return Ok(());
            }
            let (records, bytes) = self.read(&shared.log.mark(), shared.is_memory(), target)?;
            // What was read is not kept: after a failure it is read again.
            self.importer.import(&records).inspect_err(|_| self.reader = None)?;
            shared.imported_bytes.fetch_add(bytes, Ordering::Relaxed);
            shared.imported.store(self.importer.applied, Ordering::Release);
            shared.ring();
            self.recycle(shared)?;
        }
    }

    /// The next group of records, and its bytes in the log.
    fn read(
        &mut self,
        mark: &Mark,
        written: bool,
        target: u64,
    ) -> Result<(Vec<(u64, Record)>, u64), StoreError> {
        let mut next = self.importer.applied + 1;
        let holds = |segment: &&Arc<crate::log::Segment>| segment.header.first <= next;
        let segment = mark.segments.iter().rev().find(holds).expect("kept until it is imported");
        let path = &segment.path;
        let first = segment.header.first;
        let open = self.reader.take().filter(|(reading, _)| *reading == first);
        let (mut seq, mut reader) = match open {
            Some((_, reader)) => (next, reader),
            None => (first, FrameReader::open(path, HEADER_BYTES as u64).at("read", path)?),
        };
        let end = if written { &segment.written } else { &segment.synced };
        reader.set_end(end.load(Ordering::Acquire));
        let (mut records, mut bytes) = (Vec::new(), 0);
        while next <= target && records.len() < GROUP_RECORDS && bytes < GROUP_BYTES {
            let bad = |reason: &str| StoreError::malformed(format!("log record {seq}"), reason);
            let payload = match reader.next(seq).at("read", path)? {
                Next::Frame(payload) => payload,
                Next::End if !records.is_empty() => break,
                Next::End => return Err(bad("it was written and is not there")),
                Next::Bad(reason) => return Err(bad(reason)),
            };
            if seq == next {
                bytes += (payload.len() + FRAME_BYTES) as u64;
                records.push((seq, read_record(payload).map_err(|reason| bad(&reason))?));
                next += 1;
            }
            seq += 1;
        }
        self.reader = Some((first, reader));
        Ok((records, bytes))
    }

    /// Deletes the segments that are wholly imported.
    fn recycle(&mut self, shared: &Shared) -> Result<(), StoreError> {
        if shared.is_memory() {
            // Nobody else syncs here. What says where the log goes on must outlive what came
            // before.
            for segment in shared.log.mark().segments {
                if !segment.durable.load(Ordering::Acquire) {
                    let (offset, seq) = (HEADER_BYTES as u64, segment.header.first - 1);
                    segment.sync(Synced { offset, seq })?;
                    shared.log.files.sync_folder(shared.log.folder())?;
                    segment.durable.store(true, Ordering::Release);
                }
            }
        }
        let old = shared.log.retire(self.importer.applied);
        let old = old.iter().map(|old| old.path.as_path());
        shared.log.files.remove_in_order(shared.log.folder(), old)
    }
}
