//! For tests only: the ledger as the design states it, for one thread, with plain lists and no
//! cleverness.
//!
//! The ledger's own tests compare it operation by operation; the simulation also over crashes. Knows
//! no store: what a restart does to time and to what nobody wrote down is in `restart`.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "the words are the design's")]
#![allow(clippy::result_unit_err, reason = "that it is an error is all that the model says")]
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

mod ends;
mod plain;
mod restart;

pub use plain::{Budget, No, Piece, Plain, Reservation, UNITS, Window};
