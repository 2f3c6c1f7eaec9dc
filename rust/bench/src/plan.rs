//! What every client's run is told, and when a call of it counts.

use std::time::{Duration, Instant};

use crate::now;

/// The most connections, whatever the protocol: workers beyond share them.
const CONNECTIONS_MAX: usize = 8;

/// One run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How many workers, each of which waits for its answer before it goes on.
    pub concurrency: usize,
    /// How many calls a worker has under way at a time; more than one only where calls are pipelined.
    pub window: usize,
    /// For how long before measuring.
    pub warm_up: Duration,
    /// For how long measured.
    pub measured: Duration,
    /// Stop after so many timed calls, if that is earlier.
    pub calls: Option<u64>,
    /// Leave open what was reserved.
    pub keep: bool,
    /// How long a request to the echo is.
    pub request_bytes: usize,
}

impl Plan {
    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.concurrency.clamp(1, CONNECTIONS_MAX)
    }

    /// The time from now, shared by this many who take their calls from it.
    pub(crate) fn span(&self, sharers: usize) -> Span {
        let begin = now() + self.warm_up;
        let sharers = u64::try_from(sharers.max(1)).unwrap_or(u64::MAX);
        let calls_left = self.calls.map_or(u64::MAX, |calls| calls.div_ceil(sharers));
        Span { begin, end: begin + self.measured, calls_left }
    }
}

/// The time in which one worker may begin calls, and the part of it that counts.
#[derive(Debug, Clone)]
pub(crate) struct Span {
    begin: Instant,
    end: Instant,
    calls_left: u64,
}

impl Span {
    /// Whether another call may begin; takes it.
    pub(crate) fn has_time(&mut self) -> bool {
        let has = self.calls_left != 0 && now() < self.end;
        self.calls_left = self.calls_left.saturating_sub(1);
        has
    }

    /// Whether what took from `start` to `end` counts.
    pub(crate) fn covers(&self, start: Instant, end: Instant) -> bool {
        start >= self.begin && end <= self.end
    }
}
