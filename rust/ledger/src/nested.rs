//! Holds that are carved from another reservation (R16).
//!
//! A nested reservation takes what it can from its parent's unused hold, and charges only the windows
//! that the parent does not cover: those below the parent's account, and those of units that the
//! parent does not hold. Called from `reserve` with the parent's slot to be locked here.

use std::sync::Arc;

use parking_lot::MutexGuard;
use smallvec::{SmallVec, smallvec};

use crate::account::{Account, Chain, available, covers};
use crate::debit::pending;
use crate::error::LedgerError;
use crate::fact::{Fact, Journal, ReservationId};
use crate::guard::Fork;
use crate::lease::reopen_lease;
use crate::ledger::{Ledger, body};
use crate::path;
use crate::reservation::{MAX_SLICES, Reservation, Slice};
use crate::reserve::{NoHold, charge_windows, with_concurrency};
use crate::unit::{Amounts, Unit};
use crate::verdict::{Refusal, RefusalReason};
use crate::window::Window;
use crate::wish::{Portion, Wish};

pub(crate) type Slices = SmallVec<[Slice; 1]>;

/// A hold that is carved and not a reservation yet.
pub(crate) struct Carved<'a> {
    pub(crate) slices: Slices,
    /// The parent that it was carved from: locked until the journal has heard of both in one record.
    pub(crate) parent: MutexGuard<'a, Option<Reservation>>,
    pub(crate) fork: Box<Fork>,
    /// Whether it is to go on more cheaply: it looks like a runaway.
    pub(crate) degrade: bool,
}

impl<J: Journal> Ledger<J> {
    /// Carves the wish from the parent's unused hold and charges what the parent does not cover.
    pub(crate) fn hold_nested(
        &self,
        own: &Arc<Chain>,
        parent: ReservationId,
        wish: &Wish,
        now_ms: i64,
    ) -> Result<Result<(Portion, Carved<'_>), NoHold>, LedgerError> {
        let mut locked = self.slot(parent)?.body.lock();
        let holder = pending(body(&mut locked, parent)?)?;
        let fork = Fork::below(holder);
        let degrade = match self.look_at_fork(&own.account, &fork, now_ms) {
            Ok(degrade) => degrade,
            Err(refusal) => return Ok(Err(NoHold::Refused(*refusal))),
        };
        // Nobody debits what is being carved.
        self.close_lease(holder, now_ms);
        let carved = self.carve_from(own, holder, wish, now_ms);
        reopen_lease(holder);
        let carved = carved?;
        Ok(carved.map(|(slices, portion)| {
            let fork = Box::new(fork.enter());
            (portion, Carved { slices, parent: locked, fork, degrade })
        }))
    }

    fn carve_from(
        &self,
        own: &Arc<Chain>,
        holder: &mut Reservation,
        wish: &Wish,
        now_ms: i64,
    ) -> Result<Result<(Slices, Portion), NoHold>, LedgerError> {
        let (_, least) = wish.bounds()?;
        if !path::is_within(&own.account.path, &holder.account.path) {
            let (parent, child) = (holder.account.path.to_string(), own.account.path.to_string());
            return Err(LedgerError::ParentElsewhere { parent, child });
        }
        let (units, unused) = coverage(holder);
        if !least.0.is_within(&unused) {
            let account = &holder.account.path;
            return Ok(Err(NoHold::Refused(parent_exhausted(account, &least.0, &unused))));
        }
        let windows = uncovered(own, units, &holder.account);
        let part = wish.largest(&unused.min(&available(&windows)))?;
        let mut charged = Ok(());
        let part = part.into_iter().chain([least]).find_map(|part| {
            let part = with_concurrency(own, part);
            charged = charge_windows(&self.charges, &windows, &part.0);
            charged.is_ok().then_some(part)
        });
        let Some(part) = part else {
            let shortage = charged.expect_err("no part was charged");
            return Ok(Err(NoHold::Short(shortage)));
        };
        // After this point the reservation must succeed.
        let slices = self.carved(own, holder, &windows, units, &part.0, now_ms);
        Ok(Ok((slices, part)))
    }

    /// Takes the covered units of `part` out of the parent, as slices on top of the parent's chains;
    /// what else there is goes to the first of them.
    fn carved(
        &self,
        own: &Arc<Chain>,
        holder: &mut Reservation,
        windows: &[Arc<Window>],
        units: u8,
        part: &Amounts,
        now_ms: i64,
    ) -> Slices {
        let on_top = |base: Arc<Chain>, held: Amounts| {
            let (base, version) = (Some((base, units)), own.tree_version);
            let chain = self.new_chain(&own.account, windows.into(), base, version, now_ms);
            Slice::new(chain, held)
        };
        let mut rest = part.filter(|unit| !covers(units, unit));
        let pieces = holder.carve(&part.filter(|unit| covers(units, unit)));
        holder.granted = holder.held();
        let mut slices: Slices = pieces
            .into_iter()
            .map(|(base, piece)| {
                let rest = std::mem::take(&mut rest);
                on_top(base, piece.checked_add(&rest).expect("disjoint units"))
            })
            .collect();
        if slices.is_empty() {
            let base = &holder.slices.first().expect("a hold has a slice").chain;
            slices = smallvec![on_top(Arc::clone(base), rest)];
        }
        slices
    }

    /// Tells the journal the present slices of a pending reservation; called under its lock.
    pub(crate) fn log_resliced(
        &self,
        reservation: &mut Reservation,
        now_ms: i64,
        added: Amounts,
    ) -> u64 {
        self.log(now_ms, || resliced_facts(reservation, added))
    }
}

/// The present slices of a pending reservation, after what it has debited of those before: replay
/// debits oldest first as well, so it finds the same spending in the same slices.
pub(crate) fn resliced_facts(reservation: &mut Reservation, added: Amounts) -> Vec<Fact> {
    let mut facts = Vec::with_capacity(2);
    if std::mem::take(&mut reservation.debited) {
        facts.push(Fact::Used(vec![(reservation.id, reservation.used)]));
    }
    facts.push(Fact::Resliced {
        id: reservation.id,
        account: reservation.account.id,
        slices: reservation.slice_facts(),
        ttl_ms: reservation.ttl_ms,
        added,
    });
    facts
}

/// The units that a parent covers, one bit per unit index, and what is unused of them; `i64::MAX`
/// of those that it does not cover.
fn coverage(holder: &Reservation) -> (u8, Amounts) {
    let held = holder.held().filter(|unit| !unit.is_capacity());
    let units = held.iter().fold(0, |units, (unit, _)| units | 1 << unit.index());
    let mut unused = holder.unused();
    for unit in Unit::ALL.into_iter().filter(|unit| !covers(units, *unit)) {
        unused.set(unit, i64::MAX);
    }
    (units, unused)
}

/// The windows of a chain that a parent on `parent` does not cover: it covers, for `units`, what lies
/// at or above its account.
fn uncovered(own: &Chain, units: u8, parent: &Account) -> Box<[Arc<Window>]> {
    let is_uncovered = |window: &&Arc<Window>| {
        let budget = &window.budget;
        !(covers(units, budget.unit) && path::is_within(&parent.path, &budget.path))
    };
    own.windows.iter().filter(is_uncovered).cloned().collect()
}

fn parent_exhausted(account: &str, wanted: &Amounts, unused: &Amounts) -> Refusal {
    let short = wanted.iter().map(|(unit, amount)| (unit, amount - unused.get(unit).min(amount)));
    let short = short.max_by_key(|(_, short)| *short);
    let (unit, shortfall) = short.expect("called when one of them is short");
    Refusal {
        reason: RefusalReason::ParentHoldExhausted,
        account: account.to_owned(),
        unit: Some(unit),
        shortfall,
        reset_ms: None,
    }
}

/// The most slices that a reservation may have before it is refused a further one.
pub(crate) fn check_slices(count: usize) -> Result<(), LedgerError> {
    if count >= MAX_SLICES { Err(LedgerError::SliceLimit { max: MAX_SLICES }) } else { Ok(()) }
}
