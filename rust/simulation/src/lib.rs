//! For tests only: one seed drives clients, ledger, store, clock and disk on one thread.
//!
//! What runs is what ships: the ledger, the store with its log, SQLite. The simulation stands for the
//! rest of the world. `run` plays a seed; `call` is what clients do, `daemon` what answers them,
//! `disk`, `plan` and `power_cut` what happens to files, `vfs` and `log_files` how SQLite and the log
//! come to that disk; `oracle`, `answers` and `history` say whether all is well.
//!
//! A seed that fails prints itself and plays again alike:
//! `cargo run -p bursar-simulation -- --seed N`.
//! There is `unsafe` in `vfs`, which says why; no shipped crate depends on this one.

mod answers;
pub mod call;
pub mod daemon;
pub mod disk;
mod history;
pub mod log_files;
pub mod oracle;
pub mod plan;
mod power_cut;
pub mod random;
pub mod run;
pub mod totals;
pub mod vfs;
