//! Whether all is well: the plain model beside the ledger, and what it was after every record.
//!
//! After each call the ledger's answer and everything that can be read must be the model's. After
//! each restart they must be what the model was at the last record that is there, which must be none
//! before the last one that was promised. So what was answered is there, once, whole, and nothing
//! else is.

use std::collections::{BTreeMap, BTreeSet};

use bursar_ledger::fact::{Fact, Record, State, WindowId};
use bursar_ledger::{Amounts, Ledger, Now, PeriodKind, ReservationId, Threshold, Unit, Verdict};
use bursar_model::Plain;

use crate::call::{PATHS, PERMILLE};
use crate::daemon::Tape;

/// How long an ended reservation is known.
pub const RETENTION_MS: i64 = 600_000;

/// What is known at one moment.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// The ledger as it should be.
    pub plain: Plain,
    /// The names of the model's reservations.
    pub ids: Vec<ReservationId>,
    /// What was written down of what they have debited.
    floors: Vec<Amounts>,
    /// When they ended last.
    ended: Vec<i64>,
    /// How often each share of a window was reported.
    pub fired: BTreeMap<(WindowId, u16), usize>,
}

/// The model, and what it was.
#[derive(Debug, Default)]
pub struct Oracle {
    /// Now.
    pub known: Known,
    /// After each record of this session.
    timeline: Vec<(u64, Known)>,
    /// Up to here everything was answered.
    pub answered: u64,
    /// The sequences of all reservations that there ever were, those that a power cut took too.
    given: BTreeSet<u64>,
    /// What was spent in the windows when the session began: what is crossed by then is reported with
    /// the next spending.
    stood: BTreeMap<WindowId, i64>,
}

impl Known {
    /// The model's reservation of that name.
    pub fn find(&self, id: ReservationId) -> Option<usize> {
        self.ids.iter().position(|known| *known == id)
    }

    /// Sees the time that the ledger sees.
    pub fn at(&mut self, now: Now) {
        self.plain.at(now.wall_ms, now.mono_ms);
    }

    fn hear(&mut self, record: &Record, ids: &[ReservationId]) {
        self.floors.resize(ids.len(), Amounts::ZERO);
        self.ended.resize(ids.len(), 0);
        let find = |id: &ReservationId| ids.iter().position(|known| known == id);
        for fact in &record.facts {
            match fact {
                Fact::Used(used) => {
                    for (id, used) in used {
                        self.floors[find(id).expect("it is known")] = *used;
                    }
                }
                Fact::Settled(settled) => {
                    self.ended[find(&settled.id).expect("it is known")] = record.time_ms;
                }
                Fact::Crossed { window, permille } => {
                    *self.fired.entry((*window, *permille)).or_default() += 1;
                }
                _ => {}
            }
        }
    }

    fn with(&self, plain: &Plain, ids: usize) -> Known {
        let ids = self.ids[..ids].to_vec();
        Known { plain: plain.clone(), ids, ..self.clone() }
    }
}

/// Whether a record changes what the model knows, apart from what is noted by it alone.
pub(crate) fn is_main(record: &Record) -> bool {
    record.facts.iter().any(|fact| {
        matches!(
            fact,
            Fact::Reserved(_)
                | Fact::Resliced { .. }
                | Fact::Settled(_)
                | Fact::Frozen { .. }
                | Fact::BudgetSet { .. }
        )
    })
}

impl Oracle {
    /// Nothing has happened.
    pub fn new() -> Oracle {
        Oracle { known: Known::empty(), ..Oracle::default() }
    }

    /// A reservation that is new, and the last one of the model.
    pub fn name(&mut self, id: ReservationId) {
        assert!(self.given.insert(id.sequence), "{id:?} is given out twice");
        self.known.ids.push(id);
    }

    /// Notes what one operation has told. `before` and `between`: the model before it, and after its
    /// first main record where it has two.
    pub fn note(
        &mut self,
        told: Vec<(u64, Record)>,
        (before, ids_before): (&Plain, usize),
        between: Option<&Plain>,
    ) {
        let main = told.iter().filter(|(_, record)| is_main(record)).count();
        assert!(
            main < 2 || (main == 2 && between.is_some()),
            "an operation with {main} main records: {told:?}"
        );
        let ids = self.known.ids.clone();
        let mut seen = 0;
        for (sequence, record) in told {
            seen += usize::from(is_main(&record));
            self.known.hear(&record, &ids);
            let known = match seen {
                0 if main > 0 => self.known.with(before, ids_before),
                seen if seen < main => {
                    self.known.with(between.expect("it has a state between"), ids.len())
                }
                _ => self.known.clone(),
            };
            self.timeline.push((sequence, known));
        }
    }

    /// Time has come for some: the ledger has told which, and the model agrees.
    pub fn tick(&mut self, told: Vec<(u64, Record)>, forgotten: usize, now: Now) {
        self.known.at(now);
        let plain = &self.known.plain;
        let due: Vec<usize> = (0..self.known.ids.len()).filter(|id| plain.is_due(*id)).collect();
        let (pending, over): (Vec<usize>, Vec<usize>) =
            due.iter().partition(|id| plain.reservations[**id].state == State::Pending);
        let mut expired = BTreeSet::new();
        let mut told = told.into_iter().peekable();
        while let Some((sequence, record)) = told.next() {
            let before = self.known.plain.clone();
            let settled = record.facts.iter().find_map(|fact| match fact {
                Fact::Settled(settled) => Some(settled),
                _ => None,
            });
            let Some(settled) = settled else {
                self.note(vec![(sequence, record)], (&before, self.known.ids.len()), None);
                continue;
            };
            let id = self.known.find(settled.id).expect("it is known");
            assert_eq!(settled.state, State::Expired, "time only lets expire");
            assert!(expired.insert(id), "{id} expires twice");
            let between = orphaned(&before, |plain| plain.expire(id));
            self.known.plain.expire(id);
            let mut group = vec![(sequence, record)];
            while let Some(next) = told.next_if(|(_, record)| !is_end(record)) {
                group.push(next);
            }
            self.note(group, (&before, self.known.ids.len()), Some(&between));
        }
        assert_eq!(expired, pending.into_iter().collect(), "R9: what is due expires");
        assert_eq!(forgotten, over.len(), "R15: what is over is forgotten");
        for id in over {
            self.known.plain.reservations[id].forgotten = true;
        }
    }

    /// A restart: everything up to `recovered` is there.
    pub fn restart(&mut self, recovered: u64, promised: u64, now: Now, ledger: &Ledger<Tape>) {
        assert!(
            recovered >= promised,
            "R13: everything up to record {promised} was promised, {recovered} is there"
        );
        let told = self.timeline.last().map_or(0, |(sequence, _)| *sequence);
        assert!(recovered <= told, "record {recovered} is there, {told} was the last one told");
        let at = self.timeline.partition_point(|(sequence, _)| *sequence <= recovered);
        self.known = if at == 0 { Known::empty() } else { self.timeline.swap_remove(at - 1).1 };
        self.answered = recovered;
        let remembered = self.remembered(now, ledger);
        let known = &mut self.known;
        known.floors.resize(known.ids.len(), Amounts::ZERO);
        let clocks = (now.wall_ms, now.mono_ms);
        known.plain.restart(clocks, &known.floors, |id| remembered.get(&id).copied());
        self.timeline = vec![(recovered, self.known.clone())];
        self.stood.clear();
        for path in PATHS {
            let Ok(view) = ledger.account(path, now) else { continue };
            for balance in view.balances {
                self.stood.insert(balance.window.id, balance.standing.spent);
            }
        }
    }

    /// Which ended reservations the ledger still knows, and when they ended: all that have by less
    /// than the retention, unless their slot had been taken again.
    fn remembered(&self, now: Now, ledger: &Ledger<Tape>) -> BTreeMap<usize, i64> {
        let mut remembered = BTreeMap::new();
        for (at, id) in self.known.ids.iter().enumerate() {
            let plain = &self.known.plain.reservations[at];
            let is_there = ledger.reservation(*id, now).is_ok();
            if plain.state == State::Pending {
                assert!(is_there, "R13: a pending reservation is gone: {plain:?}");
                continue;
            }
            let young = now.wall_ms - self.known.ended[at] < RETENTION_MS;
            let must = plain.kept || (young && !plain.forgotten);
            assert!(is_there || !must, "R6: an ended reservation is gone: {plain:?}");
            if is_there {
                remembered.insert(at, self.known.ended[at]);
            }
        }
        remembered
    }

    /// Everything that can be read is the model's.
    pub fn compare(&mut self, ledger: &Ledger<Tape>, now: Now) {
        self.known.at(now);
        self.compare_windows(ledger, now);
        let plain = &self.known.plain;
        for (id, plain) in self.known.ids.iter().zip(&plain.reservations) {
            let Ok(view) = ledger.reservation(*id, now) else {
                assert!(plain.forgotten, "it is gone: {plain:?}");
                continue;
            };
            assert!(!plain.forgotten, "it should be forgotten: {view:?}");
            assert_eq!(view.state, plain.state, "{view:?}");
            if plain.state == State::Pending {
                let (held, used) = (plain.held(), plain.used());
                assert_eq!((view.granted, view.used), (held, used), "{id:?}");
            } else {
                let ended = (plain.spent, plain.overdraft);
                assert_eq!((view.spent, view.overdraft), ended, "{id:?}");
            }
            if plain.state == State::Released {
                assert_eq!(view.returned, plain.returned, "{id:?}");
            }
        }
    }

    /// Every window is the model's.
    pub fn compare_windows(&mut self, ledger: &Ledger<Tape>, now: Now) {
        self.known.at(now);
        for path in PATHS {
            let plain = &mut self.known.plain;
            let expected = plain.standings(path);
            let Ok(view) = ledger.account(path, now) else {
                assert_eq!(expected, [], "{path} is not there");
                continue;
            };
            let found = view.balances.iter().map(|balance| balance.standing);
            let found: Vec<_> = found.map(|s| (s.limit, s.held, s.spent)).collect();
            assert_eq!(found, expected, "limit, held, spent of {path}");
            let stop = plain.overspent(path) || plain.frozen_by(path).is_some();
            assert_eq!(view.verdict == Verdict::Stop, stop, "R10: the verdict of {path}");
            for balance in &view.balances {
                if balance.window.budget.period.kind != PeriodKind::Rolling {
                    let standing = (balance.standing.limit, balance.standing.spent);
                    self.crossed(balance.window.id, standing);
                }
            }
        }
    }

    fn crossed(&self, window: WindowId, (limit, spent): (i64, i64)) {
        for ((_, permille), times) in self.known.fired.range((window, 0)..=(window, u16::MAX)) {
            assert_eq!(*times, 1, "R17: how often window {window} crosses {permille}");
        }
        if self.stood.get(&window) == Some(&spent) {
            return;
        }
        for permille in PERMILLE {
            let (verdict, advice) = (Verdict::Warn, bursar_ledger::Advice::default());
            let mark = Threshold { permille, verdict, advice }.mark(limit);
            let fired = self.known.fired.contains_key(&(window, permille));
            assert!(fired || spent < mark, "R17: window {window} has not reported {permille}");
        }
    }
}

impl Known {
    /// Nothing has happened.
    pub fn empty() -> Known {
        let plain = Plain { retention: RETENTION_MS, ..Plain::default() };
        Known { plain, ..Known::default() }
    }
}

fn is_end(record: &Record) -> bool {
    record.facts.iter().any(|fact| matches!(fact, Fact::Settled(_)))
}

/// The model after an end, when nothing is handed up to a parent yet.
pub fn orphaned(before: &Plain, end: impl FnOnce(&mut Plain)) -> Plain {
    let mut plain = before.clone();
    plain.orphans = true;
    end(&mut plain);
    plain.orphans = false;
    plain
}

/// The units of a Commit that are named.
pub fn named_units(named: u8) -> Vec<Unit> {
    let is_named = |unit: &Unit| named & (1 << unit.index()) != 0;
    bursar_model::UNITS.into_iter().filter(is_named).collect()
}
