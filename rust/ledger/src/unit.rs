//! What can be counted, and so much of each.
//!
//! Owns the closed set of units and the dense vector of amounts. Amounts are integers in the base
//! of their unit; there is no float and no conversion here.

use serde::{Deserialize, Serialize};

use crate::error::LedgerError;

/// How many units there are. Sets of them are the bits of a `u8`.
pub const UNIT_COUNT: usize = 8;

/// What an amount counts. The discriminant is the index into [`Amounts`] and is stored: append only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[repr(u8)]
pub enum Unit {
    /// Tokens of a model, prompt and output together.
    Tokens = 0,
    /// 1e-9 US dollar.
    UsdNanos = 1,
    /// Milliseconds of GPU time.
    GpuMs = 2,
    /// Bytes of GPU memory; a capacity.
    VramBytes = 3,
    /// Millijoules.
    EnergyMj = 4,
    /// Calls.
    Calls = 5,
    /// Reservations open at the same time; a capacity.
    Concurrency = 6,
    /// MiB of GPU memory times seconds.
    VramMibS = 7,
}

impl Unit {
    /// Every unit in index order.
    pub const ALL: [Unit; UNIT_COUNT] = [
        Unit::Tokens,
        Unit::UsdNanos,
        Unit::GpuMs,
        Unit::VramBytes,
        Unit::EnergyMj,
        Unit::Calls,
        Unit::Concurrency,
        Unit::VramMibS,
    ];

    /// Those that come back.
    pub(crate) const CAPACITIES: [Unit; 2] = [Unit::VramBytes, Unit::Concurrency];

    /// As `ALL`, out of constant memory: loops over it copy nothing and unroll to constants.
    #[inline]
    pub(crate) fn each() -> impl Iterator<Item = Unit> + Clone {
        Self::ALL.iter().copied()
    }

    /// Those with these bits, in index order.
    #[inline]
    pub(crate) fn among(mut units: u8) -> impl Iterator<Item = Unit> {
        std::iter::from_fn(move || {
            let unit = *Unit::ALL.get(units.trailing_zeros() as usize)?;
            units &= units.wrapping_sub(1);
            Some(unit)
        })
    }

    /// The name used on the wire, in configuration and in the store.
    pub fn name(self) -> &'static str {
        match self {
            Unit::Tokens => "tokens",
            Unit::UsdNanos => "usd_nanos",
            Unit::GpuMs => "gpu_ms",
            Unit::VramBytes => "vram_bytes",
            Unit::EnergyMj => "energy_mj",
            Unit::Calls => "calls",
            Unit::Concurrency => "concurrency",
            Unit::VramMibS => "vram_mib_s",
        }
    }

    /// The unit of that name.
    pub fn parse(name: &str) -> Option<Unit> {
        Unit::ALL.into_iter().find(|unit| unit.name() == name)
    }

    /// Whether it comes back when the reservation ends.
    #[inline]
    pub fn is_capacity(self) -> bool {
        matches!(self, Unit::VramBytes | Unit::Concurrency)
    }

    /// The index into [`Amounts`].
    #[inline]
    pub fn index(self) -> usize {
        self as usize
    }
}

/// So much of every unit; zero means none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Amounts([i64; UNIT_COUNT]);

impl Amounts {
    /// Nothing of anything.
    pub const ZERO: Amounts = Amounts([0; UNIT_COUNT]);

    /// So much of one unit.
    #[inline]
    pub fn of(unit: Unit, amount: i64) -> Amounts {
        let mut amounts = Amounts::ZERO;
        amounts.set(unit, amount);
        amounts
    }

    /// The amount of one unit.
    #[inline]
    pub fn get(&self, unit: Unit) -> i64 {
        self.0[unit.index()]
    }

    /// Sets the amount of one unit.
    #[inline]
    pub fn set(&mut self, unit: Unit, amount: i64) {
        self.0[unit.index()] = amount;
    }

    /// The units with an amount other than zero.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = (Unit, i64)> + '_ {
        let amounts = Unit::each().map(|unit| (unit, self.get(unit)));
        amounts.filter(|(_, amount)| *amount != 0)
    }

    /// Whether every amount is zero.
    #[inline]
    pub fn is_zero(&self) -> bool {
        self.0.iter().fold(0, |bits, amount| bits | amount) == 0
    }

    /// Whether none of them passes that of the other.
    #[inline]
    pub(crate) fn is_within(&self, other: &Amounts) -> bool {
        (0..UNIT_COUNT).fold(0, |passes, i| passes | less(other.0[i], self.0[i])) == 0
    }

    /// An error when one of them is below zero.
    #[inline]
    pub(crate) fn check_not_negative(&self) -> Result<(), LedgerError> {
        // One test for all of them: the sign bit of the union.
        if self.0.iter().fold(0, |signs, amount| signs | amount) >= 0 {
            return Ok(());
        }
        let negative = Unit::ALL.into_iter().find(|unit| self.get(*unit) < 0);
        Err(LedgerError::InvalidAmount {
            unit: negative.expect("a sign bit is set"),
            why: "it is negative",
        })
    }

    /// An error when one of them is a capacity: it is held, and never spent.
    #[inline]
    pub(crate) fn check_no_capacity(&self) -> Result<(), LedgerError> {
        if self.get(Unit::VramBytes) | self.get(Unit::Concurrency) == 0 {
            return Ok(());
        }
        let vram = self.get(Unit::VramBytes) != 0;
        let unit = if vram { Unit::VramBytes } else { Unit::Concurrency };
        Err(LedgerError::InvalidAmount { unit, why: "a capacity is held, not spent" })
    }

    /// The sum, or `None` on overflow.
    #[inline]
    pub fn checked_add(&self, other: &Amounts) -> Option<Amounts> {
        // A sum overflows when its sign is that of neither term.
        self.zip(other, i64::wrapping_add, |a, b, sum| (a ^ sum) & (b ^ sum))
    }

    /// The sum, held at the ends of the range.
    #[must_use]
    pub(crate) fn saturating_add(&self, other: &Amounts) -> Amounts {
        Amounts(std::array::from_fn(|i| self.0[i].saturating_add(other.0[i])))
    }

    /// The difference, or `None` on overflow.
    #[inline]
    pub fn checked_sub(&self, other: &Amounts) -> Option<Amounts> {
        // A difference overflows when the signs differ and it has that of what was taken away.
        self.zip(other, i64::wrapping_sub, |a, b, difference| (a ^ b) & (a ^ difference))
    }

    /// The smaller of each unit.
    #[inline]
    #[must_use]
    pub fn min(&self, other: &Amounts) -> Amounts {
        self.select(other, less)
    }

    /// The larger of each unit.
    #[inline]
    #[must_use]
    pub fn max(&self, other: &Amounts) -> Amounts {
        self.select(other, |a, b| !less(a, b))
    }

    /// Its own amounts of the units with these bits, the others of the rest.
    #[inline]
    #[must_use]
    pub(crate) fn blend(&self, other: &Amounts, units: u8) -> Amounts {
        let own = |i: usize| -(i64::from(units) >> i & 1);
        Amounts(std::array::from_fn(|i| other.0[i] ^ (self.0[i] ^ other.0[i]) & own(i)))
    }

    /// Its own amounts where `own` gives all ones, the others where it gives zero.
    #[inline]
    fn select(&self, other: &Amounts, own: impl Fn(i64, i64) -> i64) -> Amounts {
        let one = |a: i64, b: i64| b ^ (a ^ b) & own(a, b);
        Amounts(std::array::from_fn(|i| one(self.0[i], other.0[i])))
    }

    /// Only the units for which `keep` holds.
    #[inline]
    #[must_use]
    pub fn filter(&self, keep: impl Fn(Unit) -> bool) -> Amounts {
        let mut kept = *self;
        for unit in Unit::each() {
            if !keep(unit) {
                kept.set(unit, 0);
            }
        }
        kept
    }

    /// Unit by unit; `None` when the sign bit of `overflow` is set for one of them. Has one branch in
    /// all and no flag, so that it is done in vector registers and copied out of them without a stall.
    #[inline]
    fn zip(
        &self,
        other: &Amounts,
        f: impl Fn(i64, i64) -> i64,
        overflow: impl Fn(i64, i64, i64) -> i64,
    ) -> Option<Amounts> {
        let (mut out, mut overflows) = (Amounts::ZERO, 0);
        for i in 0..UNIT_COUNT {
            let (a, b) = (self.0[i], other.0[i]);
            out.0[i] = f(a, b);
            overflows |= overflow(a, b, out.0[i]);
        }
        (overflows >= 0).then_some(out)
    }
}

/// All ones when `a` is less than `b`, else zero. Without a comparison, for the same reason as `zip`:
/// the difference tells by its sign unless it overflows, and then the signs of `a` and `b` do.
#[inline]
fn less(a: i64, b: i64) -> i64 {
    ((a & !b) | (!(a ^ b) & a.wrapping_sub(b))) >> 63
}

impl FromIterator<(Unit, i64)> for Amounts {
    fn from_iter<I: IntoIterator<Item = (Unit, i64)>>(iter: I) -> Amounts {
        let mut amounts = Amounts::ZERO;
        for (unit, amount) in iter {
            amounts.set(unit, amount);
        }
        amounts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EDGES: [i64; 8] = [i64::MIN, i64::MIN + 1, -7, -1, 0, 1, 7, i64::MAX];

    /// Each pair of edges, in every place of the vector, against the plain operation on integers.
    #[test]
    fn amounts_at_the_edges_of_i64_are_those_of_plain_integers() {
        let pairs = EDGES.into_iter().flat_map(|a| EDGES.map(|b| (a, b)));
        for (unit, (a, b)) in pairs.flat_map(|pair| Unit::ALL.map(|unit| (unit, pair))) {
            let (left, right) = (Amounts::of(unit, a), Amounts::of(unit, b));
            let of = |amount| Amounts::of(unit, amount);
            assert_eq!(left.min(&right), of(a.min(b)), "{a} {b}");
            assert_eq!(left.max(&right), of(a.max(b)), "{a} {b}");
            assert_eq!(left.checked_add(&right), a.checked_add(b).map(of), "{a} + {b}");
            assert_eq!(left.checked_sub(&right), a.checked_sub(b).map(of), "{a} - {b}");
            assert_eq!(left.is_within(&right), a <= b, "{a} {b}");
            assert_eq!(left.is_zero(), a == 0);
            assert_eq!(left.blend(&right, 1 << unit.index()), left);
            assert_eq!(left.blend(&right, !(1 << unit.index())), right);
        }
    }

    #[test]
    fn any_negative_amount_and_any_capacity_is_named_however_many_there_are() {
        let wrong = |checked: Result<(), LedgerError>| match checked {
            Err(LedgerError::InvalidAmount { unit, .. }) => Some(unit),
            _ => None,
        };
        let (usd, vram) = (Unit::UsdNanos, Unit::VramBytes);
        for (amounts, negative) in [
            (vec![(usd, -1)], Some(usd)),
            (vec![(Unit::Tokens, 0), (usd, -1), (Unit::Calls, -1)], Some(usd)),
            (vec![(Unit::Tokens, 0), (usd, i64::MAX)], None),
        ] {
            let amounts: Amounts = amounts.into_iter().collect();
            assert_eq!(wrong(amounts.check_not_negative()), negative);
        }
        for (amounts, capacity) in [
            (vec![(vram, 3), (Unit::Concurrency, 3)], Some(vram)),
            (vec![(Unit::Concurrency, 1)], Some(Unit::Concurrency)),
            (vec![(Unit::Tokens, 1)], None),
        ] {
            let amounts: Amounts = amounts.into_iter().collect();
            assert_eq!(wrong(amounts.check_no_capacity()), capacity);
        }
    }
}
