//! What can go wrong with a store, in words for whoever has to mend it.
//!
//! Every error can be cloned: the first failure of a store is sticky and is answered to every later
//! call.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

use crate::recovery::Case;

/// Why the store cannot do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Another process, or this one, has it open.
    #[error(
        "store {} is in use by process {pid}: stop that process or choose another path",
        store.display()
    )]
    InUse {
        /// The store.
        store: PathBuf,
        /// The process as it named itself; `?` when it has not.
        pid: String,
    },
    /// Recovery found a state in which going on could lose or repeat something.
    #[error(
        "store {} is not opened: {why}; run `bursar doctor {}`",
        store.display(),
        store.display()
    )]
    Refused {
        /// The store.
        store: PathBuf,
        /// The row of the recovery table.
        case: Case,
        /// What was found, and where.
        why: String,
    },
    /// A file operation failed.
    #[error("cannot {what} {}: {reason}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// The kind, to tell a full disk from a broken one.
        kind: io::ErrorKind,
        /// The system's words.
        reason: String,
        /// Whether descriptors had run out, of which there may be some again.
        out_of_descriptors: bool,
    },
    /// Where everybody may write, somebody else may have put it there.
    #[error(
        "{} {what}, and everybody may write to its folder: choose a folder of your own for the store",
        path.display()
    )]
    Planted {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A file of the store is no longer under its name, or was cut.
    #[error(
        "{} was removed, replaced or cut while the store was open: copy it back out of \
         /proc/{}/fd before this process ends",
        path.display(),
        std::process::id()
    )]
    Gone {
        /// The file.
        path: PathBuf,
    },
    /// The log could not be written. Nothing of the failed batch is in it.
    #[error(
        "cannot append to the log {}: {reason}; the store takes nothing more until it is opened \
         anew",
        path.display()
    )]
    Append {
        /// The segment.
        path: PathBuf,
        /// The system's words.
        reason: String,
    },
    /// The log could not be synced. What the disk holds is unknown, so it is not tried again.
    #[error(
        "cannot sync the log {}: {reason}; what reached the disk is unknown: check the disk, then \
         start again",
        path.display()
    )]
    Sync {
        /// The segment.
        path: PathBuf,
        /// The system's words.
        reason: String,
    },
    /// One operation produced more than a record can hold.
    #[error("a record of {bytes} bytes passes the limit of {max} bytes")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The largest.
        max: usize,
    },
    /// SQLite failed.
    #[error("the database cannot {what}: {reason}")]
    Database {
        /// What was tried.
        what: &'static str,
        /// SQLite's words.
        reason: String,
        /// Whether somebody else holds the database's lock, so that trying again may help.
        busy: bool,
    },
    /// A row of the database, or a record of the log, cannot be understood.
    #[error("cannot understand {what}: {reason}; run `bursar doctor` on the store")]
    Malformed {
        /// Which.
        what: String,
        /// Why.
        reason: String,
    },
    /// The caller did not take a fact during recovery.
    #[error("the ledger cannot take what the store holds: {0}")]
    Apply(String),
    /// A thread of the store has panicked.
    #[error("the {thread} thread of the store has died: start again, and report it with the log")]
    Died {
        /// Which.
        thread: &'static str,
    },
    /// It was closed.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    pub(crate) fn io(what: &'static str, path: &Path, error: &io::Error) -> StoreError {
        use rustix::io::Errno;
        let (path, kind, reason) = (path.to_owned(), error.kind(), error.to_string());
        let errno = Errno::from_io_error(error);
        let out_of_descriptors = matches!(errno, Some(Errno::MFILE | Errno::NFILE));
        StoreError::Io { what, path, kind, reason, out_of_descriptors }
    }

    pub(crate) fn database(what: &'static str, error: &rusqlite::Error) -> StoreError {
        use rusqlite::ErrorCode::{DatabaseBusy, DatabaseLocked};
        let busy = matches!(error.sqlite_error_code(), Some(DatabaseBusy | DatabaseLocked));
        StoreError::Database { what, reason: error.to_string(), busy }
    }

    pub(crate) fn malformed(
        what: impl Into<String>,
        reason: &(impl Display + ?Sized),
    ) -> StoreError {
        StoreError::Malformed { what: what.into(), reason: reason.to_string() }
    }

    /// Whether trying again may help.
    pub(crate) fn is_busy(&self) -> bool {
        matches!(
            self,
            StoreError::Database { busy: true, .. }
                | StoreError::Io { out_of_descriptors: true, .. }
        )
    }
}

/// Says what was tried, where SQLite only says what failed.
pub(crate) trait Doing<T> {
    fn doing(self, what: &'static str) -> Result<T, StoreError>;
}

impl<T> Doing<T> for rusqlite::Result<T> {
    fn doing(self, what: &'static str) -> Result<T, StoreError> {
        self.map_err(|error| StoreError::database(what, &error))
    }
}

/// Says what was tried on which file.
pub(crate) trait At<T> {
    fn at(self, what: &'static str, path: &Path) -> Result<T, StoreError>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, what: &'static str, path: &Path) -> Result<T, StoreError> {
        self.map_err(|error| StoreError::io(what, path, &error))
    }
}
