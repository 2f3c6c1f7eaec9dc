//! Recovery: the facts of the store, applied in order.
//!
//! A fact states a result. Applying it admits nothing, and applying it twice changes nothing. Runs on
//! one thread before the ledger is used.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::account::{Account, Chain};
use crate::budget::{Budget, BudgetInfo, BudgetTerms};
use crate::fact::{
    AccountId, BudgetId, ChainId, Fact, Journal, Record, ReservationId, Reserved, Settled, SliceFact,
    State, WindowId,
};
use crate::ledger::{HighIds, Ledger, Now, Settings};
use crate::period::Calendar;
use crate::reservation::{End, Reservation, Slice, spend};
use crate::unit::{Amounts, Unit};
use crate::window::Window;

/// A fact that contradicts those before it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the store's facts contradict each other: {0}")]
pub struct ReplayError(String);

/// What is needed while facts are applied.
#[derive(Debug)]
pub struct Replay<J> {
    ledger: Ledger<J>,
    accounts: HashMap<AccountId, Arc<Account>>,
    budgets: HashMap<BudgetId, Arc<Budget>>,
    windows: HashMap<WindowId, Arc<Window>>,
    chains: HashMap<ChainId, Arc<Chain>>,
    places: HashMap<u64, u32>,
    high: HighIds,
    mono_ms: i64,
    time_ms: i64,
}

fn missing(what: &str, id: impl std::fmt::Display) -> ReplayError {
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
                account.frozen.store(*frozen, Ordering::Release);
                reason.clone_into(&mut account.freeze_reason.lock());
            }
            Fact::Crossed { window, permille } => {
                self.window(*window)?.replay_crossed(*permille);
            }
            Fact::WindowStood { window, spent, fired, buckets } => {
                self.window(*window)?.restore(*spent, fired, buckets);
            }
            Fact::Remembered { reserved, settled, ended_ms } => {
                self.remember(reserved, settled, *ended_ms)?;
            }
        }
        Ok(())
    }

    fn account(&self, id: AccountId) -> Result<&Arc<Account>, ReplayError> {
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
        let account = Arc::new(Account::new(id, path, parent, automatic, self.time_ms));
        if let Some(parent) = &account.parent {
            parent.children.fetch_add(1, Ordering::Relaxed);
        }
        let key = Arc::clone(&account.path);
        self.ledger.tree.accounts.pin().insert(key, Arc::clone(&account));
        self.accounts.insert(id, account);
    }

    fn retire(&mut self, id: AccountId) {
        let Some(account) = self.accounts.remove(&id) else { return };
        self.ledger.tree.accounts.pin().remove(&account.path);
        if let Some(parent) = &account.parent {
            parent.children.fetch_sub(1, Ordering::Relaxed);
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
            let changed = known.set_terms(terms, |_, _| {});
            return changed.map(|_| ()).map_err(|_| ReplayError("a limit overflows".into()));
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
        let made = Arc::new(Budget::new(info, calendar, terms));
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
        // A chain of the past is never current again: the first call builds a new one.
        let account = Arc::clone(self.account(account)?);
        let chain = Chain { id, account, windows, base, valid_until_ms: 0, tree_version: 0 };
        self.chains.insert(id, Arc::new(chain));
        Ok(())
    }

    fn chain(&self, id: ChainId) -> Result<&Arc<Chain>, ReplayError> {
        self.chains.get(&id).ok_or_else(|| missing("chain", id))
    }

    fn slices(&self, facts: &[SliceFact]) -> Result<Vec<Slice>, ReplayError> {
        let slice = |fact: &SliceFact| {
            let chain = Arc::clone(self.chain(fact.chain)?);
            Ok(Slice { chain, held: fact.held, used: Amounts::ZERO })
        };
        facts.iter().map(slice).collect()
    }

    fn reserve(&mut self, reserved: &Reserved) -> Result<(), ReplayError> {
        if self.places.contains_key(&reserved.id.sequence) {
            return Ok(());
        }
        let slices = self.slices(&reserved.slices)?;
        for slice in &slices {
            hold(slice);
        }
        let mut reservation = self.blank(reserved)?;
        reservation.slices = slices.into();
        reservation.granted = reservation.held();
        reservation.account.open.fetch_add(1, Ordering::Relaxed);
        self.place(reservation, self.mono_ms.saturating_add(reserved.ttl_ms));
        Ok(())
    }

    fn blank(&self, reserved: &Reserved) -> Result<Reservation, ReplayError> {
        Ok(Reservation {
            id: reserved.id,
            state: State::Pending,
            account: Arc::clone(self.account(reserved.account)?),
            slices: smallvec::SmallVec::new(),
            used: Amounts::ZERO,
            debited: false,
            granted: Amounts::ZERO,
            max_output_tokens: reserved.max_output_tokens,
            created_ms: self.time_ms,
            ttl_ms: reserved.ttl_ms,
            deadline_ms: i64::MAX,
            key: reserved.key,
            payload: reserved.payload,
            parent: reserved.parent,
            rate: reserved.rate.clone().map(Arc::new),
            labels: reserved.labels.clone(),
            end: End::default(),
        })
    }

    fn place(&mut self, mut reservation: Reservation, deadline_ms: i64) {
        let id = reservation.id;
        self.high.sequence = self.high.sequence.max(id.sequence);
        self.places.insert(id.sequence, id.slot);
        self.ledger.slots.take_at(id.slot);
        if reservation.state == State::Pending {
            reservation.deadline_ms = deadline_ms;
        }
        if reservation.key != 0 {
            self.ledger.keys.shard(reservation.key).insert(reservation.key, id);
        }
        let slot = self.ledger.slots.get(id.slot).expect("taken above");
        let evicted = slot.body.lock().replace(reservation);
        // The slot was reused, so the one before it was forgotten before this one was made.
        if let Some(old) = evicted.filter(|old| old.id != id) {
            let mut shard = self.ledger.keys.shard(old.key);
            if shard.get(&old.key) == Some(&old.id) {
                shard.remove(&old.key);
            }
        }
        self.ledger.slots.set_deadline(id.slot, deadline_ms);
    }

    /// Changes the reservation in its slot, if it is there.
    fn with<T>(&self, id: ReservationId, f: impl FnOnce(&mut Reservation) -> T) -> Option<T> {
        let mut locked = self.ledger.slots.get(id.slot)?.body.lock();
        locked.as_mut().filter(|reservation| reservation.id == id).map(f)
    }

    fn reslice(
        &mut self,
        id: ReservationId,
        facts: &[SliceFact],
        ttl_ms: i64,
    ) -> Result<(), ReplayError> {
        let slices = self.slices(facts)?;
        let (mono_ms, time_ms) = (self.mono_ms, self.time_ms);
        self.with(id, |reservation| {
            if reservation.state != State::Pending {
                return;
            }
            let used = reservation.used;
            unhold(reservation, time_ms);
            slices.iter().for_each(hold);
            reservation.slices = slices.into();
            reservation.granted = reservation.held();
            reservation.ttl_ms = ttl_ms;
            reservation.deadline_ms = mono_ms.saturating_add(ttl_ms);
            for (unit, to) in used.iter() {
                reservation.debit(unit, to, time_ms, &mut |_| {});
            }
            reservation.debited = false;
        });
        self.ledger.slots.set_deadline(id.slot, mono_ms.saturating_add(ttl_ms));
        Ok(())
    }

    fn used(&mut self, id: ReservationId, used: &Amounts) {
        let time_ms = self.time_ms;
        self.with(id, |reservation| {
            if reservation.state == State::Pending {
                for (unit, to) in used.iter() {
                    reservation.debit(unit, to, time_ms, &mut |_| {});
                }
            }
            reservation.debited = false;
        });
    }

    fn settle(&mut self, settled: &Settled) -> Result<(), ReplayError> {
        let time_ms = self.time_ms;
        let mut ended = self.slices(&settled.slices)?;
        let beyond = match &settled.beyond {
            Some((chain, amounts)) => Some((Arc::clone(self.chain(*chain)?), *amounts)),
            None => None,
        };
        let seen = self.with(settled.id, |reservation| {
            // The hold goes as a whole, then what the settlement says comes back as spending.
            let pending = reservation.state == State::Pending;
            if pending || reservation.end.kept != settled.kept {
                unhold(reservation, time_ms);
                for (slice, fact) in ended.iter_mut().zip(&settled.slices) {
                    let kept = settled.kept.min(&slice.held).filter(Unit::is_capacity);
                    slice.held = fact.spent.checked_add(&kept).expect("parts of the hold");
                    hold(slice);
                    slice.held = fact.spent;
                    for (unit, amount) in fact.spent.iter() {
                        spend(&slice.chain, unit, amount, time_ms, &mut |_| {});
                    }
                    slice.used = fact.spent;
                    slice.held = slice.held.checked_add(&kept).expect("parts of the hold");
                }
                reservation.slices = std::mem::take(&mut ended).into();
            }
            if pending {
                reservation.account.open.fetch_sub(1, Ordering::Relaxed);
            }
            reservation.finish(settled);
        });
        if seen.is_none() {
            return Err(missing("reservation", settled.id.sequence));
        }
        if let Some((chain, amounts)) = beyond {
            for (unit, amount) in amounts.iter() {
                chain.each(unit, &mut |window| window.replay_take(amount));
                spend(&chain, unit, amount, time_ms, &mut |_| {});
            }
        }
        self.forget_after(settled.id, 0);
        Ok(())
    }

    fn remember(
        &mut self,
        reserved: &Reserved,
        settled: &Settled,
        ended_ms: i64,
    ) -> Result<(), ReplayError> {
        let mut reservation = self.blank(reserved)?;
        reservation.granted = settled.spent.checked_add(&settled.returned).unwrap_or_default();
        reservation.finish(settled);
        let id = reservation.id;
        self.place(reservation, i64::MAX);
        self.forget_after(id, self.time_ms.saturating_sub(ended_ms).max(0));
        Ok(())
    }

    /// Forgets an ended reservation once the retention has passed, of which `passed_ms` already has.
    fn forget_after(&self, id: ReservationId, passed_ms: i64) {
        let retention_ms = self.ledger.settings.key_retention_ms;
        let kept = self.with(id, |r| !r.end.kept.is_zero()).unwrap_or(false);
        let deadline_ms = self.mono_ms.saturating_add((retention_ms - passed_ms).max(0));
        let deadline_ms = if kept { i64::MAX } else { deadline_ms };
        self.ledger.slots.set_deadline(id.slot, deadline_ms);
    }
}

impl Reservation {
    /// Ends as the fact says, whatever the hold was.
    pub(crate) fn finish(&mut self, settled: &Settled) {
        let sum = |a: &Amounts, b: &Amounts| a.checked_add(b).unwrap_or(*a);
        self.state = settled.state;
        self.used = settled.spent;
        self.debited = false;
        self.deadline_ms = i64::MAX;
        self.end = End {
            payload: settled.payload,
            spent: settled.spent,
            returned: sum(&self.end.returned, &settled.returned),
            overdraft: sum(&self.end.overdraft, &settled.overdraft),
            kept: settled.kept,
        };
    }
}

/// Takes a slice's hold from every window that it counts in.
fn hold(slice: &Slice) {
    for (unit, amount) in slice.held.iter() {
        slice.chain.each(unit, &mut |window| window.replay_take(amount));
    }
}

/// Gives the whole hold back and takes what was spent of it back out of the windows.
fn unhold(reservation: &mut Reservation, now_ms: i64) {
    for slice in reservation.slices.drain(..) {
        for (unit, amount) in slice.held.iter() {
            slice.chain.each(unit, &mut |window| window.give_back(amount));
        }
        for (unit, amount) in slice.used.iter() {
            spend(&slice.chain, unit, -amount, now_ms, &mut |_| {});
        }
    }
    reservation.used = Amounts::ZERO;
}
