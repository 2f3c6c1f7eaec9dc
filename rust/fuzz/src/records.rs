//! Facts out of the log: whatever they say, they are applied or refused, and the ledger that comes of
//! them works.

use std::sync::Arc;

use bursar_ledger::fact::Record;
use bursar_ledger::runaway::Policy;
use bursar_ledger::{HighIds, NoJournal, Now, Replay, Settings};

fn settings() -> Settings {
    Settings {
        patterns: Vec::new(),
        max_accounts: 16,
        max_children: 8,
        max_reservations: 64,
        key_retention_ms: 1_000,
        account_idle_ms: 1_000,
        runaway: Arc::new(Policy::off()),
    }
}

/// Records, each behind its length in one byte.
pub(crate) fn run(mut data: &[u8]) {
    let now = Now { wall_ms: 1_800_000_000_000, mono_ms: 0 };
    let mut replay = Replay::new(settings(), NoJournal, now);
    while let Some((length, rest)) = data.split_first() {
        let (payload, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        data = rest;
        let Ok(record) = postcard::from_bytes::<Record>(payload) else { continue };
        let bytes = postcard::to_stdvec(&record).expect("it was read");
        assert_eq!(postcard::from_bytes::<Record>(&bytes), Ok(record.clone()));
        if replay.apply(&record).is_err() {
            return;
        }
    }
    let ledger = replay.finish(HighIds::default());
    ledger.tick(now);
    ledger.log_used(now);
    ledger.retire_idle(now);
}
