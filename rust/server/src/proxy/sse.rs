//! Server-sent events, taken apart as they come and written.
//!
//! Pure: bytes in, events out, whatever the boundaries of the chunks. An event keeps the bytes that it
//! came in, so that what is not changed is passed on as it was. Never holds more than one unfinished
//! event, and that only up to [`MAX_EVENT_BYTES`].

use bytes::{Buf, Bytes, BytesMut};

/// The longest event.
pub(crate) const MAX_EVENT_BYTES: usize = 1024 * 1024;

/// An event without end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event of more than {MAX_EVENT_BYTES} bytes")]
pub(crate) struct TooLong;

/// One event, or a comment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    /// As it came, with the empty line that ends it.
    pub(crate) raw: Bytes,
    /// Its `data` lines, joined by newlines; empty for a comment.
    pub(crate) data: Bytes,
}

/// Takes a stream apart.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    buffer: BytesMut,
    /// Where the line begins that is looked at.
    line: usize,
    /// Up to where that line is known to have no end.
    seen: usize,
    /// Whether the stream's first bytes were looked at.
    begun: bool,
}

impl Parser {
    /// Takes a chunk.
    pub(crate) fn push(&mut self, chunk: &[u8]) {
        self.buffer.extend_from_slice(chunk);
    }

    /// The next whole event; `None`: it has not come yet.
    pub(crate) fn next(&mut self) -> Result<Option<Event>, TooLong> {
        if !self.begun && !self.skip_mark() {
            return Ok(None);
        }
        while let Some((end, next)) = self.line_end() {
            let empty = end == self.line;
            (self.line, self.seen) = (next, next);
            if empty {
                let raw = self.buffer.split_to(next).freeze();
                (self.line, self.seen) = (0, 0);
                return if raw.len() > MAX_EVENT_BYTES {
                    Err(TooLong)
                } else {
                    Ok(Some(Event { data: data(&raw), raw }))
                };
            }
        }
        if self.buffer.len() > MAX_EVENT_BYTES { Err(TooLong) } else { Ok(None) }
    }

    /// What has come of an event that has no end.
    #[cfg(test)]
    fn rest(&self) -> &[u8] {
        &self.buffer
    }

    /// Drops a byte order mark; false: it cannot be told yet whether there is one.
    fn skip_mark(&mut self) -> bool {
        const MARK: &[u8] = b"\xEF\xBB\xBF";
        if self.buffer.starts_with(MARK) {
            self.buffer.advance(MARK.len());
        } else if MARK.starts_with(&self.buffer) {
            return false;
        }
        self.begun = true;
        true
    }

    /// Where the current line ends, and where the next one begins.
    fn line_end(&mut self) -> Option<(usize, usize)> {
        let found = memchr::memchr2(b'\n', b'\r', &self.buffer[self.seen..]);
        let Some(end) = found.map(|at| self.seen + at) else {
            self.seen = self.buffer.len();
            return None;
        };
        self.seen = end;
        if self.buffer[end] == b'\n' {
            return Some((end, end + 1));
        }
        // A carriage return alone ends a line too, and what follows tells.
        let after = self.buffer.get(end + 1)?;
        Some((end, if *after == b'\n' { end + 2 } else { end + 1 }))
    }
}

/// The joined `data` lines of an event; one line is not copied.
fn data(raw: &Bytes) -> Bytes {
    let mut found: Option<Bytes> = None;
    let (mut rest, mut is_more) = (&raw[..], true);
    while is_more {
        let end = memchr::memchr2(b'\n', b'\r', rest);
        is_more = end.is_some();
        let (line, next) = end.map_or((rest, &rest[..0]), |at| (&rest[..at], &rest[at + 1..]));
        rest = next;
        let value = match line.strip_prefix(b"data") {
            Some(b"") => &line[4..],
            Some(rest) => match rest.strip_prefix(b":") {
                Some(value) => value.strip_prefix(b" ").unwrap_or(value),
                None => continue,
            },
            None => continue,
        };
        found = Some(match found {
            None => raw.slice_ref(value),
            Some(before) => [&before, &b"\n"[..], value].concat().into(),
        });
    }
    found.unwrap_or_default()
}

/// An event that has only data.
pub(crate) fn write(data: &str) -> String {
    format!("data: {data}\n\n")
}

/// An event with a name.
pub(crate) fn write_named(name: &str, data: &str) -> String {
    format!("event: {name}\ndata: {data}\n\n")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(chunks: &[&[u8]]) -> (Vec<Event>, Vec<u8>) {
        let (mut parser, mut events) = (Parser::default(), Vec::new());
        for chunk in chunks {
            parser.push(chunk);
            while let Some(event) = parser.next().expect("short events") {
                events.push(event);
            }
        }
        (events, parser.rest().to_vec())
    }

    fn datas(text: &str) -> Vec<String> {
        let (events, _) = all(&[text.as_bytes()]);
        let text = |event: &Event| String::from_utf8_lossy(&event.data).into_owned();
        events.iter().map(text).collect()
    }

    #[test]
    fn data_lines_are_joined_and_other_fields_left_out() {
        assert_eq!(datas("event: x\ndata: a\ndata:b\nid: 1\n\n"), ["a\nb"]);
        assert_eq!(datas("data\n\n: ping\n\ndatum: no\n\ndata:  two\n\n"), ["", "", "", " two"]);
    }

    #[test]
    fn every_line_end_that_the_standard_has_ends_a_line() {
        assert_eq!(
            datas("data: a\r\n\r\ndata: b\n\ndata: c\r\rdata: d\r\n\n"),
            ["a", "b", "c", "d"]
        );
    }

    #[test]
    fn a_byte_order_mark_is_dropped_once() {
        assert_eq!(datas("\u{feff}data: a\n\n"), ["a"]);
        assert_eq!(datas("data: \u{feff}\n\n"), ["\u{feff}"]);
    }

    #[test]
    fn what_has_no_end_stays() {
        let (events, rest) = all(&[b"data: a\n\ndata: b\n"]);
        assert_eq!((events.len(), rest.as_slice()), (1, b"data: b\n".as_slice()));
    }

    #[test]
    fn an_event_without_end_is_refused_in_bounded_memory() {
        let mut parser = Parser::default();
        let chunk = vec![b'x'; 64 * 1024];
        let mut pushed = 0;
        while parser.next() == Ok(None) {
            parser.push(&chunk);
            pushed += chunk.len();
        }
        assert!(pushed <= MAX_EVENT_BYTES + chunk.len());
    }

    fn piece() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("\n".to_owned()),
            Just("\r".to_owned()),
            Just("\r\n".to_owned()),
            Just("data: ".to_owned()),
            Just("data".to_owned()),
            Just(":".to_owned()),
            Just("\u{feff}".to_owned()),
            "[a-zä ]{0,6}",
        ]
    }

    proptest! {
        #[test]
        fn the_boundaries_of_chunks_change_nothing(
            pieces in prop::collection::vec(piece(), 0..60),
            cuts in prop::collection::vec(0_usize..200, 0..20),
        ) {
            let text = pieces.concat().into_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|cut| *cut <= text.len()).collect();
            cuts.sort_unstable();
            let mut chunks = Vec::new();
            let mut from = 0;
            for cut in cuts.into_iter().chain([text.len()]) {
                chunks.push(&text[from..cut]);
                from = cut;
            }
            let bytewise: Vec<&[u8]> = text.chunks(1).collect();
            let whole = all(&[&text]);
            prop_assert_eq!(&all(&chunks), &whole);
            prop_assert_eq!(&all(&bytewise), &whole);
            let mut joined: Vec<u8> = whole.0.iter().flat_map(|event| event.raw.to_vec()).collect();
            joined.extend(&whole.1);
            let marked = text.starts_with("\u{feff}".as_bytes());
            prop_assert_eq!(joined.as_slice(), &text[if marked { 3 } else { 0 }..]);
        }
    }
}
