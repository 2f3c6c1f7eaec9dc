//! What changed without a call of those whom it concerns: verdicts and ends.
//!
//! One value of this is shared by a ledger and its windows. It costs nothing while nothing changes: a
//! debit that crosses no threshold does not come here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use crate::channel::Channel;
use crate::fact::{ReservationId, State};

/// Hears of changes. Called under locks of the ledger: it must not call back, nor wait.
pub trait Observer: std::fmt::Debug + Send + Sync {
    /// A window's verdict or advice, a freeze or a limit changed.
    fn verdicts_changed(&self);
    /// A reservation that `channel` had claimed has ended.
    fn ended(&self, channel: Channel, id: ReservationId, state: State);
}

/// Counts the changes, and tells the observers.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    count: AtomicU64,
    /// Of those, the changes of limits.
    limits: AtomicU64,
    observers: RwLock<Vec<Arc<dyn Observer>>>,
}

impl Changes {
    /// Names one more who hears of them from now on.
    pub(crate) fn observe(&self, observer: Arc<dyn Observer>) {
        self.observers.write().push(observer);
    }

    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    #[inline]
    pub(crate) fn limits(&self) -> u64 {
        self.limits.load(Ordering::Acquire)
    }

    /// A limit changed; called after it did.
    pub(crate) fn limit(&self) {
        // Release pairs with `limits`: whoever sees the new count sees the new limit.
        self.limits.fetch_add(1, Ordering::Release);
        self.verdicts();
    }

    /// Verdicts changed; called after they did.
    #[cold]
    pub(crate) fn verdicts(&self) {
        // Release pairs with `count`: whoever sees the new count sees the new verdict.
        self.count.fetch_add(1, Ordering::Release);
        self.observers.read().iter().for_each(|observer| observer.verdicts_changed());
    }

    /// A claimed reservation has ended; called after it has.
    #[cold]
    pub(crate) fn ended(&self, channel: Channel, id: ReservationId, state: State) {
        self.count.fetch_add(1, Ordering::Release);
        self.observers.read().iter().for_each(|observer| observer.ended(channel, id, state));
    }
}
