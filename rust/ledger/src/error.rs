//! What a call on the ledger may end with besides an answer. A call that fails changes nothing.

use crate::fact::State;
use crate::period::PeriodError;
use crate::unit::Unit;

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// The path is malformed.
    #[error(
        "invalid account {path:?}: write 1 to 16 names of letters, digits and \"._-\" (at most 64 \
         bytes each), joined by \"/\""
    )]
    InvalidAccount {
        /// The path as given, cut to a sensible length.
        path: String,
    },
    /// No such account, and no pattern that would create it.
    #[error(
        "no account {path:?}: it was not used yet, or no configured [[accounts]] path matches it"
    )]
    AccountNotFound {
        /// The path as given.
        path: String,
    },
    /// No such reservation.
    #[error("no such reservation: it never existed, or it is older than the retention")]
    ReservationNotFound,
    /// The reservation has ended.
    #[error("the reservation has ended ({0:?})")]
    ReservationEnded(State),
    /// Somebody else has claimed its debits.
    #[error("the reservation is debited through another channel (a lease or a Meter stream)")]
    ReservationLeased,
    /// The same key or Commit with another payload.
    #[error("this {0} was used before with another payload")]
    IdempotencyMismatch(&'static str),
    /// Somebody else asks for a lease.
    #[error(
        "the reservation was made by another process: a lease is for the process that reserved"
    )]
    NotTheOwner,
    /// A sum would pass the range of `i64`.
    #[error("the sum of amounts would pass 2^63 - 1")]
    Overflow,
    /// An amount that cannot be.
    #[error("invalid amount of {unit}: {why}", unit = .unit.name())]
    InvalidAmount {
        /// The unit.
        unit: Unit,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The account cannot retire.
    #[error("account {path:?} cannot retire: it has {why}")]
    AccountInUse {
        /// Its path.
        path: String,
        /// What it has.
        why: &'static str,
    },
    /// Too many accounts.
    #[error("{what} has reached its maximum of {max}")]
    AccountLimit {
        /// The bound that is reached.
        what: &'static str,
        /// Its value.
        max: usize,
    },
    /// Too many reservations, pending or remembered.
    #[error("the maximum of {max} reservations, pending or remembered for their keys, is reached")]
    ReservationLimit {
        /// The configured maximum.
        max: usize,
    },
    /// Nothing may be added to the store.
    #[error(
        "the store is nearly full: until its disk has room, holds are only ended or lowered; free \
         some, or keep entries for less long"
    )]
    StoreNearlyFull,
    /// A reservation has been topped up or carved from in too many periods.
    #[error("the reservation has reached its maximum of {max} slices: end it and reserve anew")]
    SliceLimit {
        /// The maximum.
        max: usize,
    },
    /// The parent is not above the nested reservation's account.
    #[error("the parent reservation's account {parent:?} is not {child:?} or above it")]
    ParentElsewhere {
        /// The parent's account.
        parent: String,
        /// The account that was asked for.
        child: String,
    },
    /// The period is not valid.
    #[error(transparent)]
    Period(#[from] PeriodError),
    /// Usage that cannot be priced.
    #[error(transparent)]
    Rate(#[from] crate::rates::RateError),
}
