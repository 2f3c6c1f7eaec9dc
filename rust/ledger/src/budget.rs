//! A budget: (account, unit, period), its limit, and its current window.
//!
//! Owns the replacement of a window at the end of its period. Admission never comes here: it uses the
//! windows of a chain (see `account`), which is rebuilt when one of them has ended.

use std::sync::Arc;

use crate::changes::Changes;
use crate::fact::{AccountId, BudgetId, WindowId};
use crate::period::{Calendar, Period};
use crate::sync::Mutex;
use crate::unit::Unit;
use crate::verdict::Threshold;
use crate::window::{Overflow, Standing, Window};

/// What names a budget; never changes.
#[derive(Debug)]
pub struct BudgetInfo {
    /// Its name.
    pub id: BudgetId,
    /// The account it belongs to.
    pub account: AccountId,
    /// That account's path.
    pub path: Arc<str>,
    /// What it counts.
    pub unit: Unit,
    /// When it starts anew.
    pub period: Period,
}

/// A budget as it shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BudgetTerms {
    /// The hard limit.
    pub limit: i64,
    /// Ascending by share.
    pub thresholds: Arc<[Threshold]>,
    /// Whether an operator set it.
    pub manual: bool,
}

/// One budget.
#[derive(Debug)]
pub(crate) struct Budget {
    pub(crate) info: Arc<BudgetInfo>,
    calendar: Calendar,
    changes: Arc<Changes>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    terms: BudgetTerms,
    current: Option<Arc<Window>>,
}

impl Budget {
    pub(crate) fn new(
        info: BudgetInfo,
        calendar: Calendar,
        terms: BudgetTerms,
        changes: &Arc<Changes>,
    ) -> Budget {
        let state = Mutex::new(State { terms, current: None });
        Budget { info: Arc::new(info), calendar, changes: Arc::clone(changes), state }
    }

    pub(crate) fn terms(&self) -> BudgetTerms {
        self.state.lock().terms.clone()
    }

    /// The window that contains `now_ms`. `open` names a new one and tells the journal of it, before
    /// anybody sees it.
    pub(crate) fn window(
        &self,
        now_ms: i64,
        open: impl FnOnce(&BudgetInfo, (i64, i64)) -> WindowId,
    ) -> Arc<Window> {
        let mut state = self.state.lock();
        if let Some(current) = state.current.as_ref().filter(|w| now_ms < w.end_ms) {
            return Arc::clone(current);
        }
        let (start, end) = self.calendar.bounds(now_ms);
        // Windows never overlap, even where a time zone changes its offset within one.
        let start = state.current.as_ref().map_or(start, |ended| start.max(ended.end_ms));
        let id = open(&self.info, (start, end));
        self.install(&mut state, id, (start, end))
    }

    /// Puts a window back as it was (recovery).
    pub(crate) fn restore_window(&self, id: WindowId, bounds: (i64, i64)) -> Arc<Window> {
        let mut state = self.state.lock();
        let newer = state.current.take().filter(|newest| newest.id > id);
        let window = self.install(&mut state, id, bounds);
        if newer.is_some() {
            state.current = newer;
        }
        window
    }

    fn install(&self, state: &mut State, id: WindowId, bounds: (i64, i64)) -> Arc<Window> {
        let BudgetTerms { limit, thresholds, .. } = state.terms.clone();
        let (info, changes) = (Arc::clone(&self.info), Arc::clone(&self.changes));
        let window = Arc::new(Window::new(id, info, bounds, limit, thresholds, changes));
        state.current = Some(Arc::clone(&window));
        window
    }

    /// The words of the window that contains `now_ms`, which is not opened for that.
    pub(crate) fn standing(&self, now_ms: i64) -> Standing {
        let (current, limit) = {
            let state = self.state.lock();
            (state.current.clone(), state.terms.limit)
        };
        let Some(window) = current.filter(|window| now_ms < window.end_ms) else {
            return Standing { limit, held: 0, spent: 0, remaining: limit };
        };
        window.roll(now_ms);
        window.standing()
    }

    /// The newest window, if there has been one.
    pub(crate) fn current(&self) -> Option<Arc<Window>> {
        self.state.lock().current.clone()
    }

    /// Changes limit and thresholds, here and in the current window. `log` runs before anybody can see
    /// the change. Returns the current window and the thresholds that the change itself crosses.
    pub(crate) fn set_terms(
        &self,
        terms: BudgetTerms,
        log: impl FnOnce(&BudgetInfo, &BudgetTerms),
    ) -> Result<(Option<Arc<Window>>, Vec<u16>), Overflow> {
        let mut state = self.state.lock();
        let log = || log(&self.info, &terms);
        let crossed = if let Some(window) = &state.current {
            window.set_limit(terms.limit, Arc::clone(&terms.thresholds), log)?
        } else {
            log();
            Vec::new()
        };
        state.terms = terms;
        Ok((state.current.clone(), crossed))
    }

    /// Changes limit and thresholds as the store's facts say (recovery).
    pub(crate) fn replay_terms(&self, terms: BudgetTerms) {
        let mut state = self.state.lock();
        if let Some(window) = &state.current {
            window.replay_limit(terms.limit, Arc::clone(&terms.thresholds));
        }
        state.terms = terms;
    }
}
