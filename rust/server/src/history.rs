//! What the store remembers beyond memory: entries, ended reservations; and what watchers see.

use std::collections::HashMap;
use std::sync::Arc;

use bursar_ledger::{LedgerError, ReservationId};
use bursar_store::{Cursor, EntryFilter, EntryKind, EntryRow, Reader};
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tonic::Status;
use xxhash_rust::xxh3::xxh3_64;

use crate::admin::page_size;
use crate::convert;
use crate::engine::{Answer, Engine};
use crate::error::ApiError;
use crate::maker::{self, Maker};
use crate::v1::{self, ErrorReason};

/// The page that a caller gets who names none, and the largest.
const PAGE: (usize, usize) = (100, 10_000);

/// Whose a reservation is.
#[derive(Debug)]
pub(crate) struct Whose {
    pub(crate) account: Arc<str>,
    /// Whether the sidecar made it, to meter the account.
    pub(crate) is_sidecars: bool,
}

impl Whose {
    fn of(account: Arc<str>, label: Option<&str>) -> Whose {
        Whose { account, is_sidecars: Maker::of(label) == Maker::Sidecar }
    }
}

impl Engine {
    /// Whether a call about this reservation can be answered from memory.
    pub(crate) fn remembers(&self, name: &str) -> bool {
        match convert::parse_reservation_id(self.store_id, name) {
            Ok(id) => self.ledger.reservation(id, self.now()).is_ok(),
            // A malformed name is answered at once as well.
            Err(_) => true,
        }
    }

    /// Whose a reservation is that is in memory.
    pub(crate) fn whose(&self, name: &str) -> Result<Option<Whose>, ApiError> {
        let id = convert::parse_reservation_id(self.store_id, name)?;
        let found = self.ledger.account_and_label(id, maker::LABEL).ok();
        Ok(found.map(|(account, label)| Whose::of(account, label.as_deref())))
    }

    /// Whose a reservation is, in memory or in the store.
    pub(crate) fn whose_stored(&self, name: &str) -> Result<Whose, ApiError> {
        let id = convert::parse_reservation_id(self.store_id, name)?;
        // Also for one in memory: how long it takes does not tell that there is one.
        let stored = self.stored_whose(id.sequence)?;
        let found = self.whose(name)?.or(stored);
        found.ok_or_else(|| ApiError::from(LedgerError::ReservationNotFound))
    }

    fn stored_whose(&self, sequence: u64) -> Result<Option<Whose>, ApiError> {
        let Some(reader) = self.reader()? else { return Ok(None) };
        let Some((reserved, ..)) = reader.reservation(sequence)? else { return Ok(None) };
        let Some(account) = reader.account(reserved.account)? else { return Ok(None) };
        let mut labels = reserved.labels.iter();
        let label = labels.find(|(name, _)| name == maker::LABEL).map(|(_, text)| text.as_str());
        Ok(Some(Whose::of(account.into(), label)))
    }

    /// The reservation of that name in memory; one that has ended long ago is fetched back from the
    /// store, so that a late Commit finds it (R7, R15).
    pub(crate) fn recall(&self, name: &str) -> Result<ReservationId, ApiError> {
        let id = convert::parse_reservation_id(self.store_id, name)?;
        let now = self.now();
        let in_memory = |id| self.ledger.reservation(id, now).is_ok();
        if in_memory(id) {
            return Ok(id);
        }
        let mut recalled = self.recalled.lock();
        recalled.retain(|_, id| in_memory(*id));
        if let Some(id) = recalled.get(&id.sequence) {
            return Ok(*id);
        }
        let missing = || {
            let name = convert::cut(name);
            let message = format!(
                "no reservation {name:?}: it never existed, or it is older than the retention"
            );
            ApiError::new(ErrorReason::ReservationNotFound, message).with("reservation", name)
        };
        let reader = self.reader()?.ok_or_else(missing)?;
        let (reserved, settled, created_ms) =
            reader.reservation(id.sequence)?.ok_or_else(missing)?;
        // It goes by one name only, or it could be ended twice.
        if in_memory(reserved.id) {
            return Ok(reserved.id);
        }
        let account = reader.account(reserved.account)?.ok_or_else(missing)?;
        let found = self.ledger.recall(&account, (&reserved, &settled, created_ms), now)?;
        recalled.insert(id.sequence, found);
        Ok(found)
    }

    /// An ended reservation that is no longer in memory.
    pub(crate) fn stored_reservation(
        &self,
        id: ReservationId,
    ) -> Result<Option<v1::Reservation>, ApiError> {
        let Some(reader) = self.reader()? else { return Ok(None) };
        let Some((reserved, settled, created_ms)) = reader.reservation(id.sequence)? else {
            return Ok(None);
        };
        Ok(Some(v1::Reservation {
            id: convert::reservation_id(self.store_id, id),
            state: convert::state(settled.state),
            account: reader.account(reserved.account)?.unwrap_or_default(),
            granted: convert::list(&settled.granted()),
            spent: convert::list(&settled.spent),
            used: convert::list(&settled.spent),
            max_output_tokens: reserved.max_output_tokens,
            model: settled.model.unwrap_or_default(),
            create_time: Some(convert::timestamp(created_ms)),
            ..v1::Reservation::default()
        }))
    }

    /// A reader that sees everything that was answered before.
    pub(crate) fn reader(&self) -> Result<Option<Reader>, ApiError> {
        let Some(store) = &self.store else { return Ok(None) };
        store.write()?;
        store.import_through(store.written())?;
        Ok(Some(store.reader()?))
    }

    pub(crate) fn list_entries(
        &self,
        request: &v1::ListEntriesRequest,
    ) -> Result<Answer<v1::ListEntriesResponse>, ApiError> {
        self.page_of_entries(request, false)
    }

    /// A page of entries, in the order in which they happened, or the newest first.
    pub(crate) fn page_of_entries(
        &self,
        request: &v1::ListEntriesRequest,
        newest_first: bool,
    ) -> Result<Answer<v1::ListEntriesResponse>, ApiError> {
        let size = page_size(request.page_size, PAGE)?;
        let after = match request.page_token.as_str() {
            "" => None,
            token => Some(parse_cursor(token)?),
        };
        let filter = EntryFilter { newest_first, ..self.filter(request)? };
        let Some(reader) = self.reader()? else {
            return Ok(Answer::new(v1::ListEntriesResponse::default(), 0));
        };
        // One more than the page tells whether there is another.
        let mut rows = reader.entries(&filter, after, size + 1)?;
        let more = rows.len() > size;
        rows.truncate(size);
        let last = rows.last().filter(|_| more);
        let body = v1::ListEntriesResponse {
            next_page_token: last
                .map(|row| format!("{:x}-{:x}", row.sequence, row.row))
                .unwrap_or_default(),
            entries: rows.iter().map(|row| self.entry(row)).collect(),
        };
        Ok(Answer::new(body, 0))
    }

    fn filter(&self, request: &v1::ListEntriesRequest) -> Result<EntryFilter, ApiError> {
        let ms = |field, time: &Option<prost_types::Timestamp>| {
            time.as_ref().map(|time| convert::time_ms(field, time)).transpose()
        };
        let unit = match request.unit.as_str() {
            "" => None,
            name => Some(convert::unit(name)?),
        };
        let reservation = match request.reservation.as_str() {
            "" => None,
            name => Some(convert::parse_reservation_id(self.store_id, name)?.sequence),
        };
        let kind = |asked: &i32| {
            let found = KINDS.iter().find(|(kind, _)| *kind as i32 == *asked);
            found
                .map(|(_, kind)| *kind)
                .ok_or_else(|| ApiError::field("kinds", format!("{asked} is not a kind of entry")))
        };
        Ok(EntryFilter {
            account: Some(convert::within(&request.account)?)
                .filter(|account| !account.is_empty())
                .map(str::to_owned),
            reservation,
            unit,
            kinds: request.kinds.iter().map(kind).collect::<Result<_, _>>()?,
            start_ms: ms("start_time", &request.start_time)?,
            end_ms: ms("end_time", &request.end_time)?,
            newest_first: false,
        })
    }

    fn entry(&self, row: &EntryRow) -> v1::Entry {
        let kind = KINDS.iter().find(|(_, kind)| *kind == row.kind);
        v1::Entry {
            sequence: i64::try_from(row.sequence).unwrap_or(i64::MAX),
            time: Some(convert::timestamp(row.time_ms)),
            account: row.account.clone(),
            reservation: row
                .reservation
                .map(|id| convert::reservation_id(self.store_id, id))
                .unwrap_or_default(),
            unit: row.unit.map(|unit| unit.name().to_owned()).unwrap_or_default(),
            kind: kind.map_or(0, |(kind, _)| (*kind).into()),
            amount: row.amount,
            admit_time: Some(convert::timestamp(row.admit_ms)),
            model: row.model.clone().unwrap_or_default(),
            detail: row.detail.clone().unwrap_or_default(),
        }
    }
}

/// The kinds of entries on the wire and in the store.
const KINDS: [(v1::entry::Kind, EntryKind); 13] = [
    (v1::entry::Kind::Hold, EntryKind::Hold),
    (v1::entry::Kind::Return, EntryKind::Return),
    (v1::entry::Kind::Spend, EntryKind::Spend),
    (v1::entry::Kind::Overdraft, EntryKind::Overdraft),
    (v1::entry::Kind::Limit, EntryKind::Limit),
    (v1::entry::Kind::Freeze, EntryKind::Freeze),
    (v1::entry::Kind::Unfreeze, EntryKind::Unfreeze),
    (v1::entry::Kind::Crossing, EntryKind::Crossing),
    (v1::entry::Kind::Carve, EntryKind::Carve),
    (v1::entry::Kind::Runaway, EntryKind::Runaway),
    (v1::entry::Kind::Success, EntryKind::Success),
    (v1::entry::Kind::Failure, EntryKind::Failure),
    (v1::entry::Kind::Operated, EntryKind::Operated),
];

fn parse_cursor(token: &str) -> Result<Cursor, ApiError> {
    let parse = || {
        let (sequence, row) = token.split_once('-')?;
        let sequence = u64::from_str_radix(sequence, 16).ok()?;
        Some(Cursor { sequence, row: u32::from_str_radix(row, 16).ok()? })
    };
    parse().ok_or_else(|| ApiError::field("page_token", "is not one out of an answer"))
}

/// The watches that there may be; each looks at all of its accounts again and again.
#[derive(Debug)]
pub(crate) struct Watches {
    places: Arc<Semaphore>,
    looks: Semaphore,
}

impl Watches {
    /// The most, and how many of them are for operators only.
    const MOST: (usize, usize) = (256, 64);
    /// How many look at a time: other calls find threads as well.
    const LOOKS: usize = 2;

    /// A place for one more.
    pub(crate) fn open(&self, for_operator: bool) -> Result<OwnedSemaphorePermit, Status> {
        let (most, kept) = Self::MOST;
        let place = Arc::clone(&self.places).try_acquire_owned().ok();
        let place = place.filter(|_| for_operator || self.places.available_permits() >= kept);
        let most = if for_operator { most } else { most - kept };
        let message = format!("{most} watches are open, the most: try again");
        place.ok_or_else(|| Status::unavailable(message))
    }

    /// Waits for one's turn to look.
    pub(crate) async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        self.looks.acquire().await.ok()
    }
}

impl Default for Watches {
    fn default() -> Watches {
        let places = Arc::new(Semaphore::new(Self::MOST.0));
        Watches { places, looks: Semaphore::new(Self::LOOKS) }
    }
}

/// What one watcher has seen.
#[derive(Debug)]
pub(crate) struct Watch {
    account: String,
    /// A hash of each account as it was told: many may watch many.
    seen: Option<HashMap<Arc<str>, u64>>,
    /// The last finding that it was told of.
    told: u64,
}

impl Watch {
    pub(crate) fn new(account: String) -> Watch {
        Watch { account, seen: None, told: 0 }
    }

    /// The accounts that changed since the last look; everything at the first.
    pub(crate) fn look(&mut self, engine: &Engine) -> Option<v1::WatchAccountsResponse> {
        let views = engine.ledger.accounts(&self.account, None, usize::MAX, engine.now());
        let first = self.seen.is_none();
        let mut before = self.seen.take().unwrap_or_default();
        let mut seen = HashMap::with_capacity(views.len());
        let mut accounts = Vec::new();
        for view in &views {
            let account = convert::account(view);
            let hash = xxh3_64(&account.encode_to_vec());
            if before.remove(&view.path) != Some(hash) {
                accounts.push(account);
            }
            seen.insert(Arc::clone(&view.path), hash);
        }
        self.seen = Some(seen);
        let retired: Vec<String> = before.into_keys().map(|path| path.to_string()).collect();
        let findings = self.findings(engine, first);
        let changed = first || !accounts.is_empty() || !retired.is_empty() || !findings.is_empty();
        changed.then_some(v1::WatchAccountsResponse { accounts, retired, findings })
    }

    /// What was found since the last look; nothing at the first.
    fn findings(&mut self, engine: &Engine, first: bool) -> Vec<v1::Finding> {
        let mut found = engine.ledger.findings(self.told);
        self.told = found.last().map_or(self.told, |last| last.sequence);
        let within = |account: &str| {
            self.account.is_empty() || bursar_ledger::path::is_within(account, &self.account)
        };
        found.retain(|found| !first && within(&found.account));
        found.iter().map(convert::finding).collect()
    }
}
