//! Accounts that go out of use: those that are idle, and those that somebody retires (R15).
//!
//! The name is free again, the history stays. Nobody charges on an account meanwhile: who is inside
//! keeps it, and who comes later opens it anew, with what the patterns give it. What it spent stays
//! spent in its ancestors, and late Commits on its reservations count there as well.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::account::Account;
use crate::error::LedgerError;
use crate::fact::{Fact, Journal};
use crate::ledger::{Ledger, Now};
use crate::slots::Slot;

/// Why an account stays.
type Need = &'static str;

impl<J: Journal> Ledger<J> {
    /// Takes an account out of use with its budgets, what it has spent, and its freeze. Refused while
    /// somebody uses it. No such account is what was asked for. Returns what must be durable.
    pub fn retire(&self, path: &str, now: Now) -> Result<u64, LedgerError> {
        let now_ms = self.time(now.wall_ms);
        let Some(account) = self.tree.find(path) else { return Ok(u64::MAX) };
        let retired = if self.keeps(&account) {
            Err("capacity of an expired reservation, whose owner may still use it")
        } else {
            // What came to be kept since is held, too.
            self.take_out(&account, now_ms, |account, _| holds(account))
        };
        retired.map_err(|why| LedgerError::AccountInUse { path: path.to_owned(), why })
    }

    /// Whether a reservation of the account has expired and still holds capacity (R9). Not under the
    /// lock of the tree, which is taken under those of the slots.
    fn keeps(&self, account: &Arc<Account>) -> bool {
        let keeps = |slot: &Slot| {
            let locked = slot.body.lock();
            let of_account = locked.as_ref().filter(|r| Arc::ptr_eq(&r.account, account));
            of_account.is_some_and(|r| !r.end.kept.is_zero())
        };
        self.slots.iter().any(keeps)
    }

    /// Retires accounts that patterns created, that nobody has used for long, and of which nothing has
    /// to be known: no child, no reservation, no freeze, nothing spent in a window that still runs
    /// (R15). Returns their paths.
    pub fn retire_idle(&self, now: Now) -> Vec<Arc<str>> {
        let now_ms = self.time(now.wall_ms);
        let idle = |account: &Arc<Account>| {
            // The chain is replaced at each rollover, so its presence says nothing of recent use.
            let used = account.open.load(Ordering::SeqCst) != 0;
            if used {
                account.last_used_ms.store(now_ms, Ordering::Relaxed);
            }
            let since_ms = now_ms - account.last_used_ms.load(Ordering::Relaxed);
            if !used && since_ms >= account.guard.policy.interval_ms {
                account.guard.forget();
            }
            !used && account.automatic && since_ms >= self.settings.account_idle_ms
        };
        let mut accounts: Vec<Arc<Account>> = {
            let pinned = self.tree.accounts.pin();
            pinned.values().filter(|account| idle(account)).cloned().collect()
        };
        // Children first: a branch that is idle as a whole retires at once.
        accounts.sort_by(|a, b| b.path.cmp(&a.path));
        accounts
            .into_iter()
            .filter(|account| self.take_out(account, now_ms, counts_something).is_ok())
            .map(|account| Arc::clone(&account.path))
            .collect()
    }

    /// Takes an account out of use unless it is needed, also by what `needed` knows of.
    fn take_out(
        &self,
        account: &Arc<Account>,
        now_ms: i64,
        needed: impl FnOnce(&Account, i64) -> Option<Need>,
    ) -> Result<u64, Need> {
        let _building = self.tree.building.lock();
        // SeqCst pairs with `enter`: it sees that we retire, or we see it inside.
        if account.retired.swap(true, Ordering::SeqCst) {
            return Ok(u64::MAX);
        }
        if let Some(why) = is_used(account).or_else(|| needed(account, now_ms)) {
            account.retired.store(false, Ordering::SeqCst);
            return Err(why);
        }
        let ticket = self.log(now_ms, || vec![Fact::AccountRetired { account: account.id }]);
        self.tree.accounts.pin().remove(&account.path);
        self.tree.chains.pin().remove(&account.path);
        account.count(-1);
        *account.chain.lock() = None;
        self.tree.set_frozen(account, false);
        Ok(ticket)
    }
}

fn is_used(account: &Account) -> Option<Need> {
    if account.children.load(Ordering::Relaxed) != 0 {
        return Some("accounts below it");
    }
    (account.open.load(Ordering::SeqCst) != 0).then_some("pending reservations")
}

/// Whether something is held in a window of its own.
fn holds(account: &Account) -> Option<Need> {
    let budgets = account.budgets.lock();
    let mut windows = budgets.iter().filter_map(|budget| budget.current());
    windows.any(|window| window.standing().held != 0).then_some("holds that have not ended")
}

/// Whether something would be forgotten with the account: a freeze, a limit that an operator set, or
/// spending in a window that still runs.
fn counts_something(account: &Account, now_ms: i64) -> Option<Need> {
    let counts = account.budgets.lock().iter().any(|budget| {
        let current = budget.current().filter(|window| now_ms < window.end_ms);
        let standing = current.map(|window| {
            window.roll(now_ms);
            window.standing()
        });
        budget.terms().manual || standing.is_some_and(|s| s.spent != 0 || s.held != 0)
    });
    let frozen = account.frozen.load(Ordering::Acquire);
    (counts || frozen).then_some("something to be known of it")
}
