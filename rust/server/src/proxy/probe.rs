//! Asking an engine how many tokens a prompt has: it alone knows its template. Where it does not say,
//! the estimate stands.

use bytes::Bytes;
use hyper::http::request::Parts;
use serde::Deserialize;
use serde_json::{Value, json};

use super::request::Call;
use super::route::Endpoint;
use super::settings::Engine;
use super::upstream::{Upstream, Upstreams};

#[derive(Deserialize)]
struct Counted {
    /// vLLM says `count`, beside the tokens themselves.
    #[serde(rename = "input_tokens", alias = "count")]
    tokens: i64,
}

#[derive(Deserialize)]
struct Tokens {
    tokens: Vec<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Templated {
    prompt: String,
}

/// The exact number, where the engine tells it.
pub(crate) async fn count(
    upstreams: &Upstreams,
    upstream: &Upstream,
    parts: &Parts,
    call: &Call,
) -> Option<i64> {
    let ask = async |path: &str, body: Value| {
        let body = text(body);
        let mut answer = upstreams.send(upstream, parts, path, body).await.ok()?;
        let is_answer = answer.status().is_success();
        upstreams.whole(answer.body_mut()).await.ok().filter(|_| is_answer)
    };
    let member = |name: &str| call.members.read::<Value>(name).ok().flatten();
    let all = || serde_json::to_value(&call.members).ok();
    let counted = |answer: Bytes| serde_json::from_slice::<Counted>(&answer).ok();
    match (upstream.section.engine, call.endpoint) {
        (Engine::LlamaCpp, Endpoint::Chat) => {
            let body = without_output(all()?);
            let prompt = ask("/apply-template", body).await?;
            let prompt: Templated = serde_json::from_slice(&prompt).ok()?;
            let body =
                json!({"content": prompt.prompt, "add_special": true, "parse_special": true});
            let tokens: Tokens = serde_json::from_slice(&ask("/tokenize", body).await?).ok()?;
            i64::try_from(tokens.tokens.len()).ok()
        }
        (Engine::LlamaCpp, Endpoint::Completions) => {
            let prompt = member("prompt").filter(Value::is_string)?;
            let body = json!({"content": prompt, "add_special": true, "parse_special": true});
            let tokens: Tokens = serde_json::from_slice(&ask("/tokenize", body).await?).ok()?;
            i64::try_from(tokens.tokens.len()).ok()
        }
        (Engine::LlamaCpp, Endpoint::Responses) => {
            let body = without_output(all()?);
            Some(counted(ask("/v1/responses/input_tokens", body).await?)?.tokens)
        }
        (Engine::LlamaCpp, Endpoint::Messages) => {
            let body = without_output(all()?);
            Some(counted(ask("/v1/messages/count_tokens", body).await?)?.tokens)
        }
        (Engine::Vllm, Endpoint::Chat | Endpoint::Completions) => {
            let mut body = json!({"model": call.model});
            // What the call does not read would be counted in the place of what it does.
            let is_chat = call.endpoint == Endpoint::Chat;
            let names: &[&str] = if is_chat { &["messages", "tools"] } else { &["prompt"] };
            for name in names {
                if let Some(value) = member(name) {
                    body[*name] = value;
                }
            }
            let answer = ask("/tokenize", body).await?;
            Some(serde_json::from_slice::<Counted>(&answer).ok()?.tokens)
        }
        _ => None,
    }
    .filter(|tokens| (0..1 << 30).contains(tokens))
}

/// The text of a tree.
#[expect(clippy::needless_pass_by_value, reason = "a tree takes many times the memory of its text")]
fn text(body: Value) -> Bytes {
    body.to_string().into()
}

/// The call without what is about its answer.
fn without_output(mut call: Value) -> Value {
    if let Some(members) = call.as_object_mut() {
        for name in ["stream", "stream_options", "max_tokens", "max_completion_tokens", "n"] {
            members.remove(name);
        }
    }
    call
}
