//! The ledger of Bursar: accounts, budgets, reservations.
//!
//! Pure: no I/O, no clock, no threads of its own; time is an argument, facts go to a [`Journal`].
//! Admission is lock-free: it compare-and-swaps one word per window (`window`). A reservation is
//! changed under a lock of its own that no other reservation shares (`slots`).
//!
//! The rules that the tests name (R1–R17) are stated in `sidecar/SPECIFICATION.md`.
#![forbid(unsafe_code)]

mod account;
mod admin;
mod budget;
#[doc(hidden)]
pub mod canary;
mod changes;
mod channel;
mod charge;
mod crowd;
mod debit;
mod error;
pub mod fact;
mod free;
mod guard;
mod keys;
mod late;
pub mod lease;
mod ledger;
mod leeway;
#[cfg(all(test, bursar_loom))]
mod loom_leeway;
#[cfg(all(test, bursar_loom))]
mod loom_pairs;
#[cfg(all(test, bursar_loom))]
mod loom_window;
mod nested;
mod open;
pub mod path;
mod period;
pub mod rates;
mod record;
mod replay;
mod reservation;
mod reserve;
mod restore;
mod retire;
pub mod rolling;
pub mod runaway;
mod settle;
mod slots;
mod spend;
mod survey;
mod sync;
mod tick;
mod tree;
mod unit;
mod verdict;
mod window;
mod wish;

pub use account::MAX_BUDGETS;
pub use admin::{AccountView, MAX_THRESHOLDS, Overruled};
pub use budget::{BudgetInfo, BudgetTerms};
pub use changes::Observer;
pub use channel::Channel;
pub use debit::{Debited, Extended};
pub use error::LedgerError;
pub use fact::{Journal, NoJournal, Owner, ReservationId, State};
pub use guard::Found;
pub use ledger::{
    AccountPattern, Balance, BudgetSpec, HighIds, Ledger, Now, Scope, Settings, View,
};
pub use open::{Debiting, Open};
pub use period::{Calendar, Period, PeriodError, PeriodKind, ROLLING_MS};
pub use record::Spending;
pub use replay::{Replay, ReplayError};
pub use reservation::MAX_SLICES;
pub use reserve::{Admission, Ask, Fits, Granted};
pub use settle::{Ended, Ending};
pub use survey::{Survey, Surveyed};
pub use tick::Ticked;
pub use unit::{Amounts, UNIT_COUNT, Unit};
pub use verdict::{Advice, Refusal, RefusalReason, Threshold, Verdict, marks};
pub use window::{Standing, Window};
pub use wish::{Wish, usage_amounts};
