//! Any sequence of operations: the ledger against the plain model, and against its own replay.
//!
//! A failing sequence is printed and kept in `proptest-regressions`; more cases by `PROPTEST_CASES`.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]
#![allow(clippy::cast_possible_wrap, reason = "small numbers of a test")]

#[path = "../common/mod.rs"]
mod common;
mod replay;
mod steps;

use bursar_ledger::fact::State;
use bursar_ledger::{
    Admission, Amounts, Ask, Ending, LedgerError, ReservationId, Spending, Unit, Verdict, Wish,
};
use proptest::prelude::*;

use bursar_model::{Plain, UNITS};
use common::{RETENTION, TTL, World, ask, spec, totals};
use steps::{PATHS, Step, period};

/// The ledger and the model, side by side.
pub(crate) struct Pair {
    pub(crate) world: World,
    pub(crate) plain: Plain,
    pub(crate) ids: Vec<ReservationId>,
}

impl Pair {
    pub(crate) fn new() -> Pair {
        let world = World::new();
        let plain = Plain { retention: RETENTION, ..Plain::default() };
        let mut pair = Pair { world, plain, ids: Vec::new() };
        pair.clocks();
        for path in PATHS {
            pair.world.open(path).unwrap();
        }
        for (at, unit, kind, limit) in [
            (1, Unit::Tokens, 0, 150),
            (0, Unit::Tokens, 1, 120),
            (0, Unit::UsdNanos, 0, 150),
            (2, Unit::Tokens, 2, 80),
            (0, Unit::Tokens, 0, 400),
            (1, Unit::VramBytes, 0, 50),
        ] {
            pair.step(&Step::Limit { at, unit, kind, limit });
        }
        pair
    }

    fn clocks(&mut self) {
        let now = self.world.now();
        self.plain.at(now.wall_ms, now.mono_ms);
    }

    /// Does one step on both sides and compares the answers.
    pub(crate) fn step(&mut self, step: &Step) {
        self.clocks();
        match step {
            Step::Reserve { at, most, least, parent, key } => {
                let parent = parent.filter(|_| !self.ids.is_empty());
                self.reserve(PATHS[*at], (*most, *least), parent.map(|p| p % self.ids.len()), *key);
            }
            Step::Limit { at, unit, kind, limit } => {
                let (path, period) = (PATHS[*at], period(*kind));
                let kind = period.kind;
                if *unit == Unit::VramBytes && kind != bursar_ledger::PeriodKind::Total {
                    assert!(self.world.set(path, spec(*unit, period, *limit)).is_err());
                } else {
                    self.world.limit(path, *unit, period, *limit);
                    self.plain.set_budget(path, *unit, kind, *limit);
                }
            }
            Step::Freeze { at, frozen } => {
                self.world.freeze(PATHS[*at], *frozen);
                if *frozen {
                    self.plain.frozen.insert(PATHS[*at]);
                } else {
                    self.plain.frozen.remove(PATHS[*at]);
                }
            }
            Step::Record { at, amounts } => self.record(PATHS[*at], *amounts),
            Step::Wait { ms } => self.world.wait(*ms),
            Step::Wall { ms } => self.world.set_wall(self.world.now().wall_ms + ms),
            Step::Tick => {
                let ticked = self.world.ledger.tick(self.world.now());
                assert_eq!((ticked.expired, ticked.forgotten), self.plain.tick());
            }
            _ if self.ids.is_empty() => {}
            Step::Debit { of, used } => self.debit(of % self.ids.len(), used),
            Step::Extend { of, most, least } => self.extend(of % self.ids.len(), most, least),
            Step::Commit { of, actual, named } => self.commit(of % self.ids.len(), actual, *named),
            Step::Release { of } => {
                let of = of % self.ids.len();
                let ended = self.world.end(self.ids[of], Ending::Release);
                assert_eq!(ended.is_ok(), self.plain.release(of));
            }
            Step::OwnerGone { of } => {
                let of = of % self.ids.len();
                let gone = self.world.ledger.owner_gone(self.ids[of], self.world.now());
                assert_eq!(gone.is_err(), self.plain.reservations[of].forgotten);
                self.plain.owner_gone(of);
            }
        }
        // The ledger sees the time, too, even where the step was nothing but time.
        self.world.open("a").unwrap();
        self.clocks();
    }

    fn reserve(
        &mut self,
        path: &'static str,
        (most, least): (Amounts, Amounts),
        parent: Option<usize>,
        key: u128,
    ) {
        let payload = u128::from(most.get(Unit::Tokens).unsigned_abs());
        let wish = Wish::Amounts { most, least };
        let parent_id = parent.map(|parent| self.ids[parent]);
        let ask = Ask { key, payload, parent: parent_id, ..ask(path, wish.clone()) };
        let answer = self.world.reserve(ask);
        let mut known = self.plain.reservations.iter();
        if let Some(at) = known.position(|r| key != 0 && r.key == key && !r.forgotten) {
            if self.plain.reservations[at].asked == payload {
                let Ok(Admission::Granted(granted)) = answer else { panic!("{answer:?}") };
                assert_eq!(granted.view.id, self.ids[at]);
            } else {
                assert_eq!(answer.err(), Some(LedgerError::IdempotencyMismatch("idempotency key")));
            }
            return;
        }
        let plain = self.plain.reserve(path, (most, least), parent, TTL, (key, payload));
        match (answer, plain) {
            (Ok(Admission::Granted(granted)), Ok(Ok(amounts))) => {
                assert_eq!(granted.view.granted, amounts);
                self.ids.push(granted.view.id);
            }
            (Ok(Admission::Refused(refusal, _)), Ok(Err(no))) => {
                assert_eq!((refusal.account, refusal.unit, refusal.shortfall), no);
                if parent.is_none() {
                    let told = self.world.ledger.check(path, &wish, self.world.now()).unwrap();
                    assert!(matches!(told, Admission::Refused(..)), "Check says so too");
                }
            }
            (Err(_), Err(())) => {}
            (ledger, plain) => panic!("{ledger:?} is not {plain:?}"),
        }
    }

    fn record(&mut self, path: &'static str, amounts: Amounts) {
        let amounts = amounts.filter(|unit| unit != Unit::VramBytes);
        let (account, labels) = (path, Vec::new());
        let spending = Spending { account, amounts, key: 0, payload: 0, labels };
        let ended = self.world.ledger.record(spending, self.world.now()).unwrap();
        assert_eq!(ended.view.overdraft, self.plain.spend_now(path, &amounts));
        // It is remembered like a reservation that has ended.
        let none = (Amounts::ZERO, Amounts::ZERO);
        let thawed = std::mem::take(&mut self.plain.frozen);
        self.plain.reserve(path, none, None, TTL, (0, 0)).unwrap().unwrap();
        self.plain.frozen = thawed;
        // Without a key it is forgotten at once.
        let due = self.plain.mono;
        let recorded = self.plain.reservations.last_mut().unwrap();
        (recorded.state, recorded.spent, recorded.due) = (State::Committed, amounts, due);
        recorded.overdraft = ended.view.overdraft;
        self.ids.push(ended.view.id);
    }

    fn debit(&mut self, of: usize, used: &Amounts) {
        let used = used.filter(|unit| unit != Unit::VramBytes);
        let debited = self.world.ledger.debit(self.ids[of], &used, self.world.now());
        assert_eq!(debited.ok().map(|debited| debited.remaining), self.plain.debit(of, &used));
    }

    fn extend(&mut self, of: usize, most: &Amounts, least: &Amounts) {
        let now = self.world.now();
        let extended =
            self.world.ledger.extend(self.ids[of], Some(&totals(*most, *least)), false, None, now);
        match (extended, self.plain.extend(of, most, least)) {
            (Ok(extended), Ok(Ok(()))) => assert!(extended.refusal.is_none()),
            (Ok(extended), Ok(Err(no))) => {
                let refusal = extended.refusal.unwrap();
                assert_eq!((refusal.account, refusal.unit, refusal.shortfall), no);
            }
            (Err(_), Err(())) => {}
            (ledger, plain) => panic!("{ledger:?} is not {plain:?}"),
        }
    }

    fn commit(&mut self, of: usize, actual: &Amounts, named: u8) {
        let units: Vec<Unit> =
            UNITS.into_iter().filter(|unit| named & (1 << unit.index()) != 0).collect();
        let payload =
            1 + u128::from(actual.get(Unit::Tokens).unsigned_abs()) * 256 + u128::from(named);
        let ending = Ending::Commit { actual: *actual, named, payload, success: None };
        let ended = self.world.end(self.ids[of], ending);
        assert_eq!(ended.is_ok(), self.plain.commit(of, actual, &units, payload));
    }

    /// Compares every window and every reservation.
    pub(crate) fn compare(&mut self) {
        for path in PATHS {
            let view = self.world.ledger.account(path, self.world.now()).unwrap();
            let ledger: Vec<_> = view
                .balances
                .iter()
                .map(|b| (b.standing.limit, b.standing.held, b.standing.spent))
                .collect();
            assert_eq!(ledger, self.plain.standings(path), "{path}");
            for standing in view.balances.iter().map(|balance| balance.standing) {
                let rest = standing.limit - standing.spent - standing.held;
                assert_eq!(standing.remaining, rest);
            }
            let stop = self.plain.overspent(path) || self.plain.frozen_by(path).is_some();
            assert_eq!(view.verdict == Verdict::Stop, stop, "{path}");
        }
        for (id, plain) in self.ids.iter().zip(&self.plain.reservations) {
            let view = self.world.ledger.reservation(*id, self.world.now());
            let Ok(view) = view else {
                assert!(plain.forgotten);
                continue;
            };
            assert!(!plain.forgotten);
            assert_eq!(view.state, plain.state);
            if plain.state == State::Pending {
                assert_eq!((view.granted, view.used), (plain.held(), plain.used()));
            } else {
                assert_eq!((view.spent, view.overdraft), (plain.spent, plain.overdraft));
            }
            // When parent and child expire in one tick, who is first is not told.
            if matches!(plain.state, State::Released) {
                assert_eq!(view.returned, plain.returned);
            }
        }
    }
}

fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig { cases: cases.unwrap_or(400), ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_ledger_is_the_plain_model(steps in prop::collection::vec(steps::step(), 1..60)) {
        let mut pair = Pair::new();
        for step in &steps {
            pair.step(step);
            pair.compare();
        }
    }
}
