//! What the ledger tells the store: facts about what has happened, in order.
//!
//! A fact states a result, never a request: replaying it applies the result and does not admit
//! again, and applying it a second time changes nothing. The operation that causes a fact hands it
//! to the [`Journal`] before anybody can see its effect, so the order in the journal is a valid
//! order. The variants are serialised: append only.

use serde::{Deserialize, Serialize};

use crate::period::Period;
use crate::rates::Rate;
use crate::runaway::{Action, Finding};
use crate::unit::{Amounts, Unit};
use crate::verdict::Threshold;

/// Names an account for good; never reused.
pub type AccountId = u32;
/// Names a budget (account, unit, period) for good; ascending ids are the order of charging.
pub type BudgetId = u32;
/// Names one window: one budget in one period.
pub type WindowId = u64;
/// Names one chain: the windows that a charge on an account counted in at one moment.
pub type ChainId = u64;

/// Names a reservation: `sequence` is never reused, `slot` is where the ledger finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ReservationId {
    /// Rises with every reservation of this store.
    pub sequence: u64,
    /// The slot that holds it in memory; reused after its end.
    pub slot: u32,
}

/// The process that reserved, as the kernel knows it: one process for good, since a pid is used again
/// only with another start time or after another boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Its pid, as the host sees it.
    pub pid: u32,
    /// When it started, in clock ticks since the boot.
    pub start_ticks: u64,
    /// A hash of the boot's id.
    pub boot: u64,
    /// Its user.
    pub uid: u32,
}

/// Where a reservation is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum State {
    /// It holds amounts.
    Pending,
    /// It ended with its true amounts.
    Committed,
    /// It ended at what was debited, by its owner's wish.
    Released,
    /// It ended at what was debited, by its time to live.
    Expired,
}

/// A part of a reservation's hold and the chain that admitted it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SliceFact {
    /// The windows that admitted it.
    pub chain: ChainId,
    /// What it holds, the spent part included.
    pub held: Amounts,
    /// What was spent of it; zero while pending.
    pub spent: Amounts,
}

/// A reservation was admitted, or (with no slices, followed by `Settled`) recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reserved {
    /// Its name.
    pub id: ReservationId,
    /// The account it holds on.
    pub account: AccountId,
    /// Hash of account and idempotency key; 0: none.
    pub key: u128,
    /// Hash of the request as sent.
    pub payload: u128,
    /// The hold.
    pub slices: Vec<SliceFact>,
    /// The output tokens granted, for one made from usage.
    pub max_output_tokens: i64,
    /// Time to live in milliseconds.
    pub ttl_ms: i64,
    /// The reservation it was carved from.
    pub parent: Option<ReservationId>,
    /// The rates fixed for it.
    pub rate: Option<Rate>,
    /// Names for the history, `model` among them.
    pub labels: Vec<(String, String)>,
    /// Who reserved, where the socket tells.
    pub owner: Option<Owner>,
}

/// A reservation ended, or (late) its end was corrected upwards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settled {
    /// Its name.
    pub id: ReservationId,
    /// The account it was on.
    pub account: AccountId,
    /// How it ended.
    pub state: State,
    /// Hash of the Commit as sent; 0: none.
    pub payload: u128,
    /// What the hold came to, slice by slice; empty when the hold was gone before.
    pub slices: Vec<SliceFact>,
    /// What was spent beyond the hold, and the chain current then. Negative in a late correction: given
    /// back where it was spent. (In `Remembered`: in all.)
    pub beyond: Option<(ChainId, Amounts)>,
    /// What passed the limit in this settlement, per unit. (In `Remembered`: in all.)
    pub overdraft: Amounts,
    /// All that was spent, earlier settlements included.
    pub spent: Amounts,
    /// What went back in this settlement: to the windows, or to the parent while it is pending. (In
    /// `Remembered`: in all.)
    pub returned: Amounts,
    /// Capacity that stays held after expiry, until the owner is known to be gone.
    pub kept: Amounts,
    /// The model, for the history.
    pub model: Option<String>,
}

impl Settled {
    /// What was held in all; for the settlements of a reservation taken together, as in `Remembered`.
    pub fn granted(&self) -> Amounts {
        let beyond = self.beyond.as_ref().map_or(Amounts::ZERO, |(_, amounts)| *amounts);
        let parts =
            self.spent.checked_add(&self.returned).and_then(|sum| sum.checked_add(&self.kept));
        parts.and_then(|sum| sum.checked_sub(&beyond)).unwrap_or(self.spent)
    }
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fact {
    /// An account came to be.
    AccountOpened {
        /// Its name.
        account: AccountId,
        /// Its path.
        path: String,
        /// Whether the configuration's patterns created it (and may let it retire).
        automatic: bool,
    },
    /// An account went out of use, with its budgets and its freeze; its history stays.
    AccountRetired {
        /// Its name.
        account: AccountId,
    },
    /// A budget was created or changed.
    BudgetSet {
        /// Its name.
        budget: BudgetId,
        /// The account it belongs to.
        account: AccountId,
        /// What it counts.
        unit: Unit,
        /// When it starts anew.
        period: Period,
        /// The hard limit.
        limit: i64,
        /// The thresholds, ascending.
        thresholds: Vec<Threshold>,
        /// Whether an operator set it (and the configuration's patterns no longer decide).
        manual: bool,
    },
    /// A budget's next window began.
    WindowOpened {
        /// Its name.
        window: WindowId,
        /// The budget it belongs to.
        budget: BudgetId,
        /// Its first millisecond (Unix time).
        start_ms: i64,
        /// The first millisecond after it; `i64::MAX` when it never ends.
        end_ms: i64,
    },
    /// The windows that charges on an account count in from now on.
    ChainOpened {
        /// Its name.
        chain: ChainId,
        /// The account.
        account: AccountId,
        /// The windows in the order of charging.
        windows: Vec<WindowId>,
        /// For a nested reservation: the chain of the parent's hold, and the units it covers (bit
        /// per unit index). Its windows count too, for those units.
        base: Option<(ChainId, u8)>,
    },
    /// See [`Reserved`].
    Reserved(Reserved),
    /// A pending reservation's hold or time to live changed: the whole new state.
    Resliced {
        /// Its name.
        id: ReservationId,
        /// The account it holds on.
        account: AccountId,
        /// The whole hold.
        slices: Vec<SliceFact>,
        /// Its time to live in milliseconds.
        ttl_ms: i64,
        /// What was added since the fact before (a top-up), for the history.
        added: Amounts,
    },
    /// What pending reservations have debited so far: the floor for their settlement.
    Used(Vec<(ReservationId, Amounts)>),
    /// See [`Settled`].
    Settled(Settled),
    /// An account was frozen or unfrozen.
    Frozen {
        /// The account.
        account: AccountId,
        /// Whether it is frozen now.
        frozen: bool,
        /// Why.
        reason: String,
    },
    /// A threshold of a window was crossed, or all of its limit spent.
    Crossed {
        /// The window.
        window: WindowId,
        /// The share of the limit in thousandths.
        permille: u16,
    },
    /// For restoring only: where a window stood. Never written to the log.
    WindowStood {
        /// The window.
        window: WindowId,
        /// What settled reservations spent in it.
        spent: i64,
        /// The shares (thousandths) whose crossing was reported.
        fired: Vec<u16>,
        /// For a rolling window: (start of the bucket in ms, spent in it).
        buckets: Vec<(i64, i64)>,
    },
    /// For restoring only: an ended reservation that is still remembered. Never written to the log.
    Remembered {
        /// As it was reserved; its slices are empty.
        reserved: Box<Reserved>,
        /// As it was settled.
        settled: Box<Settled>,
        /// When it began (Unix ms).
        created_ms: i64,
        /// When it ended (Unix ms).
        ended_ms: i64,
    },
    /// An account was found to have run away.
    Runaway {
        /// The account.
        account: AccountId,
        /// By which rule, and the figures.
        finding: Finding,
        /// What followed.
        action: Action,
    },
    /// A Commit said whether the work of its reservation succeeded.
    Judged {
        /// The reservation.
        id: ReservationId,
        /// The account it was on.
        account: AccountId,
        /// Whether it did.
        success: bool,
    },
    /// An operator changed something; what that was is a fact of its own, except for who asked.
    Operated {
        /// The account.
        account: AccountId,
        /// Who, and what, for people.
        detail: String,
    },
}

/// What happened in one operation, at one time: a record of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The ledger's time in Unix milliseconds.
    pub time_ms: i64,
    /// The facts, in order.
    pub facts: Vec<Fact>,
}

/// Where facts go. Called under the ledger's own locks: it must be quick and must not call back.
pub trait Journal: Send + Sync + 'static {
    /// Takes a record and returns its sequence, by which the caller can wait until it is durable.
    /// With no store, returns 0 without calling `record`.
    fn append(&self, record: impl FnOnce() -> Record) -> u64;
}

/// Forgets everything: a ledger without a store.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoJournal;

impl Journal for NoJournal {
    #[inline]
    fn append(&self, _record: impl FnOnce() -> Record) -> u64 {
        0
    }
}
