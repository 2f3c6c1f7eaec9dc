//! Gzip for browsers that take it: of whole files, and of a stream whose messages are there at once.
//!
//! A message becomes a run of deflate blocks that needs nothing before it and ends at a whole byte. So
//! it is packed once for all who watch, and a stream costs no more than its checksum.

use std::io::Write as _;

use bytes::Bytes;
use flate2::write::{DeflateEncoder, GzEncoder};
use flate2::{Compression, Crc};
use hyper::{HeaderMap, header};

/// The head of a stream: deflate, without a name or a time, of an unknown system.
const HEAD: &[u8] = &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
/// An empty block, which is the last one.
const LAST: &[u8] = &[3, 0];

const NO_END: &str = "memory takes everything that is written";

/// Whether a browser takes gzip.
pub(super) fn is_taken(headers: &HeaderMap) -> bool {
    let named = headers.get_all(header::ACCEPT_ENCODING).into_iter();
    let mut named = named.filter_map(|value| value.to_str().ok()).flat_map(|all| all.split(','));
    named.any(|one| {
        let (name, quality) = one.split_once(';').unwrap_or((one, ""));
        name.trim() == "gzip" && !matches!(quality.trim(), "q=0" | "q=0.0" | "q=0.00" | "q=0.000")
    })
}

/// A whole file.
pub(super) fn file(text: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(text).expect(NO_END);
    encoder.finish().expect(NO_END).into()
}

/// One message, as it stands in any stream.
pub(super) fn blocks(text: &[u8]) -> Bytes {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text).and_then(|()| encoder.flush()).expect(NO_END);
    std::mem::take(encoder.get_mut()).into()
}

/// What a stream has beside its messages.
#[derive(Debug, Default)]
pub(super) struct Frame(Crc);

impl Frame {
    pub(super) fn head() -> Bytes {
        Bytes::from_static(HEAD)
    }

    /// Counts a message that was sent.
    pub(super) fn count(&mut self, text: &[u8]) {
        self.0.update(text);
    }

    pub(super) fn tail(&self) -> Bytes {
        let (sum, amount) = (self.0.sum().to_le_bytes(), self.0.amount().to_le_bytes());
        [LAST, &sum, &amount].concat().into()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;

    use super::*;

    #[test]
    fn messages_packed_alone_are_one_stream_and_each_is_there_at_once() {
        let texts = ["data: 1\n\n".repeat(9_000), "data: 2\n\n".to_owned(), String::new()];
        let mut frame = Frame::default();
        let mut sent = Frame::head().to_vec();
        let mut expected = String::new();
        for text in &texts {
            sent.extend(blocks(text.as_bytes()));
            frame.count(text.as_bytes());
            expected.push_str(text);
            let mut so_far = vec![0; expected.len()];
            GzDecoder::new(&sent[..]).read_exact(&mut so_far).expect("all of it");
            assert_eq!(so_far, expected.as_bytes());
        }
        assert!(sent.len() < 1_000, "{}", sent.len());
        sent.extend(frame.tail());
        let mut whole = String::new();
        GzDecoder::new(&sent[..]).read_to_string(&mut whole).expect("its checksum is right");
        assert_eq!(whole, expected);
    }

    #[test]
    fn gzip_is_for_who_names_it() {
        for (value, takes) in [
            ("gzip", true),
            ("br, gzip;q=0.8", true),
            ("deflate,gzip", true),
            ("gzip;q=0", false),
            ("x-gzip", false),
            ("", false),
        ] {
            let headers = [(header::ACCEPT_ENCODING, value.parse().expect("a header"))];
            assert_eq!(is_taken(&headers.into_iter().collect()), takes, "{value}");
        }
    }
}
