//! The ledger in front of the store, as the daemon and the embedded mode have them: a call is
//! answered once its facts are as durable as promised, a hold that cannot be made durable is undone,
//! and a store that has failed leaves only reading. No threads, no sockets, no clock.

use std::sync::Arc;

use bursar_ledger::fact::Record;
use bursar_ledger::{
    Admission, Ask, BudgetSpec, Debited, Ended, Ending, Extended, Granted, Journal, Ledger,
    LedgerError, Now, Replay, ReservationId, Settings, Spending, Standing, Wish,
};
use bursar_store::{Durability, Recovery, Store, StoreConfig, StoreError};
use parking_lot::Mutex;

use crate::call::{Call, TTL_MS};
use crate::log_files::LOG_FILES;

/// Takes what the store remembers.
type Apply<'a> = &'a mut dyn FnMut(&Record) -> Result<(), String>;

/// Where the facts go: the store, and a copy with its sequence.
#[derive(Debug, Clone, Default)]
pub struct Tape {
    store: Option<Arc<Store>>,
    told: Arc<Mutex<Vec<(u64, Record)>>>,
}

impl Journal for Tape {
    fn append(&self, record: impl FnOnce() -> Record) -> u64 {
        let Some(store) = &self.store else { return 0 };
        let record = record();
        let sequence = store.append(&record);
        self.told.lock().push((sequence, record));
        sequence
    }
}

impl Tape {
    /// What was told since the last time.
    pub fn take(&self) -> Vec<(u64, Record)> {
        std::mem::take(&mut self.told.lock())
    }

    fn last(&self) -> u64 {
        self.told.lock().last().map_or(0, |(sequence, _)| *sequence)
    }
}

/// The ledger and its store.
#[derive(Debug)]
pub struct Daemon {
    /// The ledger.
    pub ledger: Ledger<Tape>,
    /// The store.
    pub store: Arc<Store>,
}

/// What the ledger says to a call.
#[derive(Debug)]
#[expect(missing_docs, reason = "by the name of the call")]
pub enum Said {
    Reserve(Result<Admission<Granted>, LedgerError>),
    Debit(Result<Debited, LedgerError>),
    Extend(Result<Extended, LedgerError>),
    End(Result<Ended, LedgerError>),
    Record(Result<Ended, LedgerError>),
    Limit(Result<Standing, LedgerError>),
    Freeze(Result<u64, LedgerError>),
    OwnerGone(Result<u64, LedgerError>),
}

/// What becomes of a call.
#[derive(Debug)]
pub struct Called {
    /// The ledger's answer; `None`: the store had failed before.
    pub said: Option<Said>,
    /// What it told the store.
    pub told: Vec<(u64, Record)>,
    /// Up to which sequence everything is durable, now that it is answered; or why it is not.
    pub kept: Result<u64, StoreError>,
}

impl Daemon {
    /// Opens the store on the simulated disk, without threads, and recovers.
    pub fn open_stepped(
        config: StoreConfig,
        settings: Settings,
        now: Now,
    ) -> Result<(Daemon, Recovery), StoreError> {
        Daemon::recover(settings, now, |apply| {
            Store::open_stepped(config, now.wall_ms, LOG_FILES, apply)
        })
    }

    /// The same with its threads.
    pub fn open(
        config: StoreConfig,
        settings: Settings,
        now: Now,
    ) -> Result<(Daemon, Recovery), StoreError> {
        Daemon::recover(settings, now, |apply| {
            Store::open_with(config, now.wall_ms, LOG_FILES, apply)
        })
    }

    fn recover(
        settings: Settings,
        now: Now,
        open: impl FnOnce(Apply<'_>) -> Result<(Store, Recovery), StoreError>,
    ) -> Result<(Daemon, Recovery), StoreError> {
        let mut replay = Replay::new(settings, Tape::default(), now);
        let (store, recovery) =
            open(&mut |record| replay.apply(record).map_err(|error| error.to_string()))?;
        let store = Arc::new(store);
        let mut ledger = replay.finish(recovery.high_ids());
        let told = Arc::default();
        ledger.set_journal(Tape { store: Some(Arc::clone(&store)), told });
        Ok((Daemon { ledger, store }, recovery))
    }

    /// Answers a call, or fails it.
    pub fn call(&self, call: &Call, durability: Durability, now: Now) -> Called {
        if let Some(failure) = self.store.failure() {
            return Called { said: None, told: Vec::new(), kept: Err(failure) };
        }
        let (said, ticket, hold) = self.ask(call, now);
        let kept = self.wait(ticket, durability);
        let told = self.ledger.journal().take();
        if let (Err(_), Some(hold)) = (&kept, hold) {
            self.ledger.undo(hold, now);
            // The store has failed and keeps nothing of this.
            self.ledger.journal().take();
        }
        Called { said: Some(said), told, kept }
    }

    /// Waits until the facts up to `ticket` are durable, as the server does.
    fn wait(&self, ticket: u64, durability: Durability) -> Result<u64, StoreError> {
        if ticket == 0 {
            return Ok(0);
        }
        let last = self.ledger.journal().last();
        self.store.write()?;
        if durability == Durability::Power {
            self.store.wait_synced(ticket.min(self.store.written()))?;
        }
        self.store.failure().map_or(Ok(()), Err)?;
        Ok(ticket.min(last))
    }

    fn ask(&self, call: &Call, now: Now) -> (Said, u64, Option<ReservationId>) {
        let ledger = &self.ledger;
        let plain = |said, ticket| (said, ticket, None);
        match call {
            Call::Reserve { path, most, least, parent, key, payload } => {
                let wish = Wish::Amounts { most: *most, least: *least };
                let said = ledger.reserve(
                    Ask {
                        account: path,
                        wish,
                        ttl_ms: TTL_MS,
                        key: *key,
                        payload: *payload,
                        parent: *parent,
                        labels: Vec::new(),
                        owner: None,
                    },
                    now,
                );
                let Ok(Admission::Granted(granted)) = &said else {
                    return plain(Said::Reserve(said), 0);
                };
                // A repeat's hold is older than this call and not this call's to undo.
                let hold = Some(granted.view.id).filter(|_| granted.ticket != u64::MAX);
                let ticket = granted.ticket;
                (Said::Reserve(said), ticket, hold)
            }
            Call::Debit { id, used } => {
                let said = ledger.debit(*id, used, now);
                let ticket = said.as_ref().map_or(0, |debited| debited.ticket);
                plain(Said::Debit(said), ticket)
            }
            Call::Extend { id, most, least } => {
                let wish = Wish::Amounts { most: *most, least: *least };
                let said = ledger.extend(*id, Some(&wish), false, None, now);
                let ticket = said.as_ref().map_or(0, |extended| extended.ticket);
                plain(Said::Extend(said), ticket)
            }
            Call::Commit { id, actual, named, payload } => {
                let (actual, named, payload) = (*actual, *named, *payload);
                let ending = Ending::Commit { actual, named, payload, success: None };
                let said = ledger.end(*id, ending, now);
                let ticket = said.as_ref().map_or(0, |ended| ended.ticket);
                plain(Said::End(said), ticket)
            }
            Call::Release { id } => {
                let said = ledger.end(*id, Ending::Release, now);
                let ticket = said.as_ref().map_or(0, |ended| ended.ticket);
                plain(Said::End(said), ticket)
            }
            Call::Record { path, amounts, key, payload } => {
                let (account, amounts) = (*path, *amounts);
                let (key, payload, labels) = (*key, *payload, Vec::new());
                let said = ledger.record(Spending { account, amounts, key, payload, labels }, now);
                let ticket = said.as_ref().map_or(0, |ended| ended.ticket);
                plain(Said::Record(said), ticket)
            }
            Call::Limit { path, .. } => self.set_budget(path, call.spec(), now),
            Call::Freeze { path, frozen } => {
                let said = ledger.set_frozen(path, *frozen, "simulated", now);
                let ticket = *said.as_ref().unwrap_or(&0);
                plain(Said::Freeze(said), ticket)
            }
            Call::OwnerGone { id } => {
                let said = ledger.owner_gone(*id, now);
                let ticket = *said.as_ref().unwrap_or(&0);
                plain(Said::OwnerGone(said), ticket)
            }
        }
    }

    fn set_budget(
        &self,
        path: &str,
        spec: BudgetSpec,
        now: Now,
    ) -> (Said, u64, Option<ReservationId>) {
        let set = self.ledger.set_budget(path, spec, now);
        let ticket = set.as_ref().map_or(0, |(_, ticket)| *ticket);
        (Said::Limit(set.map(|(balance, _)| balance.standing)), ticket, None)
    }
}
