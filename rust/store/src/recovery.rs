//! Recovery as a table: what is found when a store is opened decides what is done. Pure.
//!
//! Found by `open` and `scan`, carried out by `open`. *torn*: the log ends in something unreadable
//! that was never known to be synced, as a power cut leaves it. *damaged*: something unreadable, or
//! missing, that was. *follows*: the log goes on from where the database ends (it may begin before
//! that); *gap*: it begins later; *behind*: it ends earlier. *clean*: the last session closed the
//! store. *memory*: the last session promised to survive no power cut. `·` means any.
//!
//! ```text
//! case                  database    log          join     clean  memory   decision
//! Fresh                 absent      absent       ·        ·      ·        create
//! DatabaseMissing       absent      any other    ·        ·      ·        refuse
//! DatabaseUnreadable    unreadable  ·            ·        ·      ·        refuse
//! DatabaseNewer         newer       ·            ·        ·      ·        refuse
//! CleanStart            present     absent       ·        yes    ·        start
//! LogMissing            present     absent       ·        no     ·        refuse
//! LogNewer              present     newer        ·        ·      ·        refuse
//! LogForeign            present     foreign      ·        ·      ·        refuse
//! LogDamaged            present     damaged      ·        ·      ·        refuse
//! LogGap                present     clean, torn  gap      ·      ·        refuse
//! LogBehind             present     clean, torn  behind   ·      no       refuse
//! LogBehindInMemory     present     clean, torn  behind   ·      yes      keep the database
//! CleanEnd              present     clean        follows  ·      ·        import
//! TornTail              present     torn         follows  ·      ·        cut, then import
//! ```
//!
//! Why a log that ends behind the database is refused: only synced records are imported, so this is
//! no power cut but a log that was exchanged, or a disk that lied. In memory durability nothing is
//! synced, so a power cut does just that: what the database has is kept, and the log begins anew
//! behind it.

use serde::Serialize;

/// What the database file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Database {
    /// No file, or an empty one: a creation that was cut short counts as none.
    Absent,
    /// Not SQLite, not a store, or damaged.
    Unreadable,
    /// Written by a later version.
    Newer,
    /// A store.
    Present,
}

/// What the log's segments are, taken together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Log {
    /// No segment.
    Absent,
    /// Written by a later version.
    Newer,
    /// Of another store.
    Foreign,
    /// Something that was synced is unreadable or missing.
    Damaged,
    /// It ends in something unreadable that was never known to be synced.
    Torn,
    /// It ends behind a whole record.
    Clean,
}

/// How the log's readable part and the database meet. Without a readable log: `Follows`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Join {
    /// The log begins later than the database ends.
    Gap,
    /// The log goes on where the database ends.
    Follows,
    /// The log ends before the database does.
    Behind,
}

/// All that the decision depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Observed {
    /// What the database file is.
    pub database: Database,
    /// What the log is.
    pub log: Log,
    /// How they meet.
    pub join: Join,
    /// Whether the last session closed the store.
    pub clean: bool,
    /// Whether the last session promised to survive no power cut.
    pub memory: bool,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// Make a new store.
    Create,
    /// Begin a new log behind the database.
    Start,
    /// Import what the log has and the database has not.
    Import,
    /// Drop the unreadable end, then import.
    CutThenImport,
    /// Drop the log and go on from the database.
    KeepDatabase,
    /// Change nothing, and say why.
    Refuse,
}

/// The rows of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[expect(missing_docs, reason = "the table in the module's doc explains them")]
pub enum Case {
    Fresh,
    DatabaseMissing,
    DatabaseUnreadable,
    DatabaseNewer,
    CleanStart,
    LogMissing,
    LogNewer,
    LogForeign,
    LogDamaged,
    LogGap,
    LogBehind,
    LogBehindInMemory,
    CleanEnd,
    TornTail,
}

/// One row; an empty list or `None` means any.
struct Row {
    case: Case,
    database: Database,
    log: &'static [Log],
    join: Option<Join>,
    clean: Option<bool>,
    memory: Option<bool>,
    decision: Decision,
}

/// A row for a store that is there, whatever else is found.
const ANY: Row = Row {
    case: Case::Fresh,
    database: Database::Present,
    log: &[],
    join: None,
    clean: None,
    memory: None,
    decision: Decision::Refuse,
};
const PRESENT: &[Log] = &[Log::Newer, Log::Foreign, Log::Damaged, Log::Torn, Log::Clean];
const READABLE: &[Log] = &[Log::Torn, Log::Clean];
const WITHOUT_LOG: Row = Row { log: &[Log::Absent], ..ANY };
const BEHIND: Row = Row { log: READABLE, join: Some(Join::Behind), ..ANY };
const FOLLOWS: Row = Row { join: Some(Join::Follows), ..ANY };

#[rustfmt::skip]
const TABLE: [Row; 14] = {
    use Decision::{Create, CutThenImport, Import, KeepDatabase, Start};
    use {Case as C, Database as D, Log as L};
    [
        Row { case: C::Fresh, database: D::Absent, log: &[L::Absent], decision: Create, ..ANY },
        Row { case: C::DatabaseMissing, database: D::Absent, log: PRESENT, ..ANY },
        Row { case: C::DatabaseUnreadable, database: D::Unreadable, ..ANY },
        Row { case: C::DatabaseNewer, database: D::Newer, ..ANY },
        Row { case: C::CleanStart, decision: Start, clean: Some(true), ..WITHOUT_LOG },
        Row { case: C::LogMissing, clean: Some(false), ..WITHOUT_LOG },
        Row { case: C::LogNewer, log: &[L::Newer], ..ANY },
        Row { case: C::LogForeign, log: &[L::Foreign], ..ANY },
        Row { case: C::LogDamaged, log: &[L::Damaged], ..ANY },
        Row { case: C::LogGap, log: READABLE, join: Some(Join::Gap), ..ANY },
        Row { case: C::LogBehind, memory: Some(false), ..BEHIND },
        Row { case: C::LogBehindInMemory, decision: KeepDatabase, memory: Some(true), ..BEHIND },
        Row { case: C::CleanEnd, log: &[L::Clean], decision: Import, ..FOLLOWS },
        Row { case: C::TornTail, log: &[L::Torn], decision: CutThenImport, ..FOLLOWS },
    ]
};

impl Row {
    fn matches(&self, seen: Observed) -> bool {
        self.database == seen.database
            && (self.log.is_empty() || self.log.contains(&seen.log))
            && self.join.is_none_or(|join| join == seen.join)
            && self.clean.is_none_or(|clean| clean == seen.clean)
            && self.memory.is_none_or(|memory| memory == seen.memory)
    }
}

/// The one row that matches, and what it says to do.
pub fn decide(seen: Observed) -> (Case, Decision) {
    let row = TABLE.iter().find(|row| row.matches(seen));
    let row = row.expect("the table is complete: see the test that walks every combination");
    (row.case, row.decision)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const DATABASES: [Database; 4] =
        [Database::Absent, Database::Unreadable, Database::Newer, Database::Present];
    const LOGS: [Log; 6] =
        [Log::Absent, Log::Newer, Log::Foreign, Log::Damaged, Log::Torn, Log::Clean];
    const JOINS: [Join; 3] = [Join::Gap, Join::Follows, Join::Behind];

    fn every() -> impl Iterator<Item = Observed> {
        (0..4 * 6 * 3 * 4).map(|i| Observed {
            database: DATABASES[i % 4],
            log: LOGS[i / 4 % 6],
            join: JOINS[i / 24 % 3],
            clean: i / 72 % 2 == 1,
            memory: i / 144 == 1,
        })
    }

    #[test]
    fn every_combination_matches_exactly_one_row_and_every_row_is_reached() {
        let mut reached = HashSet::new();
        for seen in every() {
            let matching = TABLE.iter().filter(|row| row.matches(seen)).count();
            assert_eq!(matching, 1, "{seen:?}");
            reached.insert(decide(seen).0);
        }
        assert_eq!(reached.len(), TABLE.len());
    }

    #[test]
    fn nothing_is_dropped_that_was_promised() {
        for seen in every() {
            let (case, decision) = decide(seen);
            match decision {
                Decision::Create => assert_eq!(seen.database, Database::Absent, "{seen:?}"),
                Decision::CutThenImport => assert_eq!(seen.log, Log::Torn, "{seen:?}"),
                Decision::KeepDatabase => assert!(seen.memory, "{seen:?}"),
                Decision::Start => assert!(seen.clean, "{seen:?}"),
                Decision::Import => assert_eq!(seen.log, Log::Clean, "{seen:?}"),
                Decision::Refuse => assert_ne!(case, Case::CleanEnd, "{seen:?}"),
            }
        }
    }

    #[test]
    fn the_printed_table_is_the_table() {
        let source = include_str!("recovery.rs");
        let printed = source.lines().filter(|line| line.starts_with("//! ")).collect::<Vec<_>>();
        for row in &TABLE {
            let name = format!("//! {:?} ", row.case);
            let line = printed.iter().find(|line| line.starts_with(&name));
            let line = line.unwrap_or_else(|| panic!("{name} is not printed"));
            let decision = match row.decision {
                Decision::Create => "create",
                Decision::Start => "start",
                Decision::Import => " import",
                Decision::CutThenImport => "cut, then import",
                Decision::KeepDatabase => "keep the database",
                Decision::Refuse => "refuse",
            };
            assert!(line.ends_with(decision), "{line}");
        }
    }
}
