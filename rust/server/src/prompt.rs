//! What goes into a model by a call of any of the chat interfaces: its texts, and an estimate of what
//! comes with them. The proxy and the Python side count by this, so that they count alike.
//!
//! Pure. How a provider renders roles, tools and pictures is its own: only texts can be counted.

use serde_json::Value;

use crate::error::ApiError;

/// Members of a call whose texts are the prompt.
pub(crate) const PROMPTS: [&str; 8] =
    ["messages", "system", "prompt", "suffix", "input", "instructions", "tools", "functions"];
/// What a message adds to its text in chat templates, and what a whole prompt adds.
const PER_MESSAGE: i64 = 4;
const PER_PROMPT: i64 = 3;
/// What a picture, sound or file is taken for: what the large providers charge for a picture of about
/// a megapixel.
const PER_MEDIUM: i64 = 1_600;
/// The kinds of parts, and the names of members, that are one. What JSON writes in them is no text.
const MEDIA: [&str; 8] =
    ["image", "image_url", "input_image", "input_audio", "audio", "file", "input_file", "document"];
/// Members that are not the model's to read as text: kinds and authors are in the template.
const UNREAD: [&str; 4] = ["type", "role", "id", "cache_control"];

/// A prompt taken apart.
#[derive(Debug, Clone, Default)]
pub struct Prompt {
    /// What can be counted.
    pub texts: Vec<String>,
    messages: i64,
    media: i64,
    /// Tokens that came as numbers.
    tokens: i64,
}

impl Prompt {
    /// That of a call whose members `read` tells; fails with the member that is wrong.
    pub(crate) fn of<E>(
        read: impl Fn(&str) -> Result<Option<Value>, E>,
    ) -> Result<Prompt, (&'static str, E)> {
        let mut prompt = Prompt::default();
        for name in PROMPTS {
            let Some(value) = read(name).map_err(|error| (name, error))? else { continue };
            match &value {
                Value::Array(list) if list.is_empty() => continue,
                Value::Array(list) if matches!(name, "messages" | "input") => {
                    prompt.messages += i64::try_from(list.len()).unwrap_or(i64::MAX);
                }
                _ => prompt.messages += 1,
            }
            if matches!(name, "tools" | "functions") {
                prompt.texts.push(value.to_string());
            } else {
                prompt.gather(value);
            }
        }
        Ok(prompt)
    }

    /// That of a call in JSON.
    pub fn parse(call: &str) -> Result<Prompt, ApiError> {
        let call: Value = serde_json::from_str(call).map_err(|error| {
            ApiError::field("prompt", format!("it is no call, or nested deeper than 127: {error}"))
        })?;
        let member = |name: &str| {
            Ok::<_, ApiError>(call.get(name).filter(|value| !value.is_null()).cloned())
        };
        Prompt::of(member).map_err(|(_, error)| error)
    }

    /// About how many tokens come with the texts.
    pub fn beside(&self) -> i64 {
        self.tokens
            .saturating_add(self.messages.saturating_mul(PER_MESSAGE))
            .saturating_add(self.media.saturating_mul(PER_MEDIUM))
            .saturating_add(PER_PROMPT)
    }

    /// Whether there are pictures, sounds or files.
    pub fn has_media(&self) -> bool {
        self.media > 0
    }

    /// Takes the texts out of a tree; JSON's readers bound its depth.
    fn gather(&mut self, value: Value) {
        match value {
            Value::String(text) => self.texts.push(text),
            Value::Number(_) => self.tokens += 1,
            Value::Array(list) => list.into_iter().for_each(|value| self.gather(value)),
            Value::Object(map) => {
                let kind = map.get("type").and_then(Value::as_str);
                if kind.is_some_and(|kind| MEDIA.contains(&kind)) {
                    self.media += 1;
                    return;
                }
                for (name, value) in map {
                    if MEDIA.contains(&name.as_str()) && !value.is_null() {
                        self.media += 1;
                    } else if !UNREAD.contains(&name.as_str()) {
                        self.gather(value);
                    }
                }
            }
            Value::Null | Value::Bool(_) => {}
        }
    }
}
