//! A lease's pages of shared memory, as the ledger sees them.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use bursar_lease::pages::{DaemonPages, PageFds, count};
use bursar_lease::word::Control;
use bursar_ledger::lease::Pages;
use bursar_ledger::{Advice, Verdict};
use parking_lot::Mutex;

use crate::places::Taken;

/// Pages in shared memory.
#[derive(Debug)]
pub(super) struct SharedPages {
    pages: DaemonPages,
    /// The ledger is done with them: tells the pump, which asks before it takes a lock.
    ended: AtomicBool,
    /// Its place among the leases, until it has ended.
    place: Mutex<Option<Taken>>,
}

impl SharedPages {
    /// Makes them, and the descriptors that the client maps.
    /// They have the place until the ledger is done with them.
    pub(super) fn create(place: Taken) -> io::Result<(SharedPages, PageFds)> {
        let (pages, fds) = DaemonPages::create()?;
        let (ended, place) = (AtomicBool::new(false), Mutex::new(Some(place)));
        Ok((SharedPages { pages, ended, place }, fds))
    }

    fn end(&self) {
        if !self.ended.swap(true, Ordering::AcqRel) {
            self.place.lock().take();
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
}

fn amount(count: u64) -> i64 {
    i64::try_from(count).expect("a count has 48 bits")
}

impl Pages for SharedPages {
    #[inline]
    fn used(&self) -> i64 {
        amount(self.pages.used())
    }

    fn close(&self) -> i64 {
        amount(self.pages.close())
    }

    fn open(&self, used: i64) {
        self.pages.open(count(used));
    }

    fn tell(&self, granted: i64, verdict: Verdict, ended: bool) {
        self.pages.tell(Control { granted: count(granted), verdict: verdict as u8, ended });
        if ended {
            self.end();
        }
    }

    fn advise(&self, advice: Option<&Advice>) {
        let number = |text: &Option<String>| text.as_ref().and_then(|text| text.parse().ok());
        let advice = advice.map(|advice| bursar_lease::pages::Advice {
            max_new_tokens: advice.max_new_tokens,
            temperature: number(&advice.temperature),
            repetition_penalty: number(&advice.repetition_penalty),
            fallback_model: advice.fallback_model.clone(),
            notice: advice.notice.clone(),
        });
        self.pages.advise(&advice.unwrap_or_default());
    }
}
