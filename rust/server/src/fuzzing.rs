//! Fuzz targets on what is private to this crate, with the feature `fuzzing`; `rust/fuzz` runs them.

pub use crate::access::fuzzing::{access, token_file};
pub use crate::envoy::fuzzing::envoy;
pub use crate::lease::fuzzing::lease_pages;
pub use crate::owner::process_name;
pub use crate::proxy::fuzzing::{answer, prompt, request, route, stream};
