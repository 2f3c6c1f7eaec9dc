//! Limits, freezing, and readings for people (R10, R15).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;

use crate::account::Account;
use crate::budget::{Budget, BudgetInfo, BudgetTerms};
use crate::error::LedgerError;
use crate::fact::{AccountId, Fact, Journal, ReservationId, State};
use crate::ledger::{Balance, BudgetSpec, Ledger, Now, View, body, view};
use crate::path;
use crate::period::Period;
use crate::rates::Rate;
use crate::slots::Slot;
use crate::tree::{NextIds, Opening, budget_fact, check_budget};
use crate::unit::Unit;
use crate::verdict::Verdict;

/// The most thresholds of one budget.
pub const MAX_THRESHOLDS: usize = 4;

/// An account as it is.
#[derive(Debug, Clone)]
pub struct AccountView {
    /// Its path.
    pub path: Arc<str>,
    /// Whether it was frozen itself.
    pub frozen: bool,
    /// Whether it or an ancestor is frozen.
    pub stopped: bool,
    /// Why it was frozen.
    pub freeze_reason: String,
    /// The verdict of its own and its ancestors' windows.
    pub verdict: Verdict,
    /// Its own windows.
    pub balances: Vec<Balance>,
    /// Its own budgets.
    pub budgets: Vec<BudgetSpec>,
    /// Pending reservations on it or below.
    pub open_reservations: i64,
    /// Unix milliseconds.
    pub created_ms: i64,
}

/// A budget whose limit is an operator's, and another than that of the configuration.
#[derive(Debug, Clone)]
pub struct Overruled {
    /// Which.
    pub budget: Arc<BudgetInfo>,
    /// Its limit, which counts.
    pub limit: i64,
    /// What the configuration says.
    pub configured: i64,
}

impl<J: Journal> Ledger<J> {
    /// The limit of an account's budget.
    pub fn limit(&self, path: &str, unit: Unit, period: &Period) -> Option<i64> {
        let budget = find_budget(self.tree.find(path)?.as_ref(), unit, period)?;
        Some(budget.terms().limit)
    }

    /// Sets limit and thresholds at once; creates account and budget where they are missing. Never
    /// touches what is held or spent.
    pub fn set_budget(
        &self,
        path: &str,
        spec: BudgetSpec,
        now: Now,
    ) -> Result<(Balance, u64), LedgerError> {
        let BudgetSpec { unit, period, terms } = spec;
        check_budget(unit, &period, terms.limit)?;
        let now_ms = self.time(now.wall_ms);
        let (account, mut next) = self.account_to_change(path, Opening::ByOperator, now_ms)?;
        let (budget, ticket) = if let Some(budget) = find_budget(&account, unit, &period) {
            let ticket = self.change_terms(&budget, terms, now_ms)?;
            (budget, ticket)
        } else {
            let budget = self.add_budget(&mut next, &account, unit, period, terms, now_ms)?;
            self.tree.version.fetch_add(1, Ordering::AcqRel);
            (budget, u64::MAX)
        };
        let window = self.window(&budget, now_ms);
        let standing = window.standing();
        Ok((Balance { window, standing }, ticket))
    }

    /// The account, created if need be, and the lock under which it does not retire.
    fn account_to_change(
        &self,
        path: &str,
        opening: Opening,
        now_ms: i64,
    ) -> Result<(Arc<Account>, MutexGuard<'_, NextIds>), LedgerError> {
        loop {
            let account = match self.tree.find(path) {
                Some(account) => account,
                None => self.open_account(path, now_ms, opening)?,
            };
            let next = self.tree.building.lock();
            if !account.retired.load(Ordering::SeqCst) {
                return Ok((account, next));
            }
        }
    }

    fn change_terms(
        &self,
        budget: &Budget,
        terms: BudgetTerms,
        now_ms: i64,
    ) -> Result<u64, LedgerError> {
        // The limit of a window that has ended no longer matters to anybody.
        if budget.current().is_some() {
            self.window(budget, now_ms);
        }
        let mut ticket = 0;
        let changed = budget.set_terms(terms, |info, terms| {
            ticket = self.log(now_ms, || vec![budget_fact(info, terms)]);
        });
        let (window, crossed) = changed.map_err(|_| LedgerError::Overflow)?;
        if let Some(window) = window.filter(|_| !crossed.is_empty()) {
            ticket = self.log_crossed(now_ms, &window, &crossed);
        }
        Ok(ticket)
    }

    /// Stops an account and everything below it, or lets it go on. Returns what must be durable.
    pub fn set_frozen(
        &self,
        path: &str,
        frozen: bool,
        reason: &str,
        now: Now,
    ) -> Result<u64, LedgerError> {
        let now_ms = self.time(now.wall_ms);
        let (account, _next) = self.account_to_change(path, Opening::ByUse, now_ms)?;
        Ok(self.mark_frozen(&account, frozen, reason, now_ms))
    }

    /// As above, for an account that cannot retire meanwhile.
    pub(crate) fn mark_frozen(
        &self,
        account: &Arc<Account>,
        frozen: bool,
        reason: &str,
        now_ms: i64,
    ) -> u64 {
        let mut kept_reason = account.freeze_reason.lock();
        if account.frozen.load(Ordering::Acquire) == frozen {
            return u64::MAX;
        }
        let ticket = self.log(now_ms, || {
            vec![Fact::Frozen { account: account.id, frozen, reason: reason.to_owned() }]
        });
        reason.clone_into(&mut kept_reason);
        self.tree.set_frozen(account, frozen);
        self.changes.verdicts();
        ticket
    }

    /// The id of an account.
    pub fn account_id(&self, path: &str) -> Option<AccountId> {
        self.tree.find(path).map(|account| account.id)
    }

    /// The accounts that a change at `path` is told to: the nearest that exists at or above it, else
    /// all that have none above them.
    pub fn nearest(&self, path: &str) -> Vec<AccountId> {
        let mut above = Some(path);
        while let Some(path) = above {
            if let Some(id) = self.account_id(path) {
                return vec![id];
            }
            above = path.rsplit_once('/').map(|(parent, _)| parent);
        }
        let pinned = self.tree.accounts.pin();
        let roots = pinned.values().filter(|account| !account.path.contains('/'));
        roots.map(|account| account.id).collect()
    }

    /// Notes for the history who changed what. Returns what must be durable.
    pub fn note_operated(&self, account: AccountId, detail: String, now: Now) -> u64 {
        let now_ms = self.time(now.wall_ms);
        self.log(now_ms, || vec![Fact::Operated { account, detail }])
    }

    /// One account.
    pub fn account(&self, path: &str, now: Now) -> Result<AccountView, LedgerError> {
        let now_ms = self.time(now.wall_ms);
        let missing = || LedgerError::AccountNotFound { path: path.to_owned() };
        let account = self.tree.find(path).ok_or_else(missing)?;
        let open = self.open_below(path);
        Ok(self.account_view(&account, open, now_ms))
    }

    /// The accounts at or below `path` (empty: all) after the path `after`, in order, at most `limit`.
    pub fn accounts(
        &self,
        path: &str,
        after: Option<&str>,
        limit: usize,
        now: Now,
    ) -> Vec<AccountView> {
        let now_ms = self.time(now.wall_ms);
        let mut found = self.below(path);
        found.sort_by(|a, b| a.path.cmp(&b.path));
        let start = after.map_or(0, |after| found.partition_point(|a| &*a.path <= after));
        let open = self.open_counts();
        let count = |account: &Account| open.get(&account.path).copied().unwrap_or(0);
        let page = found[start..].iter().take(limit);
        page.map(|account| self.account_view(account, count(account), now_ms)).collect()
    }

    fn below(&self, path: &str) -> Vec<Arc<Account>> {
        let pinned = self.tree.accounts.pin();
        let within =
            |account: &&Arc<Account>| path.is_empty() || path::is_within(&account.path, path);
        pinned.values().filter(within).cloned().collect()
    }

    pub(crate) fn open_below(&self, path: &str) -> i64 {
        self.below(path).iter().map(|account| account.open.load(Ordering::Relaxed)).sum()
    }

    /// Pending reservations on or below every account.
    fn open_counts(&self) -> HashMap<Arc<str>, i64> {
        let mut counts = HashMap::new();
        for account in self.tree.accounts.pin().values() {
            let open = account.open.load(Ordering::Relaxed);
            for ancestor in account.lineage().filter(|_| open != 0) {
                *counts.entry(Arc::clone(&ancestor.path)).or_insert(0) += open;
            }
        }
        counts
    }

    fn account_view(&self, account: &Arc<Account>, open: i64, now_ms: i64) -> AccountView {
        let budgets: Vec<Arc<Budget>> = account.budgets.lock().clone();
        let balance = |budget: &Arc<Budget>| {
            let window = self.window(budget, now_ms);
            window.roll(now_ms);
            Balance { standing: window.standing(), window }
        };
        let spec = |budget: &Arc<Budget>| BudgetSpec {
            unit: budget.info.unit,
            period: budget.info.period.clone(),
            terms: budget.terms(),
        };
        let stopped = account.frozen_by().is_some();
        let verdict = self.own_chain(account, now_ms).verdict();
        AccountView {
            path: Arc::clone(&account.path),
            frozen: account.frozen.load(Ordering::Acquire),
            stopped,
            freeze_reason: account.freeze_reason.lock().clone(),
            verdict: if stopped { Verdict::Stop } else { verdict },
            balances: budgets.iter().map(balance).collect(),
            budgets: budgets.iter().map(spec).collect(),
            open_reservations: open,
            created_ms: account.created_ms,
        }
    }

    /// One reservation.
    pub fn reservation(&self, id: ReservationId, now: Now) -> Result<View, LedgerError> {
        let mut locked = self.slot(id)?.body.lock();
        Ok(view(body(&mut locked, id)?, now.mono_ms))
    }

    /// Whose a reservation is, and what its label of that name says.
    pub fn account_and_label(
        &self,
        id: ReservationId,
        name: &str,
    ) -> Result<(Arc<str>, Option<String>), LedgerError> {
        let mut locked = self.slot(id)?.body.lock();
        let reservation = body(&mut locked, id)?;
        let label = reservation.label(name).map(str::to_owned);
        Ok((Arc::clone(&reservation.account.path), label))
    }

    /// The pending reservations that have a label of that name, and what it says.
    pub fn pending_labelled(&self, name: &str) -> Vec<(ReservationId, String)> {
        let labelled = |slot: &Slot| {
            let locked = slot.body.lock();
            let pending = locked.as_ref().filter(|found| found.state == State::Pending)?;
            Some((pending.id, pending.label(name)?.to_owned()))
        };
        self.slots.iter().filter_map(labelled).collect()
    }

    /// The prices fixed for a reservation, and the usage that it was granted for.
    pub fn rate(&self, id: ReservationId) -> Result<Option<Arc<Rate>>, LedgerError> {
        let mut locked = self.slot(id)?.body.lock();
        Ok(body(&mut locked, id)?.rate.clone())
    }

    /// Creates the accounts that the configuration names outright, and brings the budgets of accounts
    /// that exist up to the patterns, where no operator has set them since: returns what differs there.
    /// Tells of what was crossed before and is not told of yet.
    pub fn configure(&self, now: Now) -> Result<Vec<Overruled>, LedgerError> {
        let now_ms = self.time(now.wall_ms);
        let mut overruled = Vec::new();
        let literal: Vec<String> = self
            .settings
            .patterns
            .iter()
            .filter(|p| p.pattern.is_literal())
            .map(|p| p.pattern.as_str().to_owned())
            .collect();
        for path in literal.iter().filter(|path| self.tree.find(path).is_none()) {
            self.open_account(path, now_ms, Opening::ByUse)?;
        }
        for account in self.below("") {
            for (unit, period, terms) in self.pattern_budgets(&account.path) {
                let mut next = self.tree.building.lock();
                if let Some(budget) = find_budget(&account, unit, &period) {
                    let present = budget.terms();
                    if present.manual && present.limit != terms.limit {
                        let (limit, configured) = (present.limit, terms.limit);
                        let budget = Arc::clone(&budget.info);
                        overruled.push(Overruled { budget, limit, configured });
                    } else if !present.manual && present != terms {
                        self.change_terms(&budget, terms, now_ms)?;
                    }
                } else {
                    self.add_budget(&mut next, &account, unit, period, terms, now_ms)?;
                    self.tree.version.fetch_add(1, Ordering::AcqRel);
                }
            }
            let budgets = account.budgets.lock();
            let windows: Vec<_> = budgets.iter().filter_map(|budget| budget.current()).collect();
            drop(budgets);
            self.report_crossings(now_ms, &windows);
        }
        Ok(overruled)
    }
}

fn find_budget(account: &Account, unit: Unit, period: &Period) -> Option<Arc<Budget>> {
    let budgets = account.budgets.lock();
    budgets.iter().find(|b| b.info.unit == unit && b.info.period == *period).cloned()
}
