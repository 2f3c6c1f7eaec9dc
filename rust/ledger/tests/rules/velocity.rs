//! S12: velocity is found by the very end that passes the pace, whatever leeway was left before it.

use std::sync::Arc;

use bursar_ledger::fact::Fact;
use bursar_ledger::runaway::{Action, PROMPT_FINGERPRINT, Policy, Rule};
use bursar_ledger::{Admission, Ask, Period, PeriodKind, Unit};
use proptest::prelude::*;

use crate::common::{DAY, HOUR, World, ask, exactly, pattern, settings, tokens};

const MINUTE: i64 = 60_000;
const INTERVAL: i64 = 5 * MINUTE;
const TIMES: i64 = 4;
const ACCOUNTS: [&str; 2] = ["a/x", "a/y"];

#[derive(Debug, Clone, Copy)]
enum Step {
    /// By a reservation, or, where none is to be had, without one.
    Spend {
        account: usize,
        amount: i64,
    },
    /// For a prompt, with nothing spent.
    InVain {
        account: usize,
    },
    Nested {
        account: usize,
        amount: i64,
    },
    Wait {
        ms: i64,
    },
    DayLimit {
        limit: i64,
    },
    HourLimit {
        account: usize,
        limit: i64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let account = 0..ACCOUNTS.len();
    prop_oneof![
        12 => (account.clone(), 1..200_i64)
            .prop_map(|(account, amount)| Step::Spend { account, amount }),
        2 => account.clone().prop_map(|account| Step::InVain { account }),
        1 => (account.clone(), 1..200_i64)
            .prop_map(|(account, amount)| Step::Nested { account, amount }),
        3 => prop_oneof![1..MINUTE, MINUTE..2 * INTERVAL, Just(HOUR), Just(DAY)]
            .prop_map(|ms| Step::Wait { ms }),
        1 => (0..5_000_i64).prop_map(|limit| Step::DayLimit { limit }),
        1 => (account, 0..5_000_i64)
            .prop_map(|(account, limit)| Step::HourLimit { account, limit }),
    ]
}

/// What one account has spent, counted anew with every spending.
#[derive(Default)]
struct Plain {
    start_ms: i64,
    total: i64,
    told: bool,
}

/// The limits, and the findings that are due: when, how much, and how much was allowed.
struct Model {
    day: i64,
    hours: [Option<i64>; 2],
    plain: [Plain; 2],
    due: Vec<(i64, i64, i64)>,
}

impl Model {
    /// Whatever is counted of an account begins its interval.
    fn begin(&mut self, account: usize, now_ms: i64) -> &mut Plain {
        let plain = &mut self.plain[account];
        if now_ms - plain.start_ms >= INTERVAL {
            *plain = Plain { start_ms: now_ms, ..Plain::default() };
        }
        plain
    }

    fn spend(&mut self, account: usize, amount: i64, now_ms: i64) {
        self.begin(account, now_ms).total += amount;
        let most = |limit: i64, length: i64| {
            let most = (limit * TIMES * INTERVAL / length).max(limit / 4);
            Some(most).filter(|most| *most < limit)
        };
        let bounds = [most(self.day, DAY), self.hours[account].and_then(|limit| most(limit, HOUR))];
        let plain = &mut self.plain[account];
        let passed = bounds.into_iter().flatten().find(|most| plain.total > *most);
        if let Some(most) = passed.filter(|_| !plain.told) {
            plain.told = true;
            self.due.push((now_ms, plain.total, most));
        }
    }
}

fn take(world: &World, model: &mut Model, step: Step) {
    let day = Period::calendar(PeriodKind::Day, "UTC");
    let hour = Period::calendar(PeriodKind::Hour, "UTC");
    let now_ms = world.now().wall_ms;
    match step {
        Step::Spend { account, amount } => {
            match world.hold(ACCOUNTS[account], tokens(1)) {
                Ok(granted) => drop(world.commit(granted.view.id, amount)),
                Err(_) => drop(world.record(ACCOUNTS[account], tokens(amount)).unwrap()),
            }
            model.spend(account, amount, now_ms);
        }
        Step::InVain { account } => {
            let labels = vec![(PROMPT_FINGERPRINT.to_owned(), "one".to_owned())];
            let ask = Ask { labels, ..ask(ACCOUNTS[account], exactly(tokens(1))) };
            // A prompt is counted before it is known whether it is admitted.
            model.begin(account, now_ms);
            if let Admission::Granted(granted) = world.reserve(ask).unwrap() {
                world.release(granted.view.id);
            }
        }
        Step::Nested { account, amount } => {
            let Ok(parent) = world.hold(ACCOUNTS[account], tokens(1)) else { return };
            let parent = parent.view.id;
            let nested = world.nest(ACCOUNTS[account], parent, tokens(1)).unwrap();
            world.commit(nested.id, amount);
            world.commit(parent, 0);
            model.spend(account, amount, now_ms);
        }
        Step::Wait { ms } => world.wait(ms),
        Step::DayLimit { limit } => {
            world.limit("a", Unit::Tokens, day, limit);
            model.day = limit;
        }
        Step::HourLimit { account, limit } => {
            world.limit(ACCOUNTS[account], Unit::Tokens, hour, limit);
            model.hours[account] = Some(limit);
        }
    }
}

fn world() -> World {
    // The others count as well, and find nothing.
    let mut most = [i64::MAX - 1; Rule::ALL.len()];
    most[Rule::Velocity as usize] = TIMES;
    let policy = Policy { action: Action::Warn, interval_ms: INTERVAL, most, ..Policy::off() };
    let patterns = ["a", "a/**"].map(|text| {
        let mut any = pattern(text, Vec::new());
        any.runaway = Some(Arc::new(policy.clone()));
        any
    });
    World::with(settings(patterns.into()))
}

proptest! {
    #[test]
    fn s12_velocity_is_what_counting_anew_each_time_finds(
        steps in proptest::collection::vec(step(), 1..120)
    ) {
        let world = world();
        let limit = 2_000;
        let (hours, plain) = ([None; 2], Default::default());
        let mut model = Model { day: limit, hours, plain, due: Vec::new() };
        world.limit("a", Unit::Tokens, Period::calendar(PeriodKind::Day, "UTC"), limit);
        for step in steps {
            take(&world, &mut model, step);
        }
        let mut found = Vec::new();
        for record in world.tape.records() {
            for fact in record.facts {
                if let Fact::Runaway { finding, .. } = fact {
                    found.push((record.time_ms, finding.figure, finding.most));
                }
            }
        }
        prop_assert_eq!(found, model.due);
    }
}
