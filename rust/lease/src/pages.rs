//! A lease's two pages: the daemon's view, which makes them, and the client's.
//!
//! Neither side locks: the daemon calls under its lock on the reservation, clients from any thread.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::fence;

use crate::layout::{ADVICE, COUNT_MAX, MAGIC, MODEL, NOTICE, TEXT_BYTES, VERSION, WORD};
use crate::map::Map;
use crate::sync::{AtomicU64, Ordering};
use crate::word::{self, Control, Step};

/// How often advice is read that changes meanwhile: writing it takes less than a microsecond.
const ADVICE_TRIES: u32 = 10_000;

/// What to change about a generation. Absent: leave as it is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Advice {
    /// Generate no more than so many further tokens.
    pub max_new_tokens: Option<i64>,
    /// Sample at this temperature.
    pub temperature: Option<f64>,
    /// Sample with this repetition penalty.
    pub repetition_penalty: Option<f64>,
    /// Use this model for new calls; at most [`TEXT_BYTES`], a longer name is not told.
    pub fallback_model: Option<String>,
    /// Say this at the end of what is cut off; at most [`TEXT_BYTES`], a longer one is not told.
    pub notice: Option<String>,
}

/// The pages as the daemon has them.
#[derive(Debug)]
pub struct DaemonPages {
    usage: Map,
    control: Map,
}

/// The descriptors that a client maps.
#[derive(Debug)]
pub struct PageFds {
    /// Of the usage page.
    pub usage: OwnedFd,
    /// Of the control page.
    pub control: OwnedFd,
}

impl DaemonPages {
    /// Makes a pair of pages whose lease is closed.
    pub fn create() -> io::Result<(DaemonPages, PageFds)> {
        let (usage, usage_fd) = Map::create(false)?;
        let (control, control_fd) = Map::create(true)?;
        let pages = DaemonPages::on(usage, control);
        Ok((pages, PageFds { usage: usage_fd, control: control_fd }))
    }

    fn on(usage: Map, control: Map) -> DaemonPages {
        let start = u64::from(MAGIC) | u64::from(VERSION) << 32;
        for page in [&usage, &control] {
            page.word(0).store(start, Ordering::Relaxed);
        }
        let pages = DaemonPages { usage, control };
        pages.close();
        pages.advise(&Advice::default());
        pages
    }

    /// What the client says is used: a claim.
    #[inline]
    pub fn used(&self) -> u64 {
        word::used(self.usage.word(WORD))
    }

    /// Stops the client's steps and returns its final claim.
    pub fn close(&self) -> u64 {
        word::close(self.usage.word(WORD))
    }

    /// Lets the client go on from `used`.
    pub fn open(&self, used: u64) {
        word::open(self.usage.word(WORD), used);
    }

    /// Tells the client what is granted and how to go on.
    pub fn tell(&self, control: Control) {
        control.store(self.control.word(WORD));
    }

    /// Writes the advice.
    pub fn advise(&self, advice: &Advice) {
        let sequence = self.control.word(ADVICE);
        let before = sequence.load(Ordering::Relaxed);
        sequence.store(before.wrapping_add(1), Ordering::Relaxed);
        // Pairs with the reader's fence: who sees a word from below sees the odd sequence.
        fence(Ordering::Release);
        let bits = |number: Option<f64>| number.unwrap_or(f64::NAN).to_bits();
        let numbers = [
            advice.max_new_tokens.filter(|tokens| *tokens >= 0).unwrap_or(-1).cast_unsigned(),
            bits(advice.temperature),
            bits(advice.repetition_penalty),
        ];
        for (offset, number) in (ADVICE + 8..).step_by(8).zip(numbers) {
            self.control.word(offset).store(number, Ordering::Relaxed);
        }
        self.write_text(MODEL, advice.fallback_model.as_deref());
        self.write_text(NOTICE, advice.notice.as_deref());
        sequence.store(before.wrapping_add(2), Ordering::Release);
    }

    /// Writes a text: its length, and its bytes behind that.
    fn write_text(&self, at: usize, text: Option<&str>) {
        let text = text.unwrap_or_default().as_bytes();
        let text = if text.len() <= TEXT_BYTES { text } else { &[] };
        self.control.word(at).store(text.len() as u64, Ordering::Relaxed);
        for (offset, bytes) in (at + 8..).step_by(8).zip(text.chunks(8)) {
            let mut eight = [0; 8];
            eight[..bytes.len()].copy_from_slice(bytes);
            self.control.word(offset).store(u64::from_le_bytes(eight), Ordering::Relaxed);
        }
    }
}

/// The pages as a client has them.
#[derive(Debug)]
pub struct ClientPages {
    usage: Map,
    control: Map,
}

impl ClientPages {
    /// Maps the pages that a daemon has sent.
    pub fn open(fds: &PageFds) -> io::Result<ClientPages> {
        let pages = ClientPages {
            usage: Map::open(&fds.usage, true)?,
            control: Map::open(&fds.control, false)?,
        };
        let start = u64::from(MAGIC) | u64::from(VERSION) << 32;
        if pages.control.word(0).load(Ordering::Relaxed) != start {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a lease of another version"));
        }
        Ok(pages)
    }

    /// Debits `count`, all of it or nothing.
    #[inline]
    pub fn step(&self, count: u64) -> Step {
        word::step(self.usage_word(), self.control.word(WORD), count)
    }

    /// What is debited.
    pub fn used(&self) -> u64 {
        word::used(self.usage_word())
    }

    /// What the daemon told last.
    pub fn control(&self) -> Control {
        Control::load(self.control.word(WORD))
    }

    /// Stops steps on these pages: others take their place. Returns what is debited in the end.
    pub fn close(&self) -> u64 {
        word::close(self.usage_word())
    }

    /// Lets steps on these pages succeed again: nobody has taken their place.
    pub(crate) fn open_again(&self, used: u64) {
        word::open(self.usage_word(), used);
    }

    fn usage_word(&self) -> &AtomicU64 {
        self.usage.word(WORD)
    }

    /// The advice; `None` while there is none, or half of one from a daemon that was killed.
    pub fn advice(&self) -> Option<Advice> {
        for _ in 0..ADVICE_TRIES {
            let sequence = self.control.word(ADVICE).load(Ordering::Relaxed);
            fence(Ordering::Acquire);
            let advice = self.read_advice();
            // Pairs with the writer's fence.
            fence(Ordering::Acquire);
            let after = self.control.word(ADVICE).load(Ordering::Relaxed);
            if sequence == after && sequence.is_multiple_of(2) {
                return Some(advice).filter(|advice| *advice != Advice::default());
            }
            std::thread::yield_now();
        }
        None
    }

    fn read_advice(&self) -> Advice {
        let number = |index: usize| self.control.word(ADVICE + index * 8).load(Ordering::Relaxed);
        let float = |index| Some(f64::from_bits(number(index))).filter(|float| !float.is_nan());
        Advice {
            max_new_tokens: Some(number(1).cast_signed()).filter(|tokens| *tokens >= 0),
            temperature: float(2),
            repetition_penalty: float(3),
            fallback_model: self.read_text(MODEL),
            notice: self.read_text(NOTICE),
        }
    }

    /// Reads a text: its length, and its bytes behind that.
    fn read_text(&self, at: usize) -> Option<String> {
        let word = |offset| self.control.word(offset).load(Ordering::Relaxed);
        let length = usize::try_from(word(at)).map_or(0, |length| length.min(TEXT_BYTES));
        let words = (at + 8..).step_by(8).take(length.div_ceil(8));
        let mut text: Vec<u8> = words.flat_map(|offset| word(offset).to_le_bytes()).collect();
        text.truncate(length);
        String::from_utf8(text).ok().filter(|text| !text.is_empty())
    }
}

/// A count as the pages can hold it.
pub fn count(amount: i64) -> u64 {
    u64::try_from(amount).unwrap_or(0).min(COUNT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(not(miri))]
    fn pages() -> (DaemonPages, ClientPages, PageFds) {
        let (daemon, fds) = DaemonPages::create().expect("shared memory");
        let client = ClientPages::open(&fds).expect("the pages are whole");
        (daemon, client, fds)
    }

    #[cfg(miri)]
    fn pages() -> (std::mem::ManuallyDrop<DaemonPages>, std::mem::ManuallyDrop<ClientPages>, ()) {
        let ([usage, same_usage], [control, same_control]) =
            (crate::map::leaked(), crate::map::leaked());
        let client = ClientPages { usage: same_usage, control: same_control };
        let daemon = DaemonPages::on(usage, control);
        (std::mem::ManuallyDrop::new(daemon), std::mem::ManuallyDrop::new(client), ())
    }

    #[test]
    fn both_sides_see_the_same_words() {
        let (daemon, client, _fds) = pages();
        assert_eq!(client.step(1), Step::Closed);
        daemon.tell(Control { granted: 2, verdict: 1, ended: false });
        daemon.open(0);
        assert_eq!(client.step(2), Step::Debited(1));
        assert_eq!((daemon.used(), client.used()), (2, 2));
        assert_eq!(daemon.close(), 2);
    }

    #[test]
    fn advice_arrives_whole() {
        let (daemon, client, _fds) = pages();
        assert_eq!(client.advice(), None);
        let advice = Advice {
            max_new_tokens: Some(64),
            temperature: Some(0.25),
            repetition_penalty: None,
            fallback_model: Some("gpt-4o-mini".into()),
            notice: Some("Das Budget ist aufgebraucht – bitte später.".into()),
        };
        daemon.advise(&advice);
        assert_eq!(client.advice(), Some(advice));
        let long = "x".repeat(TEXT_BYTES + 1);
        daemon.advise(&Advice { fallback_model: Some(long), ..Advice::default() });
        assert_eq!(client.advice(), None);
    }

    #[test]
    fn advice_is_whole_while_it_changes() {
        const ROUNDS: i64 = if cfg!(miri) { 50 } else { 20_000 };
        let advice = |number: i64| Advice {
            max_new_tokens: Some(number),
            fallback_model: Some(number.to_string().repeat(5)),
            ..Advice::default()
        };
        let (daemon, client, _fds) = pages();
        std::thread::scope(|scope| {
            scope.spawn(|| (0..ROUNDS).for_each(|number| daemon.advise(&advice(number))));
            for _ in 0..ROUNDS {
                if let Some(read) = client.advice() {
                    assert_eq!(read, advice(read.max_new_tokens.expect("written together")));
                }
            }
        });
        assert_eq!(client.advice(), Some(advice(ROUNDS - 1)));
    }

    #[test]
    fn steps_of_several_threads_stop_at_the_grant() {
        const GRANTED: u64 = if cfg!(miri) { 60 } else { 100_000 };
        let (daemon, client, _fds) = pages();
        daemon.tell(Control { granted: GRANTED, verdict: 1, ended: false });
        daemon.open(0);
        let debits = |_: &u64| matches!(client.step(1), Step::Debited(_));
        let steps = || (0..=GRANTED).take_while(debits).count();
        let taken: usize = std::thread::scope(|scope| {
            let threads = [scope.spawn(steps), scope.spawn(steps)];
            threads.into_iter().map(|thread| thread.join().expect("it only steps")).sum()
        });
        assert_eq!((taken as u64, daemon.used()), (GRANTED, GRANTED));
    }

    #[cfg(not(miri))]
    #[test]
    fn advice_that_a_killed_daemon_was_writing_is_none() {
        let (daemon, client, _fds) = pages();
        daemon.advise(&Advice { max_new_tokens: Some(1), ..Advice::default() });
        daemon.control.word(ADVICE).fetch_add(1, Ordering::Relaxed);
        assert_eq!(client.advice(), None);
    }

    #[cfg(not(miri))]
    #[test]
    fn a_client_can_neither_resize_the_pages_nor_write_the_control_page() {
        use rustix::mm::{MapFlags, ProtFlags, mmap};

        let (_daemon, _client, fds) = pages();
        for fd in [&fds.usage, &fds.control] {
            assert!(rustix::fs::ftruncate(fd, 0).is_err());
            assert!(rustix::fs::ftruncate(fd, 8192).is_err());
        }
        assert!(rustix::io::pwrite(&fds.control, &[1], 64).is_err());
        assert!(Map::open(&fds.control, true).is_err());
        #[expect(unsafe_code, reason = "what a hostile client would try")]
        // SAFETY: as in `map`; the mapping is refused.
        let mapped = unsafe {
            let write = ProtFlags::READ | ProtFlags::WRITE;
            mmap(std::ptr::null_mut(), 4096, write, MapFlags::SHARED, &fds.control, 0)
        };
        assert!(mapped.is_err());
    }
}
