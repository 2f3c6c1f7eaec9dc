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
