//! Which refusals are of too much at a time, and not of too much: those that pass soon by themselves.
//!
//! Pure. Such are the rule of velocity while it stops an account, and a rolling budget of at most a
//! minute that would have room for the call. Everything else is a budget that is used up, and asking
//! again would be in vain.

use bursar_ledger::runaway::Rule;

use crate::v1;

/// The longest rolling period that is a bound on speed.
const RATE_PERIOD_MS: i64 = 60_000;

/// In how many seconds to ask again; `None`: it is no matter of speed.
pub(crate) fn retry_after(
    refusal: &v1::Refusal,
    balances: &[v1::Balance],
    wall_ms: i64,
) -> Option<u32> {
    let wait_ms = match refusal.reason() {
        v1::refusal::Reason::Runaway => {
            let rule = refusal.hint.split_once(':').map(|(rule, _)| rule);
            let until = refusal.reset_time.as_ref()?;
            let is_velocity = rule == Some(Rule::Velocity.name());
            is_velocity.then(|| until.seconds.saturating_mul(1000).saturating_sub(wall_ms))?
        }
        v1::refusal::Reason::BudgetExhausted => {
            let limiting = balances.iter().find(|balance| {
                balance.account == refusal.account
                    && balance.unit == refusal.unit
                    && refusal.shortfall <= balance.limit - balance.remaining
            });
            rolling_ms(&limiting?.period).filter(|length| *length <= RATE_PERIOD_MS)?
        }
        _ => return None,
    };
    let seconds = wait_ms.max(1).saturating_add(999).div_euclid(1000);
    u32::try_from(seconds).ok()
}

/// The length of a rolling period by its name: `rolling:60s`, `rolling:1500ms`.
fn rolling_ms(period: &str) -> Option<i64> {
    let length = period.strip_prefix("rolling:")?;
    match length.strip_suffix("ms") {
        Some(ms) => ms.parse().ok(),
        None => length.strip_suffix('s')?.parse::<i64>().ok()?.checked_mul(1000),
    }
}

#[cfg(test)]
mod tests {
    use bursar_ledger::{Period, PeriodKind};

    use super::*;

    fn refused(shortfall: i64, period: &Period) -> Option<u32> {
        let (account, unit) = ("acme".to_owned(), "tokens".to_owned());
        let refusal = v1::Refusal {
            reason: v1::refusal::Reason::BudgetExhausted.into(),
            account: account.clone(),
            unit: unit.clone(),
            shortfall,
            ..v1::Refusal::default()
        };
        let period = period.to_string();
        let balance = v1::Balance {
            account,
            unit,
            period,
            limit: 100,
            remaining: 40,
            ..v1::Balance::default()
        };
        retry_after(&refusal, &[balance], 0)
    }

    #[test]
    fn a_rolling_budget_of_a_minute_is_speed_and_a_longer_one_is_not() {
        assert_eq!(refused(5, &Period::rolling(60_000)), Some(60));
        assert_eq!(refused(5, &Period::rolling(1_500)), Some(2));
        assert_eq!(refused(5, &Period::rolling(61_000)), None);
        assert_eq!(refused(5, &Period::calendar(PeriodKind::Hour, "UTC")), None);
    }

    #[test]
    fn what_passes_the_whole_limit_never_passes_by_waiting() {
        assert_eq!(refused(60, &Period::rolling(1_000)), Some(1));
        assert_eq!(refused(61, &Period::rolling(1_000)), None);
    }

    #[test]
    fn of_the_rules_for_runaways_only_velocity_is_speed() {
        let runaway = |hint: &str, seconds: Option<i64>| {
            let refusal = v1::Refusal {
                reason: v1::refusal::Reason::Runaway.into(),
                reset_time: seconds.map(|seconds| prost_types::Timestamp { seconds, nanos: 0 }),
                hint: hint.to_owned(),
                ..v1::Refusal::default()
            };
            retry_after(&refusal, &[], 10_000)
        };
        assert_eq!(runaway("velocity: 9 tokens spent, 5 allowed", Some(30)), Some(20));
        assert_eq!(runaway("velocity: 9 tokens spent, 5 allowed", None), None, "it was frozen");
        assert_eq!(runaway("repeats: 9 times the same prompt, 5 allowed", Some(30)), None);
    }
}
