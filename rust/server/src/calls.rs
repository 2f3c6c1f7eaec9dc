//! The calls of `LedgerService`: from message to ledger and back.

use std::sync::Arc;

use bursar_ledger::rates::Rate;
use bursar_ledger::{
    Admission, Amounts, Ask, Ended, Ending, Owner, RefusalReason, Scope, Spending, Unit, Verdict,
    Wish, usage_amounts,
};
use prost::Message;

use crate::convert;
use crate::engine::{Answer, Engine};
use crate::error::ApiError;
use crate::maker::Maker;
use crate::tokens;
use crate::v1::{self, ErrorReason};

type Reply<T> = Result<Answer<T>, ApiError>;

/// Which call a key belongs to: one key in two kinds of calls is two keys.
#[derive(Clone, Copy)]
enum Keyed {
    Reserve = 1,
    Record = 2,
}

impl Engine {
    /// Reserve. `owner`: the caller's process (see `owner`), where the socket tells it.
    pub(crate) fn reserve(
        &self,
        request: &v1::ReserveRequest,
        owner: Option<Owner>,
        maker: Maker<'_>,
    ) -> Reply<v1::ReserveResponse> {
        self.check_open()?;
        let (wish, model) =
            self.wish(&request.amounts, request.usage.as_ref(), &request.min_acceptable)?;
        let mut labels = convert::labels(&request.labels, model)?;
        labels.extend(maker.label());
        let parent = match request.parent_reservation.as_str() {
            "" => None,
            name => Some(convert::parse_reservation_id(self.store_id, name)?),
        };
        let ask = Ask {
            account: &request.account,
            wish,
            ttl_ms: self.ttl_ms(request.ttl.as_ref())?,
            key: self.key(Keyed::Reserve, &request.account, &request.idempotency_key)?,
            payload: self.payload(request),
            parent,
            labels,
            owner,
        };
        let now = self.now();
        Ok(match self.ledger.reserve(ask, now)? {
            Admission::Granted(granted) => {
                let body = v1::ReserveResponse {
                    verdict: convert::verdict(granted.verdict),
                    balances: balances(&granted.scope, &granted.view.granted),
                    advice: match granted.scope.runaway_advice() {
                        Some(runaway) if granted.degraded => Some(convert::advice(runaway.clone())),
                        _ => advice(granted.verdict, &granted.scope),
                    },
                    reservation: Some(self.reservation_message(&granted.view, now.wall_ms)),
                    refusal: None,
                };
                // A repeat's hold is older than this call and not this call's to undo.
                let hold = Some(granted.view.id).filter(|_| granted.ticket != u64::MAX);
                Answer { hold, ..Answer::new(body, granted.ticket) }
            }
            Admission::Refused(refusal, scope) => {
                let short = refusal.unit.map_or(Amounts::ZERO, |unit| Amounts::of(unit, 1));
                let body = v1::ReserveResponse {
                    verdict: v1::Verdict::Stop.into(),
                    balances: balances(&scope, &short),
                    advice: scope.advice().map(convert::advice),
                    reservation: None,
                    refusal: Some(convert::refusal(&refusal)),
                };
                // What was found, and a freeze, is kept like any other change.
                let found = matches!(refusal.reason, RefusalReason::Runaway(_));
                Answer::new(body, if found { u64::MAX } else { 0 })
            }
        })
    }

    pub(crate) fn check(&self, request: &v1::CheckRequest) -> Reply<v1::CheckResponse> {
        let (wish, _) =
            self.wish(&request.amounts, request.usage.as_ref(), &request.min_acceptable)?;
        let body = match self.ledger.check(&request.account, &wish, self.now())? {
            Admission::Granted(fits) => v1::CheckResponse {
                verdict: convert::verdict(fits.scope.verdict().min(Verdict::Degrade)),
                granted: convert::list(&fits.granted),
                max_output_tokens: fits.max_output_tokens,
                advice: advice(fits.scope.verdict(), &fits.scope),
                refusal: None,
                balances: balances(&fits.scope, &fits.granted),
            },
            Admission::Refused(refusal, scope) => v1::CheckResponse {
                verdict: v1::Verdict::Stop.into(),
                advice: scope.advice().map(convert::advice),
                refusal: Some(convert::refusal(&refusal)),
                balances: refusal
                    .unit
                    .map_or_else(Vec::new, |unit| balances(&scope, &Amounts::of(unit, 1))),
                ..v1::CheckResponse::default()
            },
        };
        Ok(Answer::new(body, 0))
    }

    pub(crate) fn debit(&self, request: &v1::DebitRequest) -> Reply<v1::DebitResponse> {
        self.check_open()?;
        let id = convert::parse_reservation_id(self.store_id, &request.reservation)?;
        let used = self.used(id, &request.used, request.usage.as_ref())?;
        let debited = self.ledger.debit(id, &used, self.now())?;
        let body = v1::DebitResponse {
            verdict: convert::verdict(debited.verdict),
            remaining: convert::list_for(&debited.remaining, &debited.held),
            advice: advice(debited.verdict, &debited.scope),
            refusal: debited.refusal.as_ref().map(convert::refusal),
        };
        Ok(Answer::new(body, debited.ticket))
    }

    /// What a debit says was used so far.
    pub(crate) fn used(
        &self,
        id: bursar_ledger::ReservationId,
        used: &[v1::Amount],
        usage: Option<&v1::Usage>,
    ) -> Result<Amounts, ApiError> {
        match (usage, used.is_empty()) {
            (Some(_), false) => Err(exclusive("used")),
            (Some(usage), true) => self.reserved_usage(id, usage),
            (None, _) => Ok(convert::amounts("used", used)?.0),
        }
    }

    pub(crate) fn extend(&self, request: &v1::ExtendRequest) -> Reply<v1::ExtendResponse> {
        self.check_open()?;
        let id = convert::parse_reservation_id(self.store_id, &request.reservation)?;
        let nothing = request.granted.is_empty() && request.usage.is_none();
        let wish = if nothing { None } else { Some(self.total(id, request)?) };
        let ttl_ms = match &request.ttl {
            Some(ttl) => Some(convert::duration_ms("ttl", ttl, self.times.max_ttl_ms)?),
            None => None,
        };
        let now = self.now();
        let extended = self.ledger.extend(id, wish.as_ref(), request.top_up, ttl_ms, now)?;
        let body = v1::ExtendResponse {
            verdict: convert::verdict(extended.verdict),
            reservation: Some(self.reservation_message(&extended.view, now.wall_ms)),
            advice: advice(extended.verdict, &extended.scope),
            refusal: extended.refusal.as_ref().map(convert::refusal),
        };
        Ok(Answer { raised: Some(id), ..Answer::new(body, extended.ticket) })
    }

    pub(crate) fn commit(&self, request: &v1::CommitRequest) -> Reply<v1::CommitResponse> {
        self.check_open()?;
        let id = self.recall(&request.reservation)?;
        let (actual, named) = match (&request.usage, request.actual.is_empty()) {
            (Some(_), false) => return Err(exclusive("actual")),
            (Some(usage), true) => {
                let held = [Unit::Tokens, Unit::UsdNanos, Unit::Calls, Unit::GpuMs];
                let named = held.iter().fold(0, |bits, unit| bits | 1 << unit.index());
                (self.reserved_usage(id, usage)?, named)
            }
            (None, _) => convert::amounts("actual", &request.actual)?,
        };
        if let Some((unit, _)) = actual.iter().find(|(unit, _)| unit.is_capacity()) {
            let message = format!("actual: {} is a capacity: it is held, not spent", unit.name());
            return Err(
                ApiError::new(ErrorReason::InvalidAmount, message).with("unit", unit.name())
            );
        }
        let payload = self.payload(request);
        let ending = Ending::Commit { actual, named, payload, success: request.success };
        let ended = self.ledger.end(id, ending, self.now())?;
        let body = v1::CommitResponse {
            verdict: convert::verdict(ended.verdict),
            spent: convert::list(&ended.view.spent),
            returned: convert::list(&ended.view.returned),
            overdraft: convert::list(&ended.view.overdraft),
            advice: advice(ended.verdict, &ended.scope),
        };
        Ok(Answer::new(body, ended.ticket))
    }

    pub(crate) fn release(&self, request: &v1::ReleaseRequest) -> Reply<v1::ReleaseResponse> {
        self.check_open()?;
        let id = self.recall(&request.reservation)?;
        let ended = self.ledger.end(id, Ending::Release, self.now())?;
        let body = v1::ReleaseResponse {
            state: convert::state(ended.view.state),
            spent: convert::list(&ended.view.spent),
            returned: convert::list(&ended.view.returned),
        };
        Ok(Answer::new(body, ended.ticket))
    }

    pub(crate) fn record(&self, request: &v1::RecordRequest) -> Reply<v1::RecordResponse> {
        self.check_open()?;
        let (amounts, model) = match (&request.usage, request.amounts.is_empty()) {
            (Some(_), false) => return Err(exclusive("amounts")),
            (Some(usage), true) => {
                let rate = self.rate(&usage.model)?;
                (usage_amounts(rate.as_deref(), &convert::usage(usage))?, usage.model.as_str())
            }
            (None, true) => return Err(ApiError::field("amounts", "nothing to record")),
            (None, false) => (convert::amounts("amounts", &request.amounts)?.0, ""),
        };
        let spending = Spending {
            account: &request.account,
            amounts,
            key: self.key(Keyed::Record, &request.account, &request.idempotency_key)?,
            payload: self.payload(request),
            labels: convert::labels(&request.labels, model)?,
        };
        let Ended { view, verdict, scope, ticket } = self.ledger.record(spending, self.now())?;
        let body = v1::RecordResponse {
            verdict: convert::verdict(verdict),
            spent: convert::list(&view.spent),
            overdraft: convert::list(&view.overdraft),
            advice: advice(verdict, &scope),
        };
        Ok(Answer::new(body, ticket))
    }

    pub(crate) fn get_reservation(
        &self,
        request: &v1::GetReservationRequest,
    ) -> Reply<v1::GetReservationResponse> {
        let now = self.now();
        let id = convert::parse_reservation_id(self.store_id, &request.reservation)?;
        let reservation = match self.ledger.reservation(id, now) {
            Ok(view) => self.reservation_message(&view, now.wall_ms),
            Err(missing) => self.stored_reservation(id)?.ok_or(missing)?,
        };
        Ok(Answer::new(v1::GetReservationResponse { reservation: Some(reservation) }, 0))
    }

    pub(crate) fn count_tokens(
        &self,
        request: &v1::CountTokensRequest,
    ) -> Reply<v1::CountTokensResponse> {
        let model = request.model.as_str();
        let name = self.rates.tokenizer(model).unwrap_or(model);
        let (encoding, tokenizer) =
            tokens::encoding(name).ok_or_else(|| tokens::unknown(&convert::cut(model)))?;
        let token_count = tokens::count(tokenizer, &request.text)?;
        let encoding = encoding.to_owned();
        Ok(Answer::new(v1::CountTokensResponse { token_count, encoding }, 0))
    }

    pub(crate) fn reservation_message(
        &self,
        view: &bursar_ledger::View,
        wall_ms: i64,
    ) -> v1::Reservation {
        convert::reservation(self.store_id, view, wall_ms)
    }

    /// What to hold, and the model it is for.
    fn wish<'a>(
        &self,
        amounts: &[v1::Amount],
        usage: Option<&'a v1::UsageEstimate>,
        min_acceptable: &[v1::Amount],
    ) -> Result<(Wish, &'a str), ApiError> {
        let Some(usage) = usage else {
            if amounts.is_empty() {
                return Err(ApiError::field("amounts", "is empty: name amounts or usage"));
            }
            return Ok((amounts_wish("amounts", amounts, min_acceptable)?, ""));
        };
        if !amounts.is_empty() {
            return Err(exclusive("amounts"));
        }
        Ok((usage_wish(usage, min_acceptable, |model| self.rate(model))?, &usage.model))
    }

    /// What a hold shall reach, what it has included.
    fn total(
        &self,
        id: bursar_ledger::ReservationId,
        request: &v1::ExtendRequest,
    ) -> Result<Wish, ApiError> {
        let Some(usage) = &request.usage else {
            return amounts_wish("granted", &request.granted, &request.min_acceptable);
        };
        if !request.granted.is_empty() {
            return Err(exclusive("granted"));
        }
        usage_wish(usage, &request.min_acceptable, |model| self.reserved_rate(id, model))
    }

    /// The prices of a model; `None`: it has none and that is allowed (R11).
    fn rate(&self, model: &str) -> Result<Option<Arc<Rate>>, ApiError> {
        let rate = self.rates.rate(model).cloned();
        if rate.is_some() || self.allow_unpriced {
            return Ok(rate);
        }
        let model = convert::cut(model);
        let message = format!(
            "the rate card has no price for model {model:?}: add it to the rates, or set \
             rates.allow_unpriced"
        );
        Err(ApiError::new(ErrorReason::UnpricedModel, message).with("model", model))
    }

    /// What a usage amounts to at the rates fixed for a reservation; at today's for another model.
    fn reserved_usage(
        &self,
        id: bursar_ledger::ReservationId,
        usage: &v1::Usage,
    ) -> Result<Amounts, ApiError> {
        let rate = self.reserved_rate(id, &usage.model)?;
        Ok(usage_amounts(rate.as_deref(), &convert::usage(usage))?)
    }

    /// The rates fixed for a reservation; today's for another model than it was made for.
    fn reserved_rate(
        &self,
        id: bursar_ledger::ReservationId,
        named: &str,
    ) -> Result<Option<Arc<Rate>>, ApiError> {
        let view = self.ledger.reservation(id, self.now())?;
        let fixed = self.ledger.rate(id)?;
        let model = view.model.as_deref().unwrap_or_default();
        match fixed {
            Some(rate) if named.is_empty() || named == model => Ok(Some(rate)),
            _ if named.is_empty() && model.is_empty() => {
                let message = "the reservation was made without a model: name one";
                Err(ApiError::field("usage.model", message))
            }
            _ if named.is_empty() => self.rate(model),
            _ => self.rate(named),
        }
    }

    fn ttl_ms(&self, ttl: Option<&prost_types::Duration>) -> Result<i64, ApiError> {
        match ttl {
            Some(ttl) => convert::duration_ms("ttl", ttl, self.times.max_ttl_ms),
            None => Ok(self.times.default_ttl_ms),
        }
    }

    fn key(&self, keyed: Keyed, account: &str, key: &str) -> Result<u128, ApiError> {
        if key.is_empty() {
            return Ok(0);
        }
        if key.len() > convert::MAX_TEXT {
            let message =
                format!("an idempotency key of {} bytes: at most {}", key.len(), convert::MAX_TEXT);
            return Err(ApiError::new(ErrorReason::InvalidKey, message));
        }
        let mut text = Vec::with_capacity(account.len() + key.len() + 2);
        text.push(keyed as u8);
        text.extend_from_slice(account.as_bytes());
        text.push(0);
        text.extend_from_slice(key.as_bytes());
        Ok(self.hash(&text))
    }

    fn payload(&self, request: &impl Message) -> u128 {
        self.hash(&request.encode_to_vec())
    }
}

/// Amounts, and the least of them worth having.
fn amounts_wish(
    field: &'static str,
    amounts: &[v1::Amount],
    min_acceptable: &[v1::Amount],
) -> Result<Wish, ApiError> {
    let (most, _) = convert::amounts(field, amounts)?;
    let (least, named) = convert::amounts("min_acceptable", min_acceptable)?;
    let least = merge_least(&most, &least, named)?;
    Ok(Wish::Amounts { most, least })
}

/// A model call, and the fewest output tokens worth having.
fn usage_wish(
    usage: &v1::UsageEstimate,
    min_acceptable: &[v1::Amount],
    rate: impl FnOnce(&str) -> Result<Option<Arc<Rate>>, ApiError>,
) -> Result<Wish, ApiError> {
    if !min_acceptable.is_empty() {
        let message = "goes with amounts; with usage write min_output_tokens";
        return Err(ApiError::field("min_acceptable", message));
    }
    let most = usage.max_output_tokens;
    let min_output_tokens = usage.min_output_tokens.unwrap_or(most);
    if min_output_tokens < 0 || min_output_tokens > most {
        let message = format!("has to be from 0 to max_output_tokens ({most})");
        return Err(ApiError::field("usage.min_output_tokens", message));
    }
    let rate = rate(&usage.model)?;
    Ok(Wish::Usage { rate, usage: convert::estimate(usage), min_output_tokens })
}

/// The least worth having: what is named of it, all of `most` for the other units.
fn merge_least(most: &Amounts, least: &Amounts, named: u8) -> Result<Amounts, ApiError> {
    let mut merged = *most;
    for unit in Unit::ALL.into_iter().filter(|unit| named & (1 << unit.index()) != 0) {
        if least.get(unit) > most.get(unit) {
            let message = format!("min_acceptable: more {} than is asked for", unit.name());
            return Err(
                ApiError::new(ErrorReason::InvalidAmount, message).with("unit", unit.name())
            );
        }
        merged.set(unit, least.get(unit));
    }
    Ok(merged)
}

fn exclusive(field: &'static str) -> ApiError {
    ApiError::field(field, "and usage exclude each other")
}

fn balances(scope: &Scope, amounts: &Amounts) -> Vec<v1::Balance> {
    scope.tightest(amounts).iter().map(convert::balance).collect()
}

pub(crate) fn advice(verdict: Verdict, scope: &Scope) -> Option<v1::Advice> {
    (verdict != Verdict::Ok).then(|| scope.advice().map(convert::advice)).flatten()
}
