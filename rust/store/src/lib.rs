//! The store: a short append-only log in front of SQLite.
//!
//! The ledger's facts are appended to a log by the very thread that serves a call, one write(2) for
//! a batch of calls, and answered. Behind its back one thread syncs the log and another moves it
//! into SQLite, where it can be asked. After a crash the log is imported first, and the ledger is
//! told where things stood out of the database alone.
//!
//! Where to look: `log` and `frame` what is written and how; `recovery` what is done with what a
//! crash leaves; `import` how facts become rows, `schema.sql` what the rows mean; `restore` how
//! rows become facts again.
#![forbid(unsafe_code)]
#![allow(clippy::doc_markdown, reason = "SQLite is a name and not code")]

mod check;
mod config;
mod copy;
mod database;
mod diagnose;
mod entries;
mod error;
#[cfg(test)]
mod faults;
mod files;
mod frame;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod guard;
mod import;
mod importing;
mod known;
mod log;
mod migrations;
mod older;
mod open;
#[cfg(test)]
mod order;
#[cfg(test)]
mod power_cut;
mod reader;
mod recovery;
mod reservations;
mod restore;
mod retention;
mod room;
mod scan;
mod shared;
mod spending;
mod store;
mod syncing;

pub use check::{Mismatch, check_store};
pub use config::{Durability, StoreConfig};
pub use copy::{Copied, adopt_copy, copy_store};
pub use diagnose::{DatabaseReport, Diagnosis, diagnose};
pub use entries::EntryKind;
pub use error::StoreError;
pub use files::{Files, LogFile, parent};
pub use frame::{FORMAT_VERSION, MAX_RECORD_BYTES};
pub use open::Recovery;
pub use reader::{Cursor, EntryFilter, EntryRow, Reader};
pub use recovery::{Case, Database, Decision, Join, Log, Observed, decide};
pub use room::Room;
pub use scan::{Scan, SegmentFound, Spot};
pub use spending::Apart;
pub use store::{Figures, Store};
