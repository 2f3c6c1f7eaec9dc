//! Bugs that are planted on purpose, so that the simulation can show that it finds them.
//!
//! There are none but in builds with `--cfg bursar_canary`, where `BURSAR_CANARY` names the one that is
//! there. Everywhere else the question is a constant, and what hangs on it is not compiled.

/// Whether the bug of that name is there.
#[cfg(not(bursar_canary))]
#[inline]
#[must_use]
pub const fn sings(_name: &str) -> bool {
    false
}

/// Whether the bug of that name is there.
#[cfg(bursar_canary)]
#[must_use]
pub fn sings(name: &str) -> bool {
    static NAME: std::sync::LazyLock<String> =
        std::sync::LazyLock::new(|| std::env::var("BURSAR_CANARY").unwrap_or_default());
    *NAME == name
}
