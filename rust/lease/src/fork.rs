//! Tells a forked child that it is one: leases are their process's own.
//!
//! Contains `unsafe`: the registration with libc, which has no safe wrapper.

use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

static GENERATION: AtomicU32 = AtomicU32::new(0);
static REGISTERED: Once = Once::new();

extern "C" fn in_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
}

/// How many forks lie between this process and the one that loaded the library.
#[inline]
pub(crate) fn generation() -> u32 {
    GENERATION.load(Ordering::Relaxed)
}

/// Counts forks from now on.
pub(crate) fn watch() {
    REGISTERED.call_once(|| {
        #[expect(
            unsafe_code,
            reason = "JUSTIFICATION: asking for the pid at each step costs 40 ns"
        )]
        // SAFETY: the handler is a plain function that lives for good and does one atomic addition,
        // which is safe in a child of a process with many threads.
        let failed = unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
        debug_assert_eq!(failed, 0, "it fails for want of memory only");
    });
}
