//! What a request asks for, and how it is rewritten: model, most output, streaming; all else stays as
//! it came.

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::failure::Failure;
use super::members::Members;
use super::openai::MAX_CHOICES;
use super::route::Endpoint;
use super::settings::{Engine, UpstreamSection};
use crate::prompt::{PROMPTS, Prompt};

/// Members that bound the output, in one interface or engine or another. Each that is there is
/// rewritten: engines differ on which of two they follow.
const MAXIMA: [&str; 6] = [
    "max_completion_tokens",
    "max_tokens",
    "max_output_tokens",
    "n_predict",
    "max_new_tokens",
    "num_predict",
];
/// Members that ask for several answers to one prompt.
const ANSWERS: [&str; 3] = ["n", "best_of", "n_cmpl"];

/// A call taken apart.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) endpoint: Endpoint,
    pub(crate) members: Members,
    pub(crate) model: String,
    pub(crate) stream: bool,
    /// The most output that the client wants of one answer.
    pub(crate) max_output: Option<i64>,
    /// How many answers it wants.
    pub(crate) choices: i64,
    /// Whether it wants to be told the usage of a stream.
    pub(crate) wants_usage: bool,
    /// Whether it has tools or images.
    pub(crate) is_demanding: bool,
    pub(crate) prompt: Prompt,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

impl Call {
    pub(crate) fn parse(endpoint: Endpoint, body: &[u8]) -> Result<Call, Failure> {
        let members = Members::parse(body)
            .map_err(|error| Failure::invalid(format!("the body is not a call: {error}")))?;
        let model: String = read(&members, "model")?
            .ok_or_else(|| Failure::invalid("model: is missing, and the price hangs on it"))?;
        let options: Option<StreamOptions> = read(&members, "stream_options")?;
        let mut choices = 1;
        for name in ANSWERS {
            choices = read(&members, name)?.unwrap_or(1).max(choices);
        }
        if endpoint == Endpoint::Completions {
            choices = prompts(&members)?.saturating_mul(choices);
        }
        if usize::try_from(choices).is_ok_and(|choices| choices > MAX_CHOICES) {
            let message = format!("n: {choices} answers, to all prompts: at most {MAX_CHOICES}");
            return Err(Failure::invalid(message));
        }
        if read(&members, "background")? == Some(true) {
            let message = "background: such an answer never passes here, so it cannot be metered";
            return Err(Failure::invalid(message));
        }
        let mut max_output: Option<i64> = None;
        for name in MAXIMA {
            if let Some(most) = read::<i64>(&members, name)?.filter(|most| *most >= 0) {
                max_output = Some(max_output.map_or(most, |before| before.min(most)));
            }
        }
        let prompt = Prompt::of(|name| members.read(name))
            .map_err(|(name, error)| Failure::invalid(format!("{name}: {error}")))?;
        let is_demanding = prompt.has_media()
            || ["tools", "functions"].iter().any(|name| members.get(name).is_some());
        Ok(Call {
            endpoint,
            stream: read(&members, "stream")?.unwrap_or(false),
            wants_usage: options.is_some_and(|options| options.include_usage),
            members,
            model,
            max_output,
            choices,
            is_demanding,
            prompt,
        })
    }

    /// Its prompt as it came, which tells it from another.
    pub(crate) fn prompt_json(&self) -> Vec<u8> {
        let parts = PROMPTS.iter().filter_map(|name| self.members.get(name));
        parts.map(RawValue::get).collect::<Vec<_>>().join("\0").into_bytes()
    }

    /// Whether its upstream tells what all its answers use: llama.cpp tells that of one of them.
    pub(crate) fn is_told_by(&self, upstream: &UpstreamSection) -> bool {
        self.choices == 1 || upstream.engine != Engine::LlamaCpp
    }

    /// Whether it generates anything.
    pub(crate) fn generates(&self) -> bool {
        self.endpoint != Endpoint::Embeddings
    }

    /// Bounds the output of each answer.
    pub(crate) fn bound(&mut self, most: i64, upstream: &UpstreamSection) {
        let mut found = false;
        for name in MAXIMA {
            if self.members.get(name).is_some_and(|value| value.get() != "null") {
                self.members.set(name, &most);
                found = true;
            }
        }
        if !found {
            self.members.set(self.maximum(upstream), &most);
        }
    }

    /// The member that bounds the output where the client has set none.
    fn maximum(&self, upstream: &UpstreamSection) -> &'static str {
        match self.endpoint {
            Endpoint::Responses => "max_output_tokens",
            // OpenAI's reasoning models refuse the old name; other servers may not know the new one.
            Endpoint::Chat if upstream.url.contains("://api.openai.com") => "max_completion_tokens",
            _ => "max_tokens",
        }
    }

    /// Keeps the model from repeating itself, where the interface has a member for that. `penalty` is a
    /// factor on what was said before, 1 for none; OpenAI's is a difference, 0 for none, 2 at most.
    pub(crate) fn penalise(&mut self, penalty: f64, upstream: &UpstreamSection) {
        if !matches!(self.endpoint, Endpoint::Chat | Endpoint::Completions) {
            return;
        }
        match upstream.engine {
            Engine::LlamaCpp => self.members.set("repeat_penalty", &penalty),
            Engine::Vllm => self.members.set("repetition_penalty", &penalty),
            Engine::Other => {
                let thousandths = ((penalty - 1.0) * 1000.0).round();
                self.members.set("frequency_penalty", &(thousandths / 1000.0).clamp(-2.0, 2.0));
            }
        }
    }

    /// Has the upstream tell what it measures, as often as its engine can.
    pub(crate) fn ask_for_usage(&mut self, engine: Engine) {
        if !self.stream || !matches!(self.endpoint, Endpoint::Chat | Endpoint::Completions) {
            return;
        }
        let mut options: serde_json::Map<String, Value> =
            self.members.read("stream_options").ok().flatten().unwrap_or_default();
        options.insert("include_usage".into(), json!(true));
        if engine == Engine::Vllm {
            options.insert("continuous_usage_stats".into(), json!(true));
        }
        self.members.set("stream_options", &options);
        if engine == Engine::LlamaCpp {
            self.members.set("timings_per_token", &true);
        }
    }
}

/// How many prompts a completion has: each of a list is one, and numbers are the tokens of one.
fn prompts(members: &Members) -> Result<i64, Failure> {
    if !members.get("prompt").is_some_and(|prompt| prompt.get().starts_with('[')) {
        return Ok(1);
    }
    let list: Vec<Value> = read(members, "prompt")?.unwrap_or_default();
    let is_one = list.iter().all(Value::is_number);
    Ok(if is_one { 1 } else { i64::try_from(list.len()).unwrap_or(i64::MAX) })
}

fn read<T: for<'a> Deserialize<'a>>(members: &Members, name: &str) -> Result<Option<T>, Failure> {
    members.read(name).map_err(|error| Failure::invalid(format!("{name}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &Value) -> Result<Call, Failure> {
        Call::parse(Endpoint::Chat, body.to_string().as_bytes())
    }

    #[test]
    fn texts_of_the_prompt_are_gathered_and_images_counted() {
        let call = parse(&json!({
            "model": "m",
            "messages": [
                {"role": "user", "content": [
                    {"type": "text", "text": "look"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                ]},
                {"role": "assistant", "content": "seen"},
            ],
        }))
        .unwrap();
        assert_eq!(call.prompt.texts, ["look", "seen"]);
        // Two messages, a picture, and what every prompt has.
        assert_eq!(call.prompt.beside(), 2 * 4 + 1600 + 3);
        assert!(call.is_demanding);
    }

    #[test]
    fn every_bound_that_an_engine_may_follow_is_rewritten() {
        let mut call =
            parse(&json!({"model": "m", "max_tokens": 90, "n_predict": 70, "n": 2})).unwrap();
        assert_eq!((call.max_output, call.choices), (Some(70), 2));
        let upstream = serde_json::from_value(json!({
            "name": "u", "url": "http://x", "api": "openai", "engine": "other", "key": null,
            "models": ["*"],
        }));
        call.bound(5, &upstream.unwrap());
        let body = String::from_utf8(call.members.to_json()).unwrap();
        assert_eq!(body, r#"{"max_tokens":5,"model":"m","n":2,"n_predict":5}"#);
    }

    #[test]
    fn a_penalty_is_written_as_the_engine_has_it_and_nowhere_else() {
        let penalised = |endpoint, engine: &str| {
            let body = json!({"model": "m", "frequency_penalty": 0.1}).to_string();
            let mut call = Call::parse(endpoint, body.as_bytes()).unwrap();
            let upstream = serde_json::from_value(json!({
                "name": "u", "url": "http://x", "api": "openai", "engine": engine, "key": null,
                "models": ["*"],
            }));
            call.penalise(1.3, &upstream.unwrap());
            String::from_utf8(call.members.to_json()).unwrap()
        };
        let begin = r#"{"frequency_penalty":0.1,"model":"m""#;
        assert_eq!(penalised(Endpoint::Chat, "other"), r#"{"frequency_penalty":0.3,"model":"m"}"#);
        let of_llama = penalised(Endpoint::Completions, "llama.cpp");
        assert_eq!(of_llama, format!(r#"{begin},"repeat_penalty":1.3}}"#));
        let of_vllm = penalised(Endpoint::Chat, "vllm");
        assert_eq!(of_vllm, format!(r#"{begin},"repetition_penalty":1.3}}"#));
        assert_eq!(penalised(Endpoint::Responses, "other"), format!("{begin}}}"));
    }

    #[test]
    fn what_cannot_be_metered_is_refused() {
        for body in [
            json!({"messages": []}),
            json!({"model": 7}),
            json!({"model": "m", "n": 1000}),
            json!({"model": "m", "background": true}),
            json!({"model": "m", "max_tokens": "many"}),
            json!([]),
        ] {
            assert!(parse(&body).is_err(), "{body}");
        }
    }

    #[test]
    fn usage_is_asked_for_beside_what_the_client_asks() {
        let body = json!({"model": "m", "stream": true, "stream_options": {"x": 1}});
        let mut call = parse(&body).unwrap();
        assert!(!call.wants_usage);
        call.ask_for_usage(Engine::Vllm);
        let options: Value = call.members.read("stream_options").unwrap().unwrap();
        assert_eq!(options, json!({"x": 1, "include_usage": true, "continuous_usage_stats": true}));
    }
}
