//! The rate card: what a model call costs.
//!
//! Owns the one formula that turns usage into money, its inverse (how much output still fits), and
//! the look-up by model name. Never reads a file and never knows a price of its own. Called by the
//! ledger on Reserve, Debit, Commit and Record.
//!
//! # The formula
//!
//! ```text
//!   uncached = input - cached_input - cache_write
//!   cost = ⌈ ( uncached × input price + cached_input × cached price + cache_write × write price
//!            + output × output price                        [nano-USD per million tokens]
//!            + gpu_ms × 1000 × gpu_second + calls × 10⁶ × call ) / 10⁶ ⌉
//! ```
//!
//! A tier replaces all four token prices for the *whole* call once its input tokens, cached ones
//! included, pass `above_input_tokens`: a cliff, as providers bill it. The sum is exact in 128 bits;
//! it is divided once and rounded up once, to a whole nano-USD.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// What token prices are quoted for; also the denominator that all terms share.
const MILLION: i128 = 1_000_000;
/// A price of one GPU second, brought from milliseconds to the denominator.
const PER_GPU_MS: i128 = 1_000;

/// The prices of one model, in nano-USD.
///
/// Two million tokens in, half of them cached, and 1,001 out, at 2.50, 1.25 and 10 USD a million:
///
/// ```
/// use bursar_ledger::rates::{Rate, Usage};
///
/// let rate = Rate {
///     model: "gpt-4o".into(),
///     input_nanos_per_million: 2_500_000_000,
///     cached_input_nanos_per_million: 1_250_000_000,
///     cache_write_nanos_per_million: 2_500_000_000,
///     output_nanos_per_million: 10_000_000_000,
///     call_nanos: 0,
///     gpu_second_nanos: 0,
///     tiers: vec![],
/// };
/// let usage = Usage {
///     input_tokens: 2_000_000,
///     cached_input_tokens: 1_000_000,
///     output_tokens: 1_001,
///     ..Usage::default()
/// };
/// // 2.5 USD + 1.25 USD + 1,001 × 0.00001 USD = 3.76001 USD
/// assert_eq!(rate.cost_usd_nanos(&usage), Ok(3_760_010_000));
/// // With 3.76 USD left, one output token less than that fits.
/// assert_eq!(rate.max_output_tokens(&usage, 3_760_000_000, 4_096), Ok(Some(1_000)));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// The model's name.
    pub model: String,
    /// A million input tokens that touch no cache.
    pub input_nanos_per_million: i64,
    /// A million input tokens read from the provider's cache.
    pub cached_input_nanos_per_million: i64,
    /// A million input tokens written to the provider's cache.
    pub cache_write_nanos_per_million: i64,
    /// A million output tokens.
    pub output_nanos_per_million: i64,
    /// One call.
    pub call_nanos: i64,
    /// One second of GPU time.
    pub gpu_second_nanos: i64,
    /// Other token prices for long inputs, in any order.
    pub tiers: Vec<Tier>,
}

/// The token prices of a call whose input passes a length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tier {
    /// The tier holds for calls with more input tokens than this.
    pub above_input_tokens: i64,
    /// As in [`Rate`].
    pub input_nanos_per_million: i64,
    /// As in [`Rate`].
    pub cached_input_nanos_per_million: i64,
    /// As in [`Rate`].
    pub cache_write_nanos_per_million: i64,
    /// As in [`Rate`].
    pub output_nanos_per_million: i64,
}

/// What a model call uses. Input includes the cached and the cache-written tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Usage {
    /// All prompt tokens.
    pub input_tokens: i64,
    /// Those read from the provider's cache.
    pub cached_input_tokens: i64,
    /// Those written to the provider's cache.
    pub cache_write_tokens: i64,
    /// Generated tokens.
    pub output_tokens: i64,
    /// GPU time in milliseconds.
    pub gpu_ms: i64,
    /// Calls.
    pub calls: i64,
}

/// Why usage cannot be priced, or a rate card cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RateError {
    /// A count below zero.
    #[error("{0} is negative")]
    NegativeCount(&'static str),
    /// The parts are more than the whole.
    #[error("cached_input_tokens and cache_write_tokens together exceed input_tokens")]
    CacheExceedsInput,
    /// The cost is not an `i64` of nano-USD (over 9.2 billion USD).
    #[error("the cost would pass 2^63 - 1 nano-USD")]
    Overflow,
    /// Prices that cannot be.
    #[error("the rate of model {model:?} is invalid: {why}")]
    Invalid {
        /// The model.
        model: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Two models, or a model and an alias, share a name.
    #[error("the rate card names {name:?} more than once")]
    DuplicateName {
        /// The name.
        name: String,
    },
}

impl Rate {
    /// The cost in nano-USD, rounded up once.
    pub fn cost_usd_nanos(&self, usage: &Usage) -> Result<i64, RateError> {
        let prices = self.prices(usage.input_tokens);
        let output = product(usage.output_tokens, prices.output_nanos_per_million, 1)?;
        let millionths = sum([self.fixed(&prices, usage)?, output])?;
        let round_up = sum([millionths, MILLION - 1])?;
        i64::try_from(round_up.div_euclid(MILLION)).map_err(|_| RateError::Overflow)
    }

    /// The most output tokens, up to `wish`, whose cost fits `usd_nanos_left`; `None` when the rest
    /// of the call alone does not fit. The usage's own `output_tokens` are ignored.
    pub fn max_output_tokens(
        &self,
        usage: &Usage,
        usd_nanos_left: i64,
        wish: i64,
    ) -> Result<Option<i64>, RateError> {
        let usage = Usage { output_tokens: wish, ..*usage };
        let prices = self.prices(usage.input_tokens);
        let fixed = self.fixed(&prices, &usage)?;
        // ⌈x / 10⁶⌉ ≤ left exactly when x ≤ left × 10⁶, so nothing is lost by comparing undivided.
        let left =
            product(usd_nanos_left, 1, MILLION)?.checked_sub(fixed).ok_or(RateError::Overflow)?;
        if left < 0 {
            return Ok(None);
        }
        let fits = left.checked_div(prices.output_nanos_per_million.into()); // None: output is free
        let fits = fits.and_then(|fits| i64::try_from(fits).ok()).unwrap_or(i64::MAX);
        Ok(Some(fits.min(wish)))
    }

    /// The token prices of a call with so many input tokens.
    fn prices(&self, input_tokens: i64) -> Tier {
        let passed = self.tiers.iter().filter(|tier| input_tokens > tier.above_input_tokens);
        passed.max_by_key(|tier| tier.above_input_tokens).copied().unwrap_or_else(|| self.base())
    }

    fn base(&self) -> Tier {
        Tier {
            above_input_tokens: 0,
            input_nanos_per_million: self.input_nanos_per_million,
            cached_input_nanos_per_million: self.cached_input_nanos_per_million,
            cache_write_nanos_per_million: self.cache_write_nanos_per_million,
            output_nanos_per_million: self.output_nanos_per_million,
        }
    }

    /// All but the output, in millionths of a nano-USD.
    fn fixed(&self, prices: &Tier, usage: &Usage) -> Result<i128, RateError> {
        let uncached = usage.uncached()?;
        sum([
            product(uncached, prices.input_nanos_per_million, 1)?,
            product(usage.cached_input_tokens, prices.cached_input_nanos_per_million, 1)?,
            product(usage.cache_write_tokens, prices.cache_write_nanos_per_million, 1)?,
            product(usage.gpu_ms, self.gpu_second_nanos, PER_GPU_MS)?,
            product(usage.calls, self.call_nanos, MILLION)?,
        ])
    }

    /// Refuses what no provider can mean.
    fn check(&self) -> Result<(), RateError> {
        let invalid = |why| Err(RateError::Invalid { model: self.model.clone(), why });
        let of_tiers = self.tiers.iter().copied().chain([self.base()]).flat_map(|tier| {
            [
                tier.above_input_tokens,
                tier.input_nanos_per_million,
                tier.cached_input_nanos_per_million,
                tier.cache_write_nanos_per_million,
                tier.output_nanos_per_million,
            ]
        });
        if of_tiers.chain([self.call_nanos, self.gpu_second_nanos]).any(|number| number < 0) {
            return invalid("a price or a tier's length is negative");
        }
        let lengths: HashSet<_> = self.tiers.iter().map(|tier| tier.above_input_tokens).collect();
        if lengths.len() < self.tiers.len() {
            return invalid("two tiers start above the same number of input tokens");
        }
        Ok(())
    }
}

impl Usage {
    /// The input tokens that touch no cache, once every count is seen to make sense.
    fn uncached(&self) -> Result<i64, RateError> {
        let counts = [
            ("input_tokens", self.input_tokens),
            ("cached_input_tokens", self.cached_input_tokens),
            ("cache_write_tokens", self.cache_write_tokens),
            ("output_tokens", self.output_tokens),
            ("gpu_ms", self.gpu_ms),
            ("calls", self.calls),
        ];
        if let Some((name, _)) = counts.into_iter().find(|(_, count)| *count < 0) {
            return Err(RateError::NegativeCount(name));
        }
        let uncached = self.input_tokens.checked_sub(self.cached_input_tokens);
        let uncached = uncached.and_then(|rest| rest.checked_sub(self.cache_write_tokens));
        uncached.filter(|rest| *rest >= 0).ok_or(RateError::CacheExceedsInput)
    }
}

fn product(count: i64, price: i64, scale: i128) -> Result<i128, RateError> {
    let exact = i128::from(count).checked_mul(price.into());
    exact.and_then(|exact| exact.checked_mul(scale)).ok_or(RateError::Overflow)
}

fn sum<const N: usize>(terms: [i128; N]) -> Result<i128, RateError> {
    terms.into_iter().try_fold(0_i128, i128::checked_add).ok_or(RateError::Overflow)
}

/// One model as the configuration hands it over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateEntry {
    /// The model's name and prices.
    #[serde(flatten)]
    pub rate: Rate,
    /// Other names of the same model.
    pub aliases: Vec<String>,
    /// The encoding that counts its tokens, where that is known.
    pub tokenizer: Option<String>,
}

/// The prices and tokenizers of all models.
#[derive(Debug, Default)]
pub struct RateCard {
    models: HashMap<String, (Arc<Rate>, Option<Arc<str>>)>,
}

impl RateCard {
    /// Makes a card; every name and alias must be unique, every price 0 or more.
    pub fn new(entries: Vec<RateEntry>) -> Result<RateCard, RateError> {
        let mut models = HashMap::new();
        for RateEntry { rate, aliases, tokenizer } in entries {
            rate.check()?;
            let found = (Arc::new(rate), tokenizer.map(Arc::from));
            for name in aliases.into_iter().chain([found.0.model.clone()]) {
                match models.entry(name) {
                    Entry::Occupied(taken) => {
                        return Err(RateError::DuplicateName { name: taken.key().clone() });
                    }
                    Entry::Vacant(free) => free.insert(found.clone()),
                };
            }
        }
        Ok(RateCard { models })
    }

    /// The prices of a model, by its name or an alias.
    pub fn rate(&self, model: &str) -> Option<&Arc<Rate>> {
        self.models.get(model).map(|(rate, _)| rate)
    }

    /// The encoding that counts a model's tokens, by its name or an alias.
    pub fn tokenizer(&self, model: &str) -> Option<&str> {
        self.models.get(model).and_then(|(_, tokenizer)| tokenizer.as_deref())
    }
}
