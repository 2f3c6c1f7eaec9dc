//! A real ledger over a real store: whatever happens, reopening tells the ledger where it stood.
//!
//! Random operations in random order; now and then the store is dropped (a crash) or closed, and a
//! ledger is built from what it tells. Windows, accounts and reservations must be what they were,
//! and the database must agree with itself.

mod support;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use bursar_ledger::fact::Record;
use bursar_ledger::path::Pattern;
use bursar_ledger::runaway::Policy;
use bursar_ledger::{
    AccountPattern, Admission, Advice, Amounts, Ask, BudgetSpec, BudgetTerms, Ending, Journal,
    Ledger, Now, Period, PeriodKind, Replay, ReservationId, Settings, Spending, Standing, State,
    Threshold, Unit, Verdict, Wish,
};
use bursar_store::{Store, StoreConfig, check_store};
use proptest::prelude::*;
use support::{T0, config, folder};

const DAY_MS: i64 = 86_400_000;
const ACCOUNTS: [&str; 5] = ["acme", "acme/a", "acme/a/x", "acme/b", "roll/r"];

#[derive(Debug, Clone, Default)]
struct ToStore(Arc<OnceLock<Store>>);

impl Journal for ToStore {
    fn append(&self, record: impl FnOnce() -> Record) -> u64 {
        self.0.get().expect("the store is open").append(&record())
    }
}

#[derive(Debug, Clone)]
enum Op {
    Reserve { account: usize, tokens: i64, usd: i64, vram: i64, ttl_ms: i64, nested: bool },
    Debit { pick: usize, tokens: i64 },
    Extend { pick: usize, tokens: i64 },
    Commit { pick: usize, tokens: i64, usd: i64 },
    Release { pick: usize },
    OwnerGone { pick: usize },
    Record { account: usize, tokens: i64 },
    Limit { account: usize, limit: i64 },
    Freeze { account: usize, frozen: bool },
    Retire { account: usize },
    Pass { ms: i64 },
    Reopen { close: bool },
}

fn op() -> impl Strategy<Value = Op> {
    let account = 0..ACCOUNTS.len();
    let tokens = 1..2_000_i64;
    prop_oneof![
        6 => (account.clone(), tokens.clone(), 0..50_i64, 0..3_i64, 1_000..100_000_i64,
              any::<bool>())
            .prop_map(|(account, tokens, usd, vram, ttl_ms, nested)| Op::Reserve {
                account, tokens, usd, vram, ttl_ms, nested }),
        4 => (any::<usize>(), tokens.clone()).prop_map(|(pick, tokens)| Op::Debit { pick, tokens }),
        2 => (any::<usize>(), tokens.clone())
            .prop_map(|(pick, tokens)| Op::Extend { pick, tokens }),
        5 => (any::<usize>(), 0..3_000_i64, 0..80_i64)
            .prop_map(|(pick, tokens, usd)| Op::Commit { pick, tokens, usd }),
        2 => any::<usize>().prop_map(|pick| Op::Release { pick }),
        1 => any::<usize>().prop_map(|pick| Op::OwnerGone { pick }),
        1 => (account.clone(), tokens).prop_map(|(account, tokens)| Op::Record { account, tokens }),
        1 => (account.clone(), 0..100_000_i64)
            .prop_map(|(account, limit)| Op::Limit { account, limit }),
        1 => (account.clone(), any::<bool>())
            .prop_map(|(account, frozen)| Op::Freeze { account, frozen }),
        1 => account.prop_map(|account| Op::Retire { account }),
        3 => prop_oneof![1..1_000_i64, 1_000..100_000_i64, Just(DAY_MS), Just(3 * DAY_MS)]
            .prop_map(|ms| Op::Pass { ms }),
        2 => any::<bool>().prop_map(|close| Op::Reopen { close }),
    ]
}

fn settings() -> Settings {
    let budget = |unit, period, limit| BudgetSpec {
        unit,
        period,
        terms: BudgetTerms {
            limit,
            thresholds: [500, 900]
                .map(|permille| Threshold {
                    permille,
                    verdict: Verdict::Warn,
                    advice: Advice::default(),
                })
                .into(),
            manual: false,
        },
    };
    let pattern = |text: &str, budgets| AccountPattern {
        pattern: Pattern::parse(text).expect("valid"),
        budgets,
        runaway: None,
    };
    let day = || Period::calendar(PeriodKind::Day, "Europe/Berlin");
    Settings {
        patterns: vec![
            pattern(
                "acme",
                vec![
                    budget(Unit::Tokens, Period::total(), 50_000),
                    budget(Unit::VramBytes, Period::total(), 20),
                ],
            ),
            pattern("acme/*", vec![budget(Unit::UsdNanos, day(), 1_000)]),
            pattern("acme/a/*", vec![budget(Unit::Tokens, day(), 5_000)]),
            pattern("roll", vec![]),
            pattern("roll/*", vec![budget(Unit::Tokens, Period::rolling(60_000), 10_000)]),
        ],
        max_accounts: 100,
        max_children: 100,
        max_reservations: 10_000,
        key_retention_ms: 2 * DAY_MS,
        account_idle_ms: DAY_MS / 2,
        runaway: Arc::new(Policy::off()),
    }
}

struct World {
    config: StoreConfig,
    journal: ToStore,
    ledger: Ledger<ToStore>,
    now: Now,
    reservations: Vec<(ReservationId, usize)>,
    keys: u128,
}

/// What must survive.
#[derive(Debug, PartialEq)]
struct Seen {
    windows: BTreeMap<(String, &'static str, String), Standing>,
    frozen: BTreeMap<String, (bool, String, i64)>,
    reservations: BTreeMap<u64, (State, String, [Amounts; 4], i64)>,
}

fn build(config: &StoreConfig, now: Now) -> (ToStore, Ledger<ToStore>) {
    let journal = ToStore::default();
    let mut replay = Replay::new(settings(), journal.clone(), now);
    let (store, recovery) = Store::open(config.clone(), now.wall_ms, &mut |record| {
        replay.apply(record).map_err(|error| error.to_string())
    })
    .expect("it opens");
    journal.0.set(store).expect("set once");
    (journal, replay.finish(recovery.high_ids()))
}

impl World {
    fn new(config: StoreConfig) -> World {
        let now = Now { wall_ms: T0, mono_ms: 0 };
        let (journal, ledger) = build(&config, now);
        ledger.configure(now).expect("configured");
        World { config, journal, ledger, now, reservations: Vec::new(), keys: 0 }
    }

    fn store(&self) -> &Store {
        self.journal.0.get().expect("open")
    }

    fn pick(&self, pick: usize) -> Option<(ReservationId, usize)> {
        let count = self.reservations.len();
        (count != 0).then(|| self.reservations[pick % count])
    }

    fn apply(&mut self, op: &Op) {
        let now = self.now;
        match *op {
            Op::Reserve { .. } => self.reserve(op),
            Op::Debit { pick, tokens } => {
                // In a rolling window a debit counts from when it was made; the store only knows of
                // its settlement.
                if let Some((id, _)) = self.pick(pick).filter(|(_, account)| *account != 4) {
                    let _ = self.ledger.debit(id, &Amounts::of(Unit::Tokens, tokens), now);
                }
            }
            Op::Extend { pick, tokens } => {
                if let Some((id, _)) = self.pick(pick) {
                    let most = Amounts::of(Unit::Tokens, tokens);
                    let wish = Wish::Amounts { most, least: most };
                    let _ = self.ledger.extend(id, Some(&wish), false, None, now);
                }
            }
            Op::Commit { pick, tokens, usd } => {
                if let Some((id, _)) = self.pick(pick) {
                    let actual = [(Unit::Tokens, tokens), (Unit::UsdNanos, usd)];
                    let actual = actual.into_iter().collect();
                    let success = (usd % 3 != 0).then_some(usd % 3 == 1);
                    let ending = Ending::Commit { actual, named: 3, payload: 9, success };
                    let _ = self.ledger.end(id, ending, now);
                }
            }
            Op::Release { pick } => {
                if let Some((id, _)) = self.pick(pick) {
                    let _ = self.ledger.end(id, Ending::Release, now);
                }
            }
            Op::OwnerGone { pick } => {
                if let Some((id, _)) = self.pick(pick) {
                    let _ = self.ledger.owner_gone(id, now);
                }
            }
            Op::Record { account, tokens } => {
                self.keys += 1;
                let spending = Spending {
                    account: ACCOUNTS[account],
                    amounts: Amounts::of(Unit::Tokens, tokens),
                    key: self.keys << 64 | self.keys,
                    payload: 2,
                    labels: Vec::new(),
                };
                let _ = self.ledger.record(spending, now);
            }
            Op::Limit { account, limit } => {
                let terms = BudgetTerms { limit, thresholds: [].into(), manual: true };
                let spec = BudgetSpec { unit: Unit::Tokens, period: Period::total(), terms };
                let _ = self.ledger.set_budget(ACCOUNTS[account], spec, now);
            }
            Op::Freeze { account, frozen } => {
                let _ = self.ledger.set_frozen(ACCOUNTS[account], frozen, "because", now);
            }
            Op::Retire { account } => {
                let _ = self.ledger.retire(ACCOUNTS[account], now);
            }
            Op::Pass { ms } => {
                self.now.wall_ms += ms;
                self.now.mono_ms += ms;
                self.ledger.tick(self.now);
                self.ledger.retire_idle(self.now);
            }
            Op::Reopen { close } => self.reopen(close),
        }
        self.store().write().expect("written");
    }

    fn reserve(&mut self, op: &Op) {
        let Op::Reserve { account, tokens, usd, vram, ttl_ms, nested } = *op else { return };
        let amounts = [(Unit::Tokens, tokens), (Unit::UsdNanos, usd), (Unit::VramBytes, vram)];
        let most: Amounts = amounts.into_iter().collect();
        self.keys += 1;
        let parent = self.reservations.last().filter(|_| nested).copied();
        let ask = Ask {
            account: ACCOUNTS[account],
            wish: Wish::Amounts { most, least: most },
            ttl_ms,
            key: self.keys << 64 | self.keys,
            payload: 1,
            parent: parent.map(|(id, _)| id),
            labels: vec![("model".into(), "m".into())],
            owner: None,
        };
        if let Ok(Admission::Granted(granted)) = self.ledger.reserve(ask, self.now) {
            self.reservations.push((granted.view.id, account));
        }
    }

    /// Everything that the ledger can be asked. The same calls before and after.
    fn seen(&self) -> Seen {
        let mut seen = Seen {
            windows: BTreeMap::new(),
            frozen: BTreeMap::new(),
            reservations: BTreeMap::new(),
        };
        for account in self.ledger.accounts("", None, 1000, self.now) {
            let path = account.path.to_string();
            let about = (account.frozen, account.freeze_reason.clone(), account.created_ms);
            seen.frozen.insert(path.clone(), about);
            for balance in &account.balances {
                let info = &balance.window.budget;
                let key = (path.clone(), info.unit.name(), info.period.to_string());
                seen.windows.insert(key, balance.standing);
            }
        }
        for (id, _) in &self.reservations {
            if let Ok(view) = self.ledger.reservation(*id, self.now) {
                let amounts = [view.used, view.spent, view.returned, view.overdraft];
                let all = (view.state, view.account.to_string(), amounts, view.ttl_ms);
                seen.reservations.insert(id.sequence, all);
            }
        }
        seen
    }

    fn reopen(&mut self, close: bool) {
        // What is remembered for its children only is due to be forgotten.
        self.ledger.tick(self.now);
        self.ledger.log_used(self.now);
        let before = self.seen();
        let store = self.store();
        store.write().expect("written");
        if close {
            store.close().expect("closed");
        }
        // The ledger holds the store: both go.
        self.journal = ToStore::default();
        let settings = settings();
        self.ledger = Ledger::new(settings, ToStore::default());
        let (journal, ledger) = build(&self.config, self.now);
        (self.journal, self.ledger) = (journal, ledger);
        let after = self.seen();
        for (window, was) in &before.windows {
            assert_eq!(Some(was), after.windows.get(window), "{window:?}");
        }
        for (account, was) in &before.frozen {
            let is = after.frozen.get(account).expect("it is still there");
            assert_eq!((was.0, &was.1), (is.0, &is.1), "{account}");
            // One that had retired and came back is older than the ledger could tell.
            assert!(is.2 <= was.2, "{account}");
        }
        // An account that had retired comes back when a reservation of it is remembered; empty.
        for (window, is) in after.windows.iter().filter(|(w, _)| !before.windows.contains_key(*w)) {
            assert_eq!((is.held, is.spent), (0, 0), "{window:?}");
        }
        for (sequence, was) in &before.reservations {
            assert_eq!(Some(was), after.reservations.get(sequence), "reservation {sequence}");
        }
        let (store, path) = (self.store(), &self.config.path);
        store.import_through(store.written()).expect("imported");
        assert_eq!(check_store(path).expect("checked"), []);
    }
}

fn proptest_config() -> ProptestConfig {
    let cases = if std::env::var_os("BURSAR_LONG").is_some() { 2_000 } else { 60 };
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) }
}

proptest! {
    #![proptest_config(proptest_config())]

    #[test]
    fn a_ledger_stands_where_it_stood_after_any_crash(
        ops in proptest::collection::vec(op(), 1..120)
    ) {
        let folder = folder();
        // Half of the stores forget as early as they may.
        let entry_retention_ms = if ops.len() % 2 == 0 { 0 } else { 365 * DAY_MS };
        let config =
            StoreConfig { key_retention_ms: 2 * DAY_MS, entry_retention_ms, ..config(&folder) };
        let mut world = World::new(config);
        for op in &ops {
            world.apply(op);
        }
        world.reopen(false);
        world.reopen(true);
    }
}
