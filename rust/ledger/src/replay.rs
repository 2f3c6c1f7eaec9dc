//! Recovery: the facts of the store, applied in order.
//!
//! A fact states a result. Applying it admits nothing, and applying it twice changes nothing. Runs on
//! one thread before the ledger is used. Accounts, budgets and windows are here, reservations in
//! `restore`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::account::{Account, Chain, any_rolls, paced_units};
use crate::budget::{Budget, BudgetInfo, BudgetTerms};
use crate::fact::{AccountId, BudgetId, ChainId, Fact, Journal, Record, Settled, WindowId};
use crate::ledger::{HighIds, Ledger, Now, Settings};
use crate::period::Calendar;
use crate::window::Window;

/// A fact that contradicts those before it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the store's facts contradict each other: {0}")]
pub struct ReplayError(String);

/// What is needed while facts are applied.
#[derive(Debug)]
pub struct Replay<J> {
    pub(crate) ledger: Ledger<J>,
    /// Retired ones included: facts about them may follow.
    accounts: HashMap<AccountId, Arc<Account>>,
    budgets: HashMap<BudgetId, Arc<Budget>>,
    windows: HashMap<WindowId, Arc<Window>>,
    chains: HashMap<ChainId, Arc<Chain>>,
    /// The slot of each reservation, by sequence.
    pub(crate) places: HashMap<u64, u32>,
    /// The last settlement of each reservation, by sequence.
    pub(crate) ends: HashMap<u64, Settled>,
    pub(crate) high: HighIds,
    pub(crate) mono_ms: i64,
    pub(crate) time_ms: i64,
}

pub(crate) fn missing(what: &str, id: impl std::fmt::Display) -> ReplayError {
    ReplayError(format!("{what} {id} is not known"))
}

impl<J: Journal> Replay<J> {
    /// Starts with an empty ledger. `now.mono_ms`: times to live start in full from here (R9).
    pub fn new(settings: Settings, journal: J, now: Now) -> Replay<J> {
        Replay {
            ledger: Ledger::new(settings, journal),
            accounts: HashMap::new(),
            budgets: HashMap::new(),
            windows: HashMap::new(),
            chains: HashMap::new(),
            places: HashMap::new(),
            ends: HashMap::new(),
            high: HighIds::default(),
            mono_ms: now.mono_ms,
            time_ms: 0,
        }
    }

    /// Applies one record.
    pub fn apply(&mut self, record: &Record) -> Result<(), ReplayError> {
        self.time_ms = self.ledger.time(record.time_ms);
        record.facts.iter().try_for_each(|fact| self.fact(fact))
    }

    /// The ledger as the facts left it. `high`: ids that were given out and may not be again.
    pub fn finish(mut self, high: HighIds) -> Ledger<J> {
        let high = HighIds {
            sequence: high.sequence.max(self.high.sequence),
            window: high.window.max(self.high.window),
            chain: high.chain.max(self.high.chain),
            budget: high.budget.max(self.high.budget),
            account: high.account.max(self.high.account),
        };
        let ledger = &mut self.ledger;
        *ledger.next_sequence.get_mut() = high.sequence + 1;
        *ledger.next_window.get_mut() = high.window + 1;
        *ledger.next_chain.get_mut() = high.chain + 1;
        let next = ledger.tree.building.get_mut();
        next.account = high.account + 1;
        next.budget = high.budget + 1;
        ledger.slots.settle_recovered();
        for window in self.windows.values() {
            window.recovered();
        }
        self.ledger
    }

    fn fact(&mut self, fact: &Fact) -> Result<(), ReplayError> {
        match fact {
            Fact::AccountOpened { account, path, automatic } => {
                self.open_account(*account, path, *automatic);
            }
            Fact::AccountRetired { account } => self.retire(*account),
            Fact::BudgetSet { .. } => self.set_budget(fact)?,
            Fact::WindowOpened { window, budget, start_ms, end_ms } => {
                self.high.window = self.high.window.max(*window);
                let budget = self.budgets.get(budget).ok_or_else(|| missing("budget", budget))?;
                if !self.windows.contains_key(window) {
                    let opened = budget.restore_window(*window, (*start_ms, *end_ms));
                    self.windows.insert(*window, opened);
                }
            }
            Fact::ChainOpened { chain, account, windows, base } => {
                self.open_chain(*chain, *account, windows, *base)?;
            }
            Fact::Reserved(reserved) => self.reserve(reserved)?,
            Fact::Resliced { id, slices, ttl_ms, .. } => self.reslice(*id, slices, *ttl_ms)?,
            Fact::Used(used) => used.iter().for_each(|(id, used)| self.used(*id, used)),
            Fact::Settled(settled) => self.settle(settled)?,
            Fact::Frozen { account, frozen, reason } => {
                let account = self.account(*account)?;
                self.ledger.tree.set_frozen(account, *frozen);
                reason.clone_into(&mut account.freeze_reason.lock());
            }
            Fact::Crossed { window, permille } => {
                self.window(*window)?.replay_crossed(*permille);
            }
            // What was found, and how work ended, is history.
            Fact::Runaway { .. } | Fact::Judged { .. } | Fact::Operated { .. } => {}
            Fact::WindowStood { window, spent, fired, buckets } => {
                self.window(*window)?.restore(*spent, fired, buckets);
            }
            Fact::Remembered { reserved, settled, created_ms, ended_ms } => {
                self.remember(reserved, settled, (*created_ms, *ended_ms))?;
            }
        }
        Ok(())
    }

    pub(crate) fn account(&self, id: AccountId) -> Result<&Arc<Account>, ReplayError> {
        self.accounts.get(&id).ok_or_else(|| missing("account", id))
    }

    fn window(&self, id: WindowId) -> Result<&Arc<Window>, ReplayError> {
        self.windows.get(&id).ok_or_else(|| missing("window", id))
    }

    fn open_account(&mut self, id: AccountId, path: &str, automatic: bool) {
        self.high.account = self.high.account.max(id);
        if self.accounts.contains_key(&id) {
            return;
        }
        let parent = crate::path::parent(path).and_then(|path| self.ledger.tree.find(path));
        let policy = self.ledger.settings.policy(path);
        let time_ms = self.time_ms;
        let account = Arc::new(Account::new(id, path, parent, automatic, policy, time_ms));
        account.count(1);
        let key = Arc::clone(&account.path);
        self.ledger.tree.accounts.pin().insert(key, Arc::clone(&account));
        self.accounts.insert(id, account);
    }

    fn retire(&mut self, id: AccountId) {
        let Some(account) = self.accounts.get(&id) else {
            return;
        };
        account.retired.store(true, Ordering::Release);
        self.ledger.tree.set_frozen(account, false);
        let accounts = self.ledger.tree.accounts.pin();
        let present = accounts.get(&account.path);
        if present.is_some_and(|present| Arc::ptr_eq(present, account)) {
            accounts.remove(&account.path);
            if let Some(parent) = &account.parent {
                parent.children.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    fn set_budget(&mut self, fact: &Fact) -> Result<(), ReplayError> {
        let Fact::BudgetSet { budget, account, unit, period, limit, thresholds, manual } = fact
        else {
            return Ok(());
        };
        self.high.budget = self.high.budget.max(*budget);
        let terms =
            BudgetTerms { limit: *limit, thresholds: thresholds.clone().into(), manual: *manual };
        if let Some(known) = self.budgets.get(budget) {
            known.replay_terms(terms);
            return Ok(());
        }
        let owner = Arc::clone(self.account(*account)?);
        let calendar = Calendar::new(period).map_err(|error| ReplayError(error.to_string()))?;
        let info = BudgetInfo {
            id: *budget,
            account: *account,
            path: Arc::clone(&owner.path),
            unit: *unit,
            period: period.clone(),
        };
        let made = Arc::new(Budget::new(info, calendar, terms, &self.ledger.changes));
        owner.budgets.lock().push(Arc::clone(&made));
        self.budgets.insert(*budget, made);
        Ok(())
    }

    fn open_chain(
        &mut self,
        id: ChainId,
        account: AccountId,
        windows: &[WindowId],
        base: Option<(ChainId, u8)>,
    ) -> Result<(), ReplayError> {
        self.high.chain = self.high.chain.max(id);
        if self.chains.contains_key(&id) {
            return Ok(());
        }
        let windows: Result<Vec<_>, _> =
            windows.iter().map(|window| self.window(*window).cloned()).collect();
        let windows: Box<[Arc<Window>]> = windows?.into();
        let base = match base {
            Some((base, units)) => Some((Arc::clone(self.chain(base)?), units)),
            None => None,
        };
        // The first call builds it anew, and by the same name as long as its windows are the same:
        // top-ups go on in the slice that there is.
        let account = Arc::clone(self.account(account)?);
        let chain = Arc::new(Chain {
            id,
            account: Arc::clone(&account),
            rolls: any_rolls(&windows, base.as_ref()),
            paced: paced_units(&windows, base.as_ref()),
            valid_until_ms: windows.iter().map(|window| window.end_ms).min().unwrap_or(i64::MAX),
            windows,
            base,
            tree_version: u64::MAX,
        });
        if chain.base.is_none() {
            *account.chain.lock() = Some(Arc::clone(&chain));
        }
        self.chains.insert(id, chain);
        Ok(())
    }

    pub(crate) fn chain(&self, id: ChainId) -> Result<&Arc<Chain>, ReplayError> {
        self.chains.get(&id).ok_or_else(|| missing("chain", id))
    }
}
