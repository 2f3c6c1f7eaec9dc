//! One request from its path to its answer.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode, header};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::border::{Border, KEY, NO_KEY, harden};
use super::sessions::LASTS_MS;
use super::{Dashboard, PATIENCE, calls, gzip, live};
use crate::error::ApiError;
use crate::peer::Peer;
use crate::proxy::Reply;

/// The longest body of a request.
const BODY_BYTES: usize = 64 * 1024;
/// Messages that wait for a slow watcher.
const PARTS: usize = 4;

/// Why there is no answer.
#[derive(Debug)]
pub(super) struct Failure {
    status: StatusCode,
    reason: String,
    message: String,
}

impl Failure {
    pub(super) fn new(status: StatusCode, reason: &str, message: &str) -> Failure {
        Failure { status, reason: reason.to_owned(), message: message.to_owned() }
    }

    fn response(self) -> Response<Reply> {
        let Failure { status, reason, message } = self;
        answer_of(status, &json!({"error": {"reason": reason, "message": message}}))
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Failure {
        let http = match status.code() {
            Code::InvalidArgument | Code::OutOfRange => StatusCode::BAD_REQUEST,
            Code::Unauthenticated => StatusCode::UNAUTHORIZED,
            Code::PermissionDenied => StatusCode::FORBIDDEN,
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::FailedPrecondition | Code::AlreadyExists => StatusCode::CONFLICT,
            Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let reason = status.get_details_error_info().map(|info| info.reason);
        Failure::new(http, &reason.unwrap_or_default(), status.message())
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Failure {
        Status::from(error).into()
    }
}

/// JSON that no browser keeps.
pub(super) fn answer_of(status: StatusCode, value: &Value) -> Response<Reply> {
    let mut response = Response::new(Reply::whole(Bytes::from(value.to_string())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    response
}

/// Answers a request.
pub(super) async fn answer(
    dashboard: Arc<Dashboard>,
    request: Request<Incoming>,
) -> Response<Reply> {
    let (parts, body) = request.into_parts();
    let asked = Asked { dashboard: &dashboard, parts: &parts };
    let mut response = asked.answer(body).await.unwrap_or_else(Failure::response);
    harden(&mut response);
    response
}

/// A request, without its body.
pub(super) struct Asked<'a> {
    pub(super) dashboard: &'a Arc<Dashboard>,
    parts: &'a Parts,
}

impl Asked<'_> {
    fn border(&self) -> Border<'_> {
        let section = &self.dashboard.section;
        Border {
            is_loopback: section.listen.ip().is_loopback(),
            has_tls: self.dashboard.tls.is_some(),
            hosts: &section.hosts,
        }
    }

    async fn answer(&self, body: Incoming) -> Result<Response<Reply>, Failure> {
        let Parts { method, uri, headers, .. } = self.parts;
        self.border().check_host(uri, headers)?;
        let is_get = method == Method::GET || method == Method::HEAD;
        if !is_get && method != Method::POST {
            let message = "the dashboard answers GET and POST";
            return Err(Failure::new(StatusCode::METHOD_NOT_ALLOWED, "INVALID_FIELD", message));
        }
        if is_get && let Some(found) = self.dashboard.assets.find(uri.path(), headers) {
            return Ok(found);
        }
        self.border().check_page(headers, !is_get)?;
        let body = if is_get { Value::Null } else { self.read(body).await? };
        match (is_get, uri.path()) {
            (true, "/api/live") => self.watch().map_err(|failure| self.explained(failure)),
            (false, "/api/session") => self.sign_in(&body),
            (false, "/api/session/end") => Ok(self.sign_out()),
            (is_get, path) => {
                let found = calls::answer(self, is_get, path, &body).await;
                let found = found.map_err(|failure| self.explained(failure))?;
                let found = found.map(|value| answer_of(StatusCode::OK, &value));
                let message = "there is nothing here: see /";
                found.ok_or(Failure::new(StatusCode::NOT_FOUND, "INVALID_FIELD", message))
            }
        }
    }

    /// The JSON of a body, within its bounds.
    async fn read(&self, mut body: Incoming) -> Result<Value, Failure> {
        let kind = self.parts.headers.get(header::CONTENT_TYPE);
        if kind.is_none_or(|kind| kind != "application/json") {
            let message = "the body has to be application/json";
            return Err(Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "INVALID_FIELD", message));
        }
        let mut whole = BytesMut::new();
        let reading = async {
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|_| invalid("the request broke off"))?;
                let Some(data) = frame.data_ref() else { continue };
                if whole.len() + data.len() > BODY_BYTES {
                    let message = format!("the body is longer than {BODY_BYTES} bytes");
                    let status = StatusCode::PAYLOAD_TOO_LARGE;
                    return Err(Failure::new(status, "INVALID_FIELD", &message));
                }
                whole.extend_from_slice(data);
            }
            Ok(())
        };
        let late = |_elapsed| {
            Failure::new(StatusCode::REQUEST_TIMEOUT, "INVALID_FIELD", "the body took too long")
        };
        timeout(PATIENCE, reading).await.map_err(late)??;
        serde_json::from_slice(&whole).map_err(|error| invalid(&format!("the body: {error}")))
    }

    /// The same call as it would come by gRPC.
    pub(super) fn call<T>(&self, message: T) -> tonic::Request<T> {
        let headers = &self.parts.headers;
        let mut request = tonic::Request::new(message);
        if let Some(shown) = headers.get(header::AUTHORIZATION) {
            let mut only = header::HeaderMap::new();
            only.insert(header::AUTHORIZATION, shown.clone());
            *request.metadata_mut() = MetadataMap::from_headers(only);
        } else if let Some(shown) = self.session() {
            request.metadata_mut().insert("authorization", shown);
        }
        request.extensions_mut().insert(self.peer());
        request
    }

    /// What the session of a request shows, as long as it lasts.
    fn session(&self) -> Option<MetadataValue<Ascii>> {
        let headers = &self.parts.headers;
        let id = self.border().session_of(headers)?;
        let key = headers.get(KEY)?.to_str().ok()?;
        let now_ms = self.dashboard.api.engine.now().mono_ms;
        self.dashboard.sessions.find(id, key, now_ms)
    }

    /// Whether somebody shows who they are, or did before.
    pub(super) fn is_somebody(&self) -> bool {
        let headers = &self.parts.headers;
        headers.contains_key(header::AUTHORIZATION)
            || headers.get(KEY).is_some_and(|key| key != NO_KEY)
    }

    /// Says of who signed in before why that counts no more.
    fn explained(&self, failure: Failure) -> Failure {
        let is_by_session =
            self.is_somebody() && !self.parts.headers.contains_key(header::AUTHORIZATION);
        let is_refused = failure.status == StatusCode::UNAUTHORIZED;
        if !is_refused || !is_by_session || self.session().is_some() {
            return failure;
        }
        let message = "the session is no more: the sidecar has started anew, or 12 hours are \
                       over; sign in again";
        Failure { message: message.to_owned(), ..failure }
    }

    fn peer(&self) -> Peer {
        self.parts.extensions.get().cloned().unwrap_or_default()
    }

    /// A field of the query.
    pub(super) fn field(&self, name: &str) -> Result<String, Failure> {
        let pairs = self.parts.uri.query().unwrap_or_default().split('&');
        let found = pairs.filter_map(|pair| pair.split_once('=')).find(|(found, _)| *found == name);
        let text = found.map_or(Some(String::new()), |(_, value)| decoded(value));
        text.ok_or_else(|| invalid(&format!("{name}: is not UTF-8 in percent-encoding")))
    }

    fn watch(&self) -> Result<Response<Reply>, Failure> {
        let api = self.dashboard.api.clone();
        let caller = api.caller(&self.call(()))?;
        let place = self.dashboard.live.place().ok_or_else(|| {
            let message = "as many watch as dashboard.max_connections allows: close another page";
            Failure::new(StatusCode::SERVICE_UNAVAILABLE, "", message)
        })?;
        let (sender, receiver) = mpsc::channel(PARTS);
        let takes_gzip = gzip::is_taken(&self.parts.headers);
        let parts = live::Parts::new(sender, takes_gzip);
        let live = Arc::clone(&self.dashboard.live);
        tokio::spawn(async move {
            live.watch(api, caller, parts).await;
            drop(place);
        });
        let mut response = Response::new(Reply::Parts(receiver));
        let headers = response.headers_mut();
        let value = header::HeaderValue::from_static;
        headers.insert(header::CONTENT_TYPE, value("text/event-stream"));
        headers.insert(header::CACHE_CONTROL, value("no-store"));
        if takes_gzip {
            headers.insert(header::CONTENT_ENCODING, value("gzip"));
        }
        Ok(response)
    }

    fn sign_in(&self, body: &Value) -> Result<Response<Reply>, Failure> {
        let token = body["token"].as_str().map(str::trim).unwrap_or_default();
        let engine = &self.dashboard.api.engine;
        self.dashboard.api.access.by_token(token, engine.now().wall_ms)?;
        let (id, key) = self.dashboard.sessions.begin(token, engine.now().mono_ms)?;
        let cookie = self.border().cookie_of(&id, LASTS_MS / 1000);
        Ok(with_cookie(answer_of(StatusCode::OK, &json!({"key": key})), &cookie))
    }

    fn sign_out(&self) -> Response<Reply> {
        if let Some(id) = self.border().session_of(&self.parts.headers) {
            self.dashboard.sessions.end(id);
        }
        let cookie = self.border().cookie_of("", 0);
        with_cookie(answer_of(StatusCode::OK, &json!({})), &cookie)
    }
}

fn with_cookie(mut response: Response<Reply>, cookie: &str) -> Response<Reply> {
    let value = header::HeaderValue::from_str(cookie).expect("hexadecimal digits and our words");
    response.headers_mut().insert(header::SET_COOKIE, value);
    response
}

pub(super) fn invalid(message: &str) -> Failure {
    Failure::new(StatusCode::BAD_REQUEST, "INVALID_FIELD", message)
}

/// What `encodeURIComponent` has made of a text.
fn decoded(value: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        rest = more;
        let byte = match (first, more) {
            (b'%', [high, low, ..]) => {
                rest = &more[2..];
                let digits = [*high, *low];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            (b'%', _) => return None,
            _ => *first,
        };
        bytes.push(byte);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_decoded_or_refused() {
        assert_eq!(decoded("acme%2Fa-b"), Some("acme/a-b".to_owned()));
        assert_eq!(decoded("%E2%82%AC+"), Some("€+".to_owned()));
        for broken in ["%", "%4", "%zz", "%ff", "%é0"] {
            assert_eq!(decoded(broken), None, "{broken}");
        }
    }
}
