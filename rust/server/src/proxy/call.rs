//! One call from its request to its answer: whose it is, what it may cost, the hold, the upstream, and
//! for an answer that comes as a whole its settlement. Streams are handed to `stream`.

use std::sync::Arc;

use bursar_ledger::Verdict;
use bursar_ledger::runaway::PROMPT_FINGERPRINT;
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method, Request, Response, header};
use serde_json::Value;
use tokio::sync::mpsc;

use super::count::{Encoding, Growing};
use super::failure::Failure;
use super::hold::{Counts, Hold, Terms};
use super::replay::{self, Begun};
use super::reply::Reply;
use super::request::Call;
use super::route::{Endpoint, PARENT, Route};
use super::settings::Api;
use super::stream::{self, Stream};
use super::upstream::{Upstream, shown_headers, without_key};
use super::{Proxy, body, dialect, probe};
use crate::durable::yield_once;
use crate::peer::Peer;
use crate::places::{Holder, Taken};
use crate::v1;

/// Parts of an answer that wait for a slow client; then its upstream waits.
const PARTS: usize = 4;
/// How often others have their turn before a head leaves without what follows it.
const TURNS: usize = 4;
/// What a hold outlives the timeouts of its upstream by.
const TTL_MARGIN_MS: i64 = 60_000;

/// Answers a call.
pub(crate) async fn answer(proxy: Arc<Proxy>, request: Request<Incoming>) -> Response<Reply> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let Some(route) = Route::of(&path) else {
        let message = "no such path here: the proxy answers /v1/… and /a/ACCOUNT/v1/… of chat \
                       completions, completions, responses, embeddings, models and messages";
        let anthropic = parts.headers.contains_key("anthropic-version");
        let api = if anthropic { Api::Anthropic } else { Api::OpenAi };
        return Failure::not_found(message).response(api);
    };
    // Anthropic's clients ask for models at the same path.
    let api = if parts.headers.contains_key("anthropic-version") {
        Api::Anthropic
    } else {
        route.endpoint.api()
    };
    let answered = try_answer(&proxy, &parts, body, &route, api).await;
    answered.unwrap_or_else(|failure| failure.response(api))
}

async fn try_answer(
    proxy: &Arc<Proxy>,
    parts: &Parts,
    body: Incoming,
    route: &Route<'_>,
    api: Api,
) -> Result<Response<Reply>, Failure> {
    let is_get = parts.method == Method::GET;
    if is_get != (route.endpoint == Endpoint::Models) {
        return Err(Failure::method());
    }
    let nobody = Peer::default();
    let peer = parts.extensions.get().unwrap_or(&nobody);
    let mut caller = None;
    let spender = |shown: Option<&str>| {
        let account = caller.insert(proxy.spender(shown, peer)?).account();
        Ok(Some(account.to_owned()).filter(|account| !account.is_empty()))
    };
    let account = route.account(&parts.headers, &proxy.settings, spender)?;
    let place = proxy.calls.take(Holder::sharing(&account)).ok_or_else(|| {
        Failure::busy("as many calls as proxy.max_calls allows are under way: try again")
    })?;
    let (body, _share) = proxy.room.read(&proxy.settings, body).await?;
    if route.endpoint.is_free() {
        return pass(proxy, parts, route, api, body).await;
    }
    let call = body::parse(route.endpoint, &body).await?;
    let repeatable = match repeatable(proxy, parts, route, &account, &body)? {
        Some(Begun::Again(answer)) => return Ok(*answer),
        Some(Begun::New(first)) => Some(first),
        None => None,
    };
    let (call, upstream, hold, input) = admit(proxy, parts, call, account).await?;
    if let Some(caller) = caller {
        proxy.access.note_reserved(&caller, &proxy.engine, &hold.name);
    }
    let sending = Sending { proxy, parts, path: route.path, upstream, input, place, repeatable };
    sending.forward(call, hold).await
}

/// Looks for an earlier call of the client's key.
fn repeatable(
    proxy: &Proxy,
    parts: &Parts,
    route: &Route<'_>,
    account: &str,
    body: &[u8],
) -> Result<Option<Begun>, Failure> {
    let Some(key) = parts.headers.get("idempotency-key") else { return Ok(None) };
    let key = [account.as_bytes(), route.path.as_bytes(), key.as_bytes()].join(&0);
    let (key, payload) = (proxy.engine.hash(&key), proxy.engine.hash(body));
    proxy.replays.begin(key, payload, proxy.engine.now().mono_ms).map(Some)
}

/// Passes a call on that costs nothing.
async fn pass(
    proxy: &Proxy,
    parts: &Parts,
    route: &Route<'_>,
    api: Api,
    body: Bytes,
) -> Result<Response<Reply>, Failure> {
    let upstream = match body::parse(route.endpoint, &body).await {
        Ok(call) => Some(proxy.upstreams.named(api, &call.model)?),
        Err(_) => proxy.upstreams.first(api),
    };
    let missing = || Failure::not_found("no upstream has this interface here (proxy.upstreams)");
    let upstream = upstream.ok_or_else(missing)?;
    // A question stays one, whatever it carries.
    let body = if parts.method == Method::GET { Bytes::new() } else { body };
    let query = parts.uri.query().map_or(String::new(), |query| format!("?{query}"));
    let path = format!("{}{query}", route.path);
    let response = proxy.upstreams.send(upstream, parts, &path, body).await?;
    whole(proxy, upstream, response).await
}

/// An upstream's answer as a whole, as it came.
async fn whole(
    proxy: &Proxy,
    upstream: &Upstream,
    mut response: Response<Incoming>,
) -> Result<Response<Reply>, Failure> {
    let body = proxy.upstreams.whole(response.body_mut()).await?;
    if matches!(response.status().as_u16(), 401 | 403) {
        // Its words are about the key of the proxy, which is not the client's matter.
        let name = &upstream.section.name;
        let message = format!("the upstream {name} refuses the proxy's key (proxy.upstreams)");
        return Err(Failure::upstream(message));
    }
    let mut answer = Response::new(Reply::whole(without_key(body, upstream)));
    *answer.status_mut() = response.status();
    *answer.headers_mut() = clean(response.headers(), upstream);
    Ok(answer)
}

/// The upstream's headers, less one that repeats its key.
fn clean(headers: &HeaderMap, upstream: &Upstream) -> HeaderMap {
    let mut shown = shown_headers(headers);
    if let Some(key) = &upstream.section.key {
        let key = key.0.as_bytes();
        let told = |value: &header::HeaderValue| {
            !key.is_empty() && memchr::memmem::find(value.as_bytes(), key).is_some()
        };
        let names: Vec<_> =
            shown.iter().filter(|(_, v)| told(v)).map(|(name, _)| name.clone()).collect();
        for name in names {
            shown.remove(name);
        }
    }
    shown
}

/// Holds what the call may cost; where the ledger advises it, more cheaply.
async fn admit<'p>(
    proxy: &'p Proxy,
    parts: &Parts,
    mut call: Call,
    account: String,
) -> Result<(Call, &'p Upstream, Hold, i64), Failure> {
    let mut upstream = proxy.upstreams.named(call.endpoint.api(), &call.model)?;
    if !call.is_told_by(&upstream.section) {
        let message = "n: llama.cpp tells what one answer has used, so ask for one at a time";
        return Err(Failure::invalid(message));
    }
    let mut terms = terms(proxy, upstream, parts, &call, account).await?;
    let hold = Hold::reserve(&proxy.engine, &terms).await?;
    let Some(advice) = hold.advice.clone().filter(|_| hold.verdict >= Verdict::Warn) else {
        return Ok((call, upstream, hold, terms.input));
    };
    let verdict = hold.verdict;
    let fallback = advice.fallback_model.as_deref().filter(|_| verdict >= Verdict::Degrade);
    let shortest = advice.max_new_tokens.unwrap_or(i64::MAX).min(terms.max_output);
    let tokens = terms.input.saturating_add(shortest);
    let moved = fallback.and_then(|model| Some((model, proxy.fallback(&call, model, tokens)?)));
    let most = advice.max_new_tokens.map(|most| most.saturating_mul(call.choices));
    let shorter = most.filter(|most| *most < terms.max_output && call.generates());
    if moved.is_none() && shorter.is_none() {
        follow(&advice, &mut call, upstream);
        return Ok((call, upstream, hold, terms.input));
    }
    hold.release().await?;
    if let Some((model, to)) = moved {
        call.members.set("model", &model);
        model.clone_into(&mut call.model);
        upstream = to;
        terms = self::terms(proxy, upstream, parts, &call, terms.account).await?;
    }
    if let Some(most) = shorter {
        terms.max_output = terms.max_output.min(most);
    }
    // The prompt was counted with the hold before.
    terms.labels.retain(|(name, _)| *name != PROMPT_FINGERPRINT);
    let mut hold = Hold::reserve(&proxy.engine, &terms).await?;
    hold.verdict = hold.verdict.max(verdict);
    follow(&advice, &mut call, upstream);
    Ok((call, upstream, hold, terms.input))
}

/// Has the model sample as the ledger advises.
fn follow(advice: &v1::Advice, call: &mut Call, upstream: &Upstream) {
    if !call.generates() {
        return;
    }
    if let Some(temperature) = advice.temperature {
        call.members.set("temperature", &temperature);
    }
    if let Some(penalty) = advice.repetition_penalty {
        call.penalise(penalty, &upstream.section);
    }
}

/// What a call has to hold.
async fn terms(
    proxy: &Proxy,
    upstream: &Upstream,
    parts: &Parts,
    call: &Call,
    account: String,
) -> Result<Terms, Failure> {
    let settings = &proxy.settings;
    let parent = parent_of(proxy, parts, &account)?;
    let exact = probe::count(&proxy.upstreams, upstream, parts, call).await;
    let (input, counted) = match exact {
        Some(input) => (input, "exact"),
        None => (estimate(proxy, call).await, "estimate"),
    };
    let (max_output, min_output) = if call.generates() {
        let each = call.max_output.unwrap_or(settings.default_max_output_tokens);
        (each.saturating_mul(call.choices), settings.min_output_tokens.saturating_mul(call.choices))
    } else {
        (0, 0)
    };
    let patience = settings.first_byte_timeout + settings.idle_timeout;
    let patience = i64::try_from(patience.as_millis()).unwrap_or(i64::MAX);
    Ok(Terms {
        account,
        model: call.model.clone(),
        input,
        max_output,
        min_output,
        ttl_ms: patience.saturating_add(TTL_MARGIN_MS).min(proxy.engine.times.max_ttl_ms),
        labels: vec![
            ("action", "proxy".into()),
            ("input_count", counted.into()),
            (PROMPT_FINGERPRINT, format!("{:032x}", proxy.engine.hash(&call.prompt_json()))),
        ],
        parent,
    })
}

/// The reservation that a call is a part of, so that agents that call each other have a depth. It is
/// one of the call's own account: whoever may spend there may spend what it holds.
fn parent_of(proxy: &Proxy, parts: &Parts, account: &str) -> Result<String, Failure> {
    let Some(value) = parts.headers.get(PARENT) else { return Ok(String::new()) };
    let name = value.to_str().unwrap_or_default();
    match proxy.engine.whose(name) {
        Ok(Some(whose)) if &*whose.account == account => Ok(name.to_owned()),
        _ => Err(Failure::invalid(format!("{PARENT}: {account} has no such reservation"))),
    }
}

/// About how many tokens the prompt has.
async fn estimate(proxy: &Proxy, call: &Call) -> i64 {
    let encoding = Encoding::of(&proxy.engine, &call.model);
    let bytes: usize = call.prompt.texts.iter().map(String::len).sum();
    if bytes <= body::SMALL_BYTES {
        return encoding.prompt(&call.prompt);
    }
    let prompt = call.prompt.clone();
    let counted = tokio::task::spawn_blocking(move || encoding.prompt(&prompt)).await;
    // No text has more tokens than bytes.
    counted.unwrap_or_else(|_| i64::try_from(bytes).unwrap_or(i64::MAX))
}

/// A call that is admitted, and where it goes.
struct Sending<'a> {
    proxy: &'a Arc<Proxy>,
    parts: &'a Parts,
    path: &'a str,
    upstream: &'a Upstream,
    /// The tokens of its prompt, as far as they are known.
    input: i64,
    place: Taken,
    /// Where its answer is kept, if its client may repeat it.
    repeatable: Option<replay::Place>,
}

impl Sending<'_> {
    /// Sends it on, and its answer back.
    async fn forward(self, mut call: Call, mut hold: Hold) -> Result<Response<Reply>, Failure> {
        let Sending { proxy, upstream, .. } = self;
        let wants_timings = call.members.get("timings_per_token").is_some();
        if call.generates() {
            call.bound(hold.granted / call.choices, &upstream.section);
            call.ask_for_usage(upstream.section.engine);
        }
        let used = Counts { input: self.input, ..Counts::default() };
        // Once it is sent the prompt has to be paid, whoever hears the answer.
        hold.measured(used);
        let body = Bytes::from(call.members.to_json());
        let sent = proxy.upstreams.send(upstream, self.parts, self.path, body).await;
        let response = match sent {
            Ok(response) if response.status().is_success() => response,
            Err(failure) if !failure.never_arrived() => {
                hold.settle(used).await?;
                return Err(failure);
            }
            refused => {
                hold.release().await?;
                return whole(proxy, upstream, refused?).await;
            }
        };
        let growing = Growing::new(Encoding::of(&proxy.engine, &call.model));
        let mut headers = clean(response.headers(), upstream);
        hold.tell(&call.model, &mut headers);
        let is_bounded = hold.granted < hold.asked;
        let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        if !kind.is_some_and(|kind| kind.starts_with("text/event-stream")) {
            let repeatable = self.repeatable;
            let whole =
                Whole { proxy, upstream, call, hold, growing, used, is_bounded, repeatable };
            return whole.settle(response, headers).await;
        }
        let (sender, receiver) = mpsc::channel(PARTS);
        let stream = Stream {
            proxy: Arc::clone(proxy),
            dialect: dialect::of(call.endpoint),
            hold,
            growing,
            terms: stream::Terms {
                wants_usage: call.wants_usage,
                wants_timings,
                is_bounded,
                key: upstream.section.key.as_ref().map(|key| key.0.clone()),
            },
            used,
            told: 0,
            has_ended: false,
            kept: self.repeatable.map(|place| stream::Kept::new(place, headers.clone())),
            _place: self.place,
        };
        tokio::spawn(stream.run(response.into_body(), sender));
        // What came with the head leaves with it: one write, and one reader woken, instead of two.
        for _ in 0..TURNS {
            if receiver.is_empty() {
                yield_once().await;
            }
        }
        let mut answer = Response::new(Reply::Parts(receiver));
        *answer.headers_mut() = headers;
        Ok(answer)
    }
}

/// An answer that comes as a whole.
struct Whole<'a> {
    proxy: &'a Proxy,
    upstream: &'a Upstream,
    call: Call,
    hold: Hold,
    growing: Growing,
    used: Counts,
    is_bounded: bool,
    repeatable: Option<replay::Place>,
}

impl Whole<'_> {
    async fn settle(
        mut self,
        mut response: Response<Incoming>,
        headers: HeaderMap,
    ) -> Result<Response<Reply>, Failure> {
        let body = self.proxy.upstreams.whole(response.body_mut()).await?;
        let read = serde_json::from_slice::<Value>(&body).map_err(dialect::Malformed::from);
        let mut text = String::new();
        let read = read.and_then(|value| {
            dialect::read_answer(self.call.endpoint, &value, &mut text).map(|seen| (value, seen))
        });
        let (mut value, seen) = read.map_err(|error| Failure::upstream(error.to_string()))?;
        let report = seen.report.credible(!text.is_empty());
        let told = report.over(self.used);
        let mut used = told.unwrap_or(self.used);
        if told.is_none() || report.output.is_none() {
            self.growing.push(&text);
            used.output = self.growing.count();
        }
        let is_cut = self.is_bounded && (seen.by_length || used.output >= self.hold.granted);
        let mut body = without_key(body, self.upstream);
        if is_cut && self.call.generates() {
            if self.proxy.settings.strict_errors {
                self.hold.settle(used).await?;
                return Err(Failure::exhausted("the budget ended the answer"));
            }
            dialect::add_notice(self.call.endpoint, &mut value, &self.proxy.settings.notice);
            body = without_key(value.to_string().into(), self.upstream);
        }
        self.hold.settle(used).await?;
        if let Some(place) = self.repeatable {
            place.keep(&headers, body.clone(), self.proxy.engine.now().mono_ms);
        }
        let mut answer = Response::new(Reply::whole(body));
        *answer.headers_mut() = headers;
        Ok(answer)
    }
}

impl Hold {
    /// Tells of it in the headers of the answer.
    fn tell(&self, model: &str, headers: &mut HeaderMap) {
        let mut set = |name: &str, value: String| {
            let (Ok(name), Ok(value)) = (name.parse::<header::HeaderName>(), value.parse()) else {
                return;
            };
            headers.insert(name, value);
        };
        set("x-bursar-model", model.to_owned());
        set("x-bursar-verdict", verdict_name(self.verdict).to_owned());
        set("x-bursar-max-output-tokens", self.granted.to_string());
        for v1::Balance { unit, account, limit, remaining, .. } in &self.balances {
            let name = unit.replace('_', "-");
            set(&format!("x-budget-{name}-remaining"), remaining.to_string());
            set(&format!("x-budget-{name}-account"), account.clone());
            if unit == "tokens" {
                set("x-ratelimit-limit-tokens", limit.to_string());
                set("x-ratelimit-remaining-tokens", (*remaining).max(0).to_string());
            }
        }
    }
}

fn verdict_name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Ok => "ok",
        Verdict::Warn => "warn",
        Verdict::Degrade => "degrade",
        Verdict::Stop => "stop",
    }
}
