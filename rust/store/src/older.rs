//! What earlier releases wrote, read as what it means today. Pure; called by upgrades only.
//!
//! Version 1 of the log and of the tables had four layouts, which no number tells apart: at first an
//! amount had seven units, a reservation no owner, and advice no notice; each came later. So bytes
//! are read as the latest layout that they fit, to the last byte; a log, as the latest that all of
//! its records fit.

use bursar_ledger::fact::{
    AccountId, BudgetId, ChainId, Fact, Owner, Record, ReservationId, Reserved, Settled, SliceFact,
    WindowId,
};
use bursar_ledger::rates::Rate;
use bursar_ledger::{Advice, Amounts, Period, State, Threshold, Unit, Verdict};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::frame::read_record;
use crate::reservations::Body;

/// Reads a record of the log.
pub(crate) type ReadRecord = fn(&[u8]) -> Result<Record, String>;

/// The layouts of version 1, the latest first.
pub(crate) const RECORDS: [ReadRecord; 4] = [
    read_record,
    old_record::<Amounts, Option<Owner>>,
    old_record::<Seven, Option<Owner>>,
    old_record::<Seven, Gone>,
];

fn old_record<A, O>(bytes: &[u8]) -> Result<Record, String>
where
    A: DeserializeOwned + Into<Amounts>,
    O: DeserializeOwned + Into<Option<Owner>>,
{
    whole::<OldRecord<A, O>>(bytes)
        .map(Record::from)
        .ok_or_else(|| "it is of another layout".into())
}

/// Reads the body of a reservation's row.
pub(crate) fn read_body(bytes: &[u8]) -> Option<Body> {
    let alike =
        |body: &Body| body.settled.as_ref().is_none_or(|settled| settled.id == body.reserved.id);
    whole::<Body>(bytes)
        .filter(alike)
        .or_else(|| whole::<OldBody<Seven, Option<Owner>>>(bytes).map(Body::from).filter(alike))
        .or_else(|| whole::<OldBody<Seven, Gone>>(bytes).map(Body::from).filter(alike))
}

fn whole<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    postcard::take_from_bytes(bytes)
        .ok()
        .filter(|(_, rest)| rest.is_empty())
        .map(|(value, _)| value)
}

/// A field that was not there: no bytes.
#[derive(Deserialize)]
struct Gone;

impl From<Gone> for Option<Owner> {
    fn from(Gone: Gone) -> Option<Owner> {
        None
    }
}

/// Amounts before there was `vram_mib_s`.
#[derive(Deserialize)]
struct Seven([i64; 7]);

impl From<Seven> for Amounts {
    fn from(Seven(amounts): Seven) -> Amounts {
        Unit::ALL.into_iter().zip(amounts).collect()
    }
}

#[derive(Deserialize)]
struct OldSlice<A> {
    chain: ChainId,
    held: A,
    spent: A,
}

impl<A: Into<Amounts>> From<OldSlice<A>> for SliceFact {
    fn from(old: OldSlice<A>) -> SliceFact {
        SliceFact { chain: old.chain, held: old.held.into(), spent: old.spent.into() }
    }
}

fn slices<A: Into<Amounts>>(old: Vec<OldSlice<A>>) -> Vec<SliceFact> {
    old.into_iter().map(SliceFact::from).collect()
}

#[derive(Deserialize)]
struct OldReserved<A, O> {
    id: ReservationId,
    account: AccountId,
    key: u128,
    payload: u128,
    slices: Vec<OldSlice<A>>,
    max_output_tokens: i64,
    ttl_ms: i64,
    parent: Option<ReservationId>,
    rate: Option<Rate>,
    labels: Vec<(String, String)>,
    owner: O,
}

impl<A: Into<Amounts>, O: Into<Option<Owner>>> From<OldReserved<A, O>> for Reserved {
    fn from(old: OldReserved<A, O>) -> Reserved {
        Reserved {
            id: old.id,
            account: old.account,
            key: old.key,
            payload: old.payload,
            slices: slices(old.slices),
            max_output_tokens: old.max_output_tokens,
            ttl_ms: old.ttl_ms,
            parent: old.parent,
            rate: old.rate,
            labels: old.labels,
            owner: old.owner.into(),
        }
    }
}

#[derive(Deserialize)]
struct OldSettled<A> {
    id: ReservationId,
    account: AccountId,
    state: State,
    payload: u128,
    slices: Vec<OldSlice<A>>,
    beyond: Option<(ChainId, A)>,
    overdraft: A,
    spent: A,
    returned: A,
    kept: A,
    model: Option<String>,
}

impl<A: Into<Amounts>> From<OldSettled<A>> for Settled {
    fn from(old: OldSettled<A>) -> Settled {
        Settled {
            id: old.id,
            account: old.account,
            state: old.state,
            payload: old.payload,
            slices: slices(old.slices),
            beyond: old.beyond.map(|(chain, amounts)| (chain, amounts.into())),
            overdraft: old.overdraft.into(),
            spent: old.spent.into(),
            returned: old.returned.into(),
            kept: old.kept.into(),
            model: old.model,
        }
    }
}

#[derive(Deserialize)]
struct OldBody<A, O> {
    reserved: OldReserved<A, O>,
    settled: Option<OldSettled<A>>,
}

impl<A: Into<Amounts>, O: Into<Option<Owner>>> From<OldBody<A, O>> for Body {
    fn from(old: OldBody<A, O>) -> Body {
        Body { reserved: old.reserved.into(), settled: old.settled.map(Settled::from) }
    }
}

/// Advice without a notice, in the order of its fields.
#[derive(Deserialize)]
struct OldThreshold {
    permille: u16,
    verdict: Verdict,
    max_new_tokens: Option<i64>,
    temperature: Option<String>,
    repetition_penalty: Option<String>,
    fallback_model: Option<String>,
}

impl From<OldThreshold> for Threshold {
    fn from(old: OldThreshold) -> Threshold {
        let advice = Advice {
            max_new_tokens: old.max_new_tokens,
            temperature: old.temperature,
            repetition_penalty: old.repetition_penalty,
            fallback_model: old.fallback_model,
            notice: None,
        };
        Threshold { permille: old.permille, verdict: old.verdict, advice }
    }
}

/// The facts that those logs held, in the order of today's.
#[derive(Deserialize)]
enum OldFact<A, O> {
    AccountOpened {
        account: AccountId,
        path: String,
        automatic: bool,
    },
    AccountRetired {
        account: AccountId,
    },
    BudgetSet {
        budget: BudgetId,
        account: AccountId,
        unit: Unit,
        period: Period,
        limit: i64,
        thresholds: Vec<OldThreshold>,
        manual: bool,
    },
    WindowOpened {
        window: WindowId,
        budget: BudgetId,
        start_ms: i64,
        end_ms: i64,
    },
    ChainOpened {
        chain: ChainId,
        account: AccountId,
        windows: Vec<WindowId>,
        base: Option<(ChainId, u8)>,
    },
    Reserved(OldReserved<A, O>),
    Resliced {
        id: ReservationId,
        account: AccountId,
        slices: Vec<OldSlice<A>>,
        ttl_ms: i64,
        added: A,
    },
    Used(Vec<(ReservationId, A)>),
    Settled(OldSettled<A>),
    Frozen {
        account: AccountId,
        frozen: bool,
        reason: String,
    },
    Crossed {
        window: WindowId,
        permille: u16,
    },
}

impl<A: Into<Amounts>, O: Into<Option<Owner>>> From<OldFact<A, O>> for Fact {
    fn from(old: OldFact<A, O>) -> Fact {
        match old {
            OldFact::AccountOpened { account, path, automatic } => {
                Fact::AccountOpened { account, path, automatic }
            }
            OldFact::AccountRetired { account } => Fact::AccountRetired { account },
            OldFact::BudgetSet { budget, account, unit, period, limit, thresholds, manual } => {
                let thresholds = thresholds.into_iter().map(Threshold::from).collect();
                Fact::BudgetSet { budget, account, unit, period, limit, thresholds, manual }
            }
            OldFact::WindowOpened { window, budget, start_ms, end_ms } => {
                Fact::WindowOpened { window, budget, start_ms, end_ms }
            }
            OldFact::ChainOpened { chain, account, windows, base } => {
                Fact::ChainOpened { chain, account, windows, base }
            }
            OldFact::Reserved(reserved) => Fact::Reserved(reserved.into()),
            OldFact::Resliced { id, account, slices: old, ttl_ms, added } => {
                Fact::Resliced { id, account, slices: slices(old), ttl_ms, added: added.into() }
            }
            OldFact::Used(used) => {
                Fact::Used(used.into_iter().map(|(id, amounts)| (id, amounts.into())).collect())
            }
            OldFact::Settled(settled) => Fact::Settled(settled.into()),
            OldFact::Frozen { account, frozen, reason } => Fact::Frozen { account, frozen, reason },
            OldFact::Crossed { window, permille } => Fact::Crossed { window, permille },
        }
    }
}

#[derive(Deserialize)]
struct OldRecord<A, O> {
    time_ms: i64,
    facts: Vec<OldFact<A, O>>,
}

impl<A: Into<Amounts>, O: Into<Option<Owner>>> From<OldRecord<A, O>> for Record {
    fn from(old: OldRecord<A, O>) -> Record {
        let facts = old.facts.into_iter().map(Fact::from).collect();
        Record { time_ms: old.time_ms, facts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: ReservationId = ReservationId { sequence: 300, slot: 2 };
    const OWNER: Owner = Owner { pid: 7, start_ticks: 1, boot: 2, uid: 1000 };

    /// The bytes of a reservation as it was written: a tuple's are those of a struct.
    fn reserved<A: serde::Serialize, O: serde::Serialize>(full: A, none: A, owner: O) -> Vec<u8> {
        let slices = vec![(9_u64, full, none)];
        let labels = vec![("model".to_owned(), "m".to_owned())];
        let head = (ID, 4_u32, 5_u128, 6_u128, slices, 0_i64, 60_000_i64);
        let rest = (None::<ReservationId>, None::<Rate>, labels);
        let mut bytes = postcard::to_allocvec(&(head, rest)).expect("encoded");
        bytes.extend(postcard::to_allocvec(&owner).expect("encoded"));
        bytes
    }

    fn expected(owner: Option<Owner>) -> Reserved {
        let held = Amounts::of(Unit::VramBytes, 1 << 30);
        Reserved {
            id: ID,
            account: 4,
            key: 5,
            payload: 6,
            slices: vec![SliceFact { chain: 9, held, spent: Amounts::ZERO }],
            max_output_tokens: 0,
            ttl_ms: 60_000,
            parent: None,
            rate: None,
            labels: vec![("model".into(), "m".into())],
            owner,
        }
    }

    fn layouts() -> [(Vec<u8>, Option<Owner>); 4] {
        let (seven, eight) = ([0, 0, 0, 1_i64 << 30, 0, 0, 0], [0, 0, 0, 1_i64 << 30, 0, 0, 0, 0]);
        [
            (reserved(seven, [0; 7], ()), None),
            (reserved(seven, [0; 7], Some(OWNER)), Some(OWNER)),
            (reserved(seven, [0; 7], None::<Owner>), None),
            (reserved(eight, [0; 8], Some(OWNER)), Some(OWNER)),
        ]
    }

    #[test]
    fn a_reservation_s_row_reads_as_it_was_written_by_any_build_of_version_1() {
        for (mut bytes, owner) in layouts() {
            bytes.push(0);
            let body = Body { reserved: expected(owner), settled: None };
            assert_eq!(read_body(&bytes), Some(body));
            // Without an owner, an end more or less is another layout.
            assert_eq!(read_body(&bytes[..bytes.len() - 3]), None, "cut off");
            bytes.push(9);
            assert_eq!(read_body(&bytes), None, "something is left over");
        }
    }

    #[test]
    fn a_record_reads_in_one_of_the_layouts() {
        for (bytes, owner) in layouts() {
            let mut record = vec![24, 1, 5]; // at 12 ms, one fact, `Reserved`
            record.extend(bytes);
            let read = RECORDS.iter().find_map(|read| read(&record).ok()).expect("read");
            let facts = vec![Fact::Reserved(expected(owner))];
            assert_eq!(read, Record { time_ms: 12, facts });
        }
    }

    #[test]
    fn a_threshold_without_a_notice_has_none() {
        let old = (500_u16, Verdict::Warn, Some(64_i64), None::<String>, None::<String>);
        let thresholds = vec![(old, Some("small".to_owned()))];
        let head = (24_u8, 1_u8, 2_u8, 1_u32, 1_u32, Unit::Tokens, Period::total());
        let record = postcard::to_allocvec(&(head, 10_i64, thresholds, true)).expect("encoded");
        assert!(RECORDS[0](&record).is_err());
        let read = RECORDS.iter().find_map(|read| read(&record).ok()).expect("read");
        let Fact::BudgetSet { thresholds, manual, .. } = &read.facts[0] else { panic!("{read:?}") };
        let fallback_model = Some("small".to_owned());
        let advice = Advice { max_new_tokens: Some(64), fallback_model, ..Advice::default() };
        assert_eq!(*thresholds, [Threshold { permille: 500, verdict: Verdict::Warn, advice }]);
        assert!(manual);
    }
}
