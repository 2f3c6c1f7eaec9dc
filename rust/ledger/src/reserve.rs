//! Admission: Reserve and Check (R1–R6). Holds carved from another reservation are in `nested`.
//!
//! All checks precede effects. A hold is charged to every window of the account's chain or to none,
//! without a lock; the reservation is then written into a slot that nobody else knows yet, and the
//! journal hears of it before the caller learns its id.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use smallvec::smallvec;

use crate::account::{Account, Chain, available, takings};
use crate::error::LedgerError;
use crate::fact::{Fact, Journal, ReservationId, State};
use crate::ledger::{Ledger, Now, Scope, View, body, exhausted, frozen, view};
use crate::nested::{Held, resliced_facts};
use crate::reservation::{End, Reservation, Slice};
use crate::unit::{Amounts, Unit};
use crate::verdict::{Refusal, Verdict};
use crate::window::{Shortage, Window, charge};
use crate::wish::{Portion, Wish};

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
        let verdict = admitted(&chain);
        // The first call may not be durable yet; a ticket of its own would be later than that one's.
        let ticket = u64::MAX;
        Ok(Granted {
            view: view(reservation, now.mono_ms),
            scope: Scope(Some(chain)),
            verdict,
            ticket,
        })
    }

    fn admit(&self, ask: Ask<'_>, now: Now) -> Result<Admission<Granted>, LedgerError> {
        let now_ms = self.time(now.wall_ms);
        let chain = self.enter(ask.account, now_ms)?;
        let held = self.hold_in_slot(&chain, &ask, now_ms);
        if !matches!(held, Ok(Ok(_))) {
            leave(&chain.account);
        }
        Ok(match held? {
            Ok((slot, held)) => Admission::Granted(self.place(slot, held, ask, chain, now, now_ms)),
            Err(refusal) => Admission::Refused(refusal, Scope(Some(chain))),
        })
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
            leave(&chain.account);
        }
    }

    /// Takes a slot and charges the wish; frees the slot again when that fails.
    fn hold_in_slot(
        &self,
        chain: &Arc<Chain>,
        ask: &Ask<'_>,
        now_ms: i64,
    ) -> Result<Result<(u32, Held<'_>), Refusal>, LedgerError> {
        if let Some(by) = chain.account.frozen_by() {
            return Ok(Err(frozen(by)));
        }
        let slot = self.slots.take();
        let slot = slot.ok_or(LedgerError::ReservationLimit { max: self.slots.max() })?;
        let held = match ask.parent {
            None => hold(chain, &ask.wish, true).map(|held| {
                held.map(|portion| Held {
                    slices: smallvec![Slice::new(Arc::clone(chain), portion.0)],
                    portion,
                    parent: None,
                })
            }),
            Some(parent) => self.hold_nested(chain, parent, &ask.wish, now_ms),
        };
        if !matches!(held, Ok(Ok(_))) {
            self.slots.free(slot);
        }
        Ok(held?.map(|held| (slot, held)))
    }

    /// Makes the reservation, tells the journal, and writes it into its slot.
    fn place(
        &self,
        slot: u32,
        held: Held<'_>,
        ask: Ask<'_>,
        chain: Arc<Chain>,
        now: Now,
        now_ms: i64,
    ) -> Granted {
        let sequence = self.next_sequence.fetch_add(1, Ordering::Relaxed);
        let reservation = Reservation {
            id: ReservationId { sequence, slot },
            state: State::Pending,
            account: Arc::clone(&chain.account),
            slices: held.slices,
            used: Amounts::ZERO,
            debited: false,
            channel: None,
            granted: held.portion.0,
            max_output_tokens: held.portion.1,
            created_ms: now_ms,
            ttl_ms: ask.ttl_ms,
            deadline_ms: now.mono_ms.saturating_add(ask.ttl_ms),
            key: ask.key,
            payload: ask.payload,
            parent: ask.parent,
            rate: ask.wish.rate(),
            labels: ask.labels,
            end: End::default(),
        };
        let mut parent = held.parent;
        let mut locked = self.slots.at(slot).body.lock();
        let ticket = self.log(now_ms, || {
            let parent = parent.as_mut().and_then(|parent| parent.as_mut());
            let mut facts =
                parent.map_or(Vec::new(), |parent| resliced_facts(parent, Amounts::ZERO));
            facts.push(Fact::Reserved(reservation.reserved_fact()));
            facts
        });
        self.slots.set_deadline(slot, reservation.deadline_ms);
        let view = view(&reservation, now.mono_ms);
        *locked = Some(reservation);
        Granted { view, verdict: admitted(&chain), scope: Scope(Some(chain)), ticket }
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
            return Ok(Admission::Refused(frozen(by), Scope(Some(chain))));
        }
        let (most, least) = wish.bounds()?;
        let largest = wish.largest(&available(&chain.windows))?;
        let scope = Scope(Some(Arc::clone(&chain)));
        let mut shortage = None;
        for part in [Some(most), largest, Some(least)].into_iter().flatten() {
            let part = with_concurrency(&chain, part);
            let mut takings = chain.takings(&part.0);
            let Some((window, amount)) = takings.find(|(w, amount)| w.remaining() < *amount) else {
                let (granted, max_output_tokens) = part;
                return Ok(Admission::Granted(Fits { granted, max_output_tokens, scope }));
            };
            shortage = Some(Shortage {
                window: Arc::clone(window),
                shortfall: amount.saturating_sub(window.remaining()).max(0),
            });
        }
        let shortage = shortage.expect("no part fits, the least neither");
        Ok(Admission::Refused(exhausted(&shortage), scope))
    }
}

/// Charges the wish, or the largest part of it that is worth having, to all windows of the chain.
/// `new`: for a new reservation, which counts as one of `concurrency`.
pub(crate) fn hold(
    chain: &Arc<Chain>,
    wish: &Wish,
    new: bool,
) -> Result<Result<Portion, Refusal>, LedgerError> {
    let full = |portion| {
        if new { with_concurrency(chain, portion) } else { portion }
    };
    let (most, least) = wish.bounds()?;
    let most = full(most);
    let shortage = match charge_windows(&chain.windows, &most.0) {
        Ok(()) => return Ok(Ok(most)),
        Err(shortage) => shortage,
    };
    if wish.is_all_or_nothing() {
        return Ok(Err(exhausted(&shortage)));
    }
    // What is left may move under us; after a few rounds the least decides.
    for _ in 0..8 {
        let Some(part) = wish.largest(&available(&chain.windows))? else {
            break;
        };
        let part = full(part);
        if charge_windows(&chain.windows, &part.0).is_ok() {
            return Ok(Ok(part));
        }
    }
    let least = full(least);
    let charged = charge_windows(&chain.windows, &least.0);
    Ok(charged.map(|()| least).map_err(|shortage| exhausted(&shortage)))
}

/// A reservation counts as one of `concurrency` where a budget counts that.
pub(crate) fn with_concurrency(chain: &Chain, mut portion: Portion) -> Portion {
    if portion.0.get(Unit::Concurrency) == 0 && chain.counts(Unit::Concurrency) {
        portion.0.set(Unit::Concurrency, 1);
    }
    portion
}

/// Takes the amounts from all of the windows, which are rolled to now, or from none.
pub(crate) fn charge_windows(windows: &[Arc<Window>], amounts: &Amounts) -> Result<(), Shortage> {
    charge(takings(windows, amounts))
}

/// The account has one call, or one pending reservation, fewer.
pub(crate) fn leave(account: &Account) {
    account.open.fetch_sub(1, Ordering::SeqCst);
}

/// The verdict of a hold that stands: never STOP, even where a unit that it does not hold is overspent.
fn admitted(chain: &Chain) -> Verdict {
    chain.verdict().min(Verdict::Degrade)
}
