//! Fuzz target: any bytes as a segment of the log, with the feature `fuzzing`; `rust/fuzz` runs it.

use std::fs;

use crate::files::segment_path;
use crate::frame::{FRAME_BYTES, HEADER_BYTES, Head, Header, HeaderIs, read_header, read_record};
use crate::recovery::Log;
use crate::scan::{FrameReader, Next, scan};

const STORE_ID: u32 = 7;
/// The first sequence of the segment.
const FIRST: u64 = 3;

/// A byte that says whether a sound header comes before the bytes, or sound frames around them; and the
/// bytes. Nothing is believed that a plain reading of them does not bear out.
pub fn log(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else { return };
    let header = Header::new(STORE_ID, FIRST).encode();
    let segment = match kind % 3 {
        0 => bytes.to_vec(),
        1 => [&header[..], bytes].concat(),
        _ => [header.to_vec(), framed(bytes)].concat(),
    };
    let folder = std::env::temp_dir().join(format!("bursar-fuzz-{}", thread_id()));
    fs::create_dir_all(&folder).expect("a folder");
    let path = segment_path(&folder, FIRST);
    fs::write(&path, &segment).expect("a segment");
    let found = scan(&folder, Some(STORE_ID)).expect("it can be read");
    let is_ours = read_header(&segment[..segment.len().min(HEADER_BYTES)])
        == HeaderIs::Good(Header::new(STORE_ID, FIRST));
    let plain = if is_ours { plain(&segment) } else { Vec::new() };
    let last = found.segments[0].last;
    assert_eq!(last, FIRST - 1 + plain.len() as u64, "{found:?}");
    let end = if is_ours {
        HEADER_BYTES + plain.iter().map(|payload| FRAME_BYTES + payload.len()).sum::<usize>()
    } else {
        0
    };
    assert_eq!(found.segments[0].readable_bytes, end as u64, "{found:?}");
    if found.log == Log::Clean {
        assert!(is_ours && end == segment.len(), "{found:?}");
    }
    let mut reader = fs::File::open(&path)
        .and_then(|file| FrameReader::of(file, HEADER_BYTES as u64))
        .expect("it is there");
    for (seq, payload) in (FIRST..).zip(&plain) {
        assert_eq!(reader.next(seq).expect("it can be read"), Next::Frame(payload));
        let _record = read_record(payload);
    }
    fs::remove_file(&path).expect("it is ours");
}

/// Each input of its own thread in a folder of its own.
fn thread_id() -> String {
    format!("{}-{:?}", std::process::id(), std::thread::current().id())
        .replace(|c: char| !c.is_ascii_alphanumeric(), "-")
}

/// The bytes in frames, each of a length that its first byte says.
fn framed(mut bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut seq = FIRST;
    while let Some((length, rest)) = bytes.split_first() {
        let (payload, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        bytes = rest;
        let crc = crc32c::crc32c_append(crc32c::crc32c(&seq.to_le_bytes()), payload);
        let length = u32::try_from(payload.len()).expect("a byte");
        out.extend(
            [&length.to_le_bytes()[..], &crc.to_le_bytes(), &seq.to_le_bytes(), payload].concat(),
        );
        // Now and then one out of turn.
        seq += u64::from(payload.first() != Some(&0xFF));
    }
    out
}

/// The payloads of a segment, by the format's description and nothing else.
fn plain(segment: &[u8]) -> Vec<&[u8]> {
    let (mut at, mut found) = (HEADER_BYTES, Vec::new());
    while let Some(head) = segment.get(at..at + FRAME_BYTES) {
        let head = Head::read(head);
        let payload = segment.get(at + FRAME_BYTES..at + FRAME_BYTES + head.len);
        let turn = FIRST + found.len() as u64;
        let Some(payload) = payload.filter(|payload| !payload.is_empty() && head.fits(payload))
        else {
            break;
        };
        if head.seq != turn {
            break;
        }
        at += FRAME_BYTES + payload.len();
        found.push(payload);
    }
    found
}
