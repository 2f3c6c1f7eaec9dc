//! The ledger as the design states it, for one thread, with plain lists and no cleverness.
//!
//! A window knows what is spent in it; what is held in it is not stored but summed over the pieces of
//! all reservations.

use std::collections::{BTreeMap, BTreeSet};

use bursar_ledger::fact::State;
use bursar_ledger::{Amounts, MAX_SLICES, PeriodKind, Unit};

pub const UNITS: [Unit; 3] = [Unit::Tokens, Unit::UsdNanos, Unit::VramBytes];
const HOUR: i64 = 3_600_000;
const BUCKET: i64 = 1_000;
/// A bucket leaves a rolling window of 64 buckets when the 65th after it begins.
const LEAVES_AFTER: i64 = 65;

#[derive(Debug, Clone)]
pub struct Budget {
    pub path: &'static str,
    pub unit: Unit,
    pub kind: PeriodKind,
    pub limit: i64,
    pub window: Option<usize>,
}

#[derive(Debug, Clone)]
pub struct Window {
    budget: usize,
    limit: i64,
    end: i64,
    spent: i64,
    /// For a rolling one: what was spent by bucket.
    buckets: BTreeMap<i64, i64>,
}

/// A part of a hold: where it counts, by unit, and which piece of the parent it came from.
#[derive(Debug, Clone)]
pub struct Piece {
    pub key: Vec<usize>,
    pub counts: [Vec<usize>; 3],
    pub covered: BTreeSet<Unit>,
    pub base: Option<Box<Piece>>,
    pub held: Amounts,
    pub used: Amounts,
}

#[derive(Debug, Clone)]
pub struct Reservation {
    pub path: &'static str,
    pub created: i64,
    pub state: State,
    pub pieces: Vec<Piece>,
    pub spent: Amounts,
    pub returned: Amounts,
    pub overdraft: Amounts,
    pub payload: u128,
    pub parent: Option<usize>,
    pub due: i64,
    pub ttl: i64,
    pub kept: bool,
    pub forgotten: bool,
    pub key: u128,
    pub asked: u128,
}

/// Why not: (account, unit, shortfall); `None` for unit: frozen.
pub type No = (String, Option<Unit>, i64);

/// The whole ledger.
#[derive(Debug, Clone, Default)]
pub struct Plain {
    pub wall: i64,
    pub mono: i64,
    pub budgets: Vec<Budget>,
    pub windows: Vec<Window>,
    pub reservations: Vec<Reservation>,
    pub frozen: BTreeSet<&'static str>,
    pub retention: i64,
    pub chains: usize,
    /// What returns goes to the windows and never to a pending parent: how a crash leaves it between
    /// the end of the child and the note at its parent.
    pub orphans: bool,
}

pub(crate) fn within(path: &str, above: &str) -> bool {
    path == above || path.starts_with(&format!("{above}/"))
}

pub(crate) fn index(unit: Unit) -> usize {
    UNITS.iter().position(|u| *u == unit).unwrap()
}

pub(crate) fn add(to: &mut Amounts, unit: Unit, amount: i64) {
    to.set(unit, to.get(unit) + amount);
}

impl Reservation {
    pub fn sum(&self, of: impl Fn(&Piece, Unit) -> i64) -> Amounts {
        let total = |unit| (unit, self.pieces.iter().map(|piece| of(piece, unit)).sum());
        UNITS.into_iter().map(total).collect()
    }

    pub fn held(&self) -> Amounts {
        self.sum(|piece, unit| piece.held.get(unit))
    }

    pub fn used(&self) -> Amounts {
        self.sum(|piece, unit| piece.used.get(unit))
    }

    pub fn unused(&self) -> Amounts {
        self.sum(|piece, unit| piece.held.get(unit) - piece.used.get(unit))
    }
}

impl Plain {
    /// Sets the clocks; wall time never goes back behind what was seen.
    pub fn at(&mut self, wall: i64, mono: i64) {
        (self.wall, self.mono) = (self.wall.max(wall), mono);
        let bucket = self.wall.div_euclid(BUCKET);
        for window in &mut self.windows {
            let stays = window.buckets.split_off(&(bucket - LEAVES_AFTER + 1));
            window.spent -= window.buckets.values().sum::<i64>();
            window.buckets = stays;
        }
    }

    fn window(&mut self, budget: usize) -> usize {
        let found = self.budgets[budget].window;
        if let Some(window) = found.filter(|w| self.wall < self.windows[*w].end) {
            return window;
        }
        let Budget { kind, limit, .. } = self.budgets[budget];
        let end = match kind {
            PeriodKind::Hour => self.wall.div_euclid(HOUR) * HOUR + HOUR,
            _ => i64::MAX,
        };
        let (spent, buckets) = (0, BTreeMap::new());
        self.windows.push(Window { budget, limit, end, spent, buckets });
        self.budgets[budget].window = Some(self.windows.len() - 1);
        self.windows.len() - 1
    }

    pub fn held(&self, window: usize) -> i64 {
        let unit = self.budgets[self.windows[window].budget].unit;
        let pieces = self.reservations.iter().flat_map(|r| &r.pieces);
        let counting = pieces.filter(|piece| piece.counts[index(unit)].contains(&window));
        counting.map(|piece| piece.held.get(unit) - piece.used.get(unit)).sum()
    }

    fn remaining(&self, window: usize) -> i64 {
        self.windows[window].limit - self.windows[window].spent - self.held(window)
    }

    /// (limit, held, spent) of each of the account's budgets now.
    pub fn standings(&mut self, path: &str) -> Vec<(i64, i64, i64)> {
        let budgets = 0..self.budgets.len();
        let own: Vec<usize> = budgets.filter(|b| self.budgets[*b].path == path).collect();
        let windows: Vec<usize> = own.into_iter().map(|budget| self.window(budget)).collect();
        let standing = |w: usize| (self.windows[w].limit, self.held(w), self.windows[w].spent);
        windows.into_iter().map(standing).collect()
    }

    /// The windows of the account and its ancestors now, in order.
    fn chain(&mut self, path: &str) -> Vec<usize> {
        let budgets = 0..self.budgets.len();
        let all: Vec<usize> = budgets.filter(|b| within(path, self.budgets[*b].path)).collect();
        all.into_iter().map(|budget| self.window(budget)).collect()
    }

    pub fn overspent(&mut self, path: &str) -> bool {
        let chain = self.chain(path);
        chain.iter().any(|w| self.windows[*w].spent > self.windows[*w].limit)
    }

    fn unit(&self, window: usize) -> Unit {
        self.budgets[self.windows[window].budget].unit
    }

    fn available(&self, chain: &[usize], unit: Unit) -> i64 {
        let own = chain.iter().filter(|w| self.unit(**w) == unit);
        own.map(|w| self.remaining(*w)).min().unwrap_or(i64::MAX)
    }

    fn shortage(&self, chain: &[usize], amounts: &Amounts) -> Option<No> {
        chain.iter().find_map(|window| {
            let unit = self.unit(*window);
            let (asked, left) = (amounts.get(unit), self.remaining(*window));
            let path = self.budgets[self.windows[*window].budget].path;
            (asked > 0 && asked > left).then(|| (path.to_string(), Some(unit), asked - left))
        })
    }

    pub fn frozen_by(&self, path: &str) -> Option<No> {
        let mut by: Vec<_> = self.frozen.iter().filter(|above| within(path, above)).collect();
        by.sort_by_key(|path| path.len());
        by.pop().map(|path| (path.to_string(), None, 0))
    }

    /// What is granted of a wish: all of it, or what is left, or a refusal.
    fn grant(
        &self,
        chain: &[usize],
        most: &Amounts,
        least: &Amounts,
        more: &Amounts,
    ) -> Result<Amounts, No> {
        let fitting = |unit| {
            let left = self.available(chain, unit).min(more.get(unit)).max(0);
            (unit, most.get(unit).min(left))
        };
        let part: Amounts = UNITS.into_iter().map(fitting).collect();
        if part.min(least) == *least {
            return Ok(part);
        }
        Err(self.shortage(chain, least).expect("the least does not fit"))
    }

    fn piece(&mut self, chain: &[usize], held: Amounts) -> Piece {
        let of = |unit| chain.iter().copied().filter(|w| self.unit(*w) == unit).collect();
        Piece {
            key: chain.to_vec(),
            counts: UNITS.map(of),
            covered: BTreeSet::new(),
            base: None,
            held,
            used: Amounts::ZERO,
        }
    }

    pub fn reserve(
        &mut self,
        path: &'static str,
        (most, least): (Amounts, Amounts),
        parent: Option<usize>,
        ttl: i64,
        (key, asked): (u128, u128),
    ) -> Result<Result<Amounts, No>, ()> {
        if let Some(no) = self.frozen_by(path) {
            return Ok(Err(no));
        }
        let chain = self.chain(path);
        let (granted, pieces) = if let Some(parent) = parent {
            let above = &self.reservations[parent];
            if above.forgotten || above.state != State::Pending || !within(path, above.path) {
                return Err(());
            }
            match self.carve(&chain, parent, &most, &least) {
                Ok(carved) => carved,
                Err(no) => return Ok(Err(no)),
            }
        } else {
            let all = UNITS.into_iter().map(|unit| (unit, i64::MAX)).collect();
            match self.grant(&chain, &most, &least, &all) {
                Ok(granted) => (granted, vec![self.piece(&chain, granted)]),
                Err(no) => return Ok(Err(no)),
            }
        };
        self.reservations.push(Reservation {
            path,
            created: self.wall,
            state: State::Pending,
            pieces,
            spent: Amounts::ZERO,
            returned: Amounts::ZERO,
            overdraft: Amounts::ZERO,
            payload: 0,
            parent,
            due: self.mono + ttl,
            ttl,
            kept: false,
            forgotten: false,
            key,
            asked,
        });
        Ok(Ok(granted))
    }

    fn carve(
        &mut self,
        chain: &[usize],
        parent: usize,
        most: &Amounts,
        least: &Amounts,
    ) -> Result<(Amounts, Vec<Piece>), No> {
        let above = self.reservations[parent].clone();
        let covers = |unit: &Unit| above.held().get(*unit) > 0 && *unit != Unit::VramBytes;
        let covered: BTreeSet<Unit> = UNITS.into_iter().filter(covers).collect();
        let mut left = above.unused();
        for unit in UNITS.into_iter().filter(|unit| !covered.contains(unit)) {
            left.set(unit, i64::MAX);
        }
        let mut worst: Option<No> = None;
        for (unit, asked) in least.iter() {
            let short = asked - left.get(unit).min(asked);
            if short > 0 && worst.as_ref().is_none_or(|(_, _, most)| short >= *most) {
                worst = Some((above.path.to_string(), Some(unit), short));
            }
        }
        if let Some(no) = worst {
            return Err(no);
        }
        let below = |window: &usize| {
            let path = self.budgets[self.windows[*window].budget].path;
            !(covered.contains(&self.unit(*window)) && within(above.path, path))
        };
        let own: Vec<usize> = chain.iter().copied().filter(below).collect();
        let granted = self.grant(&own, most, least, &left)?;
        let mut pieces = Vec::new();
        let mut wanted = granted.filter(|unit| covered.contains(&unit));
        let mut rest = granted.filter(|unit| !covered.contains(&unit));
        for at in (0..above.pieces.len()).rev() {
            let base = above.pieces[at].clone();
            let free: Amounts =
                UNITS.into_iter().map(|u| (u, base.held.get(u) - base.used.get(u))).collect();
            let taken = wanted.min(&free);
            if taken.is_zero() {
                continue;
            }
            wanted = wanted.checked_sub(&taken).unwrap();
            let present = &mut self.reservations[parent].pieces[at];
            present.held = present.held.checked_sub(&taken).unwrap();
            let held = taken.checked_add(&std::mem::take(&mut rest)).unwrap();
            pieces.push(self.nested(&own, held, base, &covered));
        }
        if pieces.is_empty() {
            let base = above.pieces[0].clone();
            pieces.push(self.nested(&own, rest, base, &covered));
        }
        Ok((granted, pieces))
    }

    fn nested(
        &mut self,
        own: &[usize],
        held: Amounts,
        base: Piece,
        covered: &BTreeSet<Unit>,
    ) -> Piece {
        let mut piece = self.piece(own, held);
        for unit in covered {
            piece.counts[index(*unit)].extend(base.counts[index(*unit)].clone());
        }
        self.chains += 1;
        piece.key = vec![usize::MAX, self.chains];
        piece.covered.clone_from(covered);
        piece.base = Some(Box::new(base));
        piece
    }

    /// Spends, or takes back (negative) what was spent after `since`.
    pub fn spend(&mut self, windows: &[usize], amount: i64, since: i64) {
        let bucket = self.wall.div_euclid(BUCKET);
        let may_have_left = since.div_euclid(BUCKET) <= bucket - LEAVES_AFTER;
        for window in windows {
            let rolling = self.budgets[self.windows[*window].budget].kind == PeriodKind::Rolling;
            let window = &mut self.windows[*window];
            if !rolling {
                window.spent += amount;
            } else if amount > 0 {
                window.spent += amount;
                *window.buckets.entry(bucket).or_default() += amount;
            } else if !may_have_left {
                // The oldest go first.
                let mut rest = -amount;
                for spent in window.buckets.values_mut() {
                    let taken = rest.min(*spent);
                    *spent -= taken;
                    rest -= taken;
                    window.spent -= taken;
                }
            }
        }
    }

    pub fn use_piece(&mut self, reservation: usize, at: usize, unit: Unit, amount: i64) {
        let piece = &mut self.reservations[reservation].pieces[at];
        add(&mut piece.used, unit, amount);
        let counts = piece.counts[index(unit)].clone();
        self.spend(&counts, amount, self.reservations[reservation].created);
    }

    /// Returns what is left of the hold, or nothing when it has ended.
    pub fn debit(&mut self, id: usize, used: &Amounts) -> Option<Amounts> {
        if self.reservations[id].forgotten || self.reservations[id].state != State::Pending {
            return None;
        }
        for (unit, to) in used.iter() {
            let mut rest = to - self.reservations[id].used().get(unit);
            for at in 0..self.reservations[id].pieces.len() {
                let piece = &self.reservations[id].pieces[at];
                let part = rest.min(piece.held.get(unit) - piece.used.get(unit));
                if part > 0 {
                    self.use_piece(id, at, unit, part);
                    rest -= part;
                }
            }
        }
        Some(self.reservations[id].unused())
    }

    pub fn extend(
        &mut self,
        id: usize,
        most: &Amounts,
        least: &Amounts,
    ) -> Result<Result<(), No>, ()> {
        let reservation = &self.reservations[id];
        if reservation.forgotten || reservation.state != State::Pending {
            return Err(());
        }
        let held = reservation.held();
        let (path, pieces) = (reservation.path, reservation.pieces.clone());
        let more = |total: &Amounts| total.max(&held).checked_sub(&held).unwrap();
        let (most, least) = (more(most), more(least));
        let chain = self.chain(path);
        let mut answer = Ok(());
        if !most.is_zero() {
            let at = pieces.iter().position(|piece| piece.key == chain);
            if at.is_none() && pieces.len() >= MAX_SLICES {
                return Err(());
            }
            let all = UNITS.into_iter().map(|unit| (unit, i64::MAX)).collect();
            let granted = match self.frozen_by(path) {
                Some(no) => Err(no),
                None => self.grant(&chain, &most, &least, &all),
            };
            match granted {
                Ok(granted) => {
                    if let Some(at) = at {
                        let piece = &mut self.reservations[id].pieces[at];
                        piece.held = piece.held.checked_add(&granted).unwrap();
                    } else if !granted.is_zero() {
                        let piece = self.piece(&chain, granted);
                        self.reservations[id].pieces.push(piece);
                    }
                }
                Err(no) => answer = Err(no),
            }
        }
        self.reservations[id].due = self.mono + self.reservations[id].ttl;
        Ok(answer)
    }

    /// Spends in the windows current now; returns what passes the limit.
    pub fn spend_now(&mut self, path: &str, amounts: &Amounts) -> Amounts {
        let chain = self.chain(path);
        let mut over = Amounts::ZERO;
        for window in chain.iter().filter(|w| amounts.get(self.unit(**w)) > 0) {
            let unit = self.unit(*window);
            let amount = amounts.get(unit);
            let passes = (amount - self.remaining(*window).max(0)).clamp(0, amount);
            over.set(unit, over.get(unit).max(passes));
        }
        for window in chain {
            let amount = amounts.get(self.unit(window));
            if amount > 0 {
                self.spend(&[window], amount, self.wall);
            }
        }
        over
    }

    pub fn set_budget(&mut self, path: &'static str, unit: Unit, kind: PeriodKind, limit: i64) {
        let same = |b: &Budget| b.path == path && b.unit == unit && b.kind == kind;
        let at = self.budgets.iter().position(same).unwrap_or(self.budgets.len());
        if at == self.budgets.len() {
            self.budgets.push(Budget { path, unit, kind, limit, window: None });
        }
        let window = self.window(at);
        self.budgets[at].limit = limit;
        self.windows[window].limit = limit;
    }
}
