//! The store: a short append-only log in front of SQLite.
#![forbid(unsafe_code)]

mod config;
mod database;
mod entries;
mod error;
mod files;
mod frame;
mod import;
mod known;
mod log;
mod recovery;
mod reservations;
mod scan;

pub use config::{Durability, StoreConfig};
pub use entries::EntryKind;
pub use error::StoreError;
