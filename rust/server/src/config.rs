//! The configuration as the Python side hands it over: JSON, already validated for people there.
//!
//! What is checked here again is what the ledger relies on.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use bursar_ledger::path::Pattern;
use bursar_ledger::rates::{RateCard, RateEntry};
use bursar_ledger::runaway::{Action, Policy, Rule};
use bursar_ledger::{
    AccountPattern, Advice, BudgetSpec, BudgetTerms, Calendar, MAX_THRESHOLDS, Period, PeriodKind,
    Settings, Threshold, Unit, Verdict,
};
use serde::Deserialize;

use crate::access::AccessSection;
use crate::dashboard::DashboardSection;
use crate::envoy::EnvoySection;
use crate::metrics::MetricsSection;
use crate::proxy::ProxySection;
use crate::tls::TlsSection;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("configuration: {0}")]
pub struct ConfigError(String);

impl ConfigError {
    pub(crate) fn new(message: impl Into<String>) -> ConfigError {
        ConfigError(message.into())
    }
}

/// All of it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where and how to store.
    pub store: StoreSection,
    /// Where to listen; absent when embedded.
    #[serde(default)]
    pub listen: Option<Listen>,
    /// Who may do what; absent: open.
    #[serde(default)]
    pub(crate) access: AccessSection,
    /// The proxy; absent: none.
    #[serde(default)]
    pub(crate) proxy: Option<ProxySection>,
    /// The dashboard; absent: none.
    #[serde(default)]
    pub(crate) dashboard: Option<DashboardSection>,
    /// Where metrics are served; absent: nowhere.
    #[serde(default)]
    pub(crate) metrics: Option<MetricsSection>,
    /// Envoy's rate limit service; absent: none.
    #[serde(default)]
    pub(crate) envoy: Option<EnvoySection>,
    /// Bounds.
    pub limits: Limits,
    /// Times.
    pub reservations: Reservations,
    /// How long an idle account stays, in milliseconds.
    pub account_idle_ms: i64,
    /// Whether a model without a price costs nothing instead of being refused (R11).
    pub allow_unpriced: bool,
    /// The rate card.
    pub rates: Vec<RateEntry>,
    /// What is a runaway.
    pub runaway: RunawaySection,
    /// Which accounts there are.
    pub accounts: Vec<AccountSection>,
}

/// Where and how to store.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreSection {
    /// The SQLite file; absent: nothing is stored.
    pub path: Option<PathBuf>,
    /// What may be lost in a crash.
    pub durability: Durability,
    /// How long entries stay, in seconds.
    pub entry_retention_s: i64,
    /// How often the log is synced in the background.
    pub sync_interval_ms: u64,
    /// What is to stay free on its disk; below, holds are only ended and lowered. 0: nothing.
    pub min_free_bytes: u64,
}

/// What may be lost in a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Nothing when the process is killed; the last milliseconds in a power cut.
    Process,
    /// Nothing.
    Power,
    /// Anything since the last import.
    Memory,
}

/// Where to listen.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    /// A Unix socket.
    pub unix: Option<PathBuf>,
    /// Its mode.
    pub unix_mode: u32,
    /// An address and port; loopback only, unless it has TLS and everybody shows who they are.
    pub tcp: Option<std::net::SocketAddr>,
    /// TLS for it; absent: none.
    #[serde(default)]
    pub tls: Option<TlsSection>,
    /// The largest message that is read.
    pub max_message_bytes: usize,
    /// The most connections at a time.
    pub max_connections: usize,
    /// The most calls at a time on one connection.
    pub max_concurrent_calls_per_connection: u32,
    /// Data-plane threads.
    pub runtime_threads: usize,
    /// How long a drain waits for calls under way.
    pub drain_timeout_ms: u64,
}

/// Bounds.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// The most accounts.
    pub max_accounts: usize,
    /// The most reservations, pending or remembered.
    pub max_reservations: usize,
    /// The most accounts directly below one.
    pub max_children: usize,
    /// The most leases at a time.
    pub max_leases: usize,
}

/// Times of reservations.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reservations {
    /// Time to live where a call names none.
    pub default_ttl_ms: i64,
    /// The longest that a call may name.
    pub max_ttl_ms: i64,
    /// How long an ended reservation is remembered.
    pub key_retention_ms: i64,
}

/// Accounts that match a path.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccountSection {
    /// A pattern.
    pub path: String,
    /// Their budgets.
    pub budgets: Vec<BudgetSection>,
    /// What is a runaway there; absent: what is one anywhere.
    #[serde(default)]
    pub runaway: Option<RunawaySection>,
}

/// What is a runaway, and what follows.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunawaySection {
    action: String,
    interval_ms: i64,
    /// By the name of its rule, the most that is no finding; 0 or absent: the rule is off.
    most: HashMap<String, i64>,
    advice: AdviceSection,
}

/// A budget.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BudgetSection {
    unit: String,
    period: PeriodSection,
    limit: i64,
    thresholds: Vec<ThresholdSection>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PeriodSection {
    kind: String,
    time_zone: String,
    length_ms: i64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ThresholdSection {
    permille: u16,
    verdict: String,
    advice: AdviceSection,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AdviceSection {
    max_new_tokens: Option<i64>,
    temperature: Option<serde_json::Number>,
    repetition_penalty: Option<serde_json::Number>,
    fallback_model: Option<String>,
    notice: Option<String>,
}

impl Config {
    /// Reads it.
    pub fn parse(json: &str) -> Result<Config, ConfigError> {
        serde_json::from_str(json).map_err(|error| ConfigError(error.to_string()))
    }

    /// What the ledger needs of it.
    pub(crate) fn settings(&self) -> Result<Settings, ConfigError> {
        let patterns: Result<Vec<_>, _> =
            self.accounts.iter().map(AccountSection::pattern).collect();
        Ok(Settings {
            runaway: Arc::new(self.runaway.policy().map_err(ConfigError)?),
            patterns: patterns?,
            max_accounts: self.limits.max_accounts,
            max_children: self.limits.max_children,
            max_reservations: self.limits.max_reservations.min(u32::MAX as usize),
            key_retention_ms: self.reservations.key_retention_ms,
            account_idle_ms: self.account_idle_ms,
        })
    }

    /// The rate card.
    pub(crate) fn rate_card(&self) -> Result<RateCard, ConfigError> {
        RateCard::new(self.rates.clone()).map_err(|error| ConfigError(error.to_string()))
    }
}

impl AccountSection {
    fn pattern(&self) -> Result<AccountPattern, ConfigError> {
        let at = |message: String| ConfigError(format!("account {:?}: {message}", self.path));
        let pattern = Pattern::parse(&self.path).ok_or_else(|| at("malformed pattern".into()))?;
        let mut seen = HashSet::new();
        let mut budgets = Vec::new();
        for section in &self.budgets {
            let spec = section.spec().map_err(at)?;
            if !seen.insert((spec.unit, spec.period.clone())) {
                return Err(at(format!("two budgets of {} per {}", section.unit, spec.period)));
            }
            budgets.push(spec);
        }
        let runaway = self.runaway.as_ref().map(RunawaySection::policy).transpose();
        let runaway = runaway.map_err(at)?.map(Arc::new);
        Ok(AccountPattern { pattern, budgets, runaway })
    }
}

impl RunawaySection {
    fn policy(&self) -> Result<Policy, String> {
        let action = match self.action.as_str() {
            "off" => return Ok(Policy::off()),
            "warn" => Action::Warn,
            "degrade" => Action::Degrade,
            "stop" => Action::Stop,
            "freeze" => Action::Freeze,
            other => return Err(format!("unknown runaway action {other:?}")),
        };
        if self.interval_ms < 1 {
            return Err(format!("a runaway interval of {} ms", self.interval_ms));
        }
        let mut policy = Policy {
            action,
            interval_ms: self.interval_ms,
            advice: self.advice.advice(),
            ..Policy::off()
        };
        for (name, most) in self.most.iter().filter(|(_, most)| **most != 0) {
            let rule = Rule::ALL.into_iter().find(|rule| rule.name() == name);
            let rule = rule.ok_or_else(|| format!("unknown runaway rule {name:?}"))?;
            if *most < 0 {
                return Err(format!("runaway {name}: {most} is negative"));
            }
            policy.most[rule as usize] = *most;
        }
        Ok(policy)
    }
}

impl AdviceSection {
    fn advice(&self) -> Advice {
        Advice {
            max_new_tokens: self.max_new_tokens,
            temperature: self.temperature.as_ref().map(ToString::to_string),
            repetition_penalty: self.repetition_penalty.as_ref().map(ToString::to_string),
            fallback_model: self.fallback_model.clone(),
            notice: self.notice.clone(),
        }
    }
}

impl BudgetSection {
    fn spec(&self) -> Result<BudgetSpec, String> {
        let unit =
            Unit::parse(&self.unit).ok_or_else(|| format!("unknown unit {:?}", self.unit))?;
        let kind = match self.period.kind.as_str() {
            "total" => PeriodKind::Total,
            "hour" => PeriodKind::Hour,
            "day" => PeriodKind::Day,
            "week" => PeriodKind::Week,
            "month" => PeriodKind::Month,
            "rolling" => PeriodKind::Rolling,
            other => return Err(format!("unknown period {other:?}")),
        };
        if unit.is_capacity() && kind != PeriodKind::Total {
            return Err(format!("{} is a capacity: its period is \"total\"", self.unit));
        }
        let time_zone = self.period.time_zone.clone();
        let period = Period { kind, time_zone, length_ms: self.period.length_ms };
        Calendar::new(&period).map_err(|error| error.to_string())?;
        if self.limit < 0 {
            return Err(format!("a negative limit of {}", self.unit));
        }
        let thresholds = self.thresholds.iter().map(ThresholdSection::threshold);
        let thresholds: Vec<Threshold> = thresholds.collect::<Result<_, _>>()?;
        check_thresholds(&thresholds)?;
        let terms =
            BudgetTerms { limit: self.limit, thresholds: Arc::from(thresholds), manual: false };
        Ok(BudgetSpec { unit, period, terms })
    }
}

impl ThresholdSection {
    fn threshold(&self) -> Result<Threshold, String> {
        let verdict = match self.verdict.as_str() {
            "warn" => Verdict::Warn,
            "degrade" => Verdict::Degrade,
            other => return Err(format!("unknown threshold verdict {other:?}")),
        };
        Ok(Threshold { permille: self.permille, verdict, advice: self.advice.advice() })
    }
}

/// At most so many, ascending, within 1 to 1000 thousandths.
pub(crate) fn check_thresholds(thresholds: &[Threshold]) -> Result<(), String> {
    if thresholds.len() > MAX_THRESHOLDS {
        return Err(format!("more than {MAX_THRESHOLDS} thresholds"));
    }
    let ascending = thresholds.windows(2).all(|pair| pair[0].permille < pair[1].permille);
    let within = thresholds.iter().all(|t| (1..=1000).contains(&t.permille));
    if ascending && within {
        Ok(())
    } else {
        Err("thresholds are shares of 1 to 1000 thousandths in ascending order".into())
    }
}
