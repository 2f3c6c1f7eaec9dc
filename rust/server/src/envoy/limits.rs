//! One call: who may, what is asked, what is charged.

use bursar_ledger::{
    Admission, Amounts, LedgerError, Refusal, RefusalReason, Spending, Verdict, Wish, path,
};

use super::answer::{Status, response};
use super::rules::{Asked, Over, Rules, Target};
use super::wire::{RateLimitRequest, RateLimitResponse};
use crate::access::{Act, Caller};
use crate::convert;
use crate::engine::{Answer, Engine};
use crate::error::ApiError;
use crate::metrics::Descriptors;

/// The most descriptors of one call.
pub(super) const MAX_DESCRIPTORS: usize = 100;

/// Charges what all descriptors ask for, or nothing; what is to be recorded is recorded in any case.
pub(super) fn should_rate_limit(
    engine: &Engine,
    (rules, counts): (&Rules, &Descriptors),
    caller: &Caller,
    request: &RateLimitRequest,
) -> Result<Answer<RateLimitResponse>, ApiError> {
    engine.check_open()?;
    if request.domain.is_empty() || request.domain.len() > convert::MAX_TEXT {
        let message = format!("has to have 1 to {} bytes", convert::MAX_TEXT);
        return Err(ApiError::field("domain", message));
    }
    if request.descriptors.is_empty() || request.descriptors.len() > MAX_DESCRIPTORS {
        return Err(ApiError::field("descriptors", format!("from 1 to {MAX_DESCRIPTORS}")));
    }
    let mut call = Call { engine, domain: &request.domain, ticket: 0 };
    let (mut fitting, mut asked) = (Vec::new(), Vec::with_capacity(request.descriptors.len()));
    for descriptor in &request.descriptors {
        let (rule, read) = rules.read(&request.domain, descriptor, request.hits_addend);
        asked.push(allowed(caller, read)?);
        fitting.push(rule);
    }
    // Opens the accounts, too: where one cannot be had, that is no reason to fail.
    let mut statuses: Vec<Status> = asked.iter().map(|asked| call.look(asked)).collect();
    call.record(&asked, &mut statuses);
    call.spend(&asked, &mut statuses);
    for (rule, status) in fitting.into_iter().zip(&statuses) {
        counts.count(rule, status.is_over());
    }
    Ok(Answer::new(response(&statuses, engine.now().wall_ms), call.ticket))
}

/// What is asked, if the caller may ask for it. The account may follow from what a client has sent:
/// then it is refused, and the call does not fail.
fn allowed(caller: &Caller, asked: Asked) -> Result<Asked, ApiError> {
    let (act, target) = match &asked {
        Asked::Charge(target, ..) => (Act::Spend, target),
        Asked::Question(target, _) => (Act::Read, target),
        Asked::Nothing | Asked::Refused(_) => return caller.may_act(Act::Spend).map(|()| asked),
    };
    caller.may_act(act)?;
    let may = caller.may(act, &target.account);
    Ok(may.map_or_else(|why| Asked::Refused(why.message), |()| asked))
}

/// One call under way.
struct Call<'a> {
    engine: &'a Engine,
    domain: &'a str,
    ticket: u64,
}

impl Call<'_> {
    /// What there is to say before anything is charged.
    fn look(&self, asked: &Asked) -> Status {
        match asked {
            Asked::Nothing => Status::default(),
            Asked::Refused(why) => Status::refused(why),
            Asked::Question(target, least) => self.ask(target, *least),
            Asked::Charge(target, ..) => match self.check(target, 0) {
                Ok(_) => Status::default(),
                Err(why) => Status::refused(&why.to_string()),
            },
        }
    }

    /// Records what has been used already.
    fn record(&mut self, asked: &[Asked], statuses: &mut [Status]) {
        for (asked, status) in asked.iter().zip(statuses) {
            if let Asked::Charge(target, amount, Over::Record) = asked
                && !status.is_over()
            {
                let spending = self.spending(target, *amount);
                match self.engine.ledger.record(spending, self.engine.now()) {
                    Ok(ended) => {
                        self.ticket = self.ticket.max(ended.ticket);
                        *status = Status::of(&ended.scope, target, ended.verdict);
                        status.refuse_overdrawn();
                    }
                    Err(why) => *status = Status::refused(&why.to_string()),
                }
            }
        }
    }

    /// Spends what is to be refused where it does not fit, if nothing is refused so far.
    fn spend(&mut self, asked: &[Asked], statuses: &mut [Status]) {
        let fits = !statuses.iter().any(Status::is_over);
        let charges = asked.iter().zip(statuses).filter_map(|(asked, status)| match asked {
            Asked::Charge(target, amount, Over::Refuse) if !status.is_over() => {
                Some((target, *amount, status))
            }
            _ => None,
        });
        let charges: Vec<_> = charges.collect();
        let spendings = charges.iter().map(|(target, amount, _)| self.spending(target, *amount));
        let spent = if fits && !charges.is_empty() {
            self.engine.ledger.spend(spendings.collect(), self.engine.now()).map(Some)
        } else {
            Ok(None)
        };
        let refusal = match spent {
            Ok(Some(Admission::Granted(spent))) => {
                for ((target, _, status), ended) in charges.into_iter().zip(spent) {
                    self.ticket = self.ticket.max(ended.ticket);
                    *status = Status::of(&ended.scope, target, ended.verdict);
                }
                return;
            }
            Err(why) => {
                for (.., status) in charges {
                    *status = Status::refused(&why.to_string());
                }
                return;
            }
            Ok(Some(Admission::Refused(refusal, _))) => Some(refusal),
            Ok(None) => None,
        };
        if refusal.as_ref().is_some_and(|it| matches!(it.reason, RefusalReason::Runaway(_))) {
            // What was found is kept like any other change.
            self.ticket = u64::MAX;
        }
        for (target, amount, status) in charges {
            *status = self.ask(target, amount);
            // Each alone may fit.
            if let Some(refusal) = refusal.as_ref().filter(|it| limits(it, target)) {
                status.refuse(refusal);
            }
        }
    }

    /// Whether so much is left.
    fn ask(&self, target: &Target, amount: i64) -> Status {
        match self.check(target, amount) {
            Ok(Admission::Granted(fits)) => Status::of(&fits.scope, target, fits.scope.verdict()),
            Ok(Admission::Refused(refusal, scope)) => {
                let mut status = Status::of(&scope, target, Verdict::Stop);
                status.refuse(&refusal);
                status
            }
            Err(why) => Status::refused(&why.to_string()),
        }
    }

    fn check(
        &self,
        target: &Target,
        amount: i64,
    ) -> Result<Admission<bursar_ledger::Fits>, LedgerError> {
        let most = Amounts::of(target.unit, amount);
        self.engine.ledger.check(
            &target.account,
            &Wish::Amounts { most, least: most },
            self.engine.now(),
        )
    }

    fn spending<'b>(&self, target: &'b Target, amount: i64) -> Spending<'b> {
        Spending {
            account: &target.account,
            amounts: Amounts::of(target.unit, amount),
            key: 0,
            payload: 0,
            labels: vec![("envoy_domain".to_owned(), self.domain.to_owned())],
        }
    }
}

/// Whether a refusal is about that.
fn limits(refusal: &Refusal, target: &Target) -> bool {
    refusal.unit.is_none_or(|unit| unit == target.unit)
        && path::is_within(&target.account, &refusal.account)
}
