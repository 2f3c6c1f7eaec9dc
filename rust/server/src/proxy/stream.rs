//! A stream on its way from an upstream to its client: every event is read, debited, and only then
//! passed on. It ends with the upstream, with the budget, or with the client; in each case it is
//! settled before its last event leaves.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::HeaderMap;
use hyper::body::Incoming;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::count::Growing;
use super::dialect::{Dialect, Place, Seen};
use super::failure::Failure;
use super::hold::{Counts, Debit, Hold};
use super::members::Members;
use super::sse::{Event, Parser, write};
use super::{Proxy, replay};
use crate::places::Taken;

/// How long an upstream may take to close after its last event, for its connection to be used again.
const CLOSING: Duration = Duration::from_millis(500);

/// How much is sent in one part, and from how many, where the upstream is faster than its client: a
/// write costs more than what is done with an event.
const TOGETHER_BYTES: usize = 16 * 1024;
const TOGETHER_PARTS: usize = 64;

/// What a stream is.
pub(crate) struct Terms {
    /// Whether the client asked for the usage, and for llama.cpp's timings.
    pub(crate) wants_usage: bool,
    pub(crate) wants_timings: bool,
    /// Whether the budget, not the client, has set the bound on the output.
    pub(crate) is_bounded: bool,
    pub(crate) key: Option<String>,
}

/// One stream.
pub(crate) struct Stream {
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) dialect: Box<dyn Dialect>,
    pub(crate) hold: Hold,
    pub(crate) growing: Growing,
    pub(crate) terms: Terms,
    /// What was used so far.
    pub(crate) used: Counts,
    /// The output that the upstream has told last; what it does not tell after that is measured.
    pub(crate) told: i64,
    /// Whether the generation has come to an end of its own.
    pub(crate) has_ended: bool,
    /// What was sent, for a client that may repeat its call.
    pub(crate) kept: Option<Kept>,
    pub(crate) _place: Taken,
}

/// A stream's bytes, kept for a repeat.
pub(crate) struct Kept {
    place: replay::Place,
    headers: HeaderMap,
    sent: BytesMut,
}

impl Kept {
    pub(crate) fn new(place: replay::Place, headers: HeaderMap) -> Kept {
        Kept { place, headers, sent: BytesMut::new() }
    }
}

/// What an event leads to.
enum Step {
    On,
    Last,
    Cut(String),
}

impl Stream {
    /// Runs until it ends.
    pub(crate) async fn run(mut self, mut body: Incoming, client: mpsc::Sender<Bytes>) {
        let mut parser = Parser::default();
        let proxy = Arc::clone(&self.proxy);
        let (mut out, mut parts, mut at_hand) = (BytesMut::new(), 0, None);
        let failure = loop {
            let part = if let Some(part) = at_hand.take() {
                part
            } else {
                tokio::select! {
                    biased;
                    () = client.closed() => return self.leave().await,
                    part = proxy.upstreams.part(&mut body) => part,
                }
            };
            let part = match part {
                Ok(Some(part)) => part,
                Ok(None) if self.has_ended => return self.finish(out, &client).await,
                Ok(None) => break Failure::upstream("the upstream ended in the middle"),
                Err(failure) => break failure,
            };
            parser.push(&part);
            match self.take(&mut parser, &mut out) {
                Ok(Step::On) => {
                    parts += 1;
                    if out.len() < TOGETHER_BYTES && parts < TOGETHER_PARTS {
                        at_hand = proxy.upstreams.at_hand(&mut body).await;
                        if at_hand.is_some() {
                            continue;
                        }
                    }
                    parts = 0;
                    self.note(&out);
                    if !out.is_empty() && client.send(out.split().freeze()).await.is_err() {
                        return self.leave().await;
                    }
                }
                Ok(Step::Last) => {
                    self.finish(out, &client).await;
                    drop(client);
                    let rest =
                        async { while let Ok(Some(_)) = proxy.upstreams.part(&mut body).await {} };
                    let _reusable = timeout(CLOSING, rest).await;
                    return;
                }
                Ok(Step::Cut(why)) => {
                    // Dropping it closes its connection, which ends the generation.
                    drop(body);
                    return self.cut(out, &client, &why).await;
                }
                Err(failure) => break failure,
            }
        };
        drop(body);
        out.extend_from_slice(self.dialect.fail(&failure).as_bytes());
        self.leave().await;
        let _gone = client.send(out.freeze()).await;
    }

    /// Reads all events that have come.
    fn take(&mut self, parser: &mut Parser, out: &mut BytesMut) -> Result<Step, Failure> {
        loop {
            let event = parser.next().map_err(|error| {
                Failure::upstream(format!("the upstream's answer makes no sense: {error}"))
            })?;
            let Some(event) = event else { return Ok(Step::On) };
            match self.event(&event, out)? {
                Step::On => {}
                step => return Ok(step),
            }
        }
    }

    fn event(&mut self, event: &Event, out: &mut BytesMut) -> Result<Step, Failure> {
        if event.data.is_empty() {
            out.extend_from_slice(&event.raw);
            return Ok(Step::On);
        }
        let mut text = String::new();
        let seen = self.dialect.read(&event.data, &mut text);
        let seen = seen.map_err(|error| Failure::upstream(error.to_string()))?;
        if seen.is_error {
            self.has_ended = true;
            out.extend_from_slice(&self.without_key(event));
            return Ok(Step::On);
        }
        let before = self.used.output;
        self.count(&seen, &text);
        let may_cut = match seen.place {
            // One answer may have ended before another.
            Place::Within => !self.has_ended || self.used.output > before,
            // An end that says nothing is one, whatever is left.
            Place::End { .. } => !text.is_empty(),
            Place::Usage | Place::Last { .. } => false,
        };
        if let Debit::Stop(why) = self.hold.debit(self.used)
            && may_cut
        {
            // What is not passed on is not paid, but for what its provider bills at the end.
            if matches!(seen.place, Place::Within) || seen.report.output.is_none() {
                self.used.output = before;
            }
            return Ok(Step::Cut(why));
        }
        self.pass(event, &seen, out);
        Ok(if matches!(seen.place, Place::Last { .. }) { Step::Last } else { Step::On })
    }

    /// Brings the counts up to an event.
    fn count(&mut self, seen: &Seen, text: &str) {
        let report = seen.report.credible(self.used.output > 0 || !text.is_empty());
        let told = report.over(self.used);
        self.used = told.unwrap_or(self.used);
        if told.is_some() && report.output.is_some() {
            self.told = self.used.output;
            self.growing.reset();
        } else {
            self.growing.push(text);
            self.used.output = self.told + self.growing.count();
        }
    }

    /// Passes an event on, as it came wherever that is possible.
    fn pass(&mut self, event: &Event, seen: &Seen, out: &mut BytesMut) {
        let is_cut = |by_length: bool, this: &Stream| {
            this.terms.is_bounded && (by_length || this.used.output >= this.hold.granted)
        };
        match seen.place {
            Place::Usage if !self.terms.wants_usage => return,
            Place::End { by_length } => {
                self.has_ended = true;
                if by_length && self.terms.is_bounded {
                    out.extend_from_slice(self.end_with_notice(event).as_bytes());
                    return;
                }
            }
            Place::Last { by_length }
                if !self.has_ended
                    && event.data.as_ref() != b"[DONE]"
                    && is_cut(by_length, self) =>
            {
                out.extend_from_slice(self.end_with_notice(event).as_bytes());
                return;
            }
            _ => {}
        }
        let drop_usage =
            seen.has_usage && !self.terms.wants_usage && !matches!(seen.place, Place::Usage);
        let drop_timings = seen.has_timings && !self.terms.wants_timings;
        if (drop_usage || drop_timings)
            && let Ok(mut members) = Members::parse(&event.data)
        {
            if drop_usage {
                members.remove("usage");
            }
            if drop_timings {
                members.remove("timings");
            }
            out.extend_from_slice(b"data: ");
            out.extend_from_slice(&members.to_json());
            out.extend_from_slice(b"\n\n");
            return;
        }
        out.extend_from_slice(&self.without_key(event));
    }

    fn end_with_notice(&mut self, event: &Event) -> String {
        if self.proxy.settings.strict_errors {
            return self.dialect.fail(&Failure::exhausted("the budget is used up"));
        }
        let notice = self.proxy.settings.notice.clone();
        let events = self.dialect.end_with_notice(&event.data, &notice);
        if self.terms.wants_usage || !events.contains("\"usage\"") {
            return events;
        }
        events.split_inclusive("\n\n").map(without_usage).collect()
    }

    fn without_key(&self, event: &Event) -> Bytes {
        match &self.terms.key {
            Some(key) if memchr::memmem::find(&event.raw, key.as_bytes()).is_some() => {
                let text = String::from_utf8_lossy(&event.raw);
                text.replace(key, "[key]").into()
            }
            _ => event.raw.clone(),
        }
    }

    /// The budget ends it.
    async fn cut(mut self, mut out: BytesMut, client: &mpsc::Sender<Bytes>, why: &str) {
        let settings = &self.proxy.settings;
        let end = if settings.strict_errors {
            self.dialect.fail(&Failure::exhausted(why))
        } else {
            self.dialect.cut(&settings.notice, self.used, self.terms.wants_usage)
        };
        out.extend_from_slice(end.as_bytes());
        self.leave().await;
        let _gone = client.send(out.freeze()).await;
    }

    /// Notes what is sent, for a repeat, as long as it is not too long.
    fn note(&mut self, out: &[u8]) {
        if let Some(kept) = &mut self.kept {
            kept.sent.extend_from_slice(out);
            if kept.sent.len() > replay::MAX_ANSWER_BYTES {
                self.kept = None;
            }
        }
    }

    /// It has ended well.
    async fn finish(mut self, mut out: BytesMut, client: &mpsc::Sender<Bytes>) {
        self.note(&out);
        let Stream { proxy, hold, used, dialect, kept, .. } = self;
        match (hold.settle(used).await, kept) {
            (Err(error), _) => {
                // What it has cost is not written: it has not ended well.
                out = BytesMut::from(dialect.fail(&error.into()).as_bytes());
            }
            (Ok(_), Some(Kept { place, headers, sent })) => {
                place.keep(&headers, sent.freeze(), proxy.engine.now().mono_ms);
            }
            (Ok(_), None) => {}
        }
        if !out.is_empty() {
            let _gone = client.send(out.freeze()).await;
        }
    }

    /// Settles at what was used so far.
    async fn leave(self) {
        // Where the store fails the reservation stays, and ends by its time to live.
        let _settled = self.hold.settle(self.used).await;
    }
}

/// An event of chunks without the usage that nobody asked for.
fn without_usage(event: &str) -> String {
    let data = event.strip_prefix("data: ").and_then(|data| data.strip_suffix("\n\n"));
    let Some(Ok(mut members)) = data.map(|data| Members::parse(data.as_bytes())) else {
        return event.to_owned();
    };
    members.remove("usage");
    write(&String::from_utf8_lossy(&members.to_json()))
}
