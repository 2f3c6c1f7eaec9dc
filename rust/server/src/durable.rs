//! Waiting until what was answered cannot be lost, at the least cost.
//!
//! Calls append their facts to a batch in memory. A call that comes to wait goes to the back of its
//! thread's queue once; the first whose turn comes again writes the whole batch with one `write(2)`,
//! and the others find their part written. With nobody else ready, that is its turn at once. Nobody is
//! woken from another thread on this path.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use bursar_ledger::Journal;
use bursar_ledger::fact::Record;
use bursar_store::Store;
use tokio::sync::watch;

use crate::config::Durability;
use crate::error::ApiError;

/// Where the ledger's facts go.
#[derive(Debug, Clone)]
pub(crate) struct StoreJournal(pub(crate) Option<Arc<Store>>);

impl Journal for StoreJournal {
    fn append(&self, record: impl FnOnce() -> Record) -> u64 {
        self.0.as_ref().map_or(0, |store| store.append(&record()))
    }
}

/// Waits for tickets of the journal.
#[derive(Debug)]
pub(crate) struct Durable {
    store: Option<Arc<Store>>,
    durability: Durability,
    synced: watch::Receiver<u64>,
}

impl Durable {
    pub(crate) fn new(store: Option<Arc<Store>>, durability: Durability) -> Durable {
        let (sender, synced) = watch::channel(0);
        if let Some(store) = store.as_ref().filter(|_| durability == Durability::Power) {
            let sender = Arc::new(sender);
            let tell = move |sender: &watch::Sender<u64>, sequence: u64| {
                sender.send_modify(|reached| *reached = sequence.max(*reached));
            };
            let listener = Arc::clone(&sender);
            store.on_synced(Box::new(move |sequence| tell(&listener, sequence)));
            // What recovery found is on the disk, and nobody tells of it again.
            tell(&sender, store.synced());
        }
        Durable { store, durability, synced }
    }

    /// Whether the store still takes writes.
    pub(crate) fn check(&self) -> Result<(), ApiError> {
        match self.store.as_ref().and_then(|store| store.failure()) {
            Some(failure) => Err(failure.into()),
            None => Ok(()),
        }
    }

    /// Waits until the facts up to `ticket` are as durable as the configuration asks for. 0: nothing
    /// to wait for; `u64::MAX`: everything so far.
    pub(crate) async fn wait(&self, ticket: u64) -> Result<(), ApiError> {
        let Some(store) = self.store.as_ref().filter(|_| ticket != 0) else { return Ok(()) };
        if store.written() < ticket {
            yield_once().await;
        }
        if store.written() < ticket {
            store.write()?;
        }
        if self.durability == Durability::Power {
            let ticket = ticket.min(store.written());
            let mut synced = self.synced.clone();
            store.request_sync();
            let reached = synced.wait_for(|synced| *synced >= ticket || store.failure().is_some());
            let _reached = reached.await;
        }
        self.check()
    }

    /// Up to which ticket everything is as durable as the configuration asks for, as far as is known
    /// without waiting.
    pub(crate) fn reached(&self) -> u64 {
        let Some(store) = &self.store else { return u64::MAX };
        // A failure is kept by the store, and every call asks for it.
        let _written = store.write();
        if self.durability == Durability::Power {
            store.request_sync();
            return *self.synced.borrow();
        }
        store.written()
    }

    /// The same, blocking.
    pub(crate) fn wait_blocking(&self, ticket: u64) -> Result<(), ApiError> {
        let Some(store) = self.store.as_ref().filter(|_| ticket != 0) else { return Ok(()) };
        store.write()?;
        if self.durability == Durability::Power {
            store.request_sync();
            store.wait_synced(ticket.min(store.written()))?;
        }
        self.check()
    }
}

/// Goes to the back of the runtime's queue once.
pub(crate) async fn yield_once() {
    let mut yielded = false;
    poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
