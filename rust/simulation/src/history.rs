//! Whether the database's history agrees with itself and with the model.

use std::collections::BTreeMap;
use std::path::Path;

use bursar_ledger::Amounts;
use bursar_ledger::fact::State;
use bursar_store::{EntryFilter, EntryKind, Store, check_store};

use crate::oracle::Oracle;

impl Oracle {
    /// Every window is the sum of its entries; every ended reservation's entries sum up to what it
    /// spent; every crossing is there once. `is_whole`: nothing was deleted for its age.
    pub fn check_history(&self, store: &Store, path: &Path, is_whole: bool) {
        assert_eq!(check_store(path).expect("it can be read"), [], "windows and their entries");
        let reader = store.reader().expect("a reader");
        let rows = reader.entries(&EntryFilter::default(), None, usize::MAX).expect("entries");
        if !is_whole {
            return;
        }
        let mut spent: BTreeMap<u64, Amounts> = BTreeMap::new();
        let mut crossings = 0;
        for row in &rows {
            let Some(unit) = row.unit else { continue };
            match (row.kind, row.reservation) {
                (EntryKind::Spend, Some(id)) => {
                    let sum = spent.entry(id.sequence).or_default();
                    sum.set(unit, sum.get(unit) + row.amount);
                }
                (EntryKind::Crossing, _) => crossings += 1,
                _ => {}
            }
        }
        let fired: usize = self.known.fired.values().sum();
        assert_eq!(crossings, fired, "R17: crossings in the history");
        for (id, plain) in self.known.ids.iter().zip(&self.known.plain.reservations) {
            let entries = spent.remove(&id.sequence).unwrap_or_default();
            let expected = if plain.state == State::Pending { Amounts::ZERO } else { plain.spent };
            assert_eq!(entries, expected, "the entries of {id:?}: {plain:?}");
        }
        assert!(spent.is_empty(), "entries of nobody: {spent:?}");
    }
}
