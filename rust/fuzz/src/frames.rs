//! The lease socket's frames: what is read says all that was written.

use bursar_lease::frame::{Answer, Request};

/// One frame, read as a request and as an answer.
pub(crate) fn run(data: &[u8]) {
    if let Ok((request, tag)) = Request::decode(data) {
        let bytes = request.encode(tag).expect("it was read");
        assert_eq!(Request::decode(&bytes), Ok((request, tag)));
    }
    if let Ok((answer, tag)) = Answer::decode(data) {
        assert_eq!(Answer::decode(&answer.encode(tag)), Ok((answer, tag)));
    }
}
