//! What the interfaces have in common: reading what an answer says of itself, and ending one that the
//! budget has cut so that the official clients take it for a whole one.

use serde::de::{DeserializeOwned, Error};
use serde_json::{Value, json};

use super::failure::Failure;
use super::hold::Counts;
use super::route::Endpoint;
use super::{anthropic, openai, responses};

/// A field of our own in the event that ends a cut answer; clients ignore it.
pub(crate) const OWN_FIELD: &str = "bursar";

/// Members that are not the model's words.
const UNWRITTEN: [&str; 4] = ["type", "role", "id", "status"];

/// What is no answer.
#[derive(Debug, thiserror::Error)]
#[error("the upstream's answer makes no sense: {0}")]
pub(crate) struct Malformed(#[from] serde_json::Error);

/// What an event or an answer tells of the tokens so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Report {
    /// All input, and its cached and cache-written parts.
    pub(crate) input: Option<(i64, i64, i64)>,
    pub(crate) output: Option<i64>,
}

impl Report {
    /// Without an output of nothing where a text was sent.
    pub(crate) fn credible(self, has_text: bool) -> Report {
        Report { output: self.output.filter(|output| *output > 0 || !has_text), ..self }
    }

    /// The counts with what is reported put in; `None`: that makes no sense.
    pub(crate) fn over(self, counts: Counts) -> Option<Counts> {
        let mut new = counts;
        if let Some((input, cached, cache_write)) = self.input {
            (new.input, new.cached, new.cache_write) = (input, cached, cache_write);
        }
        if let Some(output) = self.output {
            new.output = output;
        }
        new.plausible()
    }
}

/// Where in its stream an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Place {
    /// Somewhere in it.
    #[default]
    Within,
    /// It tells the usage and nothing else.
    Usage,
    /// The generation has ended, by its length or otherwise; events about it follow.
    End { by_length: bool },
    /// The last event.
    Last { by_length: bool },
}

/// What was read of an event.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) place: Place,
    pub(crate) report: Report,
    /// Whether it has members that the client may not have asked for.
    pub(crate) has_usage: bool,
    pub(crate) has_timings: bool,
    /// What the upstream says went wrong.
    pub(crate) is_error: bool,
}

/// How one stream is read and ended.
pub(crate) trait Dialect: Send {
    /// Reads an event's data; adds the text that was generated to `text`.
    fn read(&mut self, data: &[u8], text: &mut String) -> Result<Seen, Malformed>;

    /// The event that ends the generation, with the notice before it.
    fn end_with_notice(&mut self, data: &[u8], notice: &str) -> String;

    /// Ends the stream here.
    fn cut(&mut self, notice: &str, used: Counts, wants_usage: bool) -> String;

    /// Breaks the stream off.
    fn fail(&self, failure: &Failure) -> String;
}

/// The dialect of an endpoint's streams.
pub(crate) fn of(endpoint: Endpoint) -> Box<dyn Dialect> {
    match endpoint {
        Endpoint::Responses => Box::new(responses::Stream::default()),
        Endpoint::Messages | Endpoint::CountTokens => Box::new(anthropic::Stream::default()),
        Endpoint::Completions => Box::new(openai::Stream::completions()),
        Endpoint::Chat | Endpoint::Embeddings | Endpoint::Models => {
            Box::new(openai::Stream::chat())
        }
    }
}

/// What a whole answer says of itself.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) report: Report,
    pub(crate) by_length: bool,
}

/// Reads a whole answer; adds its text to `text`.
pub(crate) fn read_answer(
    endpoint: Endpoint,
    answer: &Value,
    text: &mut String,
) -> Result<Answer, Malformed> {
    match endpoint {
        Endpoint::Responses => responses::read_answer(answer, text),
        Endpoint::Messages | Endpoint::CountTokens => anthropic::read_answer(answer, text),
        _ => openai::read_answer(answer, text),
    }
}

/// Adds the notice to a whole answer that was cut by its bound.
pub(crate) fn add_notice(endpoint: Endpoint, answer: &mut Value, notice: &str) {
    match endpoint {
        Endpoint::Responses => responses::add_notice(answer, notice),
        Endpoint::Messages | Endpoint::CountTokens => anthropic::add_notice(answer, notice),
        _ => openai::add_notice(answer, notice),
    }
    answer[OWN_FIELD] = own_field();
}

/// Says why, where clients accept only known reasons.
pub(crate) fn own_field() -> Value {
    json!({"stop_reason": "budget_exhausted"})
}

/// Reads an object: a struct alone would be read out of a list as well, which has no members to set.
pub(super) fn read_object<T: DeserializeOwned>(data: &[u8]) -> Result<T, Malformed> {
    if data.trim_ascii_start().first() != Some(&b'{') {
        return Err(serde_json::Error::custom("an event is a JSON object").into());
    }
    Ok(serde_json::from_slice(data)?)
}

/// Sets a member; what is no object stays as it is.
pub(super) fn set(value: &mut Value, name: &str, new: Value) {
    if let Some(members) = value.as_object_mut() {
        members.insert(name.to_owned(), new);
    }
}

/// All texts in a tree that a model has written.
pub(crate) fn gather(value: &Value, text: &mut String) {
    match value {
        Value::String(part) => text.push_str(part),
        Value::Array(list) => list.iter().for_each(|value| gather(value, text)),
        Value::Object(map) => {
            let written = map.iter().filter(|(name, _)| !UNWRITTEN.contains(&name.as_str()));
            written.for_each(|(_, value)| gather(value, text));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
