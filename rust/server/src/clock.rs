//! The one place that reads the clocks.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bursar_ledger::Now;

/// Reads wall and monotonic time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    start: Instant,
}

#[expect(clippy::disallowed_methods, reason = "this is the place that reads the clocks")]
impl Clock {
    pub(crate) fn new() -> Clock {
        Clock { start: Instant::now() }
    }

    pub(crate) fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let ms =
            |duration: std::time::Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        Now { wall_ms: ms(wall), mono_ms: ms(self.start.elapsed()) }
    }
}

/// When something began, to tell how long it took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Began(Instant);

#[expect(clippy::disallowed_methods, reason = "this is the place that reads the clocks")]
impl Began {
    pub(crate) fn now() -> Began {
        Began(Instant::now())
    }

    pub(crate) fn took_ns(self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}
