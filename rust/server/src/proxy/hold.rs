//! A call's reservation: made before the upstream is asked, debited by each event, settled at the end,
//! also when nobody is left who would ask for that.

use std::sync::Arc;

use bursar_ledger::rates::{Rate, Usage};
use bursar_ledger::{ReservationId, Verdict, usage_amounts};

use super::failure::Failure;
use super::velocity;
use crate::engine::{Answer, Engine};
use crate::error::ApiError;
use crate::maker::Maker;
use crate::{convert, v1};

/// More tokens than any call has: a provider that tells more is not believed.
const MOST_TOKENS: i64 = 1 << 30;

/// What a call has used so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counts {
    /// All input, cached and cache-written included.
    pub(crate) input: i64,
    pub(crate) cached: i64,
    pub(crate) cache_write: i64,
    pub(crate) output: i64,
}

impl Counts {
    /// Within what makes sense, or nothing.
    pub(crate) fn plausible(self) -> Option<Counts> {
        let all = [self.input, self.cached, self.cache_write, self.output];
        let sound = all.iter().all(|count| (0..=MOST_TOKENS).contains(count))
            && self.cached + self.cache_write <= self.input;
        sound.then_some(self)
    }

    fn usage(self) -> Usage {
        Usage {
            input_tokens: self.input,
            cached_input_tokens: self.cached,
            cache_write_tokens: self.cache_write,
            output_tokens: self.output,
            gpu_ms: 0,
            calls: 1,
        }
    }
}

/// What a call wants to hold.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    pub(crate) account: String,
    pub(crate) model: String,
    pub(crate) input: i64,
    pub(crate) max_output: i64,
    pub(crate) min_output: i64,
    pub(crate) ttl_ms: i64,
    pub(crate) labels: Vec<(&'static str, String)>,
    /// The reservation that it is carved from; empty: none.
    pub(crate) parent: String,
}

/// A pending reservation.
#[derive(Debug)]
pub(crate) struct Hold {
    engine: Arc<Engine>,
    id: ReservationId,
    pub(super) name: String,
    rate: Option<Arc<Rate>>,
    /// The output that was asked for, and that it covers.
    pub(crate) asked: i64,
    pub(crate) granted: i64,
    pub(crate) verdict: Verdict,
    pub(crate) advice: Option<v1::Advice>,
    pub(crate) balances: Vec<v1::Balance>,
    ttl_ms: i64,
    renewed_ms: i64,
    settled: bool,
    /// What was used so far: what it ends at when its call is dropped.
    measured: Option<Counts>,
}

/// What a debit says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Debit {
    Covered,
    /// Beyond the hold or the limit, or frozen: why.
    Stop(String),
}

impl Hold {
    /// Reserves; the answer is durable.
    pub(crate) async fn reserve(engine: &Arc<Engine>, terms: &Terms) -> Result<Hold, Failure> {
        let labels = terms.labels.iter();
        let request = v1::ReserveRequest {
            account: terms.account.clone(),
            usage: Some(v1::UsageEstimate {
                model: terms.model.clone(),
                input_tokens: terms.input,
                max_output_tokens: terms.max_output,
                min_output_tokens: Some(terms.min_output.min(terms.max_output)),
                ..v1::UsageEstimate::default()
            }),
            ttl: Some(convert::duration(terms.ttl_ms)),
            labels: labels.map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
            parent_reservation: terms.parent.clone(),
            ..v1::ReserveRequest::default()
        };
        let Answer { body, ticket, hold, .. } = engine.reserve(&request, None, Maker::Sidecar)?;
        let Some(reservation) = body.reservation else {
            let refusal = body.refusal.unwrap_or_default();
            let soon = velocity::retry_after(&refusal, &body.balances, engine.now().wall_ms);
            return Err(Failure::refused(&refusal, &terms.account, soon));
        };
        // From here on a drop ends it.
        let id = convert::parse_reservation_id(engine.store_id, &reservation.id)?;
        let kept = Hold {
            rate: engine.ledger.rate(id).map_err(ApiError::from)?,
            engine: Arc::clone(engine),
            id,
            name: reservation.id,
            asked: terms.max_output,
            granted: reservation.max_output_tokens,
            verdict: verdict(body.verdict),
            advice: body.advice,
            balances: body.balances,
            ttl_ms: terms.ttl_ms,
            renewed_ms: engine.now().mono_ms,
            settled: false,
            measured: None,
        };
        if let Err(error) = engine.durable.wait(ticket).await {
            engine.undo(hold);
            return Err(error.into());
        }
        Ok(kept)
    }

    /// Notes what was used so far, for when nobody is left to settle it.
    pub(crate) fn measured(&mut self, used: Counts) {
        self.measured = Some(used);
    }

    /// Debits what was used so far. Where the hold covers it no more, since its input was estimated,
    /// it is raised, if the budget has that much.
    pub(crate) fn debit(&mut self, used: Counts) -> Debit {
        self.measured(used);
        match self.try_debit(used) {
            Debit::Stop(_) if self.raise(used) => self.try_debit(used),
            answer => answer,
        }
    }

    fn try_debit(&mut self, used: Counts) -> Debit {
        let amounts = match usage_amounts(self.rate.as_deref(), &used.usage()) {
            Ok(amounts) => amounts,
            Err(error) => return Debit::Stop(error.to_string()),
        };
        let now = self.engine.now();
        match self.engine.ledger.debit(self.id, &amounts, now) {
            Ok(debited) => {
                self.verdict = debited.verdict;
                match debited.refusal {
                    Some(refusal) if debited.verdict == Verdict::Stop => {
                        let account = refusal.account;
                        Debit::Stop(match refusal.unit {
                            Some(unit) => format!("the {} of {account} are used up", unit.name()),
                            None => format!("the account {account} is frozen"),
                        })
                    }
                    _ => {
                        self.renew(now.mono_ms);
                        Debit::Covered
                    }
                }
            }
            Err(error) => Debit::Stop(error.to_string()),
        }
    }

    /// Raises the hold to what was used, if that fits.
    fn raise(&mut self, used: Counts) -> bool {
        let request = v1::ExtendRequest {
            reservation: self.name.clone(),
            usage: Some(v1::UsageEstimate {
                input_tokens: used.input,
                cached_input_tokens: used.cached,
                cache_write_tokens: used.cache_write,
                max_output_tokens: used.output.max(self.granted),
                min_output_tokens: Some(used.output),
                ..v1::UsageEstimate::default()
            }),
            ..v1::ExtendRequest::default()
        };
        let extended = self.engine.extend(&request);
        extended.is_ok_and(|answer| answer.body.refusal.is_none())
    }

    /// Keeps it from expiring while its stream runs.
    fn renew(&mut self, mono_ms: i64) {
        if mono_ms - self.renewed_ms > self.ttl_ms / 3 {
            self.renewed_ms = mono_ms;
            // One that has ended meanwhile is settled late; that needs no renewal.
            let _renewed = self.engine.ledger.extend(self.id, None, false, None, self.engine.now());
        }
    }

    /// Ends it with its true usage; returns once that is durable.
    pub(crate) async fn settle(mut self, used: Counts) -> Result<v1::CommitResponse, ApiError> {
        let answer = self.commit(used)?;
        self.engine.durable.wait(answer.ticket).await?;
        Ok(answer.body)
    }

    /// Ends it: nothing was used beyond what was debited.
    pub(crate) async fn release(mut self) -> Result<(), ApiError> {
        self.settled = true;
        let request = v1::ReleaseRequest { reservation: self.name.clone() };
        let answer = self.engine.release(&request)?;
        self.engine.durable.wait(answer.ticket).await
    }

    fn commit(&mut self, used: Counts) -> Result<Answer<v1::CommitResponse>, ApiError> {
        self.settled = true;
        let usage = v1::Usage {
            model: String::new(),
            input_tokens: used.input,
            cached_input_tokens: used.cached,
            cache_write_tokens: used.cache_write,
            output_tokens: used.output,
            gpu_ms: 0,
        };
        let reservation = self.name.clone();
        self.engine.commit(&v1::CommitRequest {
            reservation,
            actual: Vec::new(),
            usage: Some(usage),
            success: None,
        })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // Its call was dropped: it ends at what is known. The ticker writes that.
        match self.measured {
            _ if self.settled => {}
            Some(used) => drop(self.commit(used)),
            None => {
                let request = v1::ReleaseRequest { reservation: self.name.clone() };
                drop(self.engine.release(&request));
            }
        }
    }
}

fn verdict(number: i32) -> Verdict {
    match v1::Verdict::try_from(number) {
        Ok(v1::Verdict::Ok) => Verdict::Ok,
        Ok(v1::Verdict::Warn) => Verdict::Warn,
        Ok(v1::Verdict::Degrade) => Verdict::Degrade,
        _ => Verdict::Stop,
    }
}
