//! Reservations as rows: what is needed to put one back into the ledger.
//!
//! Most reservations begin and end within one group of records, so a group changes rows in memory
//! (`Touched`) and writes each once. Knows how facts change a reservation; entries and windows are
//! the import's.

use std::collections::BTreeMap;

use bursar_ledger::fact::{ReservationId, Reserved, Settled, SliceFact};
use bursar_ledger::{Amounts, State, Unit};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use crate::error::{Doing, StoreError};

/// A reservation as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) created_ms: i64,
    pub(crate) ended_ms: Option<i64>,
    /// What was debited by the last floor; `None` when there was none, or it has ended.
    pub(crate) used: Option<Amounts>,
    pub(crate) body: Body,
}

/// The part of a row that only this crate reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Body {
    /// As it was reserved; its slices are what it holds now.
    pub(crate) reserved: Reserved,
    /// What its settlements come to; without slices.
    pub(crate) settled: Option<Settled>,
}

impl Stored {
    /// Whether it still holds something.
    pub(crate) fn holds(&self) -> bool {
        self.body.settled.as_ref().is_none_or(|settled| !settled.kept.is_zero())
    }

    fn settle(&mut self, fact: &Settled, time_ms: i64) {
        let kept = |slice: &SliceFact| {
            let left = slice.held.checked_sub(&slice.spent).unwrap_or_default();
            SliceFact { held: left.filter(Unit::is_capacity), spent: Amounts::ZERO, ..*slice }
        };
        if fact.kept.is_zero() {
            self.body.reserved.slices.clear();
        } else if !fact.slices.is_empty() {
            let slices = fact.slices.iter().map(kept).filter(|slice| !slice.held.is_zero());
            self.body.reserved.slices = slices.collect();
        }
        // Another account may stand in for one that has retired since.
        self.body.reserved.account = fact.account;
        self.ended_ms = Some(time_ms);
        self.used = None;
        let before = self.body.settled.take();
        let sum = |now: &Amounts, before: &Amounts| now.checked_add(before).unwrap_or(*before);
        let mut total = Settled { slices: Vec::new(), ..fact.clone() };
        if let Some(before) = before {
            total.beyond = match (total.beyond, before.beyond) {
                (Some((chain, now)), Some((_, before))) => Some((chain, sum(&now, &before))),
                (now, before) => now.or(before),
            };
            total.overdraft = sum(&total.overdraft, &before.overdraft);
            total.returned = sum(&total.returned, &before.returned);
            total.model = total.model.or(before.model);
        }
        self.body.settled = Some(total);
    }

    fn state(&self) -> &'static str {
        match self.body.settled.as_ref().map_or(State::Pending, |settled| settled.state) {
            State::Pending => "pending",
            State::Committed => "committed",
            State::Released => "released",
            State::Expired => "expired",
        }
    }
}

/// The columns that [`read`] needs, in its order.
pub(crate) const COLUMNS: &str = "created_ms, ended_ms, used, body, sequence";

/// Reads a row of [`COLUMNS`].
pub(crate) fn read(row: &Row<'_>) -> rusqlite::Result<Result<Stored, StoreError>> {
    let body = row.get_ref(3)?.as_blob()?;
    let used = row.get_ref(2)?.as_blob_or_null()?;
    let (created_ms, ended_ms) = (row.get(0)?, row.get(1)?);
    let sequence: u64 = row.get(4)?;
    let body = postcard::from_bytes::<Body>(body)
        .map_err(|error| StoreError::malformed(format!("reservation {sequence}"), &error));
    Ok(body.map(|body| Stored { created_ms, ended_ms, used: used.map(amounts), body }))
}

/// What a settlement tells of the reservation that it settles.
fn forgotten(fact: &Settled) -> Reserved {
    let model = fact.model.iter().map(|model| ("model".to_owned(), model.clone()));
    Reserved {
        id: fact.id,
        account: fact.account,
        key: 0,
        payload: 0,
        slices: Vec::new(),
        max_output_tokens: 0,
        ttl_ms: 0,
        parent: None,
        rate: None,
        labels: model.collect(),
        owner: None,
    }
}

fn amounts(bytes: &[u8]) -> Amounts {
    let numbers = bytes.chunks_exact(8);
    let numbers = numbers.map(|b| i64::from_le_bytes(b.try_into().expect("eight bytes")));
    Unit::ALL.into_iter().zip(numbers).collect()
}

fn bytes(amounts: &Amounts) -> Vec<u8> {
    Unit::ALL.into_iter().flat_map(|unit| amounts.get(unit).to_le_bytes()).collect()
}

/// The reservations that a group of records touches.
#[derive(Default)]
pub(crate) struct Touched {
    /// In the order of the table, which is also about that of the facts.
    rows: BTreeMap<u64, Option<Box<Stored>>>,
    /// Floors of reservations whose row was not needed otherwise.
    used: BTreeMap<u64, Amounts>,
}

impl Touched {
    pub(crate) fn reserve(&mut self, reserved: &Reserved, time_ms: i64) {
        let body = Body { reserved: reserved.clone(), settled: None };
        let stored = Stored { created_ms: time_ms, ended_ms: None, used: None, body };
        self.rows.insert(reserved.id.sequence, Some(Box::new(stored)));
    }

    /// The slices before are returned. An ended one is left alone.
    pub(crate) fn reslice(
        &mut self,
        conn: &Connection,
        id: ReservationId,
        slices: &[SliceFact],
        ttl_ms: i64,
    ) -> Result<Vec<SliceFact>, StoreError> {
        let Some(stored) = self.load(conn, id.sequence)? else { return Ok(Vec::new()) };
        if stored.body.settled.is_some() {
            return Ok(Vec::new());
        }
        stored.body.reserved.ttl_ms = ttl_ms;
        Ok(std::mem::replace(&mut stored.body.reserved.slices, slices.to_vec()))
    }

    /// When it was reserved; `None`: that is forgotten.
    pub(crate) fn created_ms(
        &mut self,
        conn: &Connection,
        id: ReservationId,
    ) -> Result<Option<i64>, StoreError> {
        Ok(self.load(conn, id.sequence)?.map(|stored| stored.created_ms))
    }

    /// Notes the floor. It only rises: a record may tell of a moment before the last change.
    pub(crate) fn used(&mut self, id: ReservationId, used: &Amounts) {
        match self.rows.get_mut(&id.sequence) {
            Some(Some(stored)) if stored.body.settled.is_none() => {
                stored.used = Some(stored.used.map_or(*used, |before| before.max(used)));
            }
            Some(_) => {}
            None => {
                let floor = self.used.entry(id.sequence).or_insert(*used);
                *floor = floor.max(used);
            }
        }
    }

    pub(crate) fn settle(
        &mut self,
        conn: &Connection,
        fact: &Settled,
        time_ms: i64,
    ) -> Result<(), StoreError> {
        if self.load(conn, fact.id.sequence)?.is_none() {
            // Retention has deleted it since the ledger last needed it: what is left to know is known.
            self.reserve(&forgotten(fact), time_ms);
        }
        if let Some(stored) = self.load(conn, fact.id.sequence)? {
            stored.settle(fact, time_ms);
        }
        Ok(())
    }

    fn load(
        &mut self,
        conn: &Connection,
        sequence: u64,
    ) -> Result<Option<&mut Stored>, StoreError> {
        if !self.rows.contains_key(&sequence) {
            let mut stored = find(conn, sequence)?.map(Box::new);
            let pending = stored.as_mut().filter(|stored| stored.body.settled.is_none());
            if let (Some(stored), Some(used)) = (pending, self.used.remove(&sequence)) {
                stored.used = Some(stored.used.map_or(used, |before| before.max(&used)));
            }
            self.rows.insert(sequence, stored);
        }
        Ok(self.rows.get_mut(&sequence).and_then(Option::as_deref_mut))
    }

    /// Writes every row once.
    pub(crate) fn flush(self, conn: &Connection) -> Result<(), StoreError> {
        // Not OR REPLACE, for which SQLite keeps a journal of each statement.
        const WRITE: &str = "INSERT INTO reservations
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)
            ON CONFLICT (sequence) DO UPDATE SET account = excluded.account, state = excluded.state,
                holds = excluded.holds, ended_ms = excluded.ended_ms, used = excluded.used,
                body = excluded.body";
        const BEFORE: &str =
            "SELECT used FROM reservations WHERE sequence = ?1 AND state = 'pending'";
        const FLOOR: &str = "UPDATE reservations SET used = ?2 WHERE sequence = ?1";
        let mut write = conn.prepare_cached(WRITE).doing("prepare reservations")?;
        let mut buf = Vec::new();
        for stored in self.rows.into_values().flatten() {
            let reserved = &stored.body.reserved;
            buf.clear();
            buf = postcard::to_extend(&stored.body, buf)
                .map_err(|error| StoreError::malformed("a reservation", &error))?;
            let model = reserved.labels.iter().find(|(name, _)| name == "model");
            let row = params![
                reserved.id.sequence,
                reserved.id.slot,
                reserved.account,
                reserved.parent.map(|parent| parent.sequence),
                stored.state(),
                stored.holds(),
                model.map(|(_, model)| model),
                (reserved.key != 0).then(|| reserved.key.to_be_bytes()),
                reserved.payload.to_be_bytes(),
                stored.created_ms,
                stored.ended_ms,
                stored.used.as_ref().map(bytes),
                buf,
            ];
            write.execute(row).doing("write a reservation")?;
        }
        let mut before = conn.prepare_cached(BEFORE).doing("prepare floors")?;
        let mut floor = conn.prepare_cached(FLOOR).doing("prepare floors")?;
        for (sequence, used) in self.used {
            let read = |row: &Row<'_>| Ok(row.get_ref(0)?.as_blob_or_null()?.map(amounts));
            let before = before.query_row([sequence], read).optional().doing("read a floor")?;
            if let Some(before) = before {
                let used = before.unwrap_or_default().max(&used);
                floor.execute(params![sequence, bytes(&used)]).doing("write a floor")?;
            }
        }
        Ok(())
    }
}

/// Reads one reservation.
pub(crate) fn find(conn: &Connection, sequence: u64) -> Result<Option<Stored>, StoreError> {
    let query = format!("SELECT {COLUMNS} FROM reservations WHERE sequence = ?1");
    let mut query = conn.prepare_cached(&query).doing("prepare a reservation")?;
    query.query_row([sequence], read).optional().doing("read a reservation")?.transpose()
}
