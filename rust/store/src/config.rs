//! How a store is set up.

use std::path::PathBuf;

/// What an answered call survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Durability {
    /// The death of the process: written before it is answered, synced every few milliseconds.
    Process,
    /// A power cut: synced before it is answered.
    Power,
    /// The death of the process; nothing is ever synced in time. For tests and throw-away stores.
    Memory,
}

impl Durability {
    /// The name in the configuration and in the database.
    pub fn name(self) -> &'static str {
        match self {
            Durability::Process => "process",
            Durability::Power => "power",
            Durability::Memory => "memory",
        }
    }

    /// The durability of that name.
    pub fn parse(name: &str) -> Option<Durability> {
        let all = [Durability::Process, Durability::Power, Durability::Memory];
        all.into_iter().find(|durability| durability.name() == name)
    }
}

/// Where a store is and how it behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreConfig {
    /// The SQLite file; the log is in the folder of that name with `-log` behind it.
    pub path: PathBuf,
    /// What an answered call survives.
    pub durability: Durability,
    /// How long entries, ended reservations and closed windows are kept.
    pub entry_retention_ms: i64,
    /// How long an ended reservation is given back to the ledger after a restart.
    pub key_retention_ms: i64,
    /// The longest time from writing to syncing.
    pub sync_interval_ms: u64,
    /// A segment that has grown to this is followed by a new one.
    pub segment_bytes: u64,
    /// With more than this written and not yet in SQLite, writers are slowed down.
    pub max_backlog_bytes: u64,
}

impl StoreConfig {
    /// The usual settings for a store at `path`.
    pub fn new(path: impl Into<PathBuf>) -> StoreConfig {
        const DAY_MS: i64 = 86_400_000;
        StoreConfig {
            path: path.into(),
            durability: Durability::Process,
            entry_retention_ms: 90 * DAY_MS,
            key_retention_ms: DAY_MS,
            sync_interval_ms: 10,
            segment_bytes: 64 << 20,
            max_backlog_bytes: 256 << 20,
        }
    }

    /// How far back anything may still be asked for.
    pub(crate) fn keep_ms(&self) -> i64 {
        self.asked_ms().saturating_add(self.slack_ms())
    }

    /// How much longer it is kept: chains, windows and keys are in use for a moment after their end.
    pub(crate) fn slack_ms(&self) -> i64 {
        const LEAST_MS: i64 = 60_000;
        const MOST_MS: i64 = 3_600_000;
        self.asked_ms().clamp(LEAST_MS, MOST_MS)
    }

    fn asked_ms(&self) -> i64 {
        self.entry_retention_ms.max(self.key_retention_ms)
    }
}
