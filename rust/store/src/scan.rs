//! Reads segments: every frame is checked before it is believed, and nothing is allocated by a
//! length that the file does not bear out.
//!
//! `FrameReader` walks one segment; `scan` walks all and says where the readable log ends and
//! whether what follows was ever known to be synced. Reads only; called by `open`, `diagnose` and
//! the import.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{At, StoreError};
use crate::files::segments;
use crate::frame::{
    FORMAT_VERSION, FRAME_BYTES, HEADER_BYTES, Head, Header, HeaderIs, MAX_RECORD_BYTES, Synced,
    read_header, read_record,
};
use crate::older::{RECORDS, ReadRecord};
use crate::recovery::Log;

/// So much is read at once.
const CHUNK_BYTES: usize = 256 << 10;

/// Where the readable log ends, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Spot {
    /// The segment.
    pub file: PathBuf,
    /// The first byte that is not understood.
    pub offset: u64,
    /// The sequence that was expected there.
    pub sequence: u64,
    /// What is wrong.
    pub reason: String,
}

/// One segment as it was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SegmentFound {
    /// The file.
    pub file: PathBuf,
    /// The sequence that it begins with, by its name.
    pub first: u64,
    /// The last sequence that can be read; `first - 1` when there is none.
    pub last: u64,
    /// Where the readable part ends.
    pub readable_bytes: u64,
    /// The file's length.
    pub file_bytes: u64,
    /// The last sequence that is known to be synced; absent when the mark is damaged.
    pub synced: Option<u64>,
    /// The version of its format; 0 where its header cannot be read.
    pub version: u32,
}

/// The log as it was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Scan {
    /// What it is, taken together.
    pub log: Log,
    /// Its segments; for a torn or damaged log, those behind the spot are listed unread.
    pub segments: Vec<SegmentFound>,
    /// How many segments, from the first, belong to the readable log.
    pub readable: usize,
    /// Where the readable log ends, unless it ends cleanly.
    pub spot: Option<Spot>,
}

impl Scan {
    /// The first sequence.
    pub fn first(&self) -> Option<u64> {
        self.segments.first().map(|segment| segment.first)
    }

    /// The last sequence that can be read.
    pub fn last(&self) -> Option<u64> {
        let readable = self.segments.get(..self.readable)?;
        let last = readable.last().map(|segment| segment.last);
        last.or_else(|| self.first().map(|first| first.saturating_sub(1)))
    }
}

/// What follows in a segment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next<'a> {
    /// A whole frame's payload.
    Frame(&'a [u8]),
    /// The end, behind a whole frame.
    End,
    /// Something that is no frame.
    Bad(&'static str),
}

/// Walks the frames of one segment.
#[derive(Debug)]
pub(crate) struct FrameReader {
    file: File,
    /// Where the next frame begins.
    pub(crate) offset: u64,
    /// Nothing is read from here on.
    end: u64,
    buf: Vec<u8>,
    /// The part of `buf` that is not yet walked.
    at: usize,
}

impl FrameReader {
    pub(crate) fn open(path: &Path, offset: u64) -> io::Result<FrameReader> {
        FrameReader::of(File::open(path)?, offset)
    }

    pub(crate) fn of(file: File, offset: u64) -> io::Result<FrameReader> {
        let end = file.metadata()?.len();
        Ok(FrameReader { file, offset, end, buf: Vec::new(), at: 0 })
    }

    /// Nothing is read from `end` on: the file may be growing there.
    pub(crate) fn set_end(&mut self, end: u64) {
        self.end = end;
    }

    /// The next frame; `seq` is the sequence that it must have.
    pub(crate) fn next(&mut self, seq: u64) -> io::Result<Next<'_>> {
        let left = self.end.saturating_sub(self.offset);
        if left == 0 {
            return Ok(Next::End);
        }
        if left < FRAME_BYTES as u64 || !self.fill(FRAME_BYTES)? {
            return Ok(Next::Bad("the head of the record is cut off"));
        }
        let head = Head::read(&self.buf[self.at..]);
        if head.len == 0 || head.len > MAX_RECORD_BYTES {
            return Ok(Next::Bad("the record's length is impossible"));
        }
        let frame = FRAME_BYTES + head.len;
        if left < frame as u64 || !self.fill(frame)? {
            return Ok(Next::Bad("the record is cut off"));
        }
        let payload = self.at + FRAME_BYTES..self.at + frame;
        if !head.fits(&self.buf[payload.clone()]) {
            return Ok(Next::Bad("the record's checksum is wrong"));
        }
        if head.seq != seq {
            return Ok(Next::Bad("the record's sequence is out of turn"));
        }
        self.at += frame;
        self.offset += frame as u64;
        Ok(Next::Frame(&self.buf[payload]))
    }

    /// Has `need` bytes from `at` on in the buffer; false when the file turns out shorter.
    fn fill(&mut self, need: usize) -> io::Result<bool> {
        if self.buf.len() - self.at >= need {
            return Ok(true);
        }
        self.buf.drain(..self.at);
        self.at = 0;
        let have = self.buf.len();
        let start = self.offset + have as u64;
        let most = usize::try_from(self.end.saturating_sub(start)).unwrap_or(usize::MAX);
        self.buf.resize(have + (need - have).max(CHUNK_BYTES).min(most), 0);
        let read = read_at(&self.file, &mut self.buf[have..], start)?;
        self.buf.truncate(have + read);
        Ok(self.buf.len() >= need)
    }
}

/// How the records of a segment are read: in the latest layout of its version that fits all of them.
pub(crate) fn records_of(file: &File, version: u32, first: u64) -> io::Result<ReadRecord> {
    if version == FORMAT_VERSION {
        return Ok(read_record);
    }
    for read in RECORDS {
        let mut reader = FrameReader::of(file.try_clone()?, HEADER_BYTES as u64)?;
        let mut fits = true;
        for seq in first.. {
            match reader.next(seq)? {
                Next::Frame(payload) if read(payload).is_ok() => {}
                Next::Frame(_) => {
                    fits = false;
                    break;
                }
                Next::End | Next::Bad(_) => break,
            }
        }
        if fits {
            return Ok(read);
        }
    }
    Ok(read_record)
}

/// Reads until the buffer is full or the file ends.
pub(crate) fn read_at(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// A segment, what is wrong with it, and whether what is wrong was ever known to be synced.
struct Walked {
    found: SegmentFound,
    bad: Option<(Log, Spot)>,
    /// Whether anything in it is known to be synced, or may be.
    synced: bool,
}

/// Walks a whole log.
pub(crate) fn scan(folder: &Path, store_id: Option<u32>) -> Result<Scan, StoreError> {
    let mut scan = Scan { log: Log::Absent, segments: Vec::new(), readable: 0, spot: None };
    for (first, path) in segments(folder)? {
        let mut walked = walk(first, &path, store_id).at("read the log", &path)?;
        let hole = scan.last().filter(|last| first != last + 1);
        let mendable = walked.bad.as_ref().is_none_or(|(log, _)| *log == Log::Torn);
        if let Some(last) = hole.filter(|_| mendable) {
            let reason = format!("sequence {} was expected, it begins with {first}", last + 1);
            let spot = Spot { file: path.clone(), offset: 0, sequence: last + 1, reason };
            walked.bad = Some((Log::Torn, spot));
        }
        let (bad, torn_before) = (walked.bad, scan.spot.is_some());
        scan.segments.push(walked.found);
        match (torn_before, bad) {
            (true, bad) => {
                // Behind a torn segment only what was never synced may be dropped with it.
                let grave = bad.map(|(log, _)| log).filter(|log| *log != Log::Torn);
                if grave.is_some() || walked.synced {
                    scan.log = grave.filter(|log| *log != Log::Damaged).unwrap_or(Log::Damaged);
                    return Ok(scan);
                }
            }
            (false, None) => {
                scan.log = Log::Clean;
                scan.readable += 1;
            }
            (false, Some((log, spot))) => {
                // A torn segment's readable part still counts; one that does not belong here does
                // not.
                let belongs = spot.offset >= HEADER_BYTES as u64;
                scan.readable += usize::from(belongs);
                let lost = walked.synced && !belongs && log == Log::Torn;
                scan.log = if lost { Log::Damaged } else { log };
                scan.spot = Some(spot);
                if scan.log != Log::Torn {
                    return Ok(scan);
                }
            }
        }
    }
    Ok(scan)
}

fn walk(first: u64, path: &Path, store_id: Option<u32>) -> io::Result<Walked> {
    let mut bytes = [0; HEADER_BYTES];
    let got = read_at(&File::open(path)?, &mut bytes, 0)?;
    let mut reader = FrameReader::open(path, HEADER_BYTES as u64)?;
    let mut found = SegmentFound {
        file: path.to_owned(),
        first,
        last: first.saturating_sub(1),
        readable_bytes: 0,
        file_bytes: reader.end,
        synced: None,
        version: 0,
    };
    let spot =
        |offset, sequence, reason: String| Spot { file: path.to_owned(), offset, sequence, reason };
    let unread = |found, log, reason: &str| {
        let bad = Some((log, spot(0, first, reason.to_owned())));
        Ok(Walked { found, bad, synced: log != Log::Torn })
    };
    let header = match read_header(&bytes[..got]) {
        HeaderIs::Good(header) => header,
        HeaderIs::Blank => return unread(found, Log::Torn, "the header was never written"),
        HeaderIs::Newer(version) => {
            found.version = version;
            return unread(found, Log::Newer, &format!("it has format version {version}"));
        }
        HeaderIs::Bad if store_id.is_some_and(|own| is_unfinished(&bytes[..got], own, first)) => {
            return unread(found, Log::Torn, "the header was never written whole");
        }
        HeaderIs::Bad => return unread(found, Log::Damaged, "the header is damaged"),
    };
    found.version = header.version;
    if let Some(own) = store_id.filter(|own| *own != header.store_id) {
        let reason = format!("it belongs to store {:08x}, not to {own:08x}", header.store_id);
        return unread(found, Log::Foreign, &reason);
    }
    if header.first != first {
        return unread(found, Log::Damaged, "its name and its header disagree");
    }
    let mark = header.read_slot(&bytes);
    found.synced = mark.map(|synced| synced.seq);
    let reason = loop {
        match reader.next(found.last + 1)? {
            Next::Frame(_) => found.last += 1,
            Next::End => break None,
            Next::Bad(reason) => break Some(reason),
        }
    };
    found.readable_bytes = reader.offset;
    let bad = judge(mark, &reader, reason)
        .map(|(log, reason)| (log, spot(reader.offset, found.last + 1, reason.to_owned())));
    let synced = mark.is_none_or(|synced| synced.offset > HEADER_BYTES as u64);
    Ok(Walked { found, bad, synced })
}

/// Whether these are parts of the header that a segment is made with, and nothing else. One that was
/// noted as synced has another mark.
fn is_unfinished(bytes: &[u8], store_id: u32, first: u64) -> bool {
    let whole = Header::new(store_id, first).encode();
    bytes.iter().zip(whole).all(|(found, written)| *found == 0 || *found == written)
}

/// What a segment's end is, given how far it is known to be synced.
fn judge(
    mark: Option<Synced>,
    reader: &FrameReader,
    reason: Option<&'static str>,
) -> Option<(Log, &'static str)> {
    let ends_early = mark.is_some_and(|synced| reader.offset < synced.offset);
    match (mark, reason) {
        (None, Some(_)) => {
            Some((Log::Damaged, "the record and the mark of what was synced are unreadable"))
        }
        (Some(_), Some(reason)) if ends_early => Some((Log::Damaged, reason)),
        (Some(_), Some(reason)) => Some((Log::Torn, reason)),
        (_, None) => {
            ends_early.then_some((Log::Damaged, "the file is shorter than what was synced"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use tempfile::tempfile;

    use super::*;

    fn frame(seq: u64, payload: &[u8]) -> Vec<u8> {
        let crc = crc32c::crc32c_append(crc32c::crc32c(&seq.to_le_bytes()), payload);
        let len = u32::try_from(payload.len()).expect("small");
        [&len.to_le_bytes()[..], &crc.to_le_bytes(), &seq.to_le_bytes(), payload].concat()
    }

    fn reader(bytes: &[u8]) -> FrameReader {
        let mut file = tempfile().expect("a file");
        file.write_all(bytes).expect("written");
        FrameReader::of(file, 0).expect("opened")
    }

    #[test]
    fn frames_that_straddle_what_is_read_at_once_are_read_whole() {
        let payload = |seq: u64| vec![u8::try_from(seq).expect("small"); CHUNK_BYTES / 3 + 7];
        let bytes: Vec<u8> = (1..=9).flat_map(|seq| frame(seq, &payload(seq))).collect();
        let mut reader = reader(&bytes);
        for seq in 1..=9 {
            assert_eq!(reader.next(seq).expect("read"), Next::Frame(&payload(seq)), "{seq}");
        }
        assert_eq!(reader.next(10).expect("read"), Next::End);
    }

    #[test]
    fn a_length_is_between_one_and_the_largest_record() {
        let impossible = Next::Bad("the record's length is impossible");
        let largest = vec![7; MAX_RECORD_BYTES];
        let of = |payload: &[u8]| reader(&frame(1, payload));
        assert_eq!(of(&largest).next(1).expect("read"), Next::Frame(&largest));
        assert_eq!(of(&[largest, vec![7]].concat()).next(1).expect("read"), impossible);
        assert_eq!(of(&[]).next(1).expect("read"), impossible);
        assert_eq!(
            of(&[7]).next(2).expect("read"),
            Next::Bad("the record's sequence is out of turn")
        );
    }

    #[test]
    fn a_file_that_turns_out_shorter_is_cut_off() {
        let bytes = frame(1, &[7; 20]);
        for (end, reason) in [(10, "the head of the record"), (20, "the record")] {
            let mut reader = reader(&bytes[..end]);
            reader.set_end(1_000);
            let cut = format!("{reason} is cut off");
            assert!(matches!(reader.next(1), Ok(Next::Bad(bad)) if bad == cut), "at {end}");
        }
    }

    #[test]
    fn only_parts_of_its_own_first_header_make_a_segment_unfinished() {
        let whole = Header::new(5, 9).encode();
        let first_half = [&whole[..20], &[0; 44]].concat();
        for part in [&whole[..], &whole[..33], &first_half] {
            assert!(is_unfinished(part, 5, 9));
        }
        assert!(!is_unfinished(&whole, 6, 9), "another store's");
        assert!(!is_unfinished(&whole, 5, 8), "another name's");
        let mut damaged = whole;
        damaged[9] = 0xff;
        assert!(!is_unfinished(&damaged, 5, 9));
    }
}
