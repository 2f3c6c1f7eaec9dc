//! Messages as Anthropic has them.

use serde::Deserialize;
use serde_json::{Value, json};

use super::dialect::{self, Answer, Dialect, Malformed, OWN_FIELD, Place, Report, Seen};
use super::failure::Failure;
use super::hold::Counts;
use super::settings::Api;
use super::sse;

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    index: i64,
    message: Option<Message>,
    content_block: Option<Block>,
    delta: Option<Delta>,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Message {
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Block {
    #[serde(rename = "type")]
    kind: String,
    name: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    text: Option<String>,
    thinking: Option<String>,
    partial_json: Option<String>,
    stop_reason: Option<String>,
}

#[derive(Deserialize)]
#[expect(clippy::struct_field_names, reason = "the interface names them so")]
struct Usage {
    input_tokens: Option<i64>,
    cache_read_input_tokens: Option<i64>,
    cache_creation_input_tokens: Option<i64>,
    output_tokens: Option<i64>,
}

impl Usage {
    /// Input is told without its cached and cache-written parts.
    fn report(&self) -> Report {
        let cached = self.cache_read_input_tokens.unwrap_or(0);
        let written = self.cache_creation_input_tokens.unwrap_or(0);
        let all = |plain: i64| plain.checked_add(cached)?.checked_add(written);
        let input = self.input_tokens.and_then(all).map(|all| (all, cached, written));
        Report { input, output: self.output_tokens }
    }
}

/// A stream of events.
#[derive(Default)]
pub(crate) struct Stream {
    begun: bool,
    /// The content block that is open: its index, and whether it is text.
    open: Option<(i64, bool)>,
    /// The index of the next one.
    next: i64,
}

fn write(event: &Value) -> String {
    sse::write_named(event["type"].as_str().unwrap_or("message"), &event.to_string())
}

impl Stream {
    /// Says the notice, in the block that is open if it is text, else in one of its own.
    fn say(&mut self, notice: &str) -> String {
        let mut events = String::new();
        let mut index = self.next;
        match self.open.take() {
            Some((open, true)) => index = open,
            other => {
                if let Some((open, _)) = other {
                    events += &write(&json!({"type": "content_block_stop", "index": open}));
                }
                events += &write(&json!({
                    "type": "content_block_start", "index": index,
                    "content_block": {"type": "text", "text": ""},
                }));
            }
        }
        self.next = self.next.max(index.saturating_add(1));
        events += &write(&json!({
            "type": "content_block_delta", "index": index,
            "delta": {"type": "text_delta", "text": notice},
        }));
        events + &write(&json!({"type": "content_block_stop", "index": index}))
    }
}

impl Dialect for Stream {
    fn read(&mut self, data: &[u8], text: &mut String) -> Result<Seen, Malformed> {
        let event: Event = dialect::read_object(data)?;
        let mut seen = Seen::default();
        match event.kind.as_str() {
            "message_start" => {
                self.begun = true;
                let usage = event.message.and_then(|message| message.usage);
                seen.report = usage.as_ref().map(Usage::report).unwrap_or_default();
                // It is told before anything is generated.
                seen.report.output = None;
            }
            "content_block_start" => {
                if let Some(block) = event.content_block {
                    self.open = Some((event.index, block.kind == "text"));
                    self.next = event.index.saturating_add(1);
                    text.push_str(block.name.as_deref().unwrap_or(""));
                }
            }
            "content_block_stop" => self.open = None,
            "message_stop" => seen.place = Place::Last { by_length: false },
            "error" => seen.is_error = true,
            _ => {
                let delta = event.delta.as_ref();
                for part in delta.into_iter().flat_map(|delta| {
                    [&delta.text, &delta.thinking, &delta.partial_json].into_iter().flatten()
                }) {
                    text.push_str(part);
                }
                let reason = delta.and_then(|delta| delta.stop_reason.as_deref());
                if let Some(reason) = reason {
                    seen.place = Place::End { by_length: reason == "max_tokens" };
                }
                seen.report = event.usage.as_ref().map(Usage::report).unwrap_or_default();
            }
        }
        Ok(seen)
    }

    fn end_with_notice(&mut self, data: &[u8], notice: &str) -> String {
        let Ok(mut end) = serde_json::from_slice::<Value>(data) else { return String::new() };
        end[OWN_FIELD] = dialect::own_field();
        self.say(notice) + &write(&end)
    }

    fn cut(&mut self, notice: &str, used: Counts, _wants_usage: bool) -> String {
        let mut events = String::new();
        if !self.begun {
            let uncached = used.input - used.cached - used.cache_write;
            events += &write(&json!({"type": "message_start", "message": {
                "id": "msg_bursar", "type": "message", "role": "assistant", "content": [],
                "model": "", "stop_reason": null, "stop_sequence": null,
                "usage": {"input_tokens": uncached, "output_tokens": 0},
            }}));
        }
        events += &self.say(notice);
        events += &write(&json!({
            "type": "message_delta",
            "delta": {"stop_reason": "max_tokens", "stop_sequence": null},
            "usage": {"output_tokens": used.output},
            OWN_FIELD: dialect::own_field(),
        }));
        events + &write(&json!({"type": "message_stop"}))
    }

    fn fail(&self, failure: &Failure) -> String {
        sse::write_named("error", &failure.body(Api::Anthropic).to_string())
    }
}

pub(crate) fn read_answer(answer: &Value, text: &mut String) -> Result<Answer, Malformed> {
    let usage: Option<Usage> = Option::deserialize(&answer["usage"])?;
    dialect::gather(&answer["content"], text);
    let report = usage.as_ref().map(Usage::report).unwrap_or_default();
    Ok(Answer { report, by_length: answer["stop_reason"] == "max_tokens" })
}

pub(crate) fn add_notice(answer: &mut Value, notice: &str) {
    if let Some(content) = answer["content"].as_array_mut() {
        content.push(json!({"type": "text", "text": notice}));
    }
}
