//! The lease socket's frames: see `layout` for their bytes. Reads nothing but what it is given, and
//! bounds all of it.

use crate::layout::{ID_BYTES, MAGIC, MESSAGE_BYTES, VERSION};

/// The length of a request.
pub const REQUEST_BYTES: usize = 144;
/// The length of an answer.
pub const ANSWER_BYTES: usize = 256;
const ATTACH: u16 = 1;
const DETACH: u16 = 2;
/// What a lease counts instead of a unit: the output tokens of a usage.
const OUTPUT: u8 = 255;

/// What one step of a lease counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counts {
    /// One of a unit, by its index.
    Unit(u8),
    /// One output token of this usage.
    Output {
        /// All prompt tokens.
        input_tokens: i64,
        /// Those read from a cache.
        cached_input_tokens: i64,
        /// Those written to a cache.
        cache_write_tokens: i64,
        /// GPU time in milliseconds.
        gpu_ms: i64,
    },
}

/// Asks for a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attach {
    /// The reservation's id.
    pub reservation: String,
    /// What one step counts.
    pub counts: Counts,
    /// What an earlier attachment counted.
    pub claim: u64,
    /// How much to grant ahead, unasked; 0: never.
    pub ahead: i64,
    /// The most to grant in all; 0: no such bound.
    pub at_most: i64,
}

/// A client's message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Opens a lease.
    Attach(Attach),
    /// Ends one; its reservation stays.
    Detach {
        /// Its number.
        lease: u64,
    },
}

/// The daemon's answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answer {
    /// 0, or the number of an error's reason.
    pub status: u16,
    /// What is used.
    pub used: u64,
    /// What is granted.
    pub granted: u64,
    /// The lease's number.
    pub lease: u64,
    /// What went wrong; cut at [`MESSAGE_BYTES`].
    pub message: String,
}

/// Bytes that are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a frame of the lease socket: {0}")]
pub struct NotAFrame(&'static str);

/// Writes numbers at offsets.
struct Writer<'a>(&'a mut [u8]);

impl Writer<'_> {
    fn head(&mut self, kind: u16, tag: u64) {
        self.put(0, &MAGIC.to_le_bytes());
        self.put(4, &VERSION.to_le_bytes()[..2]);
        self.put(6, &kind.to_le_bytes());
        self.put(8, &tag.to_le_bytes());
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
}

/// Reads numbers at offsets of a frame whose length is checked.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Checks length and head; returns the kind and the tag.
    fn new(bytes: &'a [u8], length: usize) -> Result<(Reader<'a>, u16, u64), NotAFrame> {
        if bytes.len() != length {
            return Err(NotAFrame("its length is wrong"));
        }
        let reader = Reader(bytes);
        if reader.array(0) != MAGIC.to_le_bytes() {
            return Err(NotAFrame("it does not begin with BRSL"));
        }
        if reader.u16(4) != u16::from_le_bytes([VERSION.to_le_bytes()[0], 0]) {
            return Err(NotAFrame("it is of another version"));
        }
        let (kind, tag) = (reader.u16(6), reader.u64(8));
        Ok((reader, kind, tag))
    }

    fn array<const N: usize>(&self, offset: usize) -> [u8; N] {
        std::array::from_fn(|index| self.0[offset + index])
    }

    fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.array(offset))
    }

    fn u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.array(offset))
    }

    fn i64(&self, offset: usize) -> i64 {
        i64::from_le_bytes(self.array(offset))
    }

    fn text(&self, offset: usize, length: usize, max: usize) -> Result<String, NotAFrame> {
        if length > max {
            return Err(NotAFrame("a text is too long"));
        }
        let text = String::from_utf8(self.0[offset..offset + length].to_vec());
        text.map_err(|_| NotAFrame("a text is not UTF-8"))
    }
}

impl Request {
    /// Its bytes; an id that is too long is an error of the caller's.
    pub fn encode(&self, tag: u64) -> Result<[u8; REQUEST_BYTES], NotAFrame> {
        let mut bytes = [0; REQUEST_BYTES];
        let mut out = Writer(&mut bytes);
        match self {
            Request::Detach { lease } => {
                out.head(DETACH, tag);
                out.put(16, &lease.to_le_bytes());
            }
            Request::Attach(attach) => {
                let id = attach.reservation.as_bytes();
                let length = u8::try_from(id.len()).ok().filter(|_| id.len() <= ID_BYTES);
                let length = length.ok_or(NotAFrame("the reservation's id is too long"))?;
                out.head(ATTACH, tag);
                out.put(16, &attach.claim.to_le_bytes());
                out.put(24, &attach.ahead.to_le_bytes());
                out.put(32, &attach.at_most.to_le_bytes());
                match attach.counts {
                    Counts::Unit(unit) => out.put(72, &[unit]),
                    Counts::Output {
                        input_tokens,
                        cached_input_tokens,
                        cache_write_tokens,
                        gpu_ms,
                    } => {
                        let numbers =
                            [input_tokens, cached_input_tokens, cache_write_tokens, gpu_ms];
                        for (offset, number) in (40..).step_by(8).zip(numbers) {
                            out.put(offset, &number.to_le_bytes());
                        }
                        out.put(72, &[OUTPUT]);
                    }
                }
                out.put(73, &[length]);
                out.put(80, id);
            }
        }
        Ok(bytes)
    }

    /// Reads it and its tag.
    pub fn decode(bytes: &[u8]) -> Result<(Request, u64), NotAFrame> {
        let (read, kind, tag) = Reader::new(bytes, REQUEST_BYTES)?;
        let request = match kind {
            DETACH => Request::Detach { lease: read.u64(16) },
            ATTACH => Request::Attach(Attach {
                reservation: read.text(80, bytes[73].into(), ID_BYTES)?,
                counts: match bytes[72] {
                    OUTPUT => Counts::Output {
                        input_tokens: read.i64(40),
                        cached_input_tokens: read.i64(48),
                        cache_write_tokens: read.i64(56),
                        gpu_ms: read.i64(64),
                    },
                    unit => Counts::Unit(unit),
                },
                claim: read.u64(16),
                ahead: read.i64(24),
                at_most: read.i64(32),
            }),
            _ => return Err(NotAFrame("it is neither an attach nor a detach")),
        };
        Ok((request, tag))
    }
}

impl Answer {
    /// Its bytes.
    pub fn encode(&self, tag: u64) -> [u8; ANSWER_BYTES] {
        let mut bytes = [0; ANSWER_BYTES];
        let mut out = Writer(&mut bytes);
        out.head(self.status, tag);
        out.put(16, &self.used.to_le_bytes());
        out.put(24, &self.granted.to_le_bytes());
        out.put(32, &self.lease.to_le_bytes());
        let fits = |end: &usize| *end <= MESSAGE_BYTES && self.message.is_char_boundary(*end);
        let end = (0..=self.message.len()).rev().find(fits).unwrap_or(0);
        let message = &self.message.as_bytes()[..end];
        out.put(40, &u16::try_from(message.len()).unwrap_or(0).to_le_bytes());
        out.put(48, message);
        bytes
    }

    /// Reads it and its tag.
    pub fn decode(bytes: &[u8]) -> Result<(Answer, u64), NotAFrame> {
        let (read, status, tag) = Reader::new(bytes, ANSWER_BYTES)?;
        let message = read.text(48, read.u16(40).into(), MESSAGE_BYTES)?;
        let (used, granted, lease) = (read.u64(16), read.u64(24), read.u64(32));
        Ok((Answer { status, used, granted, lease, message }, tag))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attach(counts: Counts) -> Request {
        Request::Attach(Attach {
            reservation: "0badcafe-1-2".into(),
            counts,
            claim: 7,
            ahead: 64,
            at_most: i64::MAX,
        })
    }

    #[test]
    fn frames_come_back_as_they_went() {
        let usage = Counts::Output {
            input_tokens: 1,
            cached_input_tokens: 2,
            cache_write_tokens: 3,
            gpu_ms: -4,
        };
        let requests =
            [attach(usage), attach(Counts::Unit(1)), Request::Detach { lease: u64::MAX }];
        for request in requests {
            let bytes = request.encode(9).expect("its id is short");
            assert_eq!(Request::decode(&bytes), Ok((request, 9)));
        }
        let message = "nö".repeat(200);
        let answer = Answer { status: 19, used: 1, granted: 2, lease: 3, message };
        let (read, tag) = Answer::decode(&answer.encode(u64::MAX)).expect("a frame");
        assert_eq!((read.status, tag), (19, u64::MAX));
        assert!(answer.message.starts_with(&read.message) && read.message.len() > 200);
    }

    #[test]
    fn bytes_that_are_no_frame_are_refused() {
        let good = attach(Counts::Unit(0)).encode(1).expect("its id is short");
        assert!(Request::decode(&good[1..]).is_err());
        for (at, byte) in [(0, 0), (4, 2), (6, 9), (73, 65), (80, 0xff)] {
            let mut bad = good;
            bad[at] = byte;
            assert!(Request::decode(&bad).is_err(), "byte {at}");
        }
        let long = "x".repeat(ID_BYTES + 1);
        let Request::Attach(attach) = attach(Counts::Unit(0)) else { panic!("it is one") };
        assert!(Request::Attach(Attach { reservation: long, ..attach }).encode(1).is_err());
    }
}
