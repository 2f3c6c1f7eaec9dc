//! Responses as OpenAI has them.

use serde::Deserialize;
use serde_json::{Value, json};

use super::dialect::{self, Answer, Dialect, Malformed, OWN_FIELD, Place, Report, Seen};
use super::failure::Failure;
use super::hold::Counts;
use super::settings::Api;
use super::sse;

/// The id of the item that says the notice.
const NOTICE_ITEM: &str = "msg_bursar_notice";
/// The most text of an open item that is kept for its end.
const MAX_KEPT_BYTES: usize = 1 << 20;

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    sequence_number: Option<i64>,
    output_index: Option<i64>,
    delta: Option<Value>,
    item: Option<Value>,
    response: Option<Value>,
}

#[derive(Deserialize)]
struct Usage {
    input_tokens: i64,
    #[serde(default)]
    output_tokens: i64,
    input_tokens_details: Option<Details>,
}

#[derive(Deserialize)]
struct Details {
    cached_tokens: Option<i64>,
}

impl Usage {
    fn report(&self) -> Report {
        let cached = self.input_tokens_details.as_ref().and_then(|details| details.cached_tokens);
        let input = Some((self.input_tokens, cached.unwrap_or(0), 0));
        Report { input, output: Some(self.output_tokens) }
    }
}

/// A stream of events.
#[derive(Default)]
pub(crate) struct Stream {
    /// The answer as its first event has it.
    response: Option<Value>,
    /// The items that have ended.
    items: Vec<Value>,
    /// The item that is open, and what it says so far.
    open: Option<(Value, String)>,
    next_index: i64,
    next_number: i64,
}

impl Stream {
    fn write(&mut self, mut event: Value) -> String {
        event["sequence_number"] = json!(self.next_number);
        self.next_number = self.next_number.saturating_add(1);
        sse::write_named(event["type"].as_str().unwrap_or("message"), &event.to_string())
    }

    /// Ends the item that is open.
    fn close(&mut self) -> String {
        let Some((mut item, text)) = self.open.take() else { return String::new() };
        let index = self.next_index - 1;
        let mut events = String::new();
        if item["type"] == "message" {
            let id = item["id"].clone();
            let part = json!({"type": "output_text", "text": text, "annotations": []});
            events += &self.write(json!({
                "type": "response.output_text.done", "item_id": id, "output_index": index,
                "content_index": 0, "text": text, "logprobs": [],
            }));
            events += &self.write(json!({
                "type": "response.content_part.done", "item_id": id, "output_index": index,
                "content_index": 0, "part": part,
            }));
            item["content"] = json!([part]);
        }
        item["status"] = json!("incomplete");
        events += &self.write(json!({
            "type": "response.output_item.done", "output_index": index, "item": item,
        }));
        self.items.push(item);
        events
    }

    /// Says the notice in an item of its own.
    fn say(&mut self, notice: &str) -> String {
        let index = self.next_index;
        self.next_index = index.saturating_add(1);
        let item = |content: Value, status| {
            json!({
                "type": "message", "id": NOTICE_ITEM, "role": "assistant", "status": status,
                "content": content,
            })
        };
        let part = |text| json!({"type": "output_text", "text": text, "annotations": []});
        let with = |kind: &str, name: &str, value: Value| {
            json!({
                "type": kind, "item_id": NOTICE_ITEM, "output_index": index, "content_index": 0,
                name: value,
            })
        };
        let events = [
            json!({
                "type": "response.output_item.added", "output_index": index,
                "item": item(json!([]), "in_progress"),
            }),
            with("response.content_part.added", "part", part("")),
            with("response.output_text.delta", "delta", json!(notice)),
            with("response.output_text.done", "text", json!(notice)),
            with("response.content_part.done", "part", part(notice)),
            json!({
                "type": "response.output_item.done", "output_index": index,
                "item": notice_item(notice),
            }),
        ];
        self.items.push(notice_item(notice));
        events.into_iter().map(|event| self.write(event)).collect()
    }

    fn end(&mut self, mut response: Value) -> String {
        response["status"] = json!("incomplete");
        response["incomplete_details"] = json!({"reason": "max_output_tokens"});
        response["output"] = json!(self.items);
        response[OWN_FIELD] = dialect::own_field();
        self.write(json!({"type": "response.incomplete", "response": response}))
    }
}

fn notice_item(notice: &str) -> Value {
    json!({
        "type": "message", "id": NOTICE_ITEM, "role": "assistant", "status": "completed",
        "content": [{"type": "output_text", "text": notice, "annotations": []}],
    })
}

impl Dialect for Stream {
    fn read(&mut self, data: &[u8], text: &mut String) -> Result<Seen, Malformed> {
        let event: Event = dialect::read_object(data)?;
        self.next_number = event.sequence_number.unwrap_or(self.next_number).saturating_add(1);
        let mut seen = Seen::default();
        match event.kind.as_str() {
            "response.created" => {
                self.response = event.response.filter(Value::is_object);
            }
            "response.output_item.added" => {
                self.next_index = event.output_index.unwrap_or(self.next_index).saturating_add(1);
                self.open = event.item.filter(Value::is_object).map(|item| (item, String::new()));
            }
            "response.output_item.done" => {
                self.open = None;
                self.items.extend(event.item.filter(|_| self.items.len() < 1_000));
            }
            "response.completed" | "response.incomplete" | "response.failed" => {
                let response = event.response.unwrap_or_default();
                let usage: Option<Usage> = Option::deserialize(&response["usage"])?;
                seen.report = usage.as_ref().map(Usage::report).unwrap_or_default();
                seen.is_error = event.kind == "response.failed";
                seen.place = Place::Last { by_length: is_by_length(&response) };
            }
            "error" => seen.is_error = true,
            kind if kind.rsplit_once('.').is_some_and(|(_, last)| last == "delta") => {
                let delta = event.delta.as_ref().and_then(Value::as_str).unwrap_or("");
                text.push_str(delta);
                if let Some((_, said)) = &mut self.open
                    && kind == "response.output_text.delta"
                    && said.len() < MAX_KEPT_BYTES
                {
                    said.push_str(delta);
                }
            }
            _ => {}
        }
        Ok(seen)
    }

    fn end_with_notice(&mut self, data: &[u8], notice: &str) -> String {
        let Ok(event) = serde_json::from_slice::<Event>(data) else { return String::new() };
        self.next_number -= 1;
        self.say(notice) + &self.end(event.response.filter(Value::is_object).unwrap_or_default())
    }

    fn cut(&mut self, notice: &str, used: Counts, _wants_usage: bool) -> String {
        let events = self.close() + &self.say(notice);
        let mut response = self.response.take().unwrap_or_else(|| json!({"object": "response"}));
        response["usage"] = json!({
            "input_tokens": used.input,
            "input_tokens_details": {"cached_tokens": used.cached},
            "output_tokens": used.output,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": used.input + used.output,
        });
        events + &self.end(response)
    }

    fn fail(&self, failure: &Failure) -> String {
        let error = failure.body(Api::OpenAi)["error"].clone();
        let event = json!({
            "type": "error", "code": error["code"], "message": error["message"], "param": null,
            "sequence_number": self.next_number,
        });
        sse::write_named("error", &event.to_string())
    }
}

fn is_by_length(response: &Value) -> bool {
    response["incomplete_details"]["reason"] == "max_output_tokens"
}

pub(crate) fn read_answer(answer: &Value, text: &mut String) -> Result<Answer, Malformed> {
    let usage: Option<Usage> = Option::deserialize(&answer["usage"])?;
    dialect::gather(&answer["output"], text);
    let report = usage.as_ref().map(Usage::report).unwrap_or_default();
    Ok(Answer { report, by_length: is_by_length(answer) })
}

pub(crate) fn add_notice(answer: &mut Value, notice: &str) {
    if let Some(output) = answer["output"].as_array_mut() {
        output.push(notice_item(notice));
    }
    answer["status"] = json!("incomplete");
    answer["incomplete_details"] = json!({"reason": "max_output_tokens"});
}
