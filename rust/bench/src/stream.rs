//! Streamed chat completions: the closed loop that asks for them, and what an upstream answers.
//!
//! Each worker has a connection of its own, as clients of such interfaces do. What is timed has two
//! parts: until the first event is there, and until the last one is. HTTP is written and read by hand:
//! both ends shall cost next to nothing beside what stands between them.

use std::time::Instant;

use bytes::{Buf, BytesMut};
use memchr::memmem;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::plan::{Plan, Span};
use crate::report::Report;
use crate::{Address, Failure, Stream, now, open};

/// What `Authorization` shows: one of the proxies wants its master key, the others want nothing.
pub const KEY: &str = "sk-of-the-benchmark-0123456789abcdef";
/// About what an agent's first request says.
const PROMPT: &str = "You are an agent that keeps the books of a small company. Answer in one short \
                      paragraph, cite the account that you read, and never guess a figure: where \
                      one is missing say so. Which of the departments has spent more than planned \
                      this month, and by how much? Compare it with the month before.";
const END: &[u8] = b"0\r\n\r\n";
const EVENT: &[u8] = b"data: {";

/// Runs it to its end.
pub async fn run(address: &Address, events: usize, plan: &Plan) -> Result<Report, Failure> {
    let span = plan.span(plan.concurrency);
    let mut workers = Vec::new();
    for _ in 0..plan.concurrency {
        let worker = Worker {
            stream: open(address).await?,
            read: BytesMut::with_capacity(1 << 18),
            request: request(events),
            events,
            span: span.clone(),
        };
        workers.push(tokio::spawn(worker.run()));
    }
    let mut report = Report::new(Some(["first", "rest"]))?;
    for worker in workers {
        report.add(worker.await?.map_err(|error| error.to_string())?)?;
    }
    Ok(report)
}

fn request(events: usize) -> Vec<u8> {
    let body = serde_json::json!({
        "model": "m",
        "stream": true,
        "max_tokens": events,
        "messages": [{"role": "user", "content": PROMPT}],
    });
    let body = body.to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\naccept: application/json\r\n\
         authorization: Bearer {KEY}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body.as_bytes()].concat()
}

struct Worker {
    stream: Stream,
    read: BytesMut,
    request: Vec<u8>,
    events: usize,
    span: Span,
}

impl Worker {
    async fn run(mut self) -> Result<Report, Box<dyn std::error::Error + Send + Sync>> {
        let new = Report::new(Some(["first", "rest"]));
        let mut report = new.map_err(|error| error.to_string())?;
        while self.span.has_time() {
            report.asked(self.request.len());
            let start = now();
            self.stream.write_all(&self.request).await?;
            let first = self.answer().await?;
            let end = now();
            report.answered(self.read.len());
            let events = memmem::find_iter(&self.read, EVENT).count();
            if events < self.events {
                let said = String::from_utf8_lossy(&self.read[..self.read.len().min(400)]);
                report.fail(|| format!("{events} events of {}: {said}", self.events));
            } else if self.span.covers(start, end) {
                report.took_pair((start, first), (first, end));
            }
            self.read.clear();
        }
        Ok(report)
    }

    /// Reads an answer to its end; when its first event was there.
    async fn answer(&mut self) -> std::io::Result<Instant> {
        let mut first = None;
        loop {
            if self.stream.read_buf(&mut self.read).await? == 0 {
                return Err(std::io::Error::other("the connection was closed"));
            }
            if first.is_none() && memmem::find(&self.read, EVENT).is_some() {
                first = Some(now());
            }
            if self.read.ends_with(END) {
                return Ok(first.unwrap_or_else(now));
            }
        }
    }
}

/// What stands behind a proxy: each answer has as many events as its request's `max_tokens` says, each
/// in a write of its own, and then its usage.
pub async fn serve(mut stream: tokio::net::TcpStream) -> std::io::Result<()> {
    const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                          transfer-encoding: chunked\r\n\r\n";
    stream.set_nodelay(true)?;
    // Not always the same: LiteLLM takes that for a model that loops, and breaks off.
    let pair =
        [" some", " word"].map(|text| frame(&chunk(&format!(r#"{{"content":"{text}"}}"#), "null")));
    let mut read = BytesMut::new();
    loop {
        let Some(length) = whole(&read) else {
            if stream.read_buf(&mut read).await? == 0 {
                return Ok(());
            }
            continue;
        };
        let events = most_tokens(&read[..length]);
        read.advance(length);
        stream.write_all(HEAD).await?;
        for event in pair.iter().cycle().take(events) {
            stream.write_all(event).await?;
        }
        let mut end = frame(&chunk("{}", r#""stop""#));
        let counts = format!(r#""prompt_tokens":60,"completion_tokens":{events}"#);
        let usage = format!(r#""usage":{{{counts},"total_tokens":{}}}"#, 60 + events);
        end.extend(frame(&format!("data: {{{COMMON},\"choices\":[],{usage}}}\n\n")));
        end.extend(frame("data: [DONE]\n\n"));
        end.extend_from_slice(END);
        stream.write_all(&end).await?;
    }
}

/// What every event of an answer has.
const COMMON: &str = concat!(
    r#""id":"chatcmpl-RE3MHNmfgyB9NbG4swoGAe1ad5zRSKUM","object":"chat.completion.chunk","#,
    r#""created":1795719566,"model":"m","system_fingerprint":"fp_0123456789""#
);

fn chunk(delta: &str, finish: &str) -> String {
    let choice =
        format!(r#"{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{finish}}}"#);
    format!("data: {{{COMMON},\"choices\":[{choice}]}}\n\n")
}

fn frame(text: &str) -> Vec<u8> {
    format!("{:x}\r\n{text}\r\n", text.len()).into_bytes()
}

/// How long the first request in `read` is; nothing while it is not all there.
fn whole(read: &[u8]) -> Option<usize> {
    let head = memmem::find(read, b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&read[..head]).ok()?;
    let lengths = text.lines().filter_map(|line| line.split_once(':'));
    let length = lengths
        .filter(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .find_map(|(_, value)| value.trim().parse::<usize>().ok())
        .unwrap_or(0);
    Some(head + length).filter(|whole| read.len() >= *whole)
}

fn most_tokens(request: &[u8]) -> usize {
    const NAME: &[u8] = b"\"max_tokens\":";
    let Some(at) = memmem::find(request, NAME) else { return 1 };
    let rest = request[at + NAME.len()..].trim_ascii_start();
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&rest[..digits]).ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}
