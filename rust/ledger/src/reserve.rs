//! Admission: Reserve, Check, and holds carved from another reservation (R1–R5, R16).
//!
//! All checks precede effects. A hold is charged to every window of the account's chain or to none,
//! without a lock; the reservation is then written into a slot that nobody else knows yet, and the
//! journal hears of it before the caller learns its id.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use smallvec::smallvec;

use crate::account::{Chain, covers};
use crate::error::LedgerError;
use crate::fact::{Fact, Journal, ReservationId, State};
use crate::ledger::{Ledger, Now, Scope, View, body, exhausted, frozen, view};
use crate::path;
use crate::rates::{Rate, Usage};
use crate::reservation::{End, MAX_SLICES, Reservation, Slice};
use crate::unit::{Amounts, Unit};
use crate::verdict::{Refusal, RefusalReason, Verdict};
use crate::window::{Shortage, charge};

/// What to hold.
#[derive(Debug, Clone)]
pub enum Wish {
    /// These amounts, or what is left of them as long as it is `least`.
    Amounts {
        /// The most.
        most: Amounts,
        /// The least worth having; equal to `most`: all or nothing.
        least: Amounts,
    },
    /// What a model call will use.
    Usage {
        /// Its prices; `None`: unpriced, and the configuration allows it.
        rate: Option<Arc<Rate>>,
        /// The call, with the most output.
        usage: Usage,
        /// The fewest output tokens worth starting for.
        min_output_tokens: i64,
    },
}

/// A request to hold.
#[derive(Debug, Clone)]
pub struct Ask<'a> {
    /// The account's path.
    pub account: &'a str,
    /// What to hold.
    pub wish: Wish,
    /// Time to live in milliseconds.
    pub ttl_ms: i64,
    /// Hash of account and idempotency key; 0: never a repeat.
    pub key: u128,
    /// Hash of the request as sent.
    pub payload: u128,
    /// Carve the hold from this reservation.
    pub parent: Option<ReservationId>,
    /// Names for the history.
    pub labels: Vec<(String, String)>,
}

/// A hold.
#[derive(Debug, Clone)]
pub struct Granted {
    /// The reservation.
    pub view: View,
    /// The windows that admitted it.
    pub scope: Scope,
    /// Their verdict.
    pub verdict: Verdict,
    /// What must be durable before the answer may leave.
    pub ticket: u64,
}

/// The answer to [`Ledger::reserve`] and [`Ledger::check`].
#[derive(Debug, Clone)]
pub enum Admission<T> {
    /// It fits.
    Granted(T),
    /// It does not.
    Refused(Refusal, Scope),
}

/// What Check finds: what would be granted.
#[derive(Debug, Clone)]
pub struct Fits {
    /// The amounts.
    pub granted: Amounts,
    /// The output tokens, for usage.
    pub max_output_tokens: i64,
    /// The windows.
    pub scope: Scope,
}

/// Amounts, and the output tokens that they are for.
pub(crate) type Portion = (Amounts, i64);

impl Wish {
    /// All of it.
    pub(crate) fn most(&self) -> Result<Portion, LedgerError> {
        match self {
            Wish::Amounts { most, .. } => Ok((*most, 0)),
            Wish::Usage { rate, usage, .. } => {
                Ok((usage_amounts(rate.as_deref(), usage)?, usage.output_tokens))
            }
        }
    }

    /// The least worth having.
    pub(crate) fn least(&self) -> Result<Portion, LedgerError> {
        match self {
            Wish::Amounts { least, .. } => Ok((*least, 0)),
            Wish::Usage { rate, usage, min_output_tokens } => {
                let usage = Usage { output_tokens: *min_output_tokens, ..*usage };
                Ok((usage_amounts(rate.as_deref(), &usage)?, *min_output_tokens))
            }
        }
    }

    /// The largest part that fits what is left, if it is still worth having (R5).
    fn largest(&self, left: &Amounts) -> Result<Option<Portion>, LedgerError> {
        match self {
            Wish::Amounts { most, least } => {
                let part = most.min(left);
                Ok((part.min(least) == *least).then_some((part, 0)))
            }
            Wish::Usage { rate, usage, min_output_tokens } => {
                let tokens_left = left.get(Unit::Tokens).saturating_sub(usage.input_tokens);
                let mut output = usage.output_tokens.min(tokens_left);
                if let Some(rate) = rate {
                    let usd_nanos_left = left.get(Unit::UsdNanos);
                    match rate.max_output_tokens(usage, usd_nanos_left, output)? {
                        Some(most) => output = output.min(most),
                        None => return Ok(None),
                    }
                }
                if output < *min_output_tokens {
                    return Ok(None);
                }
                let usage = Usage { output_tokens: output, ..*usage };
                Ok(Some((usage_amounts(rate.as_deref(), &usage)?, output)))
            }
        }
    }
}

/// What a usage amounts to: tokens, money, one call, GPU time.
pub fn usage_amounts(rate: Option<&Rate>, usage: &Usage) -> Result<Amounts, LedgerError> {
    let tokens = usage.input_tokens.checked_add(usage.output_tokens);
    let usd_nanos = rate.map_or(Ok(0), |rate| rate.cost_usd_nanos(usage))?;
    Ok([
        (Unit::Tokens, tokens.ok_or(LedgerError::Overflow)?),
        (Unit::UsdNanos, usd_nanos),
        (Unit::Calls, usage.calls),
        (Unit::GpuMs, usage.gpu_ms),
    ]
    .into_iter()
    .collect())
}

impl<J: Journal> Ledger<J> {
    /// Holds the wish on the account and all its ancestors, or refuses and holds nothing.
    pub fn reserve(&self, ask: Ask<'_>, now: Now) -> Result<Admission<Granted>, LedgerError> {
        if ask.key == 0 {
            return self.admit(ask, now);
        }
        let mut shard = self.keys.shard(ask.key);
        if let Some(id) = shard.get(&ask.key) {
            return self.repeated(*id, &ask, now).map(Admission::Granted);
        }
        let key = ask.key;
        let admission = self.admit(ask, now)?;
        if let Admission::Granted(granted) = &admission {
            shard.insert(key, granted.view.id);
        }
        Ok(admission)
    }

    /// The first answer again (R6).
    fn repeated(&self, id: ReservationId, ask: &Ask<'_>, now: Now) -> Result<Granted, LedgerError> {
        let mut slot = self.slot(id)?.body.lock();
        let reservation = body(&mut slot, id)?;
        if reservation.payload != ask.payload {
            return Err(LedgerError::IdempotencyMismatch("idempotency key"));
        }
        let chain = self.chain_of(&reservation.account, self.time(now.wall_ms));
        let verdict = chain.verdict();
        // The first call may not be durable yet; a ticket of its own would be later than that one's.
        let ticket = u64::MAX;
        Ok(Granted { view: view(reservation, now.mono_ms), scope: Scope(chain), verdict, ticket })
    }

    fn admit(&self, ask: Ask<'_>, now: Now) -> Result<Admission<Granted>, LedgerError> {
        let now_ms = self.time(now.wall_ms);
        let chain = self.enter(ask.account, now_ms)?;
        let admission = self.admit_on(&chain, ask, now, now_ms);
        if !matches!(admission, Ok(Admission::Granted(_))) {
            self.leave(&chain);
        }
        admission
    }

    /// The chain of an account, which cannot retire until `leave`.
    pub(crate) fn enter(&self, path: &str, now_ms: i64) -> Result<Arc<Chain>, LedgerError> {
        loop {
            let chain = self.chain(path, now_ms)?;
            // SeqCst pairs with `retire`: it sees us inside, or we see that it has retired.
            chain.account.open.fetch_add(1, Ordering::SeqCst);
            if !chain.account.retired.load(Ordering::SeqCst) {
                return Ok(chain);
            }
            self.leave(&chain);
        }
    }

    pub(crate) fn leave(&self, chain: &Chain) {
        chain.account.open.fetch_sub(1, Ordering::SeqCst);
    }

    fn admit_on(
        &self,
        chain: &Arc<Chain>,
        ask: Ask<'_>,
        now: Now,
        now_ms: i64,
    ) -> Result<Admission<Granted>, LedgerError> {
        if let Some(by) = chain.account.frozen_by() {
            return Ok(Admission::Refused(frozen(by), Scope(Arc::clone(chain))));
        }
        let index = self.slots.take();
        let index = index.ok_or(LedgerError::ReservationLimit { max: self.slots.max() })?;
        let held = match ask.parent {
            None => self.hold(chain, &ask.wish, true, now_ms).map(|held| {
                held.map(|portion| (smallvec![slice(Arc::clone(chain), portion.0)], portion))
            }),
            Some(parent) => self.hold_nested(chain, parent, &ask.wish, now_ms),
        };
        match held {
            Ok(Ok((slices, (granted, max_output_tokens)))) => {
                let sequence = self.next_sequence.fetch_add(1, Ordering::Relaxed);
                let (rate, labels) = (ask.wish.rate(), ask.labels);
                let reservation = Reservation {
                    id: ReservationId { sequence, slot: index },
                    state: State::Pending,
                    account: Arc::clone(&chain.account),
                    slices,
                    used: Amounts::ZERO,
                    debited: false,
                    granted,
                    max_output_tokens,
                    created_ms: now_ms,
                    ttl_ms: ask.ttl_ms,
                    deadline_ms: now.mono_ms.saturating_add(ask.ttl_ms),
                    key: ask.key,
                    payload: ask.payload,
                    parent: ask.parent,
                    rate,
                    labels,
                    end: End::default(),
                };
                Ok(Admission::Granted(self.place(reservation, chain, now, now_ms)))
            }
            Ok(Err(refusal)) => {
                self.slots.free(index);
                Ok(Admission::Refused(refusal, Scope(Arc::clone(chain))))
            }
            Err(error) => {
                self.slots.free(index);
                Err(error)
            }
        }
    }

    /// Writes the reservation into its slot and tells the journal.
    pub(crate) fn place(
        &self,
        reservation: Reservation,
        chain: &Arc<Chain>,
        now: Now,
        now_ms: i64,
    ) -> Granted {
        let index = reservation.id.slot;
        let slot = self.slots.get(index).expect("a slot that was taken exists");
        let mut locked = slot.body.lock();
        let ticket = self.log(now_ms, || vec![Fact::Reserved(reservation.reserved_fact())]);
        self.slots.set_deadline(index, reservation.deadline_ms);
        let view = view(&reservation, now.mono_ms);
        *locked = Some(reservation);
        Granted { view, scope: Scope(Arc::clone(chain)), verdict: chain.verdict(), ticket }
    }

    /// Charges the wish, or the largest part of it that is worth having, to all windows of the chain.
    /// `new`: for a new reservation, which counts as one of `concurrency`.
    pub(crate) fn hold(
        &self,
        chain: &Arc<Chain>,
        wish: &Wish,
        new: bool,
        now_ms: i64,
    ) -> Result<Result<Portion, Refusal>, LedgerError> {
        let full = |portion| if new { with_concurrency(chain, portion) } else { portion };
        let most = full(wish.most()?);
        let shortage = match charge_chain(chain, &most.0, now_ms) {
            Ok(()) => return Ok(Ok(most)),
            Err(shortage) => shortage,
        };
        if let Wish::Amounts { most, least } = wish
            && most == least
        {
            return Ok(Err(exhausted(&shortage)));
        }
        // What is left may move under us; after a few rounds the least decides.
        for _ in 0..8 {
            let Some(part) = wish.largest(&chain.available())? else { break };
            let part = full(part);
            if charge_chain(chain, &part.0, now_ms).is_ok() {
                return Ok(Ok(part));
            }
        }
        let least = full(wish.least()?);
        let charged = charge_chain(chain, &least.0, now_ms);
        Ok(charged.map(|()| least).map_err(|shortage| exhausted(&shortage)))
    }

    /// Carves the wish from the parent's unused hold and charges only what the parent does not cover.
    #[expect(clippy::type_complexity, reason = "an answer or a refusal, or an error")]
    fn hold_nested(
        &self,
        own: &Arc<Chain>,
        parent: ReservationId,
        wish: &Wish,
        now_ms: i64,
    ) -> Result<Result<(smallvec::SmallVec<[Slice; 1]>, Portion), Refusal>, LedgerError> {
        let mut locked = self.slot(parent)?.body.lock();
        let holder = body(&mut locked, parent)?;
        if holder.state != State::Pending {
            return Err(LedgerError::ReservationEnded(holder.state));
        }
        if !path::is_within(&own.account.path, &holder.account.path) {
            let (parent, child) = (holder.account.path.to_string(), own.account.path.to_string());
            return Err(LedgerError::ParentElsewhere { parent, child });
        }
        let consumable = |unit: Unit| !unit.is_capacity();
        let held = holder.held().filter(consumable);
        let units = held.iter().fold(0, |units, (unit, _)| units | 1 << unit.index());
        let mut unused = holder.unused().filter(|unit| covers(units, unit));
        for unit in Unit::ALL.into_iter().filter(|unit| !covers(units, *unit)) {
            unused.set(unit, i64::MAX);
        }
        // The windows that count on top of the parent's hold; its slices' chains differ only in time.
        let base = Arc::clone(&holder.slices.first().expect("a hold has a slice").chain);
        let probe = self.nested_chain(own, &base, units, &holder.account, now_ms);
        let (most, least) = (wish.most()?, wish.least()?);
        let part = match wish.largest(&unused.min(&probe.available()))? {
            Some(part) => part,
            None if least.0.min(&unused) == least.0 => least,
            None => return Ok(Err(parent_exhausted(&holder.account.path, &most.0, &unused))),
        };
        let part = with_concurrency(&probe, part);
        if let Err(shortage) = charge_chain(&probe, &part.0, now_ms) {
            return Ok(Err(exhausted(&shortage)));
        }
        // After this point the reservation must succeed.
        let pieces = holder.carve(&part.0.filter(|unit| covers(units, unit)));
        let mut slices = smallvec::SmallVec::new();
        let mut rest = part.0.filter(|unit| !covers(units, unit));
        for (base, piece) in pieces {
            let chain = if base.id == probe.base.as_ref().map_or(0, |(base, _)| base.id) {
                Arc::clone(&probe)
            } else {
                self.nested_chain(own, &base, units, &holder.account, now_ms)
            };
            let held = piece.checked_add(&rest).expect("disjoint units");
            rest = Amounts::ZERO;
            slices.push(slice(chain, held));
        }
        if !rest.is_zero() || slices.is_empty() {
            slices.push(slice(probe, rest));
        }
        self.log_resliced(holder, now_ms, Amounts::ZERO);
        Ok(Ok((slices, part)))
    }

    /// Tells the journal the present slices of a pending reservation; called under its lock.
    pub(crate) fn log_resliced(
        &self,
        reservation: &Reservation,
        now_ms: i64,
        added: Amounts,
    ) -> u64 {
        self.log(now_ms, || {
            vec![Fact::Resliced {
                id: reservation.id,
                account: reservation.account.id,
                slices: reservation.slice_facts(),
                ttl_ms: reservation.ttl_ms,
                added,
            }]
        })
    }

    /// What Reserve would say; holds nothing.
    pub fn check(
        &self,
        account: &str,
        wish: &Wish,
        now: Now,
    ) -> Result<Admission<Fits>, LedgerError> {
        let now_ms = self.time(now.wall_ms);
        let chain = self.chain(account, now_ms)?;
        if let Some(by) = chain.account.frozen_by() {
            return Ok(Admission::Refused(frozen(by), Scope(chain)));
        }
        let (most, least) = (wish.most()?, wish.least()?);
        let left = chain.available();
        let fitting = if most.0.min(&left) == most.0 { Some(most) } else { wish.largest(&left)? };
        let scope = Scope(Arc::clone(&chain));
        if let Some((granted, max_output_tokens)) = fitting {
            return Ok(Admission::Granted(Fits { granted, max_output_tokens, scope }));
        }
        let short = chain.takings(&least.0).find(|(window, amount)| window.remaining() < *amount);
        let (window, amount) = short.or(chain.takings(&most.0).last()).expect("it does not fit");
        let shortfall = amount.saturating_sub(window.remaining()).max(0);
        Ok(Admission::Refused(exhausted(&Shortage { window: Arc::clone(window), shortfall }), scope))
    }
}

impl Wish {
    fn rate(&self) -> Option<Arc<Rate>> {
        match self {
            Wish::Amounts { .. } => None,
            Wish::Usage { rate, .. } => rate.clone(),
        }
    }
}

/// A reservation counts as one of `concurrency` where a budget counts that.
fn with_concurrency(chain: &Chain, mut portion: Portion) -> Portion {
    if portion.0.get(Unit::Concurrency) == 0 && chain.counts(Unit::Concurrency) {
        portion.0.set(Unit::Concurrency, 1);
    }
    portion
}

fn slice(chain: Arc<Chain>, held: Amounts) -> Slice {
    Slice { chain, held, used: Amounts::ZERO }
}

pub(crate) fn charge_chain(chain: &Chain, amounts: &Amounts, now_ms: i64) -> Result<(), Shortage> {
    for window in &chain.windows {
        window.roll(now_ms);
    }
    charge(chain.takings(amounts))
}

fn parent_exhausted(account: &str, wanted: &Amounts, unused: &Amounts) -> Refusal {
    let short = wanted.iter().map(|(unit, amount)| (unit, amount - unused.get(unit).min(amount)));
    let (unit, shortfall) = short.max_by_key(|(_, short)| *short).unwrap_or((Unit::Tokens, 0));
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
