//! The one answer to every spending call, and the thresholds that shape it.

use serde::{Deserialize, Serialize};

use crate::runaway::Finding;
use crate::unit::Unit;

/// How a caller may go on; the order is the order of severity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[repr(u8)]
pub enum Verdict {
    /// Go on.
    Ok = 0,
    /// Go on and follow the advice.
    Warn = 1,
    /// Go on more cheaply.
    Degrade = 2,
    /// Stop now.
    Stop = 3,
}

/// What to change on WARN or DEGRADE. Parameters are kept as decimal text: no float is stored.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Advice {
    /// Generate no more than so many further tokens.
    pub max_new_tokens: Option<i64>,
    /// Sample at this temperature, as decimal text.
    pub temperature: Option<String>,
    /// Sample with this repetition penalty, as decimal text.
    pub repetition_penalty: Option<String>,
    /// Use this model for new calls.
    pub fallback_model: Option<String>,
    /// Say this at the end of what was cut off, or beside it.
    #[serde(default)]
    pub notice: Option<String>,
}

/// A share of the limit that, once spent, changes the verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Threshold {
    /// The share in thousandths of the limit, 1 to 1000.
    pub permille: u16,
    /// [`Verdict::Warn`] or [`Verdict::Degrade`].
    pub verdict: Verdict,
    /// What to change then.
    pub advice: Advice,
}

impl Threshold {
    /// The spent amount from which it holds: the share of `limit`, rounded up, and at least 1: where
    /// nothing is spent, nothing is crossed.
    pub fn mark(&self, limit: i64) -> i64 {
        let share = i128::from(limit) * i128::from(self.permille);
        let mark = i64::try_from((share + 999).div_euclid(1000));
        mark.expect("a share of an i64 is an i64").max(1)
    }
}

/// The share that is all of the limit.
const WHOLE_PERMILLE: u16 = 1_000;

/// What is reported of a window once so much of its limit is spent: each threshold and, whether or not
/// one is there, the whole limit. Each with its share, its mark and the verdict from there on; that of
/// the whole limit is STOP only when more is spent.
pub fn marks(
    thresholds: &[Threshold],
    limit: i64,
) -> impl Iterator<Item = (u16, i64, Verdict)> + use<'_> {
    let marks = thresholds.iter().map(move |t| (t.permille, t.mark(limit), t.verdict));
    marks.chain([(WHOLE_PERMILLE, limit.max(1), Verdict::Ok)])
}

/// Whether a mark of a rolling window that was reported is reported again when it is crossed. A window
/// that is kept full falls below its marks with all that leaves it, and is told of once.
pub(crate) fn is_told_anew(mark: i64, spent: i64) -> bool {
    spent < mark - mark / 2
}

/// Why a call may not spend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RefusalReason {
    /// A window has too little left.
    BudgetExhausted,
    /// The account or an ancestor is frozen.
    AccountFrozen,
    /// The parent reservation has too little unused hold left.
    ParentHoldExhausted,
    /// The reservation's own hold is used up.
    HoldExhausted,
    /// The account has run away.
    Runaway(Finding),
}

/// Why a call may not spend, and what limits it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The kind.
    pub reason: RefusalReason,
    /// The limiting account's path.
    pub account: String,
    /// The unit that is short; `None` when frozen.
    pub unit: Option<Unit>,
    /// By how much the request passes what is left.
    pub shortfall: i64,
    /// When the limiting window starts anew (Unix ms); `None` when it never does.
    pub reset_ms: Option<i64>,
}
