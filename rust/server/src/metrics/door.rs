//! `GET /metrics`: its thread, who may ask, and in which format the answer is.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderMap, WWW_AUTHENTICATE};
use hyper::{Method, Request, Response, StatusCode};
use tokio::runtime::Runtime;
use tokio::sync::Mutex;

use super::Metrics;
use super::page::Watchdog;
use super::text::older;
use crate::error::ApiError;
use crate::peer::Peer;
use crate::proxy::Reply;
use crate::v1::ErrorReason;
use crate::web::Web;

/// The most connections at a time: who scrapes needs one.
pub(crate) const MAX_CONNECTIONS: usize = 32;
/// How long a client may take for its request, and to take a part of the answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the watchdog may take for its part of a page.
const WATCHDOG_WITHIN: Duration = Duration::from_secs(2);
/// The watchdog is asked this often at most, however many ask here.
const WATCHDOG_KEPT_MS: i64 = 1_000;
/// Threads for what a runtime may do aside, which is nothing here.
pub(crate) const ASIDE_THREADS: usize = 1;
const OPEN_METRICS: &str = "application/openmetrics-text";
const OPEN_METRICS_1: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT_0_0_4: &str = "text/plain; version=0.0.4; charset=utf-8";

type Answer = Response<Reply>;

/// What the watchdog has told, and when.
type Told = Arc<Mutex<Option<(i64, Watchdog)>>>;

/// The thread of the metrics, from its start to the end of the drain.
pub(crate) fn run(runtime: &Runtime, listener: std::net::TcpListener, metrics: &Arc<Metrics>) {
    let (shared, told) = (Arc::clone(metrics), Told::default());
    let answer = move |request| {
        let (metrics, told) = (Arc::clone(&shared), Arc::clone(&told));
        async move { answer(&metrics, &told, &request).await }
    };
    let (tls, seats) = (metrics.tls.clone(), Arc::clone(&metrics.seats));
    let web = Web { tls, patience: PATIENCE, seats };
    runtime.block_on(web.run(listener, &metrics.api.draining, answer));
}

async fn answer(metrics: &Metrics, told: &Told, request: &Request<Incoming>) -> Answer {
    if request.uri().path() != "/metrics" {
        return say(StatusCode::NOT_FOUND, "there is only /metrics here");
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut answer = say(StatusCode::METHOD_NOT_ALLOWED, "write GET");
        answer.headers_mut().insert(ALLOW, "GET, HEAD".parse().expect("header text"));
        return answer;
    }
    let nobody = Peer::default();
    let peer = request.extensions().get().unwrap_or(&nobody);
    let now_ms = metrics.api.engine.now().wall_ms;
    let caller = metrics.api.access.caller(request.headers(), peer, now_ms);
    if let Err(error) = caller.and_then(|caller| caller.may_oversee()) {
        return refuse(&error);
    }
    let page = metrics.page(&watchdog(metrics, told).await);
    if prefers_open_metrics(request.headers()) {
        whole(StatusCode::OK, OPEN_METRICS_1, page)
    } else {
        whole(StatusCode::OK, TEXT_0_0_4, older(&page))
    }
}

/// What the watchdog tells, or has told a moment ago.
async fn watchdog(metrics: &Metrics, told: &Told) -> Watchdog {
    let mut told = told.lock().await;
    let now_ms = metrics.api.engine.now().mono_ms;
    if let Some((at_ms, watchdog)) = &*told
        && now_ms < at_ms + WATCHDOG_KEPT_MS
    {
        return watchdog.clone();
    }
    let watchdog = match metrics.api.processes.figures(WATCHDOG_WITHIN).await {
        None => Watchdog::Off,
        Some(reply) => reply
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .map_or(Watchdog::Silent, |families| Watchdog::Says(families.into())),
    };
    *told = Some((metrics.api.engine.now().mono_ms, watchdog.clone()));
    watchdog
}

/// Whether a client names OpenMetrics, and asks for nothing else more.
fn prefers_open_metrics(headers: &HeaderMap) -> bool {
    let (mut open, mut other) = (0.0_f32, 0.0_f32);
    let lines = headers.get_all(ACCEPT).iter().filter_map(|line| line.to_str().ok());
    for range in lines.flat_map(|line| line.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let parameter = |part: &str, name: &str| {
            let (key, value) = part.split_once('=')?;
            key.trim().eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        };
        let (mut quality, mut is_known) = (1.0_f32, true);
        for part in parts {
            if let Some(value) = parameter(part, "q") {
                quality = value.parse().unwrap_or(0.0);
            }
            is_known &= parameter(part, "version").is_none_or(|version| version == "1.0.0");
        }
        if media.eq_ignore_ascii_case(OPEN_METRICS) {
            open = if is_known { quality.max(open) } else { open };
        } else if media.eq_ignore_ascii_case("text/plain") {
            other = quality.max(other);
        }
    }
    open > 0.0 && open >= other
}

fn refuse(error: &ApiError) -> Answer {
    let status = match error.reason {
        ErrorReason::Unauthenticated => StatusCode::UNAUTHORIZED,
        ErrorReason::NotAllowed => StatusCode::FORBIDDEN,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let mut answer = say(status, &error.message);
    if status == StatusCode::UNAUTHORIZED {
        answer.headers_mut().insert(WWW_AUTHENTICATE, "Bearer".parse().expect("header text"));
    }
    answer
}

fn say(status: StatusCode, message: &str) -> Answer {
    whole(status, "text/plain; charset=utf-8", format!("{message}\n"))
}

fn whole(status: StatusCode, content_type: &str, body: String) -> Answer {
    let builder = Response::builder().status(status).header(CONTENT_TYPE, content_type);
    builder.body(Reply::whole(Bytes::from(body))).expect("the names are header text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_metrics_is_for_those_who_ask_for_it() {
        let of = |accept: &[&str]| {
            let mut headers = HeaderMap::new();
            for line in accept {
                headers.append(ACCEPT, line.parse().expect("header text"));
            }
            prefers_open_metrics(&headers)
        };
        // What Prometheus 2 and 3 send, a browser, curl, and nobody.
        assert!(of(&["application/openmetrics-text;version=1.0.0;q=0.5,\
             application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*"]));
        assert!(of(&["application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
             text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,*/*;q=0.2"]));
        assert!(of(&["text/plain;q=0.5", "Application/OpenMetrics-Text"]));
        for accept in
            ["text/html,*/*;q=0.8", "*/*", "application/openmetrics-text;q=0", "", ";;,=,q"]
        {
            assert!(!of(&[accept]), "{accept}");
        }
        assert!(!of(&["application/openmetrics-text;version=0.0.1"]));
        assert!(!of(&["application/openmetrics-text;q=0.2, text/plain;q=0.9"]));
        assert!(!of(&[]));
    }
}
