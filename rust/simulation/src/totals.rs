//! What the runs came to.

use std::collections::BTreeMap;
use std::fmt;

use bursar_store::Case;

use crate::plan::{Counts, Fault, Op};

/// Counts over one run or many.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// Seeds played.
    pub seeds: u64,
    /// Steps of the world.
    pub steps: u64,
    /// Calls that the ledger decided.
    pub calls: u64,
    /// Calls that were answered `STORE_UNAVAILABLE`.
    pub unavailable: u64,
    /// Times the process was killed.
    pub kills: u64,
    /// Times the power went.
    pub power_cuts: u64,
    /// Times the store was closed in order.
    pub closed: u64,
    /// Times a store failed and the daemon became read-only.
    pub read_only: u64,
    /// Restarts, by what recovery found.
    pub cases: BTreeMap<&'static str, u64>,
    /// What the disks did.
    pub disk: Counts,
}

impl Totals {
    /// Counts a restart.
    pub fn opened(&mut self, case: Case) {
        let name = match case {
            Case::Fresh => "Fresh",
            Case::CleanStart => "CleanStart",
            Case::CleanEnd => "CleanEnd",
            Case::TornTail => "TornTail",
            Case::LogBehindInMemory => "LogBehindInMemory",
            _ => "other",
        };
        *self.cases.entry(name).or_default() += 1;
    }

    /// Adds those of one run.
    pub fn add(&mut self, other: &Totals) {
        self.seeds += 1;
        self.steps += other.steps;
        self.calls += other.calls;
        self.unavailable += other.unavailable;
        self.kills += other.kills;
        self.power_cuts += other.power_cuts;
        self.closed += other.closed;
        self.read_only += other.read_only;
        for (case, count) in &other.cases {
            *self.cases.entry(case).or_default() += count;
        }
        let (sum, disk) = (&mut self.disk, &other.disk);
        for (to, from) in sum.ops.iter_mut().zip(disk.ops) {
            *to += from;
        }
        for (to, from) in sum.deaths.iter_mut().zip(disk.deaths) {
            *to += from;
        }
        for (to, from) in sum.faults.iter_mut().zip(disk.faults) {
            *to += from;
        }
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Totals { seeds, steps, calls, unavailable, kills, power_cuts, closed, .. } = self;
        writeln!(f, "{seeds} seeds, {steps} steps, {calls} calls")?;
        writeln!(f, "{kills} kills, {power_cuts} power cuts, {closed} closed in order")?;
        writeln!(f, "{} stores failed, {unavailable} calls were refused for it", self.read_only)?;
        write!(f, "disk steps")?;
        for op in Op::ALL {
            let (steps, deaths) = (self.disk.ops[op as usize], self.disk.deaths[op as usize]);
            write!(f, ", {} {steps} (died at {deaths})", op.name())?;
        }
        write!(f, "\nfaults")?;
        for fault in Fault::ALL {
            write!(f, ", {} {}", fault.name(), self.disk.faults[fault as usize])?;
        }
        write!(f, "\nrestarts {:?}", self.cases)
    }
}
