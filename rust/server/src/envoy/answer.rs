//! What Envoy and its clients hear: codes, the budget with the least left, and why.

use bursar_ledger::{Amounts, Balance, Period, PeriodKind, Refusal, RefusalReason, Scope, Verdict};

use super::rules::Target;
use super::wire::rate_limit_response::rate_limit::Unit;
use super::wire::rate_limit_response::{Code, DescriptorStatus, RateLimit};
use super::wire::{HeaderValue, RateLimitResponse};
use crate::convert;
use crate::proxy::{Api, Failure, retry_after};

/// What there is to say of one descriptor.
#[derive(Debug, Default)]
pub(super) struct Status {
    /// The budget with the least left.
    tightest: Option<Balance>,
    per_hit: i64,
    verdict: Option<Verdict>,
    over: Option<Over>,
}

/// Why it is over the limit.
#[derive(Debug)]
enum Over {
    Refusal(Refusal),
    Other(String),
}

impl Status {
    /// One that fits, as the windows are.
    pub(super) fn of(scope: &Scope, target: &Target, verdict: Verdict) -> Status {
        let tightest = scope.tightest(&Amounts::of(target.unit, 1)).pop();
        Status { tightest, per_hit: target.per_hit, verdict: Some(verdict), over: None }
    }

    /// One that cannot be had.
    pub(super) fn refused(why: &str) -> Status {
        Status { over: Some(Over::Other(why.to_owned())), ..Status::default() }
    }

    /// The ledger refuses it.
    pub(super) fn refuse(&mut self, refusal: &Refusal) {
        self.over = Some(Over::Refusal(refusal.clone()));
    }

    /// What is recorded is over the limit where the budget is overdrawn now.
    pub(super) fn refuse_overdrawn(&mut self) {
        let overdrawn = self.tightest.as_ref().filter(|it| it.standing.remaining < 0);
        self.over = overdrawn.map(|Balance { window, standing }| {
            Over::Refusal(Refusal {
                reason: RefusalReason::BudgetExhausted,
                account: window.budget.path.to_string(),
                unit: Some(window.budget.unit),
                shortfall: standing.remaining.saturating_neg(),
                reset_ms: Some(window.end_ms).filter(|end| *end != i64::MAX),
            })
        });
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.is_some()
    }

    fn message(&self, wall_ms: i64) -> DescriptorStatus {
        let code = if self.is_over() { Code::OverLimit } else { Code::Ok };
        let Some(Balance { window, standing }) = &self.tightest else {
            let nothing_limits = self.verdict.is_some() && !self.is_over();
            let limit_remaining = if nothing_limits { u32::MAX } else { 0 };
            return DescriptorStatus {
                code: code.into(),
                limit_remaining,
                ..DescriptorStatus::default()
            };
        };
        let hits = |amount: i64| {
            let hits = amount.max(0).checked_div(self.per_hit).unwrap_or(0);
            u32::try_from(hits).unwrap_or(u32::MAX)
        };
        let (unit, multiplier) = unit_of(&window.budget.period);
        let left_ms = window.end_ms.saturating_sub(wall_ms).max(0);
        DescriptorStatus {
            code: code.into(),
            current_limit: Some(RateLimit {
                name: format!("{} {}", window.budget.path, window.budget.unit.name()),
                requests_per_unit: hits(standing.limit),
                unit: unit.into(),
                unit_multiplier: multiplier,
            }),
            limit_remaining: hits(standing.remaining),
            duration_until_reset: (window.end_ms != i64::MAX).then(|| convert::duration(left_ms)),
        }
    }

    /// As the clients of the proxy hear it.
    fn failure(&self, wall_ms: i64) -> Option<Failure> {
        Some(match self.over.as_ref()? {
            Over::Other(why) => Failure::forbidden(why.as_str()),
            Over::Refusal(refusal) => {
                let refusal = convert::refusal(refusal);
                let balances: Vec<_> = self.tightest.iter().map(convert::balance).collect();
                let soon = retry_after(&refusal, &balances, wall_ms);
                Failure::refused(&refusal, &refusal.account, soon)
            }
        })
    }
}

/// The answer to a call.
pub(super) fn response(statuses: &[Status], wall_ms: i64) -> RateLimitResponse {
    let mut response = RateLimitResponse {
        overall_code: Code::Ok.into(),
        statuses: statuses.iter().map(|status| status.message(wall_ms)).collect(),
        ..RateLimitResponse::default()
    };
    let mut add = |key: &str, value: String| {
        response.response_headers_to_add.push(HeaderValue { key: key.into(), value });
    };
    if let Some(failure) = statuses.iter().find_map(|status| status.failure(wall_ms)) {
        for (key, value) in failure.headers() {
            add(key, value);
        }
        response.overall_code = Code::OverLimit.into();
        response.raw_body = failure.body(Api::OpenAi).to_string().into();
        return response;
    }
    match statuses.iter().filter_map(|status| status.verdict).max() {
        None | Some(Verdict::Ok) => {}
        Some(Verdict::Warn) => add("x-bursar-verdict", "warn".into()),
        // What was admitted stands, even where another unit is overdrawn.
        Some(Verdict::Degrade | Verdict::Stop) => add("x-bursar-verdict", "degrade".into()),
    }
    response
}

/// A period in Envoy's words.
fn unit_of(period: &Period) -> (Unit, Option<u32>) {
    let rolling = || {
        let seconds =
            u32::try_from(period.length_ms / 1000).ok().filter(|_| period.length_ms % 1000 == 0);
        let units =
            [(Unit::Day, 86_400), (Unit::Hour, 3_600), (Unit::Minute, 60), (Unit::Second, 1)];
        let fits = |seconds: u32| units.into_iter().find(|(_, of)| seconds.is_multiple_of(*of));
        let found =
            seconds.and_then(|seconds| fits(seconds).map(|(unit, of)| (unit, seconds / of)));
        found.map_or((Unit::Unknown, None), |(unit, many)| (unit, (many > 1).then_some(many)))
    };
    match period.kind {
        PeriodKind::Total => (Unit::Unknown, None),
        PeriodKind::Hour => (Unit::Hour, None),
        PeriodKind::Day => (Unit::Day, None),
        PeriodKind::Week => (Unit::Week, None),
        PeriodKind::Month => (Unit::Month, None),
        PeriodKind::Rolling => rolling(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_are_told_in_the_largest_unit_that_fits() {
        let rolling = |ms| unit_of(&Period::rolling(ms));
        assert_eq!(rolling(1_000), (Unit::Second, None));
        assert_eq!(rolling(90_000), (Unit::Second, Some(90)));
        assert_eq!(rolling(300_000), (Unit::Minute, Some(5)));
        assert_eq!(rolling(3_600_000), (Unit::Hour, None));
        assert_eq!(rolling(7 * 86_400_000), (Unit::Day, Some(7)));
        assert_eq!(rolling(1_500), (Unit::Unknown, None));
        assert_eq!(unit_of(&Period::total()), (Unit::Unknown, None));
        assert_eq!(unit_of(&Period::calendar(PeriodKind::Week, "UTC")), (Unit::Week, None));
    }
}
