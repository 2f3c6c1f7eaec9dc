//! Leases, the daemon's side: one thread that hands them out, counts them, and ends them.
//!
//! `desk` owns the thread, the lease socket and who is at its other ends; `pump` counts what is
//! debited on the pages, every few milliseconds; `shared` is a lease's pages as the ledger sees
//! them.

mod desk;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod pump;
mod shared;

pub(crate) use desk::{Desk, Figures};
