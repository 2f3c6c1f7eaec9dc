//! What goes wrong, and how each interface says it: status, words, and the shape its clients know.

use bytes::Bytes;
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use super::reply::Reply;
use super::settings::Api;
use crate::error::ApiError;
use crate::v1::{self, ErrorReason};

/// The longest `Retry-After` that the official clients wait for; after a longer one they ask at once.
const WAITED_FOR_S: u32 = 60;

/// The code of a call that no upstream has heard of.
const UNREACHABLE: &str = "upstream_unreachable";

/// Why a call has no answer.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    status: StatusCode,
    /// For machines: `budget_exceeded`.
    code: String,
    message: String,
    /// What a denial names: account, unit, reset time.
    details: Option<Box<Value>>,
    /// When a repeat makes sense, in seconds; `None`: it does not.
    retry_after: Option<u32>,
}

impl Failure {
    fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Failure {
        let (code, message) = (code.to_owned(), message.into());
        Failure { status, code, message, details: None, retry_after: None }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Failure {
        Failure::new(StatusCode::BAD_REQUEST, "invalid_request", message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Failure {
        Failure::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    pub(crate) fn forbidden(message: impl Into<String>) -> Failure {
        Failure::new(StatusCode::FORBIDDEN, "forbidden", message)
    }

    pub(crate) fn method() -> Failure {
        let message = "the path is known, but not with this method";
        Failure::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
    }

    pub(crate) fn too_large(most: usize) -> Failure {
        let message = format!("the request is longer than {most} bytes (proxy.max_body_bytes)");
        Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", message)
    }

    pub(crate) fn slow() -> Failure {
        let message = "the request did not come in time (proxy.client_timeout)";
        Failure::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", message)
    }

    /// Too much at a time: a repeat makes sense.
    pub(crate) fn busy(message: impl Into<String>) -> Failure {
        let failure = Failure::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message);
        Failure { retry_after: Some(1), ..failure }
    }

    /// The same call is under way: a repeat makes sense later.
    pub(crate) fn conflict(message: impl Into<String>) -> Failure {
        let failure = Failure::new(StatusCode::CONFLICT, "conflict", message);
        Failure { retry_after: Some(1), ..failure }
    }

    /// The upstream is down, or what it says makes no sense.
    pub(crate) fn upstream(message: impl Into<String>) -> Failure {
        Failure::new(StatusCode::BAD_GATEWAY, "upstream_failed", message)
    }

    /// The upstream was not asked at all.
    pub(crate) fn unreachable(message: impl Into<String>) -> Failure {
        Failure::new(StatusCode::BAD_GATEWAY, UNREACHABLE, message)
    }

    /// Whether an upstream that it is about has heard nothing of the call.
    pub(crate) fn never_arrived(&self) -> bool {
        !self.status.is_server_error() || self.code == UNREACHABLE
    }

    pub(crate) fn upstream_slow(message: impl Into<String>) -> Failure {
        Failure::new(StatusCode::GATEWAY_TIMEOUT, "upstream_timeout", message)
    }

    /// The budget ends a stream.
    pub(crate) fn exhausted(message: impl Into<String>) -> Failure {
        Failure::new(StatusCode::PAYMENT_REQUIRED, "budget_exhausted", message)
    }

    /// The ledger refuses: for good, or because of too much at a time, `soon` seconds after which there
    /// may be room.
    pub(crate) fn refused(refusal: &v1::Refusal, account: &str, soon: Option<u32>) -> Failure {
        let limiting = if refusal.account.is_empty() { account } else { &refusal.account };
        let (unit, hint) = (&refusal.unit, &refusal.hint);
        let reset = refusal.reset_time.as_ref().map(|time| rfc3339(time.seconds));
        let (code, mut message) = match refusal.reason() {
            v1::refusal::Reason::AccountFrozen => {
                ("account_frozen", format!("the account {limiting} is frozen. What to do: {hint}"))
            }
            v1::refusal::Reason::Runaway => {
                ("runaway", format!("the account {limiting} has run away: {hint}"))
            }
            _ => {
                let short = refusal.shortfall;
                let used_up = format!("the {unit} budget of {limiting} is used up");
                let message =
                    format!("{used_up}: the call is {short} {unit} short. What to do: {hint}");
                ("budget_exceeded", message)
            }
        };
        if let Some(reset) = &reset {
            message.push_str(". It starts anew at ");
            message.push_str(reset);
        }
        let details = json!({
            "account": limiting, "unit": unit, "shortfall": refusal.shortfall, "reset_time": reset,
        });
        let (status, code) = match soon {
            Some(_) => (StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded"),
            None => (StatusCode::PAYMENT_REQUIRED, code),
        };
        let failure = Failure::new(status, code, message);
        Failure { details: Some(Box::new(details)), retry_after: soon, ..failure }
    }

    /// As an answer.
    pub(crate) fn response(&self, api: Api) -> Response<Reply> {
        let body = Bytes::from(self.body(api).to_string());
        let mut builder = Response::builder().status(self.status);
        for (name, value) in self.headers() {
            builder = builder.header(name, value);
        }
        builder.body(Reply::whole(body)).expect("names and values are header text")
    }

    /// The headers of the answer.
    pub(crate) fn headers(&self) -> Vec<(&'static str, String)> {
        let repeats = self.retry_after.is_some_and(|seconds| seconds <= WAITED_FOR_S);
        let mut headers = vec![
            ("content-type", "application/json".to_owned()),
            ("x-should-retry", repeats.to_string()),
        ];
        headers.extend(self.retry_after.map(|seconds| ("retry-after", seconds.to_string())));
        if let Some(details) = &self.details {
            for (header, member) in [
                ("x-budget-account", "account"),
                ("x-budget-unit", "unit"),
                ("x-budget-reset", "reset_time"),
            ] {
                let text = details[member].as_str().filter(|text| !text.is_empty());
                headers.extend(text.map(|text| (header, text.to_owned())));
            }
        }
        headers
    }

    /// As the interface's clients know it.
    pub(crate) fn body(&self, api: Api) -> Value {
        let mut error = match api {
            Api::OpenAi => json!({
                "message": self.message, "type": self.openai_type(), "param": null,
                "code": self.code,
            }),
            Api::Anthropic => json!({"type": self.anthropic_type(), "message": self.message}),
        };
        if let Some(details) = &self.details {
            error["bursar"] = (**details).clone();
        }
        match api {
            Api::OpenAi => json!({"error": error}),
            Api::Anthropic => json!({"type": "error", "error": error}),
        }
    }

    fn openai_type(&self) -> &'static str {
        match self.status.as_u16() {
            402 => "insufficient_quota",
            403 => "permission_error",
            429 => "rate_limit_error",
            400..500 => "invalid_request_error",
            _ => "api_error",
        }
    }

    fn anthropic_type(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            402 => "billing_error",
            403 => "permission_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            400..500 => "invalid_request_error",
            503 => "overloaded_error",
            504 => "timeout_error",
            _ => "api_error",
        }
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Failure {
        let status = match error.reason {
            ErrorReason::Unauthenticated => StatusCode::UNAUTHORIZED,
            ErrorReason::NotAllowed => StatusCode::FORBIDDEN,
            ErrorReason::AccountNotFound => StatusCode::NOT_FOUND,
            ErrorReason::ReservationEnded | ErrorReason::ReservationExpired => StatusCode::CONFLICT,
            ErrorReason::InvalidAccount
            | ErrorReason::InvalidAmount
            | ErrorReason::InvalidField
            | ErrorReason::InvalidKey
            | ErrorReason::UnpricedModel
            | ErrorReason::AmountOverflow => StatusCode::BAD_REQUEST,
            ErrorReason::AccountLimitReached
            | ErrorReason::ReservationLimitReached
            | ErrorReason::StoreUnavailable
            | ErrorReason::StoreNearlyFull
            | ErrorReason::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Failure::new(status, &error.reason_name().to_lowercase(), error.message)
    }
}

/// UTC, as RFC 3339 writes it, in whole seconds.
pub(crate) fn rfc3339(seconds: i64) -> String {
    prost_types::Timestamp { seconds, nanos: 0 }.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_the_calendar_has_them() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(rfc3339(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(4_102_444_799), "2099-12-31T23:59:59Z");
    }

    #[test]
    fn a_denial_names_account_unit_and_reset_in_both_shapes() {
        let refusal = v1::Refusal {
            reason: v1::refusal::Reason::BudgetExhausted.into(),
            account: "acme".into(),
            unit: "tokens".into(),
            shortfall: 7,
            reset_time: Some(prost_types::Timestamp { seconds: 86_400, nanos: 0 }),
            hint: "wait".into(),
        };
        let failure = Failure::refused(&refusal, "acme/x", None);
        let openai = failure.body(Api::OpenAi);
        assert_eq!(openai["error"]["type"], "insufficient_quota");
        assert_eq!(openai["error"]["code"], "budget_exceeded");
        let anthropic = failure.body(Api::Anthropic);
        assert_eq!(anthropic["error"]["type"], "billing_error");
        for body in [openai, anthropic] {
            let message = body["error"]["message"].as_str().unwrap();
            for part in ["acme", "7 tokens", "1970-01-02T00:00:00Z", "wait"] {
                assert!(message.contains(part), "{part:?} in {message:?}");
            }
            assert_eq!(body["error"]["bursar"]["unit"], "tokens");
        }
        let answer = failure.response(Api::OpenAi);
        assert_eq!(answer.status(), 402);
        assert_eq!(answer.headers()["x-should-retry"], "false");
        let soon = |seconds| {
            let answer = Failure::refused(&refusal, "acme/x", Some(seconds)).response(Api::OpenAi);
            let headers = answer.headers();
            let told = [&headers["retry-after"], &headers["x-should-retry"]];
            (answer.status().as_u16(), told.map(|told| told.to_str().unwrap().to_owned()))
        };
        assert_eq!(soon(60), (429, ["60".to_owned(), "true".to_owned()]));
        assert_eq!(soon(61), (429, ["61".to_owned(), "false".to_owned()]));
    }
}
