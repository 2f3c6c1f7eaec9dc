//! Between the wire's messages and the ledger's types. Every bound on input is checked here.

use std::collections::BTreeMap;
use std::sync::Arc;

use bursar_ledger::rates::Usage;
use bursar_ledger::{
    AccountView, Advice, Amounts, Balance, BudgetSpec, BudgetTerms, Debiting, Found, Period,
    PeriodKind, Refusal, RefusalReason, ReservationId, State, Threshold, Unit, Verdict, View,
};

use crate::error::ApiError;
use crate::v1::{self, ErrorReason};

/// The longest idempotency key, label, and reason, in bytes.
pub(crate) const MAX_TEXT: usize = 256;
/// The most labels.
const MAX_LABELS: usize = 16;

/// Amounts off the wire, and the units that they name, one bit per unit index.
pub(crate) fn amounts(field: &'static str, list: &[v1::Amount]) -> Result<(Amounts, u8), ApiError> {
    let mut amounts = Amounts::ZERO;
    let mut named = 0;
    for amount in list {
        let unit = unit(&amount.unit)?;
        let invalid = |why: &str| {
            let message = format!("{field}: {} of {}: {why}", amount.value, unit.name());
            ApiError::new(ErrorReason::InvalidAmount, message).with("unit", unit.name())
        };
        if amount.value < 0 {
            return Err(invalid("an amount is never negative"));
        }
        if named & (1 << unit.index()) != 0 {
            return Err(invalid("a unit may be named once"));
        }
        named |= 1 << unit.index();
        amounts.set(unit, amount.value);
    }
    Ok((amounts, named))
}

pub(crate) fn unit(name: &str) -> Result<Unit, ApiError> {
    Unit::parse(name).ok_or_else(|| {
        let name = cut(name);
        let units = Unit::ALL.map(Unit::name).join(", ");
        let message = format!("unknown unit {name:?}: one of {units}");
        ApiError::new(ErrorReason::UnknownUnit, message).with("unit", name)
    })
}

/// The account that a list is about; empty: all.
pub(crate) fn within(account: &str) -> Result<&str, ApiError> {
    if account.is_empty() { Ok(account) } else { path(account) }
}

/// The account that a question is about.
pub(crate) fn path(account: &str) -> Result<&str, ApiError> {
    if bursar_ledger::path::is_valid(account) {
        return Ok(account);
    }
    Err(bursar_ledger::LedgerError::InvalidAccount { path: cut(account) }.into())
}

/// The start of a text, for an error message.
pub(crate) fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

pub(crate) fn usage(usage: &v1::Usage) -> Usage {
    Usage {
        input_tokens: usage.input_tokens,
        cached_input_tokens: usage.cached_input_tokens,
        cache_write_tokens: usage.cache_write_tokens,
        output_tokens: usage.output_tokens,
        gpu_ms: usage.gpu_ms,
        calls: 1,
    }
}

pub(crate) fn estimate(usage: &v1::UsageEstimate) -> Usage {
    Usage {
        input_tokens: usage.input_tokens,
        cached_input_tokens: usage.cached_input_tokens,
        cache_write_tokens: usage.cache_write_tokens,
        output_tokens: usage.max_output_tokens,
        gpu_ms: usage.gpu_ms,
        calls: 1,
    }
}

/// Labels within their bounds, and the model among them.
pub(crate) fn labels(
    labels: &BTreeMap<String, String>,
    model: &str,
) -> Result<Vec<(String, String)>, ApiError> {
    if labels.len() > MAX_LABELS {
        return Err(ApiError::field("labels", format!("more than {MAX_LABELS}")));
    }
    let mut list = Vec::with_capacity(labels.len() + usize::from(!model.is_empty()));
    for (name, value) in labels {
        if name.len() > MAX_TEXT || value.len() > MAX_TEXT {
            return Err(ApiError::field("labels", format!("longer than {MAX_TEXT} bytes")));
        }
        if name.starts_with("bursar.") {
            return Err(ApiError::field(
                "labels",
                "names that start with \"bursar.\" are reserved",
            ));
        }
        if name != "model" || model.is_empty() {
            list.push((name.clone(), value.clone()));
        }
    }
    if !model.is_empty() {
        if model.len() > MAX_TEXT {
            return Err(ApiError::field("usage.model", format!("longer than {MAX_TEXT} bytes")));
        }
        list.push(("model".to_owned(), model.to_owned()));
    }
    Ok(list)
}

/// Milliseconds of a duration that has to be within `1..=max`.
pub(crate) fn duration_ms(
    field: &'static str,
    duration: &prost_types::Duration,
    max_ms: i64,
) -> Result<i64, ApiError> {
    let nanos_ms = i64::from(duration.nanos) / 1_000_000;
    let ms = duration.seconds.checked_mul(1000).and_then(|ms| ms.checked_add(nanos_ms));
    ms.filter(|ms| (1..=max_ms).contains(ms))
        .ok_or_else(|| ApiError::field(field, format!("has to be from 1 ms to {max_ms} ms")))
}

/// Unix milliseconds of a time; years 1 to 9999, as protobuf has them.
pub(crate) fn time_ms(field: &'static str, time: &prost_types::Timestamp) -> Result<i64, ApiError> {
    const SECONDS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;
    if !SECONDS.contains(&time.seconds) || !(0..1_000_000_000).contains(&time.nanos) {
        return Err(ApiError::field(field, "has to be a time in the years 1 to 9999"));
    }
    Ok(time.seconds * 1000 + i64::from(time.nanos) / 1_000_000)
}

pub(crate) fn timestamp(ms: i64) -> prost_types::Timestamp {
    let nanos = i32::try_from(ms.rem_euclid(1000) * 1_000_000).expect("below a second");
    prost_types::Timestamp { seconds: ms.div_euclid(1000), nanos }
}

pub(crate) fn duration(ms: i64) -> prost_types::Duration {
    let nanos = i32::try_from(ms.rem_euclid(1000) * 1_000_000).expect("below a second");
    prost_types::Duration { seconds: ms.div_euclid(1000), nanos }
}

/// The amounts that are not zero.
pub(crate) fn list(amounts: &Amounts) -> Vec<v1::Amount> {
    let amount = |(unit, value): (Unit, i64)| v1::Amount { unit: unit.name().to_owned(), value };
    amounts.iter().map(amount).collect()
}

/// The amounts of every unit that `which` has, zeros included.
pub(crate) fn list_for(amounts: &Amounts, which: &Amounts) -> Vec<v1::Amount> {
    let amount = |(unit, _): (Unit, i64)| v1::Amount {
        unit: unit.name().to_owned(),
        value: amounts.get(unit),
    };
    which.iter().map(amount).collect()
}

pub(crate) fn verdict(verdict: Verdict) -> i32 {
    let verdict = match verdict {
        Verdict::Ok => v1::Verdict::Ok,
        Verdict::Warn => v1::Verdict::Warn,
        Verdict::Degrade => v1::Verdict::Degrade,
        Verdict::Stop => v1::Verdict::Stop,
    };
    verdict.into()
}

pub(crate) fn advice(advice: Advice) -> v1::Advice {
    v1::Advice {
        max_new_tokens: advice.max_new_tokens,
        temperature: advice.temperature.and_then(|text| text.parse().ok()),
        repetition_penalty: advice.repetition_penalty.and_then(|text| text.parse().ok()),
        fallback_model: advice.fallback_model,
        notice: advice.notice,
    }
}

pub(crate) fn finding(found: &Found) -> v1::Finding {
    let finding = &found.finding;
    v1::Finding {
        time: Some(timestamp(found.time_ms)),
        account: found.account.to_string(),
        rule: finding.rule.name().to_owned(),
        figure: finding.figure,
        allowed: finding.most,
        unit: finding.unit.map(|unit| unit.name().to_owned()).unwrap_or_default(),
        action: found.action.name().to_owned(),
    }
}

pub(crate) fn refusal(refusal: &Refusal) -> v1::Refusal {
    let (reason, hint) = match refusal.reason {
        RefusalReason::BudgetExhausted => (
            v1::refusal::Reason::BudgetExhausted,
            match refusal.reset_ms {
                Some(_) => "ask for less, wait until reset_time, or have the limit raised",
                None => "ask for less, or have the limit raised",
            },
        ),
        RefusalReason::AccountFrozen => {
            (v1::refusal::Reason::AccountFrozen, "an operator has to unfreeze the account")
        }
        RefusalReason::ParentHoldExhausted => {
            (v1::refusal::Reason::ParentHoldExhausted, "extend the parent reservation first")
        }
        RefusalReason::HoldExhausted => {
            (v1::refusal::Reason::HoldExhausted, "extend the reservation, or commit it")
        }
        RefusalReason::Runaway(_) => (v1::refusal::Reason::Runaway, ""),
    };
    let hint = match &refusal.reason {
        RefusalReason::Runaway(finding) => finding.to_string(),
        _ => hint.to_owned(),
    };
    v1::Refusal {
        reason: reason.into(),
        account: refusal.account.clone(),
        unit: refusal.unit.map_or(String::new(), |unit| unit.name().to_owned()),
        shortfall: refusal.shortfall,
        reset_time: refusal.reset_ms.map(timestamp),
        hint,
    }
}

pub(crate) fn balance(balance: &Balance) -> v1::Balance {
    let window = &balance.window;
    let bounded = window.end_ms != i64::MAX;
    v1::Balance {
        account: window.budget.path.to_string(),
        unit: window.budget.unit.name().to_owned(),
        period: window.budget.period.to_string(),
        limit: balance.standing.limit,
        held: balance.standing.held,
        spent: balance.standing.spent,
        remaining: balance.standing.remaining,
        start_time: bounded.then(|| timestamp(window.start_ms)),
        reset_time: bounded.then(|| timestamp(window.end_ms)),
    }
}

/// A reservation's name on the wire: store, sequence and slot in hexadecimal.
pub(crate) fn reservation_id(store_id: u32, id: ReservationId) -> String {
    format!("{store_id:08x}-{:x}-{:x}", id.sequence, id.slot)
}

/// The reservation of that name in this store.
pub(crate) fn parse_reservation_id(store_id: u32, name: &str) -> Result<ReservationId, ApiError> {
    let parse = || {
        let mut parts = name.splitn(3, '-').map(|part| u64::from_str_radix(part, 16).ok());
        let (store, sequence, slot) = (parts.next()??, parts.next()??, parts.next()??);
        (store == u64::from(store_id))
            .then_some(ReservationId { sequence, slot: u32::try_from(slot).ok()? })
    };
    parse().ok_or_else(|| {
        let message = format!("no reservation {:?} in this store", cut(name));
        ApiError::new(ErrorReason::ReservationNotFound, message).with("reservation", cut(name))
    })
}

pub(crate) fn state(state: State) -> i32 {
    let state = match state {
        State::Pending => v1::reservation::State::Pending,
        State::Committed => v1::reservation::State::Committed,
        State::Released => v1::reservation::State::Released,
        State::Expired => v1::reservation::State::Expired,
    };
    state.into()
}

pub(crate) fn debiting(debiting: Debiting) -> v1::open_reservation::Debiting {
    match debiting {
        Debiting::Calls => v1::open_reservation::Debiting::Calls,
        Debiting::Metered => v1::open_reservation::Debiting::Stream,
        Debiting::Leased => v1::open_reservation::Debiting::Lease,
    }
}

pub(crate) fn reservation(store_id: u32, view: &View, wall_ms: i64) -> v1::Reservation {
    let pending = view.state == State::Pending;
    v1::Reservation {
        id: reservation_id(store_id, view.id),
        state: state(view.state),
        account: view.account.to_string(),
        granted: list(&view.granted),
        used: list(&view.used),
        spent: list(&view.spent),
        max_output_tokens: view.max_output_tokens,
        create_time: Some(timestamp(view.created_ms)),
        expire_time: pending.then(|| timestamp(wall_ms.saturating_add(view.expires_in_ms))),
        ttl: Some(duration(view.ttl_ms)),
        parent_reservation: view.parent.map(|id| reservation_id(store_id, id)).unwrap_or_default(),
        model: view.model.clone().unwrap_or_default(),
    }
}

pub(crate) fn account(view: &AccountView) -> v1::Account {
    v1::Account {
        path: view.path.to_string(),
        frozen: view.frozen,
        stopped: view.stopped,
        freeze_reason: view.freeze_reason.clone(),
        verdict: verdict(view.verdict),
        balances: view.balances.iter().map(balance).collect(),
        open_reservation_count: view.open_reservations,
        create_time: Some(timestamp(view.created_ms)),
    }
}

pub(crate) fn budget(path: &str, spec: &BudgetSpec) -> v1::Budget {
    let threshold = |threshold: &Threshold| v1::Threshold {
        permille: i32::from(threshold.permille),
        verdict: verdict(threshold.verdict),
        advice: Some(advice(threshold.advice.clone())),
    };
    v1::Budget {
        account: path.to_owned(),
        unit: spec.unit.name().to_owned(),
        period: Some(period(&spec.period)),
        limit: spec.terms.limit,
        thresholds: spec.terms.thresholds.iter().map(threshold).collect(),
    }
}

fn period(period: &Period) -> v1::Period {
    let kind = match period.kind {
        PeriodKind::Total => v1::period::Kind::Total,
        PeriodKind::Hour => v1::period::Kind::Hour,
        PeriodKind::Day => v1::period::Kind::Day,
        PeriodKind::Week => v1::period::Kind::Week,
        PeriodKind::Month => v1::period::Kind::Month,
        PeriodKind::Rolling => v1::period::Kind::Rolling,
    };
    let length = (period.length_ms != 0).then(|| duration(period.length_ms));
    v1::Period { kind: kind.into(), time_zone: period.time_zone.clone(), length }
}

/// A budget off the wire.
pub(crate) fn budget_spec(budget: &v1::Budget) -> Result<BudgetSpec, ApiError> {
    let unit = unit(&budget.unit)?;
    if budget.limit < 0 {
        let message = format!("limit: {} of {}: never negative", budget.limit, unit.name());
        return Err(ApiError::new(ErrorReason::InvalidAmount, message).with("unit", unit.name()));
    }
    let period = budget.period.as_ref();
    let period = period.ok_or_else(|| ApiError::field("budget.period", "is missing"))?;
    let thresholds: Vec<Threshold> =
        budget.thresholds.iter().map(threshold_spec).collect::<Result<_, _>>()?;
    crate::config::check_thresholds(&thresholds)
        .map_err(|message| ApiError::field("budget.thresholds", message))?;
    let terms =
        BudgetTerms { limit: budget.limit, thresholds: Arc::from(thresholds), manual: true };
    Ok(BudgetSpec { unit, period: period_spec(period)?, terms })
}

fn period_spec(period: &v1::Period) -> Result<Period, ApiError> {
    let zone = if period.time_zone.is_empty() { "UTC" } else { &period.time_zone };
    if zone.len() > MAX_TEXT {
        let message = format!("a time zone is not longer than {MAX_TEXT} bytes");
        return Err(ApiError::field("budget.period.time_zone", message));
    }
    let calendar = |kind| Ok(Period::calendar(kind, zone));
    match period.kind() {
        v1::period::Kind::Unspecified => {
            Err(ApiError::field("budget.period.kind", "is missing or unknown"))
        }
        v1::period::Kind::Total => Ok(Period::total()),
        v1::period::Kind::Hour => calendar(PeriodKind::Hour),
        v1::period::Kind::Day => calendar(PeriodKind::Day),
        v1::period::Kind::Week => calendar(PeriodKind::Week),
        v1::period::Kind::Month => calendar(PeriodKind::Month),
        v1::period::Kind::Rolling => {
            let length = period.length.unwrap_or_default();
            let longest = *bursar_ledger::ROLLING_MS.end();
            Ok(Period::rolling(duration_ms("budget.period.length", &length, longest)?))
        }
    }
}

fn threshold_spec(threshold: &v1::Threshold) -> Result<Threshold, ApiError> {
    let verdict = match threshold.verdict() {
        v1::Verdict::Warn => Verdict::Warn,
        v1::Verdict::Degrade => Verdict::Degrade,
        _ => return Err(ApiError::field("budget.thresholds.verdict", "is WARN or DEGRADE")),
    };
    let permille = u16::try_from(threshold.permille).unwrap_or(u16::MAX);
    let given = threshold.advice.clone().unwrap_or_default();
    for (field, text) in [
        ("budget.thresholds.advice.fallback_model", &given.fallback_model),
        ("budget.thresholds.advice.notice", &given.notice),
    ] {
        if text.as_ref().is_some_and(|text| text.len() > MAX_TEXT) {
            return Err(ApiError::field(field, format!("longer than {MAX_TEXT} bytes")));
        }
    }
    if given.max_new_tokens.is_some_and(|tokens| tokens < 0) {
        let field = "budget.thresholds.advice.max_new_tokens";
        return Err(ApiError::field(field, "is never negative"));
    }
    for (field, value) in [
        ("budget.thresholds.advice.temperature", given.temperature),
        ("budget.thresholds.advice.repetition_penalty", given.repetition_penalty),
    ] {
        if value.is_some_and(|value| !value.is_finite() || value < 0.0) {
            return Err(ApiError::field(field, "has to be a number of 0 or more"));
        }
    }
    let advice = Advice {
        max_new_tokens: given.max_new_tokens,
        temperature: given.temperature.map(|value| value.to_string()),
        repetition_penalty: given.repetition_penalty.map(|value| value.to_string()),
        fallback_model: given.fallback_model,
        notice: given.notice,
    };
    Ok(Threshold { permille, verdict, advice })
}
