//! The primitives that loom replaces when the crate is built with `--cfg bursar_loom`.

#[cfg(bursar_loom)]
pub(crate) use loom::sync::atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering};
#[cfg(not(bursar_loom))]
pub(crate) use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering};

/// Lets the thread that we wait for run on.
pub(crate) fn yield_now() {
    #[cfg(bursar_loom)]
    loom::thread::yield_now();
    #[cfg(not(bursar_loom))]
    std::thread::yield_now();
}

/// A mutex without poisoning: nothing that runs under these locks can panic half-way.
#[cfg(not(bursar_loom))]
pub(crate) use parking_lot::Mutex;

#[cfg(bursar_loom)]
#[derive(Debug)]
pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

#[cfg(bursar_loom)]
impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Mutex<T> {
        Mutex(loom::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
        self.0.lock().expect("no thread panics in a model")
    }
}

/// A number that is the calling thread's own: each thread gets the next one.
#[cfg(not(bursar_loom))]
#[inline]
pub(crate) fn own_lane() -> usize {
    use std::sync::atomic::AtomicUsize;
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    std::thread_local! {
        static OWN: usize = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    OWN.with(|own| *own)
}

/// Models name their lanes.
#[cfg(bursar_loom)]
pub(crate) fn own_lane() -> usize {
    0
}
