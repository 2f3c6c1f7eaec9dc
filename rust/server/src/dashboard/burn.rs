//! How fast a window is spent: the method of `python/bursar/forecast.py`, whose words explain it.
//!
//! Pure: time is an argument, in seconds on a clock that does not step. Rates are floats, for people to
//! look at; no amount is computed from them.

/// What the last few minutes were like.
const TIME_CONSTANT_S: f64 = 60.0;
/// A rate is told from this much seen on.
const OBSERVED_S_MIN: f64 = 5.0;
/// A rate that was told stays as it is while it is within this share of the present one.
const STEADY: f64 = 0.05;
/// What is slower than one in an hour is no speed.
const SLOWEST_PER_S: f64 = 1.0 / 3600.0;

/// One window's samples, in a few numbers.
#[derive(Debug, Clone)]
pub(super) struct Burn {
    first_s: f64,
    last_s: f64,
    spent: i64,
    start_ms: i64,
    /// The sum of weight × rate, as of the last sample.
    rates: f64,
    told: Option<f64>,
}

impl Burn {
    /// Begins with a first sample.
    pub(super) fn new(time_s: f64, spent: i64, start_ms: i64) -> Burn {
        Burn { first_s: time_s, last_s: time_s, spent, start_ms, rates: 0.0, told: None }
    }

    /// Takes a sample; one that is not later than the last changes nothing.
    pub(super) fn see(&mut self, time_s: f64, spent: i64, start_ms: i64) {
        let passed_s = time_s - self.last_s;
        if passed_s <= 0.0 {
            return;
        }
        let before = if start_ms == self.start_ms { self.spent } else { 0 };
        let more = as_float(spent.saturating_sub(before).max(0));
        let kept = (-passed_s / TIME_CONSTANT_S).exp();
        self.rates = self.rates * kept + (1.0 - kept) * (more / passed_s);
        (self.last_s, self.spent, self.start_ms) = (time_s, spent, start_ms);
    }

    /// The rate at the last sample; `None`: too little was seen.
    pub(super) fn rate_per_s(&self) -> Option<f64> {
        let seen_s = self.last_s - self.first_s;
        (seen_s >= OBSERVED_S_MIN).then(|| self.rates / -(-seen_s / TIME_CONSTANT_S).exp_m1())
    }

    /// The rate to show, to three digits: the one that was shown before while that is close.
    pub(super) fn told(&mut self) -> Option<f64> {
        let now = self.rate_per_s()?;
        let now = if now < SLOWEST_PER_S { 0.0 } else { now };
        let is_steady = |told: f64| (told - now).abs() <= STEADY * now;
        if !self.told.is_some_and(is_steady) {
            self.told = Some(three_digits(now));
        }
        self.told
    }
}

#[allow(clippy::cast_precision_loss, reason = "for people to look at")]
fn as_float(amount: i64) -> f64 {
    amount as f64
}

fn three_digits(rate: f64) -> f64 {
    format!("{rate:.2e}").parse().unwrap_or(rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: Option<f64>, expected: f64) -> bool {
        found.is_some_and(|found| (found - expected).abs() < 1e-9 * expected.max(1.0))
    }

    #[test]
    fn an_even_speed_is_its_own_rate_however_often_it_is_seen() {
        for step in [1_i32, 5, 30] {
            let mut burn = Burn::new(0.0, 100, 0);
            for seconds in (step..=60).step_by(step.unsigned_abs() as usize) {
                burn.see(f64::from(seconds), 100 + i64::from(seconds) * 7, 0);
            }
            assert!(close(burn.rate_per_s(), 7.0), "every {step} s: {burn:?}");
        }
    }

    #[test]
    fn half_of_the_weight_is_on_the_last_stretch() {
        let mut burn = Burn::new(0.0, 0, 0);
        burn.see(600.0, 6_000, 0);
        let half = 60.0 * std::f64::consts::LN_2;
        burn.see(600.0 + half, 6_000, 0);
        let rate = burn.rate_per_s().expect("seen enough");
        assert!((rate - 5.0).abs() < 0.01, "10 per second, and then nothing: {rate}");
    }

    #[test]
    fn too_little_is_no_speed_and_what_a_new_window_has_was_spent_since() {
        let mut burn = Burn::new(0.0, 90, 0);
        burn.see(4.9, 95, 0);
        assert_eq!(burn.rate_per_s(), None);
        let mut burn = Burn::new(0.0, 90, 0);
        burn.see(10.0, 20, 1);
        assert!(close(burn.rate_per_s(), 2.0));
        burn.see(20.0, 5, 1);
        assert!(burn.rate_per_s().is_some_and(|rate| rate > 0.0 && rate < 2.0), "it rolled");
        burn.see(15.0, 1_000, 1);
        assert!(burn.rate_per_s().is_some_and(|rate| rate < 2.0), "not later");
    }

    #[test]
    fn what_is_told_is_told_again_while_it_is_close() {
        let mut burn = Burn::new(0.0, 0, 0);
        burn.see(10.0, 12_345, 0);
        assert_eq!(burn.told(), Some(1230.0));
        burn.see(11.0, 12_345 + 1_300, 0);
        assert_eq!(burn.told(), Some(1230.0));
        burn.see(12.0, 12_345 + 1_300, 0);
        burn.see(30.0, 12_345 + 1_300, 0);
        assert!(burn.told().is_some_and(|rate| rate < 700.0));
        burn.see(30_000.0, 12_345 + 1_300, 0);
        assert_eq!(burn.told(), Some(0.0));
    }
}
