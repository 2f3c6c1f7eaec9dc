//! The whole ledger in figures, for those who look at it from time to time.
//!
//! Walks the tree and takes no lock for longer than it takes to read one budget; it opens no window
//! and logs nothing. Calls go on meanwhile, so the figures are of slightly different moments.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::account::Account;
use crate::budget::{Budget, BudgetInfo};
use crate::fact::Journal;
use crate::ledger::{Ledger, Now};
use crate::window::Standing;

/// The ledger in figures.
#[derive(Debug, Clone, Default)]
pub struct Survey {
    /// How many accounts there are.
    pub accounts: usize,
    /// How many of them are frozen themselves.
    pub frozen: usize,
    /// How many reservations are pending.
    pub pending: i64,
    /// How many reservations are kept: pending, or ended and remembered.
    pub kept: usize,
    /// How many leases have a top-up that may be taken back.
    pub topped_up: usize,
    /// The budgets of the accounts that have any, in the order of paths; of too many accounts those
    /// first that have spent all of a budget, then those nearest to the root.
    pub budgets: Vec<Surveyed>,
    /// How many accounts with budgets there are besides.
    pub left_out: usize,
}

/// One budget in its current period.
#[derive(Debug, Clone)]
pub struct Surveyed {
    /// Which.
    pub budget: Arc<BudgetInfo>,
    /// Its words.
    pub standing: Standing,
}

impl<J: Journal> Ledger<J> {
    /// The ledger as it is, with the budgets of at most `most` accounts.
    pub fn survey(&self, most: usize, now: Now) -> Survey {
        let now_ms = self.time(now.wall_ms);
        let mut survey = Survey {
            kept: self.slots.taken(),
            topped_up: self.topped_up.0.lock().len(),
            ..Survey::default()
        };
        let mut named: Vec<(usize, Arc<Account>)> = Vec::new();
        for account in self.tree.accounts.pin().values() {
            survey.accounts += 1;
            survey.frozen += usize::from(account.frozen.load(Ordering::Relaxed));
            survey.pending += account.open.load(Ordering::Relaxed);
            if !account.budgets.lock().is_empty() {
                named.push((account.lineage().count(), Arc::clone(account)));
            }
        }
        if named.len() > most {
            survey.left_out = named.len() - most;
            named.sort_by_cached_key(|(depth, account)| {
                (!is_spent(account, now_ms), *depth, Arc::clone(&account.path))
            });
            named.truncate(most);
        }
        named.sort_unstable_by(|(_, one), (_, two)| one.path.cmp(&two.path));
        for (_, account) in named {
            let budgets = account.budgets.lock().clone();
            let of = |budget: Arc<Budget>| Surveyed {
                budget: Arc::clone(&budget.info),
                standing: budget.standing(now_ms),
            };
            survey.budgets.extend(budgets.into_iter().map(of));
        }
        survey
    }
}

/// Whether all of a budget is spent.
fn is_spent(account: &Account, now_ms: i64) -> bool {
    let standings = |budget: &Arc<Budget>| budget.standing(now_ms);
    account.budgets.lock().iter().map(standings).any(|it| it.limit > 0 && it.spent >= it.limit)
}
