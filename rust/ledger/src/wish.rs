//! What a caller wants to hold: amounts, or the usage of a model call, and how little would do (R5).

use std::sync::Arc;

use crate::error::LedgerError;
use crate::rates::{Rate, Usage};
use crate::unit::{Amounts, Unit};

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

/// Amounts, and the output tokens that they are for.
pub(crate) type Portion = (Amounts, i64);

impl Wish {
    /// All of it, and the least worth having; an error when they make no sense.
    #[inline]
    pub(crate) fn bounds(&self) -> Result<(Portion, Portion), LedgerError> {
        let (most, least) = match self {
            Wish::Amounts { most, least } => ((*most, 0), (*least, 0)),
            Wish::Usage { rate, usage, min_output_tokens } => {
                let priced = |output_tokens| {
                    let usage = Usage { output_tokens, ..*usage };
                    usage_amounts(rate.as_deref(), &usage).map(|amounts| (amounts, output_tokens))
                };
                (priced(usage.output_tokens)?, priced(*min_output_tokens)?)
            }
        };
        check_order(&least.0, &most.0)?;
        Ok((most, least))
    }

    /// All of it, as above; the least is not copied.
    #[inline]
    pub(crate) fn most(&self) -> Result<Portion, LedgerError> {
        match self {
            Wish::Amounts { most, least } => {
                check_order(least, most)?;
                Ok((*most, 0))
            }
            Wish::Usage { .. } => Ok(self.bounds()?.0),
        }
    }

    /// The largest part that fits what is left, if it is still worth having (R5).
    pub(crate) fn largest(&self, left: &Amounts) -> Result<Option<Portion>, LedgerError> {
        match self {
            Wish::Amounts { most, least } => {
                // An overdrawn unit that is not asked for limits nothing.
                let part = most.min(&left.max(&Amounts::ZERO));
                Ok((part.min(least) == *least).then_some((part, 0)))
            }
            Wish::Usage { rate, usage, min_output_tokens } => {
                let tokens_left = left.get(Unit::Tokens).saturating_sub(usage.input_tokens);
                let mut output = usage.output_tokens.min(tokens_left);
                if let Some(rate) = rate {
                    let usd_nanos_left = left.get(Unit::UsdNanos).max(0);
                    match rate.max_output_tokens(usage, usd_nanos_left, output.max(0))? {
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

    /// Whether nothing but all of it will do.
    pub(crate) fn is_all_or_nothing(&self) -> bool {
        match self {
            Wish::Amounts { most, least } => most == least,
            Wish::Usage { usage, min_output_tokens, .. } => {
                usage.output_tokens == *min_output_tokens
            }
        }
    }

    /// The prices that it was made with.
    pub(crate) fn rate(&self) -> Option<Arc<Rate>> {
        match self {
            Wish::Amounts { .. } => None,
            Wish::Usage { rate, .. } => rate.clone(),
        }
    }
}

/// An error when the least is negative or more than the most.
#[inline]
fn check_order(least: &Amounts, most: &Amounts) -> Result<(), LedgerError> {
    least.check_not_negative()?;
    if least.is_within(most) {
        return Ok(());
    }
    let unit = Unit::each().find(|unit| least.get(*unit) > most.get(*unit));
    Err(LedgerError::InvalidAmount {
        unit: unit.expect("one of them is smaller in the most"),
        why: "the least worth having is more than the wish",
    })
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
