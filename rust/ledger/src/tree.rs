//! The tree of accounts: finding them, creating them on first use, building their chains.
//!
//! Finding is lock-free. Creating accounts, adding budgets and rebuilding chains take one lock, off
//! the path of admission: once per account, once per period.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::account::{Account, Chain, MAX_BUDGETS, any_rolls, paced_units};
use crate::budget::{Budget, BudgetInfo, BudgetTerms};
use crate::error::LedgerError;
use crate::fact::{AccountId, BudgetId, Fact, Journal};
use crate::ledger::Ledger;
use crate::path;
use crate::period::{Calendar, Period, PeriodKind};
use crate::unit::Unit;
use crate::window::Window;

type ByPath<T> = papaya::HashMap<Arc<str>, Arc<T>, foldhash::fast::RandomState>;

/// Why an account comes to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opening {
    /// It is used for the first time: a pattern must allow it, and it may retire.
    ByUse,
    /// An operator names it: it stays.
    ByOperator,
    /// It has retired, and somebody still has to do with it: it may retire again.
    Again,
}

/// All accounts by path.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) accounts: ByPath<Account>,
    /// The newest chain of each account that has one, so that a charge looks up only once.
    pub(crate) chains: ByPath<Chain>,
    /// Held to change the tree; what it guards are the next ids.
    pub(crate) building: Mutex<NextIds>,
    /// Rises when a chain that exists has to be rebuilt.
    pub(crate) version: AtomicU64,
    /// How many accounts are frozen, or about to be: while it is 0, nobody has to walk up the tree.
    freezes: AtomicUsize,
}

#[derive(Debug)]
pub(crate) struct NextIds {
    pub(crate) account: AccountId,
    pub(crate) budget: BudgetId,
}

impl Tree {
    pub(crate) fn new() -> Tree {
        Tree {
            accounts: ByPath::with_hasher(foldhash::fast::RandomState::default()),
            chains: ByPath::with_hasher(foldhash::fast::RandomState::default()),
            building: Mutex::new(NextIds { account: 1, budget: 1 }),
            version: AtomicU64::new(0),
            freezes: AtomicUsize::new(0),
        }
    }

    /// Freezes an account or lifts that.
    pub(crate) fn set_frozen(&self, account: &Account, frozen: bool) {
        // Counted before it can be seen and until it can be seen no more, so that `frozen_by` finds it
        // whenever a walk would.
        if frozen {
            self.freezes.fetch_add(1, Ordering::AcqRel);
        }
        if account.frozen.swap(frozen, Ordering::AcqRel) {
            self.freezes.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// The nearest frozen account on the way up.
    #[inline]
    pub(crate) fn frozen_by<'a>(&self, account: &'a Arc<Account>) -> Option<&'a Arc<Account>> {
        if self.freezes.load(Ordering::Acquire) == 0 { None } else { account.frozen_by() }
    }

    pub(crate) fn find(&self, path: &str) -> Option<Arc<Account>> {
        self.accounts.pin().get(path).cloned()
    }
}

impl<J: Journal> Ledger<J> {
    /// The current chain of an account, its windows rolled to `now_ms`; creates the account if a
    /// pattern allows it.
    pub(crate) fn chain(&self, path: &str, now_ms: i64) -> Result<Arc<Chain>, LedgerError> {
        let current = |chain: &&Arc<Chain>| self.is_current(chain, now_ms);
        let found = self.tree.chains.pin().get(path).filter(current).cloned();
        if let Some(chain) = found {
            chain.roll(now_ms);
            return Ok(chain);
        }
        let account = match self.tree.find(path) {
            Some(account) => account,
            None => self.open_account(path, now_ms, Opening::ByUse)?,
        };
        Ok(self.rebuild_chain(&account, now_ms))
    }

    /// The current chain of an account that is at hand, as above; of its successor when it has retired.
    pub(crate) fn chain_of(&self, account: &Arc<Account>, now_ms: i64) -> Arc<Chain> {
        if account.retired.load(Ordering::SeqCst)
            && let Ok(successor) = self.open_account(&account.path, now_ms, Opening::Again)
            && !Arc::ptr_eq(account, &successor)
        {
            return self.chain_of(&successor, now_ms);
        }
        self.own_chain(account, now_ms)
    }

    /// The current chain of an account, which nobody opens anew for that.
    pub(crate) fn own_chain(&self, account: &Arc<Account>, now_ms: i64) -> Arc<Chain> {
        let newest = account.chain.lock().clone();
        match newest {
            Some(chain) if self.is_current(&chain, now_ms) => {
                chain.roll(now_ms);
                chain
            }
            _ => self.rebuild_chain(account, now_ms),
        }
    }

    /// Whether a chain that no other is below is the one that charges on its account count in now.
    pub(crate) fn is_in_use(&self, account: &Account, chain: &Chain, now_ms: i64) -> bool {
        self.is_current(chain, now_ms) && !account.retired.load(Ordering::SeqCst)
    }

    #[inline]
    fn is_current(&self, chain: &Chain, now_ms: i64) -> bool {
        now_ms < chain.valid_until_ms
            && chain.tree_version == self.tree.version.load(Ordering::Acquire)
    }

    fn rebuild_chain(&self, account: &Arc<Account>, now_ms: i64) -> Arc<Chain> {
        let _building = self.tree.building.lock();
        let present = account.chain.lock().clone();
        if let Some(chain) = present.as_ref().filter(|chain| self.is_current(chain, now_ms)) {
            return Arc::clone(chain);
        }
        let tree_version = self.tree.version.load(Ordering::Acquire);
        let mut windows: Vec<Arc<Window>> = Vec::new();
        for owner in account.lineage() {
            let budgets = owner.budgets.lock();
            windows.extend(budgets.iter().map(|budget| self.window(budget, now_ms)));
        }
        windows.sort_by_key(|window| window.budget.id);
        // The same windows again (a budget was added elsewhere) are the same chain by name: top-ups go
        // on in the slice that there is.
        let same = |chain: &&Arc<Chain>| {
            let names = chain.windows.iter().map(|window| window.id);
            names.eq(windows.iter().map(|window| window.id))
        };
        let chain = match present.as_ref().filter(same) {
            Some(present) => Arc::new(Chain {
                id: present.id,
                account: Arc::clone(account),
                rolls: present.rolls,
                paced: present.paced,
                windows: windows.into(),
                base: None,
                valid_until_ms: present.valid_until_ms,
                tree_version,
            }),
            None => self.new_chain(account, windows.into(), None, tree_version, now_ms),
        };
        *account.chain.lock() = Some(Arc::clone(&chain));
        // Under this lock it does not retire; one that has is not to be found any more.
        if !account.retired.load(Ordering::SeqCst) {
            self.tree.chains.pin().insert(Arc::clone(&account.path), Arc::clone(&chain));
        }
        chain.roll(now_ms);
        chain
    }

    /// The budget's window at `now_ms`, opened if need be.
    pub(crate) fn window(&self, budget: &Budget, now_ms: i64) -> Arc<Window> {
        budget.window(now_ms, |info, (start_ms, end_ms)| {
            let window = self.next_window.fetch_add(1, Ordering::Relaxed);
            self.log(now_ms, || {
                vec![Fact::WindowOpened { window, budget: info.id, start_ms, end_ms }]
            });
            window
        })
    }

    pub(crate) fn new_chain(
        &self,
        account: &Arc<Account>,
        windows: Box<[Arc<Window>]>,
        base: Option<(Arc<Chain>, u8)>,
        tree_version: u64,
        now_ms: i64,
    ) -> Arc<Chain> {
        let id = self.next_chain.fetch_add(1, Ordering::Relaxed);
        self.log(now_ms, || {
            vec![Fact::ChainOpened {
                chain: id,
                account: account.id,
                windows: windows.iter().map(|window| window.id).collect(),
                base: base.as_ref().map(|(base, units)| (base.id, *units)),
            }]
        });
        let valid_until_ms = windows.iter().map(|w| w.end_ms).min().unwrap_or(i64::MAX);
        let account = Arc::clone(account);
        Arc::new(Chain {
            id,
            account,
            rolls: any_rolls(&windows, base.as_ref()),
            paced: paced_units(&windows, base.as_ref()),
            windows,
            base,
            valid_until_ms,
            tree_version,
        })
    }

    /// Creates an account and its missing ancestors, with the budgets that the patterns give them.
    pub(crate) fn open_account(
        &self,
        path: &str,
        now_ms: i64,
        opening: Opening,
    ) -> Result<Arc<Account>, LedgerError> {
        if !path::is_valid(path) {
            let path = path.chars().take(80).collect();
            return Err(LedgerError::InvalidAccount { path });
        }
        let allowed = self.settings.patterns.iter().any(|p| p.pattern.matches(path));
        if opening == Opening::ByUse && !allowed {
            return Err(LedgerError::AccountNotFound { path: path.to_owned() });
        }
        let mut next = self.tree.building.lock();
        let missing: Vec<&str> = std::iter::successors(Some(path), |path| path::parent(path))
            .take_while(|path| self.tree.find(path).is_none())
            .collect();
        self.check_bounds(&missing)?;
        if opening == Opening::ByUse {
            self.check_share(&missing)?;
        }
        for path in missing.iter().rev() {
            self.create(&mut next, path, opening, now_ms)?;
        }
        Ok(self.tree.find(path).expect("created above, and only retired under this lock"))
    }

    fn check_bounds(&self, missing: &[&str]) -> Result<(), LedgerError> {
        let max = self.settings.max_accounts;
        if self.tree.accounts.len() + missing.len() > max {
            let what = "the number of accounts";
            return Err(LedgerError::AccountLimit { what, max });
        }
        let max = self.settings.max_children;
        let parent = missing.last().and_then(|path| path::parent(path));
        let parent = parent.and_then(|path| self.tree.find(path));
        let children = parent.map_or(0, |parent| parent.children.load(Ordering::Relaxed));
        if usize::try_from(children).is_ok_and(|children| children >= max) && !missing.is_empty() {
            let what = "the accounts below one parent";
            return Err(LedgerError::AccountLimit { what, max });
        }
        for path in missing {
            let budgets = self.pattern_budgets(path);
            if budgets.len() > MAX_BUDGETS {
                return Err(too_many_budgets());
            }
            for (unit, period, terms) in &budgets {
                check_budget(*unit, period, terms.limit)?;
            }
        }
        Ok(())
    }

    /// Leaves half of the accounts to others than are below one account below a root. What operators
    /// open is not asked about.
    fn check_share(&self, missing: &[&str]) -> Result<(), LedgerError> {
        let max = self.settings.max_accounts / 2;
        let parent = missing.last().and_then(|path| path::parent(path));
        let parent = parent.and_then(|path| self.tree.find(path));
        let shared =
            parent.as_ref().and_then(|it| it.lineage().filter(|it| it.parent.is_some()).last());
        let below = shared.map_or(0, |shared| shared.below.load(Ordering::Relaxed));
        if usize::try_from(below).is_ok_and(|below| shared.is_some() && below + missing.len() > max)
        {
            let what = "the number of accounts below one account below a root";
            return Err(LedgerError::AccountLimit { what, max });
        }
        Ok(())
    }

    fn create(
        &self,
        next: &mut NextIds,
        path: &str,
        opening: Opening,
        now_ms: i64,
    ) -> Result<(), LedgerError> {
        let automatic = opening != Opening::ByOperator;
        let parent = path::parent(path).and_then(|path| self.tree.find(path));
        let id = next.account;
        next.account += 1;
        let policy = self.settings.policy(path);
        let account = Arc::new(Account::new(id, path, parent, automatic, policy, now_ms));
        self.log(now_ms, || {
            vec![Fact::AccountOpened { account: id, path: path.to_owned(), automatic }]
        });
        for spec in self.pattern_budgets(path) {
            self.add_budget(next, &account, spec.0, spec.1, spec.2, now_ms)?;
        }
        account.count(1);
        self.tree.accounts.pin().insert(Arc::clone(&account.path), account);
        Ok(())
    }

    /// The budgets that the patterns give to a path; the first pattern with a unit and period wins.
    pub(crate) fn pattern_budgets(&self, path: &str) -> Vec<(Unit, Period, BudgetTerms)> {
        let mut specs: Vec<(Unit, Period, BudgetTerms)> = Vec::new();
        for pattern in self.settings.patterns.iter().filter(|p| p.pattern.matches(path)) {
            for spec in &pattern.budgets {
                if !specs.iter().any(|s| s.0 == spec.unit && s.1 == spec.period) {
                    specs.push((spec.unit, spec.period.clone(), spec.terms.clone()));
                }
            }
        }
        specs
    }

    /// Adds a budget to an account that nobody sees yet, or (followed by a new tree version) to one
    /// that is in use.
    pub(crate) fn add_budget(
        &self,
        next: &mut NextIds,
        account: &Account,
        unit: Unit,
        period: Period,
        terms: BudgetTerms,
        now_ms: i64,
    ) -> Result<Arc<Budget>, LedgerError> {
        let calendar = check_budget(unit, &period, terms.limit)?;
        let mut budgets = account.budgets.lock();
        if budgets.len() >= MAX_BUDGETS {
            return Err(too_many_budgets());
        }
        let id = next.budget;
        next.budget += 1;
        let path = Arc::clone(&account.path);
        let info = BudgetInfo { id, account: account.id, path, unit, period };
        self.log(now_ms, || vec![budget_fact(&info, &terms)]);
        let budget = Arc::new(Budget::new(info, calendar, terms, &self.changes));
        budgets.push(Arc::clone(&budget));
        Ok(budget)
    }
}

fn too_many_budgets() -> LedgerError {
    let (what, max) = ("the budgets of one account", MAX_BUDGETS);
    LedgerError::AccountLimit { what, max }
}

/// Refuses a budget that cannot be.
pub(crate) fn check_budget(
    unit: Unit,
    period: &Period,
    limit: i64,
) -> Result<Calendar, LedgerError> {
    let invalid = |why| Err(LedgerError::InvalidAmount { unit, why });
    if limit < 0 {
        return invalid("a limit is negative");
    }
    if unit.is_capacity() && period.kind != PeriodKind::Total {
        return invalid("a capacity has no period: write \"total\"");
    }
    Ok(Calendar::new(period)?)
}

/// A budget as a fact.
pub(crate) fn budget_fact(info: &BudgetInfo, terms: &BudgetTerms) -> Fact {
    Fact::BudgetSet {
        budget: info.id,
        account: info.account,
        unit: info.unit,
        period: info.period.clone(),
        limit: terms.limit,
        thresholds: terms.thresholds.to_vec(),
        manual: terms.manual,
    }
}
