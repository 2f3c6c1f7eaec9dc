//! What the disk is about to do wrong, and what it has done: when the process dies, which call fails
//! and how. The disk asks before each step that changes something.

use std::io;

use crate::random::Random;

/// A step that changes files. Reads are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// A file is made or emptied.
    Create,
    /// Bytes are written.
    Write,
    /// A file is cut or made longer.
    SetLen,
    /// A file's content is synced.
    Sync,
    /// A file is deleted.
    Remove,
    /// A folder is synced.
    SyncFolder,
}

impl Op {
    /// All, in the order of the counts.
    pub const ALL: [Op; 6] =
        [Op::Create, Op::Write, Op::SetLen, Op::Sync, Op::Remove, Op::SyncFolder];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Op::Create => "create",
            Op::Write => "write",
            Op::SetLen => "set_len",
            Op::Sync => "sync",
            Op::Remove => "delete",
            Op::SyncFolder => "sync of the folder",
        }
    }
}

/// What a disk may do wrong without the power going.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is full from now on.
    Full,
    /// One step fails.
    Io,
    /// One write is short.
    Short,
    /// The next sync fails.
    NoSync,
}

impl Fault {
    /// All, in the order of the counts.
    pub const ALL: [Fault; 4] = [Fault::Full, Fault::Io, Fault::Short, Fault::NoSync];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Fault::Full => "ENOSPC",
            Fault::Io => "EIO",
            Fault::Short => "short write",
            Fault::NoSync => "failed sync",
        }
    }

    fn fits(self, op: Op) -> bool {
        match self {
            Fault::Io => true,
            Fault::Full => matches!(op, Op::Write | Op::Create),
            Fault::Short => op == Op::Write,
            Fault::NoSync => op == Op::Sync,
        }
    }
}

/// How a step goes.
#[derive(Debug)]
pub enum Outcome {
    /// As it should.
    Done,
    /// A write stops early, and says how far it came.
    Short,
    /// It does a part, or all of it if it has no parts, and fails.
    Partly(io::Error),
    /// It does nothing and fails.
    Refused(io::Error),
}

/// What was done to the runs of a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Steps by `Op`.
    pub ops: [u64; 6],
    /// Steps at which the process died.
    pub deaths: [u64; 6],
    /// Faults by `Fault`.
    pub faults: [u64; 4],
}

/// What is about to happen.
#[derive(Debug)]
pub struct Plan {
    random: Random,
    /// The process dies after so many more steps.
    die_in: Option<u64>,
    /// This fault comes at the first step that it fits, after so many more.
    fault_in: Option<(u64, Fault)>,
    full: bool,
    dead: bool,
    /// What has happened.
    pub counts: Counts,
}

fn error(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

impl Plan {
    /// Nothing goes wrong.
    pub fn new(random: Random) -> Plan {
        let counts = Counts::default();
        Plan { random, die_in: None, fault_in: None, full: false, dead: false, counts }
    }

    /// The process dies after so many more steps.
    pub fn die_in(&mut self, steps: u64) {
        self.die_in = Some(steps);
    }

    /// The process dies now.
    pub fn die(&mut self) {
        self.dead = true;
    }

    /// A fault comes after so many more steps.
    pub fn fault_in(&mut self, steps: u64, fault: Fault) {
        self.fault_in = Some((steps, fault));
    }

    /// Whether the process has died. What it does after that does not happen.
    pub fn is_dead(&self) -> bool {
        self.dead
    }

    /// The disk is mended, and the process another.
    pub fn heal(&mut self) {
        (self.die_in, self.fault_in, self.full, self.dead) = (None, None, false, false);
    }

    /// How the next step goes. One that is `vital` does not fail as long as the process lives.
    pub fn step(&mut self, op: Op, vital: bool) -> Outcome {
        if self.dead {
            return Outcome::Refused(error(EIO));
        }
        let at = op as usize;
        self.counts.ops[at] += 1;
        if count_down(&mut self.die_in) {
            self.counts.deaths[at] += 1;
            self.dead = true;
            let partly = self.random.percent(50);
            return if partly { Outcome::Partly(error(EIO)) } else { Outcome::Refused(error(EIO)) };
        }
        if let Some((steps, fault)) = &mut self.fault_in {
            let fault = *fault;
            *steps = steps.saturating_sub(1);
            if *steps == 0 && fault.fits(op) && !vital {
                self.fault_in = None;
                self.counts.faults[fault as usize] += 1;
                return self.fail(fault);
            }
        }
        if self.full && Fault::Full.fits(op) { self.fail(Fault::Full) } else { Outcome::Done }
    }

    fn fail(&mut self, fault: Fault) -> Outcome {
        match fault {
            Fault::Full => {
                self.full = true;
                Outcome::Partly(error(ENOSPC))
            }
            Fault::Io if self.random.percent(50) => Outcome::Partly(error(EIO)),
            Fault::Io | Fault::NoSync => Outcome::Refused(error(EIO)),
            Fault::Short => Outcome::Short,
        }
    }
}

fn count_down(steps: &mut Option<u64>) -> bool {
    match steps {
        Some(0) => {
            *steps = None;
            true
        }
        Some(left) => {
            *left -= 1;
            false
        }
        None => false,
    }
}
