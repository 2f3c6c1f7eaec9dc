//! The client of a lease: attach, debit from any thread, and go on through a restart of the daemon.
//!
//! A debit is one step on the pages (`word`), without a lock or a system call. It waits only while
//! the daemon is at work on this very lease or a new daemon takes it over. What happens at the end of a
//! grant is the caller's: ask for more by Extend, or stop.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;

use crate::connection::Connection;
use crate::fork;
use crate::frame::{Answer, Attach, NotAFrame, Request};
use crate::pages::{Advice, ClientPages};
use crate::word::{Control, Step};

/// How long a debit spins, and then sleeps at a time, while the lease is closed.
const SPINS: u32 = 200;
const NAP: Duration = Duration::from_micros(50);
/// Reasons (numbers of `ErrorReason`) with which a later attempt may succeed: the store failed, or the
/// daemon drains.
const PASSING: [u16; 2] = [16, 18];

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
pub enum Unattached {
    /// No daemon answers at the lease socket.
    #[error("no sidecar answers at the lease socket: {0}")]
    Away(io::Error),
    /// The daemon refused.
    #[error("{message}")]
    Refused {
        /// The number of an `ErrorReason`.
        reason: u16,
        /// For a person to read.
        message: String,
    },
    /// What arrived, or was to be sent, is not of this protocol.
    #[error("{0}")]
    Protocol(String),
}

impl Unattached {
    pub(crate) fn local(error: &NotAFrame) -> Unattached {
        Unattached::Protocol(error.to_string())
    }
}

/// What came of a debit.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Debit {
    /// It is debited; the verdict says how to go on (0 OK, 1 WARN, 2 DEGRADE, 3 STOP).
    Debited(u8),
    /// It does not fit the grant; nothing was debited.
    Exhausted {
        /// What is debited.
        used: u64,
        /// What is granted.
        granted: u64,
    },
    /// The lease or its reservation is over; nothing was debited.
    Ended,
    /// The daemon is away or busy for longer than the caller waits; nothing was debited.
    Away,
    /// This process was forked from the one that attached: the lease is not its own.
    Forked,
}

/// A lease. Cheap to share: debits from any number of threads add up.
#[derive(Debug)]
pub struct Lease {
    shared: Arc<Shared>,
    connection: Arc<Connection>,
    /// The fork generation that it belongs to.
    generation: u32,
}

/// What the thread that attaches again shares with those that debit.
#[derive(Debug)]
pub(crate) struct Shared {
    /// One pair for each daemon that this lease was attached to; the last one counts. They stay
    /// mapped while the lease lives, for somebody may be in the middle of a step on them.
    pages: boxcar::Vec<ClientPages>,
    current: AtomicUsize,
    /// The daemon's number for it.
    number: AtomicU64,
    /// A new daemon did not take it over, or it was detached.
    over: AtomicBool,
    terms: Attach,
    /// The number of the daemon that it is attached to; locked while it is attached to the next.
    attached: Mutex<u64>,
}

impl Lease {
    /// Attaches at a daemon's lease socket.
    pub fn attach(socket: &Path, terms: Attach) -> Result<Lease, Unattached> {
        let connection = Connection::to(socket).map_err(Unattached::Away)?;
        let shared = Arc::new(Shared {
            pages: boxcar::Vec::new(),
            current: AtomicUsize::new(0),
            number: AtomicU64::new(0),
            over: AtomicBool::new(false),
            attached: Mutex::new(0),
            terms,
        });
        *shared.attached.lock() = shared.attach(&connection, shared.terms.claim, None)?;
        connection.add(&shared);
        // Where the daemon was replaced meanwhile, the thread that watches may not have seen this one.
        shared.attach_again(&connection).map_err(Unattached::Away)?;
        Ok(Lease { shared, connection, generation: fork::generation() })
    }

    /// Debits `count`, all of it or nothing; waits at most `patience` for a daemon that is busy with
    /// this lease or away.
    #[inline]
    pub fn debit(&self, count: u64, patience: Duration) -> Debit {
        match self.try_debit(count) {
            Some(debit) => debit,
            None => self.debit_slowly(count, patience),
        }
    }

    /// The same without waiting; `None`: it would have to wait.
    #[inline]
    pub fn try_debit(&self, count: u64) -> Option<Debit> {
        if fork::generation() != self.generation {
            return Some(Debit::Forked);
        }
        match self.shared.pages().step(count) {
            Step::Debited(verdict) => Some(Debit::Debited(verdict)),
            Step::Exhausted { used, granted } => Some(Debit::Exhausted { used, granted }),
            Step::Ended => Some(Debit::Ended),
            Step::Closed if self.shared.over.load(Ordering::Acquire) => Some(Debit::Ended),
            Step::Closed => None,
        }
    }

    #[cold]
    fn debit_slowly(&self, count: u64, patience: Duration) -> Debit {
        for _ in 0..SPINS {
            if let Some(debit) = self.try_debit(count) {
                return debit;
            }
            std::hint::spin_loop();
        }
        let mut waited = Duration::ZERO;
        while waited < patience {
            thread::sleep(NAP);
            waited += NAP;
            if let Some(debit) = self.try_debit(count) {
                return debit;
            }
        }
        Debit::Away
    }

    /// What is debited.
    pub fn used(&self) -> u64 {
        self.shared.pages().used()
    }

    /// What was told last: the grant, the verdict, whether it is over.
    pub fn control(&self) -> Control {
        let control = self.shared.pages().control();
        Control { ended: control.ended || self.shared.over.load(Ordering::Acquire), ..control }
    }

    /// What to change about the generation.
    pub fn advice(&self) -> Option<Advice> {
        self.shared.pages().advice()
    }

    /// Ends the lease and returns what was debited; its reservation stays. A repeat changes nothing.
    pub fn detach(&self) -> Result<u64, Unattached> {
        if fork::generation() != self.generation {
            return Ok(self.used());
        }
        let used = self.shared.pages().close();
        if self.shared.over.swap(true, Ordering::AcqRel) {
            return Ok(used);
        }
        // Whoever attaches it to the next daemon meanwhile is waited for, or finds it over.
        let attached = self.shared.attached.lock();
        let lease = self.shared.number.load(Ordering::Acquire);
        self.connection
            .ask(&Request::Detach { lease }, Some(*attached))
            .map(|(answer, ..)| answer.used.max(used))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // A daemon that is away learns of it from the end of the connection or of the process.
        if fork::generation() == self.generation {
            let _detached = self.detach();
        }
    }
}

impl Shared {
    #[inline]
    fn pages(&self) -> &ClientPages {
        let current = self.current.load(Ordering::Acquire);
        self.pages.get(current).expect("pushed before it became the current one")
    }

    /// Returns the number of the daemon that it is attached to now. `only`: no other is asked.
    fn attach(
        &self,
        connection: &Connection,
        claim: u64,
        only: Option<u64>,
    ) -> Result<u64, Unattached> {
        let terms = Attach { claim, ..self.terms.clone() };
        let (answer, fds, daemon) = connection.ask(&Request::Attach(terms), only)?;
        let Answer { status, lease, message, .. } = answer;
        if status != 0 {
            return Err(Unattached::Refused { reason: status, message });
        }
        let without = || Unattached::Protocol("an answer without its pages".into());
        let pages = ClientPages::open(&fds.ok_or_else(without)?);
        let pages = pages.map_err(|error| Unattached::Protocol(error.to_string()))?;
        self.number.store(lease, Ordering::Release);
        self.current.store(self.pages.push(pages), Ordering::Release);
        Ok(daemon)
    }

    /// Attaches to a new daemon with what was debited so far. Steps on the old pages end first, so that
    /// nothing is debited that the new daemon does not hear of.
    pub(crate) fn attach_again(&self, connection: &Connection) -> io::Result<()> {
        let daemon = connection.daemon();
        let mut attached = self.attached.lock();
        let ended = self.over.load(Ordering::Acquire) || self.pages().control().ended;
        if ended || *attached == daemon {
            return Ok(());
        }
        let claim = self.pages().close();
        match self.attach(connection, claim, Some(daemon)) {
            Ok(daemon) => {
                *attached = daemon;
                Ok(())
            }
            // It died before it answered, or cannot take the lease over yet: the grant is still good.
            Err(Unattached::Away(error)) => {
                self.pages().open_again(claim);
                Err(error)
            }
            Err(Unattached::Refused { reason, message }) if PASSING.contains(&reason) => {
                self.pages().open_again(claim);
                Err(io::Error::other(message))
            }
            Err(_) => {
                self.over.store(true, Ordering::Release);
                Ok(())
            }
        }
    }
}
