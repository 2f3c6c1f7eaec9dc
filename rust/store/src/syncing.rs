//! The sync thread: brings what is written to the disk, and says how far.
//!
//! One fdatasync covers whatever was written before it, so waiters share it. A failed one is final:
//! the system may have dropped the pages, and a second call would claim success.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bursar_ledger::canary;

use crate::error::StoreError;
use crate::frame::Synced;
use crate::log::Segment;
use crate::shared::{Alive, Shared};

/// Runs until the store is stopped. Not in memory durability.
pub(crate) fn run(shared: &Arc<Shared>) {
    let _alive = Alive::new(shared, "sync");
    let interval = Duration::from_millis(shared.config.sync_interval_ms.max(1));
    let mut told_failure = false;
    while !shared.await_sync(interval).stop {
        step(shared, &mut told_failure);
    }
}

/// Syncs once, and tells of it; of a failure only the first time.
pub(crate) fn step(shared: &Shared, told_failure: &mut bool) {
    // Records that no call waits for reach the log here.
    let done = shared.log.write().and_then(|()| sync(shared));
    match done {
        Ok(false) => {}
        Ok(true) => shared.tell(),
        Err(failure) => {
            shared.fail(failure);
            if !std::mem::replace(told_failure, true) {
                shared.tell();
            }
        }
    }
}

/// Syncs what is written. Returns whether that was more than before.
pub(crate) fn sync(shared: &Shared) -> Result<bool, StoreError> {
    let mark = shared.log.mark();
    if mark.seq == shared.synced.load(Ordering::Acquire) {
        return Ok(false);
    }
    let mut nexts = mark.segments.iter().skip(1);
    let ends = mark.segments.iter().map(|segment| match nexts.next() {
        Some(next) => (segment, segment.written.load(Ordering::Acquire), next.header.first - 1),
        None => (segment, mark.offset, mark.seq),
    });
    let behind = |(segment, offset, _): &(&Arc<Segment>, u64, u64)| {
        segment.synced.load(Ordering::Acquire) < *offset
    };
    let unsynced: Vec<_> = ends.filter(behind).collect();
    #[expect(clippy::disallowed_methods, reason = "how long it takes is told, and decides nothing")]
    let began = Instant::now();
    for (segment, ..) in &unsynced {
        segment.sync_data()?;
    }
    // A power cut may keep any of the names that are not on the disk. Before one is noted as synced
    // all are, and each has its header by then.
    let nameless = mark.segments.iter().any(|segment| !segment.durable.load(Ordering::Acquire));
    if nameless && !canary::sings("unsynced-name") {
        shared.log.files.sync_folder(shared.log.folder())?;
    }
    for (segment, offset, seq) in unsynced {
        segment.note_synced(Synced { offset, seq })?;
    }
    for segment in mark.segments.iter().filter(|_| nameless) {
        segment.durable.store(true, Ordering::Release);
    }
    shared.syncs.fetch_add(1, Ordering::Relaxed);
    let took_ns = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
    shared.sync_ns.fetch_add(took_ns, Ordering::Relaxed);
    // Release pairs with the import: what it reads up to here is on the disk.
    shared.synced.store(mark.seq, Ordering::Release);
    shared.ring();
    Ok(true)
}
