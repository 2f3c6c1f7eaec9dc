//! One target of `bursar_fuzz` for libFuzzer: the one that `BURSAR_FUZZ_TARGET` names.
#![no_main]

use std::sync::LazyLock;

use bursar_fuzz::Target;

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("BURSAR_FUZZ_TARGET").expect("BURSAR_FUZZ_TARGET names a target");
    bursar_fuzz::target(&name).expect("there is a target of that name")
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| TARGET(data));
