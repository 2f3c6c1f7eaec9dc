//! Redis's protocol, as far as calling scripts needs it: commands out, replies in.

use bytes::{Buf, BytesMut};

use crate::Failure;

/// A reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    /// An integer.
    Number(i64),
    /// A string of any kind.
    Text(String),
    /// An error, in the server's words.
    Error(String),
    /// Several replies.
    List(Vec<Reply>),
}

impl Reply {
    /// The integer that a script answers with: the first one of a list.
    pub(crate) fn number(&self) -> Option<i64> {
        match self {
            Reply::Number(number) => Some(*number),
            Reply::List(list) => list.first().and_then(Reply::number),
            Reply::Text(_) | Reply::Error(_) => None,
        }
    }
}

/// Appends a command.
pub(crate) fn command(out: &mut Vec<u8>, parts: &[&str]) {
    head(out, b'*', parts.len());
    for part in parts {
        head(out, b'$', part.len());
        out.extend_from_slice(part.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
}

fn head(out: &mut Vec<u8>, kind: u8, length: usize) {
    out.push(kind);
    out.extend_from_slice(length.to_string().as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Takes the next reply out of what was read; `None` while it is not whole.
pub(crate) fn take(read: &mut BytesMut) -> Result<Option<Reply>, Failure> {
    let mut rest = &read[..];
    let reply = parse(&mut rest)?;
    if reply.is_some() {
        let used = read.len() - rest.len();
        read.advance(used);
    }
    Ok(reply)
}

fn parse(rest: &mut &[u8]) -> Result<Option<Reply>, Failure> {
    let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") else { return Ok(None) };
    let line = std::str::from_utf8(&rest[..end])?;
    let (kind, value) = line.split_at_checked(1).ok_or("an empty reply")?;
    *rest = &rest[end + 2..];
    match kind {
        ":" => Ok(Some(Reply::Number(value.parse()?))),
        "+" => Ok(Some(Reply::Text(value.to_owned()))),
        "-" => Ok(Some(Reply::Error(value.to_owned()))),
        "$" => {
            let length: usize = value.parse()?;
            let Some(text) = rest.get(..length + 2) else { return Ok(None) };
            let text = std::str::from_utf8(&text[..length])?.to_owned();
            *rest = &rest[length + 2..];
            Ok(Some(Reply::Text(text)))
        }
        "*" => {
            let mut list = Vec::new();
            for _ in 0..value.parse::<usize>()? {
                let Some(each) = parse(rest)? else { return Ok(None) };
                list.push(each);
            }
            Ok(Some(Reply::List(list)))
        }
        _ => Err(format!("a reply of an unknown kind: {line}").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_an_array_of_strings() {
        let mut out = Vec::new();
        command(&mut out, &["GET", "a key"]);
        assert_eq!(out, b"*2\r\n$3\r\nGET\r\n$5\r\na key\r\n");
    }

    #[test]
    fn replies_are_taken_whole_and_in_order() {
        let whole = b"*2\r\n:1\r\n:-7\r\n$2\r\nhi\r\n+OK\r\n-ERR no\r\n";
        let list = Reply::List(vec![Reply::Number(1), Reply::Number(-7)]);
        let texts = [Reply::Text("hi".to_owned()), Reply::Text("OK".to_owned())];
        let [hi, ok] = texts;
        let expected = [list, hi, ok, Reply::Error("ERR no".to_owned())];
        // However the bytes arrive.
        for size in 1..=whole.len() {
            let (mut read, mut taken) = (BytesMut::new(), Vec::new());
            for part in whole.chunks(size) {
                read.extend_from_slice(part);
                while let Some(reply) = take(&mut read).expect("well formed") {
                    taken.push(reply);
                }
            }
            assert_eq!(taken, expected);
            assert!(read.is_empty());
        }
    }
}
