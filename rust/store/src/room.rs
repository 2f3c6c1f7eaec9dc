//! How much the store can still take before its disk is full.
//!
//! A store that cannot write has failed for good, so whoever lets it grow looks here first. What is in
//! the log and not yet in the database is counted as if it were, with its rows and indices.

use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;

use rusqlite::Connection;

use crate::error::{Doing, StoreError};
use crate::shared::Shared;

/// What a byte of the log takes in the database, indices and the WAL included: more than it ever does.
const ROWS_FACTOR: u64 = 4;
/// A floor is no more than this part of the disk: small disks are used as well.
const DISK_PART: u64 = 16;

/// The room of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// The bytes that its disk has, and those of them that are free.
    pub disk_bytes: u64,
    /// See `disk_bytes`.
    pub free_bytes: u64,
    /// The bytes of the database that hold nothing.
    pub spare_bytes: u64,
    /// The bytes of the log that the database does not have yet.
    pub backlog_bytes: u64,
}

impl Room {
    pub(crate) fn of(shared: &Shared) -> io::Result<Room> {
        let folder = shared.config.path.parent().filter(|folder| *folder != Path::new(""));
        let disk = rustix::fs::statvfs(folder.unwrap_or(Path::new(".")))?;
        Ok(Room {
            disk_bytes: disk.f_blocks.saturating_mul(disk.f_frsize),
            free_bytes: disk.f_bavail.saturating_mul(disk.f_frsize),
            spare_bytes: shared.spare_bytes.load(Ordering::Relaxed),
            backlog_bytes: shared.backlog(),
        })
    }

    /// Whether less than this is left; of a small disk, a sixteenth. Half of it has to be outside the
    /// database: the log needs it as well.
    pub fn is_below(&self, floor_bytes: u64) -> bool {
        let floor = floor_bytes.min(self.disk_bytes / DISK_PART);
        let rows = self.backlog_bytes.saturating_mul(ROWS_FACTOR);
        let left = self.free_bytes.saturating_add(self.spare_bytes).saturating_sub(rows);
        left < floor || self.free_bytes < floor / 2
    }
}

/// The bytes of the database that hold nothing.
pub(crate) fn spare_bytes(conn: &Connection) -> Result<u64, StoreError> {
    let pragma = |name| conn.pragma_query_value(None, name, |row| row.get::<_, u64>(0));
    let bytes = pragma("freelist_count").and_then(|pages| Ok(pages * pragma("page_size")?));
    bytes.doing("look how much of the database is empty")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_deleted_makes_room_and_what_waits_in_the_log_takes_it() {
        let (floor, disk_bytes) = (1_000, 1 << 20);
        let room = |free_bytes, spare_bytes, backlog_bytes| {
            Room { disk_bytes, free_bytes, spare_bytes, backlog_bytes }.is_below(floor)
        };
        assert!(!room(1_000, 0, 0));
        assert!(room(999, 0, 0));
        assert!(!room(500, 500, 0), "rows go where others were");
        assert!(room(499, 1 << 30, 0), "and the log does not");
        assert!(!room(1_400, 0, 100));
        assert!(room(1_400, 0, 101));
        let small = Room { disk_bytes: 1_600, free_bytes: 100, spare_bytes: 0, backlog_bytes: 0 };
        assert!(!small.is_below(floor) && !small.is_below(0));
        assert!(Room { free_bytes: 99, ..small }.is_below(floor));
    }
}
