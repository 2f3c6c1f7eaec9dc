//! Fuzz targets: what clients ask of the proxy, and what upstreams answer.

use bytes::Bytes;
use serde_json::Value;
use serde_json::json;

use super::dialect::{self, Place};
use super::failure::Failure;
use super::hold::Counts;
use super::members::Members;
use super::request::Call;
use super::route::{Endpoint, Route};
use super::settings::{Engine, UpstreamSection};
use super::sse::{Event, MAX_EVENT_BYTES, Parser};
use crate::prompt::Prompt;

const ENDPOINTS: [Endpoint; 6] = [
    Endpoint::Chat,
    Endpoint::Completions,
    Endpoint::Responses,
    Endpoint::Messages,
    Endpoint::Embeddings,
    Endpoint::CountTokens,
];
const ENGINES: [Engine; 3] = [Engine::LlamaCpp, Engine::Vllm, Engine::Other];
const NOTICE: &str = "[used up]";
/// A call with more members than this is not rewritten here: some are added.
const MEMBERS: usize = 240;

/// Takes the first byte for a choice.
fn choose<T: Copy>(options: &[T], data: &[u8]) -> T {
    options[usize::from(data.first().copied().unwrap_or(0)) % options.len()]
}

/// A prompt in JSON.
pub fn prompt(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(prompt) = Prompt::parse(text) else { return };
    assert!(prompt.beside() >= 3);
    let gathered: usize = prompt.texts.iter().map(String::len).sum();
    // What JSON writes anew may escape, or spell out a number.
    assert!(gathered <= text.len() * 16, "{gathered} bytes of {}", text.len());
}

/// A path, and what it leads to.
pub fn route(data: &[u8]) {
    let Ok(path) = std::str::from_utf8(data) else { return };
    let Some(route) = Route::of(path) else { return };
    assert!(route.path.starts_with("/v1/") && path.ends_with(route.path));
    let climbs = route.path.split('/').any(|part| matches!(part, ".." | "."));
    assert!(!climbs && !route.path.contains('\\') && !route.path.contains("//"), "{path:?}");
}

/// A byte for the endpoint, one for the engine, one for the bound, and a body.
pub fn request(data: &[u8]) {
    let &[_, engine, most, ref body @ ..] = data else { return };
    let endpoint = choose(&ENDPOINTS, data);
    let Ok(mut call) = Call::parse(endpoint, body) else { return };
    // The proxy and the SDK count a prompt alike.
    let text = std::str::from_utf8(body).expect("JSON is UTF-8");
    if let Ok(same) = Prompt::parse(text) {
        assert_eq!((&same.texts, same.beside()), (&call.prompt.texts, call.prompt.beside()));
    }
    assert!(call.choices >= 1 && call.max_output.is_none_or(|most| most >= 0));
    let members = serde_json::from_str::<Value>(text).ok();
    if members.as_ref().and_then(Value::as_object).is_none_or(|all| all.len() > MEMBERS) {
        return;
    }
    let upstream: UpstreamSection = serde_json::from_value(json!({
        "name": "u", "url": "http://x", "api": "openai", "engine": "other", "key": null,
        "models": ["*"],
    }))
    .expect("it is an upstream");
    let upstream = UpstreamSection { engine: choose(&ENGINES, &[engine]), ..upstream };
    call.bound(most.into(), &upstream);
    call.penalise(1.25, &upstream);
    call.ask_for_usage(upstream.engine);
    let json = call.members.to_json();
    let again = Call::parse(endpoint, &json).expect("what was rewritten is a call");
    assert_eq!(again.max_output, Some(most.into()));
    assert_eq!(
        (again.stream, again.choices, &again.model),
        (call.stream, call.choices, &call.model)
    );
    assert_eq!(
        (&again.prompt.texts, again.prompt_json()),
        (&call.prompt.texts, call.prompt_json())
    );
}

/// A byte for the interface, and a whole answer.
pub fn answer(data: &[u8]) {
    let endpoint = choose(&ENDPOINTS, data);
    let Ok(mut answer) = serde_json::from_slice::<Value>(data.get(1..).unwrap_or_default()) else {
        return;
    };
    let mut text = String::new();
    let Ok(read) = dialect::read_answer(endpoint, &answer, &mut text) else { return };
    assert!(text.len() <= data.len());
    check_counts(read.report.credible(!text.is_empty()).over(Counts::default()));
    if read.by_length {
        dialect::add_notice(endpoint, &mut answer, NOTICE);
        assert!(answer["bursar"].is_object(), "it says why: {answer}");
    }
}

fn check_counts(counts: Option<Counts>) {
    let sound = |counts: Counts| counts.input >= 0 && counts.output >= 0 && counts.input < 1 << 31;
    assert!(counts.is_none_or(sound), "{counts:?}");
}

/// A byte for the interface, one for the size of the chunks, one for the event after which it is cut,
/// and a stream.
pub fn stream(data: &[u8]) {
    let &[_, size, cut, ref bytes @ ..] = data else { return };
    let endpoint = choose(&ENDPOINTS, data);
    let events = events(bytes, bytes.len().max(1));
    assert_eq!(events, self::events(bytes, usize::from(size) % 64 + 1), "chunks change nothing");
    let raw: Vec<u8> = events.iter().flat_map(|event| event.raw.to_vec()).collect();
    let marked = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    assert!(marked.starts_with(&raw), "nothing is changed on the way");
    let mut dialect = dialect::of(endpoint);
    let mut used = Counts::default();
    for (number, event) in events.iter().filter(|event| !event.data.is_empty()).enumerate() {
        let mut text = String::new();
        let Ok(seen) = dialect.read(&event.data, &mut text) else { break };
        assert!(text.len() <= event.data.len());
        let told = seen.report.credible(!text.is_empty()).over(used);
        check_counts(told);
        used = told.unwrap_or(used);
        let is_done = event.data.as_ref() == b"[DONE]";
        if matches!(seen.place, Place::End { .. } | Place::Last { .. })
            && !is_done
            && number % 4 == 3
        {
            check_written(&dialect.end_with_notice(&event.data, NOTICE), true);
        }
        if number == usize::from(cut) {
            break;
        }
    }
    check_written(&dialect.fail(&Failure::exhausted("used up")), false);
    check_written(&dialect.cut(NOTICE, used, cut % 2 == 0), false);
}

fn events(bytes: &[u8], size: usize) -> Vec<Event> {
    let (mut parser, mut events) = (Parser::default(), Vec::new());
    for chunk in bytes.chunks(size) {
        parser.push(chunk);
        while let Ok(Some(event)) = parser.next() {
            assert!(event.raw.len() <= MAX_EVENT_BYTES && event.data.len() <= event.raw.len());
            events.push(event);
        }
    }
    events
}

/// What the proxy writes of its own is a stream: whole events of JSON.
fn check_written(text: &str, has_notice: bool) {
    let written = events(text.as_bytes(), text.len().max(1));
    let raw: Vec<Bytes> = written.iter().map(|event| event.raw.clone()).collect();
    assert_eq!(raw.concat(), text.as_bytes(), "it ends with a whole event");
    for event in &written {
        let is_done = event.data.as_ref() == b"[DONE]";
        assert!(is_done || Members::parse(&event.data).is_ok(), "{event:?}");
    }
    assert!(!has_notice || text.is_empty() || text.contains("bursar"), "{text}");
}
