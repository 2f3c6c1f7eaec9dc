//! Admission: Reserve and Check (R1–R6). Holds carved from another reservation are in `nested`.
//!
//! All checks precede effects. A hold is charged to every window of the account's chain or to none,
//! without a lock; the reservation is then written into a slot that nobody else knows yet, and the
//! journal hears of it before the caller learns its id.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use smallvec::SmallVec;

use crate::account::{Account, Chain, available, takings};
use crate::canary;
use crate::charge::{Charges, Shortage};
use crate::error::LedgerError;
use crate::fact::{Fact, Journal, Owner, ReservationId, State};
use crate::ledger::{Ledger, Now, Scope, View, body, exhausted, frozen, view};
use crate::nested::{Carved, resliced_facts};
use crate::reservation::{End, Reservation, Slice};
use crate::unit::{Amounts, Unit};
use crate::verdict::{Refusal, Verdict};
use crate::window::Window;
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
    /// Who asks, where that is known: only this process may lease what it reserved.
    pub owner: Option<Owner>,
}

/// A hold.
#[derive(Debug, Clone)]
pub struct Granted {
    /// The reservation.
    pub view: View,
    /// The windows that admitted it.
    pub scope: Scope,
    /// Their verdict; at least DEGRADE where it is degraded.
    pub verdict: Verdict,
    /// Whether the call looks like a runaway that its policy degrades.
    pub degraded: bool,
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

/// Why there is no hold.
#[derive(Debug)]
pub(crate) enum NoHold {
    /// A window is short.
    Short(Shortage),
    /// It is refused whatever the windows have left.
    Refused(Refusal),
}

impl NoHold {
    pub(crate) fn refusal(&self) -> Refusal {
        match self {
            NoHold::Short(shortage) => exhausted(shortage),
            NoHold::Refused(refusal) => refusal.clone(),
        }
    }
}

/// How often a call takes top-ups back from others before it is refused all the same: each time, others
/// were quicker to take what had become free.
pub(crate) const RECLAIMS: usize = 100;

/// A hold that is charged and not a reservation yet. Small: it is handed from function to function.
struct Held<'a> {
    slot: u32,
    portion: Portion,
    /// What there is to say of one that is carved from another.
    carved: Option<Box<Carved<'a>>>,
}

impl<J: Journal> Ledger<J> {
    /// Holds the wish on the account and all its ancestors, or refuses and holds nothing.
    pub fn reserve(&self, mut ask: Ask<'_>, now: Now) -> Result<Admission<Granted>, LedgerError> {
        if ask.key == 0 || canary::sings("repeat-twice") {
            return self.admit(&mut ask, now);
        }
        let mut shard = self.keys.shard(ask.key);
        if let Some(id) = shard.get(&ask.key) {
            return self.repeated(*id, &ask, now).map(Admission::Granted);
        }
        let admission = self.admit(&mut ask, now);
        if let Ok(Admission::Granted(granted)) = &admission {
            shard.insert(ask.key, granted.view.id);
        }
        admission
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
            degraded: false,
            ticket,
        })
    }

    /// Charges and makes the reservation; takes the labels out of `ask` then.
    fn admit(&self, ask: &mut Ask<'_>, now: Now) -> Result<Admission<Granted>, LedgerError> {
        let now_ms = self.time(now.wall_ms);
        let chain = self.enter(ask.account, now_ms)?;
        let degrade = match self.look(&chain.account, &ask.labels, now_ms) {
            Ok(degrade) => degrade,
            Err(refusal) => {
                leave(&chain.account);
                return Ok(Admission::Refused(*refusal, Scope(Some(chain))));
            }
        };
        let mut held = self.hold_in_slot(&chain, ask, now_ms);
        for _ in 0..RECLAIMS {
            match &held {
                Ok(Err(NoHold::Short(shortage))) if self.reclaim(shortage, None, now_ms) => {
                    held = self.hold_in_slot(&chain, ask, now_ms);
                }
                _ => break,
            }
        }
        match held {
            Ok(Ok(held)) => {
                let degrade = degrade || held.carved.as_ref().is_some_and(|carved| carved.degrade);
                Ok(Admission::Granted(self.place(held, degrade, ask, chain, now, now_ms)))
            }
            Ok(Err(none)) => {
                leave(&chain.account);
                Ok(Admission::Refused(none.refusal(), Scope(Some(chain))))
            }
            Err(error) => {
                leave(&chain.account);
                Err(error)
            }
        }
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
    ) -> Result<Result<Held<'_>, NoHold>, LedgerError> {
        if let Some(by) = self.tree.frozen_by(&chain.account) {
            return Ok(Err(NoHold::Refused(frozen(by))));
        }
        self.check_room(&chain.account)?;
        let slot = self.slots.take();
        let slot = slot.ok_or(LedgerError::ReservationLimit { max: self.slots.max() })?;
        let held = match ask.parent {
            None => hold(&self.charges, chain, &ask.wish, None).map(|held| {
                let held = held.map(|portion| Held { slot, portion, carved: None });
                held.map_err(NoHold::Short)
            }),
            Some(parent) => self.hold_nested(chain, parent, &ask.wish, now_ms).map(|held| {
                let held = held.map(|(portion, carved)| (portion, Some(Box::new(carved))));
                held.map(|(portion, carved)| Held { slot, portion, carved })
            }),
        };
        if !matches!(held, Ok(Ok(_))) {
            self.slots.free(slot);
        }
        held
    }

    /// Makes the reservation, tells the journal, and writes it into its slot.
    #[inline]
    fn place(
        &self,
        held: Held<'_>,
        degraded: bool,
        ask: &mut Ask<'_>,
        chain: Arc<Chain>,
        now: Now,
        now_ms: i64,
    ) -> Granted {
        let sequence = self.next_sequence.fetch_add(1, Ordering::Relaxed);
        let Held { slot, portion, carved } = held;
        let mut locked = self.slots.at(slot).body.lock();
        // Nobody knows the id before the answer, so nobody sees it before the journal does.
        let reservation = locked.insert(Reservation {
            id: ReservationId { sequence, slot },
            state: State::Pending,
            account: Arc::clone(&chain.account),
            slices: SmallVec::new(),
            used: Amounts::ZERO,
            debited: false,
            channel: None,
            granted: portion.0,
            max_output_tokens: portion.1,
            created_ms: now_ms,
            ttl_ms: ask.ttl_ms,
            deadline_ms: now.mono_ms.saturating_add(ask.ttl_ms),
            key: ask.key,
            payload: ask.payload,
            parent: ask.parent,
            rate: ask.wish.rate(),
            labels: std::mem::take(&mut ask.labels),
            owner: ask.owner,
            lease: None,
            leases: 0,
            children: None,
            fork: None,
            end: End::default(),
        });
        // Written into their place: they are large.
        let mut parent = None;
        if let Some(carved) = carved {
            reservation.slices = carved.slices;
            reservation.fork = Some(carved.fork);
            parent = Some(carved.parent);
        } else {
            reservation.slices.push(Slice::new(Arc::clone(&chain), portion.0));
        }
        let ticket = self.log(now_ms, || {
            let parent = parent.as_mut().and_then(|parent| parent.as_mut());
            let mut facts =
                parent.map_or(Vec::new(), |parent| resliced_facts(parent, Amounts::ZERO));
            facts.push(Fact::Reserved(reservation.reserved_fact()));
            facts
        });
        self.slots.set_deadline(slot, reservation.deadline_ms);
        let verdict = if degraded { Verdict::Degrade } else { admitted(&chain) };
        let view = view(reservation, now.mono_ms);
        Granted { view, verdict, scope: Scope(Some(chain)), degraded, ticket }
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
        if let Some(by) = self.tree.frozen_by(&chain.account) {
            return Ok(Admission::Refused(frozen(by), Scope(Some(chain))));
        }
        self.check_room(&chain.account)?;
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
                amount,
                shortfall: amount.saturating_sub(window.remaining()).max(0),
            });
        }
        let shortage = shortage.expect("no part fits, the least neither");
        Ok(Admission::Refused(exhausted(&shortage), scope))
    }
}

/// Charges the wish, or the largest part of it that is worth having, to all windows of the chain.
/// `held`: what the reservation holds already, which the wish includes; `None`: a new one, which
/// counts as one of `concurrency`. Returns what was charged.
pub(crate) fn hold(
    charges: &Charges,
    chain: &Arc<Chain>,
    wish: &Wish,
    held: Option<&Amounts>,
) -> Result<Result<Portion, Shortage>, LedgerError> {
    let to_charge = |(amounts, output): Portion| match held {
        None => with_concurrency(chain, (amounts, output)),
        Some(held) => {
            let more = amounts.max(held).checked_sub(held);
            (more.expect("the larger of two is not less"), output)
        }
    };
    let left = || match held {
        None => available(&chain.windows),
        // What is held stays, even where a window is overdrawn.
        Some(held) => available(&chain.windows).max(&Amounts::ZERO).saturating_add(held),
    };
    let most = to_charge(wish.most()?);
    let shortage = match charge_windows(charges, &chain.windows, &most.0) {
        Ok(()) => return Ok(Ok(most)),
        Err(shortage) => shortage,
    };
    if wish.is_all_or_nothing() {
        return Ok(Err(shortage));
    }
    // What is left may move under us; after a few rounds the least decides.
    for _ in 0..8 {
        let Some(part) = wish.largest(&left())? else {
            break;
        };
        let part = to_charge(part);
        if charge_windows(charges, &chain.windows, &part.0).is_ok() {
            return Ok(Ok(part));
        }
    }
    let least = to_charge(wish.bounds()?.1);
    Ok(charge_windows(charges, &chain.windows, &least.0).map(|()| least))
}

/// A reservation counts as one of `concurrency` where a budget counts that.
#[inline]
pub(crate) fn with_concurrency(chain: &Chain, mut portion: Portion) -> Portion {
    if portion.0.get(Unit::Concurrency) == 0 && chain.counts(Unit::Concurrency) {
        portion.0.set(Unit::Concurrency, 1);
    }
    portion
}

/// Takes the amounts from all of the windows, which are rolled to now, or from none.
#[inline]
pub(crate) fn charge_windows(
    charges: &Charges,
    windows: &[Arc<Window>],
    amounts: &Amounts,
) -> Result<(), Shortage> {
    charges.charge(&takings(windows, amounts))
}

/// The account has one call, or one pending reservation, fewer.
pub(crate) fn leave(account: &Account) {
    account.open.fetch_sub(1, Ordering::SeqCst);
}

/// The verdict of a hold that stands: never STOP, even where a unit that it does not hold is overspent.
fn admitted(chain: &Chain) -> Verdict {
    chain.verdict().min(Verdict::Degrade)
}
