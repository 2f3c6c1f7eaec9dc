//! The bytes of the log: segment headers and record frames. Pure; touches no file.
//!
//! ```text
//! segment  header (64 bytes) | frame | frame | …
//! header   magic 8 | version u32 | store id u32 | first sequence u64 | crc32c u32 | 0 u32   0..32
//!          synced offset u64 | synced sequence u64 | crc32c u32 | 0 u32 × 3               32..64
//! frame    payload length u32 | crc32c of sequence and payload u32 | sequence u64 | payload
//! ```
//!
//! Numbers are little-endian. The second half of the header, the *synced slot*, is written anew
//! after every fdatasync; its checksum covers the first half too, so that it fits one segment only.
//! The payload is a [`Record`] in postcard. Version 2 is version 1 with one layout of records; those of
//! version 1 are read by `older`.

use bursar_ledger::fact::Record;
use postcard::ser_flavors::Flavor;

/// The bytes before the first frame.
pub(crate) const HEADER_BYTES: usize = 64;
/// Where the synced slot begins.
pub(crate) const SLOT_OFFSET: u64 = 32;
/// The bytes of a frame before its payload.
pub(crate) const FRAME_BYTES: usize = 16;
/// The largest payload. The ledger's largest is the list of what pending reservations have used:
/// some 20 bytes each.
pub const MAX_RECORD_BYTES: usize = 16 << 20;
/// The version of the format that this code writes, and the newest that it reads.
pub const FORMAT_VERSION: u32 = 2;

const MAGIC: [u8; 8] = *b"bursarlg";

/// What a segment says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    /// Of the format.
    pub(crate) version: u32,
    pub(crate) store_id: u32,
    /// The sequence of its first frame.
    pub(crate) first: u64,
}

/// How far a segment is known to be on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Synced {
    /// The end of the last frame that was synced.
    pub(crate) offset: u64,
    /// That frame's sequence; the one before the segment's first when there is none.
    pub(crate) seq: u64,
}

/// What the first half of a header turns out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeaderIs {
    Good(Header),
    /// Never written: missing or all zero.
    Blank,
    /// Written by a later version.
    Newer(u32),
    Bad,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

impl Header {
    /// Of a new segment.
    pub(crate) fn new(store_id: u32, first: u64) -> Header {
        Header { version: FORMAT_VERSION, store_id, first }
    }

    fn first_half(self) -> [u8; 32] {
        let mut half = [0; 32];
        half[..8].copy_from_slice(&MAGIC);
        half[8..12].copy_from_slice(&self.version.to_le_bytes());
        half[12..16].copy_from_slice(&self.store_id.to_le_bytes());
        half[16..24].copy_from_slice(&self.first.to_le_bytes());
        let crc = crc32c::crc32c(&half[..24]);
        half[24..28].copy_from_slice(&crc.to_le_bytes());
        half
    }

    /// The whole header of a new segment.
    pub(crate) fn encode(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..32].copy_from_slice(&self.first_half());
        let none = Synced { offset: HEADER_BYTES as u64, seq: self.first.saturating_sub(1) };
        bytes[32..].copy_from_slice(&self.slot(none));
        bytes
    }

    /// The synced slot.
    pub(crate) fn slot(self, synced: Synced) -> [u8; 32] {
        let mut slot = [0; 32];
        slot[..8].copy_from_slice(&synced.offset.to_le_bytes());
        slot[8..16].copy_from_slice(&synced.seq.to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&self.first_half()), &slot[..16]);
        slot[16..20].copy_from_slice(&crc.to_le_bytes());
        slot
    }

    /// Reads the synced slot; `None` when it is damaged.
    pub(crate) fn read_slot(self, bytes: &[u8; HEADER_BYTES]) -> Option<Synced> {
        let synced = Synced { offset: u64_at(bytes, 32), seq: u64_at(bytes, 40) };
        (self.slot(synced) == bytes[32..]).then_some(synced)
    }
}

/// Reads the first half of a header out of what is there of the first 64 bytes.
pub(crate) fn read_header(bytes: &[u8]) -> HeaderIs {
    if bytes.iter().all(|byte| *byte == 0) {
        return HeaderIs::Blank;
    }
    if bytes.len() < HEADER_BYTES || bytes[..8] != MAGIC {
        return HeaderIs::Bad;
    }
    if u32_at(bytes, 24) != crc32c::crc32c(&bytes[..24]) {
        return HeaderIs::Bad;
    }
    let version = u32_at(bytes, 8);
    if version > FORMAT_VERSION {
        return HeaderIs::Newer(version);
    }
    let header = Header { version, store_id: u32_at(bytes, 12), first: u64_at(bytes, 16) };
    if header.first_half() == bytes[..32] { HeaderIs::Good(header) } else { HeaderIs::Bad }
}

/// The head of a frame, not yet believed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    pub(crate) len: usize,
    crc: u32,
    pub(crate) seq: u64,
}

impl Head {
    pub(crate) fn read(bytes: &[u8]) -> Head {
        Head { len: u32_at(bytes, 0) as usize, crc: u32_at(bytes, 4), seq: u64_at(bytes, 8) }
    }

    /// Whether the checksum fits the payload.
    pub(crate) fn fits(self, payload: &[u8]) -> bool {
        self.crc == checksum(self.seq, payload)
    }
}

fn checksum(seq: u64, payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&seq.to_le_bytes()), payload)
}

/// Appends a frame to `buf`. Leaves it as it was when the record is too large, and returns its
/// size.
pub(crate) fn push(buf: &mut Vec<u8>, seq: u64, record: &Record) -> Result<(), usize> {
    let start = buf.len();
    buf.extend_from_slice(&[0; FRAME_BYTES]);
    let encoded = postcard::serialize_with_flavor(record, Into(buf));
    let payload = start + FRAME_BYTES;
    let len = buf.len() - payload;
    let fits = u32::try_from(len).ok().filter(|_| len <= MAX_RECORD_BYTES);
    let (Some(len), Ok(())) = (fits, encoded) else {
        buf.truncate(start);
        return Err(len);
    };
    let crc = checksum(seq, &buf[payload..]);
    buf[start..start + 4].copy_from_slice(&len.to_le_bytes());
    buf[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    buf[start + 8..payload].copy_from_slice(&seq.to_le_bytes());
    Ok(())
}

/// Reads a payload; all of it has to be the record.
pub(crate) fn read_record(payload: &[u8]) -> Result<Record, String> {
    match postcard::take_from_bytes(payload) {
        Ok((record, [])) => Ok(record),
        Ok((_, rest)) => Err(format!("{} bytes are left over", rest.len())),
        Err(error) => Err(error.to_string()),
    }
}

/// Serialises to the end of a buffer that is kept.
struct Into<'a>(&'a mut Vec<u8>);

impl Flavor for Into<'_> {
    type Output = ();

    #[inline]
    fn try_extend(&mut self, data: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(data);
        Ok(())
    }

    #[inline]
    fn try_push(&mut self, data: u8) -> postcard::Result<()> {
        self.0.push(data);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bursar_ledger::fact::Fact;

    use super::*;

    #[test]
    fn a_frame_reads_back_and_any_flipped_bit_is_noticed() {
        let fact = Fact::AccountRetired { account: 7 };
        let record = Record { time_ms: 12, facts: vec![fact] };
        let mut buf = vec![1, 2, 3];
        push(&mut buf, 42, &record).expect("small");
        let frame = buf.split_off(3);
        let head = Head::read(&frame);
        assert_eq!((head.seq, head.len), (42, frame.len() - FRAME_BYTES));
        assert!(head.fits(&frame[FRAME_BYTES..]));
        assert_eq!(read_record(&frame[FRAME_BYTES..]), Ok(record));
        for bit in 32..frame.len() * 8 {
            let mut bad = frame.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(!Head::read(&bad).fits(&bad[FRAME_BYTES..]), "bit {bit}");
        }
    }

    #[test]
    fn a_header_reads_back_and_any_flipped_bit_is_noticed() {
        let header = Header::new(9, 77);
        let mut bytes = header.encode();
        let synced = Synced { offset: 4096, seq: 80 };
        bytes[32..].copy_from_slice(&header.slot(synced));
        assert_eq!(read_header(&bytes), HeaderIs::Good(header));
        assert_eq!(header.read_slot(&bytes), Some(synced));
        for bit in 0..HEADER_BYTES * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            let slot = header.read_slot(&bad);
            assert!(read_header(&bad) == HeaderIs::Bad || slot.is_none(), "bit {bit}");
        }
        assert_eq!(read_header(&[]), HeaderIs::Blank);
        assert_eq!(read_header(&[0; HEADER_BYTES]), HeaderIs::Blank);
        assert_eq!(read_header(&bytes[..63]), HeaderIs::Bad);
    }

    #[test]
    fn a_record_over_the_limit_leaves_the_buffer_alone() {
        let path = "x".repeat(MAX_RECORD_BYTES);
        let fact = Fact::AccountOpened { account: 1, path, automatic: false };
        let mut buf = vec![5];
        assert!(push(&mut buf, 1, &Record { time_ms: 0, facts: vec![fact] }).is_err());
        assert_eq!(buf, [5]);
    }
}
