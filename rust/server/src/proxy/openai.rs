//! Chat completions, completions and embeddings as OpenAI has them, and as llama.cpp and vLLM extend
//! them.

use serde::Deserialize;
use serde_json::{Value, json};

use super::dialect::{self, Answer, Dialect, Malformed, OWN_FIELD, Place, Report, Seen};
use super::failure::Failure;
use super::hold::Counts;
use super::settings::Api;
use super::sse;

const DONE: &[u8] = b"[DONE]";
/// The most answers of one call.
pub(crate) const MAX_CHOICES: usize = 128;

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    timings: Option<Timings>,
    error: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    index: usize,
    delta: Option<Delta>,
    text: Option<String>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
    reasoning_content: Option<String>,
    reasoning: Option<String>,
    refusal: Option<String>,
    #[serde(default)]
    tool_calls: Option<Vec<ToolCall>>,
    function_call: Option<Function>,
}

#[derive(Deserialize)]
struct ToolCall {
    function: Option<Function>,
}

#[derive(Deserialize)]
struct Function {
    name: Option<String>,
    arguments: Option<String>,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: i64,
    #[serde(default)]
    completion_tokens: i64,
    prompt_tokens_details: Option<Details>,
}

#[derive(Deserialize)]
struct Details {
    cached_tokens: Option<i64>,
}

/// llama.cpp's own: what was computed, after each token.
#[derive(Deserialize)]
#[expect(clippy::struct_field_names, reason = "the engine names them so")]
struct Timings {
    #[serde(default)]
    cache_n: i64,
    #[serde(default)]
    prompt_n: i64,
    predicted_n: i64,
}

impl Usage {
    fn report(&self) -> Report {
        let cached = self.prompt_tokens_details.as_ref().and_then(|details| details.cached_tokens);
        let input = Some((self.prompt_tokens, cached.unwrap_or(0), 0));
        Report { input, output: Some(self.completion_tokens) }
    }
}

impl Timings {
    fn report(&self) -> Report {
        let input = self.cache_n.checked_add(self.prompt_n);
        let input = input.map(|input| (input, self.cache_n, 0));
        Report { input, output: Some(self.predicted_n) }
    }
}

/// A stream of chunks.
pub(crate) struct Stream {
    is_chat: bool,
    /// The first chunk: what is common to all.
    first: Option<Vec<u8>>,
    /// The answers that had begun and not ended before the last event, and those that it has begun.
    open: Vec<usize>,
    /// Those of them that the last event has ended.
    ended: Vec<usize>,
}

impl Stream {
    pub(crate) fn chat() -> Stream {
        Stream { is_chat: true, first: None, open: Vec::new(), ended: Vec::new() }
    }

    pub(crate) fn completions() -> Stream {
        Stream { is_chat: false, ..Stream::chat() }
    }

    /// A chunk with one choice.
    fn chunk(&self, index: usize, text: Option<&str>, finish: Option<&str>) -> Value {
        let first = self.first.as_ref().and_then(|first| serde_json::from_slice(first).ok());
        let mut chunk = first.unwrap_or_else(|| json!({}));
        if let Some(members) = chunk.as_object_mut() {
            members.remove("usage");
            members.remove("timings");
        }
        let mut choice = json!({"index": index, "finish_reason": finish, "logprobs": null});
        if self.is_chat {
            choice["delta"] = text.map_or_else(|| json!({}), |text| json!({"content": text}));
        } else {
            choice["text"] = json!(text.unwrap_or(""));
        }
        chunk["choices"] = json!([choice]);
        chunk
    }

    fn saying(&self, index: usize, notice: &str) -> String {
        sse::write(&self.chunk(index, Some(notice), None).to_string())
    }
}

impl Choice {
    fn has_text(&self) -> bool {
        let of_delta = self.delta.as_ref().and_then(|delta| delta.content.as_ref());
        of_delta.or(self.text.as_ref()).is_some_and(|text| !text.is_empty())
    }

    fn gather(&self, text: &mut String) {
        text.push_str(self.text.as_deref().unwrap_or(""));
        let Some(delta) = &self.delta else { return };
        let plain = [&delta.content, &delta.reasoning_content, &delta.reasoning, &delta.refusal];
        plain.into_iter().flatten().for_each(|part| text.push_str(part));
        let tools = delta.tool_calls.iter().flatten().filter_map(|call| call.function.as_ref());
        for function in tools.chain(&delta.function_call) {
            text.push_str(function.name.as_deref().unwrap_or(""));
            text.push_str(function.arguments.as_deref().unwrap_or(""));
        }
    }
}

impl Dialect for Stream {
    fn read(&mut self, data: &[u8], text: &mut String) -> Result<Seen, Malformed> {
        if data == DONE {
            let place = Place::Last { by_length: false };
            return Ok(Seen { place, ..Seen::default() });
        }
        let chunk: Chunk = dialect::read_object(data)?;
        if self.first.is_none() {
            self.first = Some(data.to_vec());
        }
        let ended = std::mem::take(&mut self.ended);
        self.open.retain(|open| !ended.contains(open));
        let mut by_length = false;
        for choice in &chunk.choices {
            choice.gather(text);
            if !self.open.contains(&choice.index) && self.open.len() < MAX_CHOICES {
                self.open.push(choice.index);
            }
            if let Some(reason) = &choice.finish_reason {
                self.ended.push(choice.index);
                by_length |= reason == "length";
            }
        }
        let of_timings = chunk.timings.as_ref().map(Timings::report);
        let report = chunk.usage.as_ref().map(Usage::report).or(of_timings).unwrap_or_default();
        let place = if chunk.choices.is_empty() && chunk.usage.is_some() {
            Place::Usage
        } else if !self.ended.is_empty() {
            Place::End { by_length }
        } else {
            Place::Within
        };
        Ok(Seen {
            place,
            report,
            has_usage: chunk.usage.is_some(),
            has_timings: chunk.timings.is_some(),
            is_error: chunk.error.is_some(),
        })
    }

    fn end_with_notice(&mut self, data: &[u8], notice: &str) -> String {
        let chunk: Result<Chunk, _> = serde_json::from_slice(data);
        let value: Result<Value, _> = serde_json::from_slice(data);
        let (Ok(chunk), Ok(mut end)) = (chunk, value) else { return String::new() };
        let mut events = String::new();
        if chunk.choices.iter().any(Choice::has_text) {
            // What it says comes before the notice.
            let mut says = end.clone();
            let empty = json!(if self.is_chat { json!({}) } else { json!("") });
            let member = if self.is_chat { "delta" } else { "text" };
            for choice in says["choices"].as_array_mut().into_iter().flatten() {
                dialect::set(choice, "finish_reason", Value::Null);
            }
            for choice in end["choices"].as_array_mut().into_iter().flatten() {
                dialect::set(choice, member, empty.clone());
            }
            says.as_object_mut().map(|members| members.remove("usage"));
            events += &sse::write(&says.to_string());
        }
        let cut = chunk.choices.iter().filter(|choice| choice.finish_reason.is_some());
        for choice in cut {
            events += &self.saying(choice.index, notice);
        }
        end[OWN_FIELD] = dialect::own_field();
        events + &sse::write(&end.to_string())
    }

    fn cut(&mut self, notice: &str, used: Counts, wants_usage: bool) -> String {
        let mut events = String::new();
        if self.open.is_empty() && self.first.is_none() {
            self.open.push(0);
        }
        for index in std::mem::take(&mut self.open) {
            events += &self.saying(index, notice);
            let mut end = self.chunk(index, None, Some("length"));
            end[OWN_FIELD] = dialect::own_field();
            events += &sse::write(&end.to_string());
        }
        if wants_usage {
            let mut last = self.chunk(0, None, None);
            last["choices"] = json!([]);
            last["usage"] = json!({
                "prompt_tokens": used.input,
                "completion_tokens": used.output,
                "total_tokens": used.input + used.output,
                "prompt_tokens_details": {"cached_tokens": used.cached},
            });
            events += &sse::write(&last.to_string());
        }
        events + "data: [DONE]\n\n"
    }

    fn fail(&self, failure: &Failure) -> String {
        sse::write(&failure.body(Api::OpenAi).to_string())
    }
}

pub(crate) fn read_answer(answer: &Value, text: &mut String) -> Result<Answer, Malformed> {
    let usage: Option<Usage> = Option::deserialize(&answer["usage"])?;
    let report = usage.as_ref().map(Usage::report).unwrap_or_default();
    let mut by_length = false;
    for choice in answer["choices"].as_array().into_iter().flatten() {
        by_length |= choice["finish_reason"] == "length";
        dialect::gather(&choice["message"], text);
        dialect::gather(&choice["text"], text);
    }
    Ok(Answer { report, by_length })
}

pub(crate) fn add_notice(answer: &mut Value, notice: &str) {
    for choice in answer["choices"].as_array_mut().into_iter().flatten() {
        if choice["finish_reason"] != "length" {
            continue;
        }
        let is_chat = choice.get("message").is_some_and(Value::is_object);
        let said = if is_chat { &mut choice["message"]["content"] } else { &mut choice["text"] };
        *said = json!(format!("{}{notice}", said.as_str().unwrap_or("")));
    }
}
