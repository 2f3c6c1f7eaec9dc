//! Accounts and the chains of windows that a charge on them counts in.
//!
//! A chain is an immutable snapshot: the windows of the account and its ancestors, in the order of
//! charging. A reservation keeps the chain that admitted it, so a hold settles where it was admitted,
//! however late (R8). The account's current chain is replaced whole when a window of it has ended or a
//! budget was added; readers never wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use parking_lot::Mutex;

use crate::budget::Budget;
use crate::fact::{AccountId, ChainId};
use crate::guard::Guard;
use crate::period::PeriodKind;
use crate::runaway::Policy;
use crate::unit::{Amounts, Unit};
use crate::verdict::{Advice, Verdict};
use crate::window::Window;

/// The most budgets that one account may have.
pub const MAX_BUDGETS: usize = 16;

/// A node of the tree.
#[derive(Debug)]
pub(crate) struct Account {
    pub(crate) id: AccountId,
    pub(crate) path: Arc<str>,
    pub(crate) parent: Option<Arc<Account>>,
    pub(crate) created_ms: i64,
    /// Whether patterns created it, so that it may retire.
    pub(crate) automatic: bool,
    /// One reason to stop of its own; a top-up or a limit never clears it.
    pub(crate) frozen: AtomicBool,
    pub(crate) freeze_reason: Mutex<String>,
    /// Set before the account leaves the tree, so that nobody builds on it any more.
    pub(crate) retired: AtomicBool,
    /// Accounts directly below.
    pub(crate) children: AtomicI64,
    /// Accounts below, however deep.
    pub(crate) below: AtomicI64,
    /// Pending reservations on this very account.
    pub(crate) open: AtomicI64,
    /// When it was last charged, to the coarseness of `tick`.
    pub(crate) last_used_ms: AtomicI64,
    pub(crate) budgets: Mutex<Vec<Arc<Budget>>>,
    /// What tells whether it has run away.
    pub(crate) guard: Guard,
    /// The newest chain; where charges find it is the tree.
    pub(crate) chain: Mutex<Option<Arc<Chain>>>,
}

impl Account {
    pub(crate) fn new(
        id: AccountId,
        path: &str,
        parent: Option<Arc<Account>>,
        automatic: bool,
        policy: Arc<Policy>,
        now_ms: i64,
    ) -> Account {
        Account {
            id,
            path: path.into(),
            parent,
            created_ms: now_ms,
            automatic,
            frozen: AtomicBool::new(false),
            freeze_reason: Mutex::default(),
            retired: AtomicBool::new(false),
            children: AtomicI64::new(0),
            below: AtomicI64::new(0),
            open: AtomicI64::new(0),
            last_used_ms: AtomicI64::new(now_ms),
            budgets: Mutex::default(),
            guard: Guard::new(policy),
            chain: Mutex::default(),
        }
    }

    /// The account and its ancestors, upwards.
    pub(crate) fn lineage(self: &Arc<Account>) -> impl Iterator<Item = &Arc<Account>> {
        std::iter::successors(Some(self), |account| account.parent.as_ref())
    }

    /// Counts it where it is in the tree: 1 when it comes, -1 when it goes.
    pub(crate) fn count(self: &Arc<Account>, by: i64) {
        if let Some(parent) = &self.parent {
            parent.children.fetch_add(by, Ordering::Relaxed);
        }
        self.lineage().skip(1).for_each(|above| _ = above.below.fetch_add(by, Ordering::Relaxed));
    }

    /// The nearest frozen account on the way up.
    pub(crate) fn frozen_by(self: &Arc<Account>) -> Option<&Arc<Account>> {
        self.lineage().find(|account| account.frozen.load(Ordering::Acquire))
    }
}

/// The windows that a charge counts in.
#[derive(Debug)]
pub(crate) struct Chain {
    pub(crate) id: ChainId,
    pub(crate) account: Arc<Account>,
    /// In ascending order of budget.
    pub(crate) windows: Box<[Arc<Window>]>,
    /// For a nested reservation: the chain of the parent's hold, and the units that it covers.
    pub(crate) base: Option<(Arc<Chain>, u8)>,
    /// Whether one of all these windows is a rolling one.
    pub(crate) rolls: bool,
    /// The units that one of all these windows has a pace for, one bit per unit index.
    pub(crate) paced: u8,
    /// The first millisecond at which one of the windows has ended.
    pub(crate) valid_until_ms: i64,
    /// The version of the tree that it was built from.
    pub(crate) tree_version: u64,
}

/// Whether the units with these bits include `unit`.
#[inline]
pub(crate) fn covers(units: u8, unit: Unit) -> bool {
    units & (1 << unit.index()) != 0
}

/// The windows with the amount that each has to take; windows of units that are not asked for are
/// left out.
#[inline]
pub(crate) fn takings<'a>(
    windows: &'a [Arc<Window>],
    amounts: &'a Amounts,
) -> impl Iterator<Item = (&'a Arc<Window>, i64)> + Clone {
    let taking = |window: &'a Arc<Window>| (window, amounts.get(window.unit));
    windows.iter().map(taking).filter(|(_, amount)| *amount != 0)
}

/// What is left at most, per unit; `i64::MAX` where nothing limits.
pub(crate) fn available(windows: &[Arc<Window>]) -> Amounts {
    let mut left: Amounts = Unit::ALL.into_iter().map(|unit| (unit, i64::MAX)).collect();
    for window in windows {
        let unit = window.unit;
        left.set(unit, left.get(unit).min(window.remaining()));
    }
    left
}

/// Whether spending leaves one of the windows by itself.
pub(crate) fn any_rolls(windows: &[Arc<Window>], base: Option<&(Arc<Chain>, u8)>) -> bool {
    windows.iter().any(|window| window.rolls()) || base.is_some_and(|(base, _)| base.rolls)
}

/// The units that one of the windows has a pace for.
pub(crate) fn paced_units(windows: &[Arc<Window>], base: Option<&(Arc<Chain>, u8)>) -> u8 {
    let paced = windows.iter().filter(|window| window.budget.period.kind != PeriodKind::Total);
    let own = paced.fold(0, |units, window| units | 1 << window.unit.index());
    own | base.map_or(0, |(base, _)| base.paced)
}

impl Chain {
    /// Lets what has left the rolling windows leave: before what they say is read.
    #[inline]
    pub(crate) fn roll(&self, now_ms: i64) {
        if !self.rolls {
            return;
        }
        for window in &self.windows {
            window.roll(now_ms);
        }
        if let Some((base, _)) = &self.base {
            base.roll(now_ms);
        }
    }

    /// Its own windows with the amount that each has to take.
    #[inline]
    pub(crate) fn takings<'a>(
        &'a self,
        amounts: &'a Amounts,
    ) -> impl Iterator<Item = (&'a Arc<Window>, i64)> + Clone {
        takings(&self.windows, amounts)
    }

    /// Every window that a spending of `unit` counts in, those of the base included.
    #[inline]
    pub(crate) fn each<F: FnMut(&Arc<Window>)>(&self, unit: Unit, f: &mut F) {
        let mut chain = self;
        loop {
            for window in chain.windows.iter().filter(|w| w.unit == unit) {
                f(window);
            }
            match &chain.base {
                Some((base, units)) if covers(*units, unit) => chain = base,
                _ => return,
            }
        }
    }

    /// Whether a window counts the unit.
    #[inline]
    pub(crate) fn counts(&self, unit: Unit) -> bool {
        self.windows.iter().any(|window| window.unit == unit)
    }

    /// The most severe verdict of its windows.
    #[inline]
    pub(crate) fn verdict(&self) -> Verdict {
        let (mut worst, mut chain) = (Verdict::Ok, self);
        loop {
            for window in &chain.windows {
                worst = worst.max(window.verdict());
            }
            match &chain.base {
                Some((base, _)) => chain = base,
                None => return worst,
            }
        }
    }

    /// The advice of the most severe window that has one.
    pub(crate) fn advice(&self) -> Option<Advice> {
        let mut worst: Vec<_> = self.windows.iter().collect();
        worst.sort_by_key(|window| std::cmp::Reverse(window.verdict()));
        let own = worst.into_iter().find_map(|window| window.advice());
        own.or_else(|| self.base.as_ref().and_then(|(base, _)| base.advice()))
    }
}
