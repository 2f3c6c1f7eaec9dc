//! The providers: their addresses, the connections to them, what they are sent and how their answers
//! are read. Only here is a provider's key written, into the request's own headers.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::http::request::Parts;
use hyper::http::uri::{Authority, Scheme};
use hyper::{HeaderMap, Method, Request, Response, Uri, header};
use hyper_rustls::builderstates::WantsSchemes;
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::timeout;

use super::failure::Failure;
use super::reply::Reply;
use super::route::passed_on;
use super::settings::{Api, ProxySection, UpstreamSection};
use crate::clock::Began;
use crate::config::ConfigError;
use crate::convert;
use crate::durable::yield_once;
use crate::metrics::Answers;

/// Idle connections to one upstream that are kept, and for how long.
const IDLE_CONNECTIONS: usize = 64;
const IDLE: Duration = Duration::from_secs(30);
/// Headers of an answer that belong to its connection, or to nobody behind a proxy.
const DROPPED: [&str; 11] = [
    "alt-svc",
    "connection",
    "content-length",
    "keep-alive",
    "proxy-authenticate",
    "set-cookie",
    "strict-transport-security",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// A provider.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) section: UpstreamSection,
    scheme: Scheme,
    authority: Authority,
    /// What comes before `/v1`.
    prefix: String,
    answers: Answers,
}

impl Upstream {
    fn new(section: &UpstreamSection) -> Result<Upstream, ConfigError> {
        let wrong = || {
            let (name, url) = (&section.name, &section.url);
            ConfigError::new(format!("proxy.upstreams: {name}: {url:?} is not an http(s) address"))
        };
        let uri: Uri = section.url.parse().map_err(|_| wrong())?;
        let parts = uri.into_parts();
        let scheme = parts.scheme.filter(|s| *s == Scheme::HTTP || *s == Scheme::HTTPS);
        let path = parts.path_and_query.as_ref().map_or("", |path| path.path());
        let path = path.trim_end_matches('/');
        Ok(Upstream {
            section: section.clone(),
            scheme: scheme.ok_or_else(wrong)?,
            authority: parts.authority.ok_or_else(wrong)?,
            prefix: path.strip_suffix("/v1").unwrap_or(path).to_owned(),
            answers: Answers::default(),
        })
    }

    fn uri(&self, path: &str) -> Result<Uri, Failure> {
        let path = format!("{}{path}", self.prefix);
        Uri::builder()
            .scheme(self.scheme.clone())
            .authority(self.authority.clone())
            .path_and_query(path)
            .build()
            .map_err(|_| Failure::invalid("the path has characters that no address may have"))
    }
}

/// All providers, and the connections to them.
#[derive(Debug)]
pub(crate) struct Upstreams {
    list: Vec<Upstream>,
    client: Client<HttpsConnector<HttpConnector>, Reply>,
    first_byte: Duration,
    idle: Duration,
    max_body_bytes: usize,
}

impl Upstreams {
    pub(crate) fn new(settings: &ProxySection) -> Result<Upstreams, ConfigError> {
        let list: Result<Vec<_>, _> = settings.upstreams.iter().map(Upstream::new).collect();
        let list = list?;
        let mut http = HttpConnector::new();
        // Without it a small request waits for the acknowledgement of the one before, 40 ms.
        http.set_nodelay(true);
        http.enforce_http(false);
        http.set_connect_timeout(Some(settings.connect_timeout));
        let has_tls = list.iter().any(|upstream| upstream.scheme == Scheme::HTTPS);
        let connector = roots(has_tls)?.https_or_http().enable_http1().wrap_connector(http);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .build(connector);
        Ok(Upstreams {
            list,
            client,
            first_byte: settings.first_byte_timeout,
            idle: settings.idle_timeout,
            max_body_bytes: settings.max_body_bytes,
        })
    }

    /// How each has answered, by name.
    pub(crate) fn answers(&self) -> impl Iterator<Item = (&str, &Answers)> {
        self.list.iter().map(|upstream| (&*upstream.section.name, &upstream.answers))
    }

    /// The first that has the interface and the model.
    pub(crate) fn find(&self, api: Api, model: &str) -> Option<&Upstream> {
        let mut of_api = self.list.iter().filter(|upstream| upstream.section.api == api);
        of_api.find(|upstream| upstream.section.serves(model))
    }

    /// The first that has the interface.
    pub(crate) fn first(&self, api: Api) -> Option<&Upstream> {
        self.list.iter().find(|upstream| upstream.section.api == api)
    }

    /// The same, or what is wrong.
    pub(crate) fn named(&self, api: Api, model: &str) -> Result<&Upstream, Failure> {
        self.find(api, model).ok_or_else(|| {
            let model = convert::cut(model);
            Failure::not_found(format!("no upstream serves {model:?} here (proxy.upstreams)"))
        })
    }

    /// Sends a request; returns once the head of its answer is there.
    pub(crate) async fn send(
        &self,
        upstream: &Upstream,
        parts: &Parts,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, Failure> {
        let name = &upstream.section.name;
        let method = if body.is_empty() { Method::GET } else { Method::POST };
        let mut request = Request::builder().method(method).uri(upstream.uri(path)?);
        for (name, value) in passed_on(parts) {
            request = request.header(name, value);
        }
        // Whatever it packs would have to be unpacked to be metered.
        request = request.header(header::ACCEPT_ENCODING, "identity");
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        if let Some(key) = &upstream.section.key {
            request = match upstream.section.api {
                Api::OpenAi => request.header(header::AUTHORIZATION, format!("Bearer {}", key.0)),
                Api::Anthropic => request.header("x-api-key", &key.0),
            };
        }
        let request = request.body(Reply::whole(body)).map_err(|_| {
            Failure::unreachable(format!("{name}: its key has characters that no header may have"))
        })?;
        let began = Began::now();
        let answered = timeout(self.first_byte, self.client.request(request)).await;
        let status = answered.as_ref().ok().and_then(|it| it.as_ref().ok()).map(Response::status);
        upstream.answers.count(status.map_or(0, |status| status.as_u16()), began.took_ns());
        match answered {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) if error.is_connect() => {
                Err(Failure::unreachable(format!("the upstream {name} cannot be reached")))
            }
            Ok(Err(_)) => Err(Failure::upstream(format!("the upstream {name} broke off"))),
            Err(_) => Err(Failure::upstream_slow(format!(
                "the upstream {name} did not answer in time (proxy.first_byte_timeout)"
            ))),
        }
    }

    /// The next part of an answer; `None`: its end.
    pub(crate) async fn part(&self, body: &mut Incoming) -> Result<Option<Bytes>, Failure> {
        loop {
            match timeout(self.idle, body.frame()).await {
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => return Ok(Some(data)),
                    Err(_trailers) => {}
                },
                Ok(None) => return Ok(None),
                Ok(Some(Err(_))) => return Err(broke_off()),
                Err(_) => {
                    let message = "the upstream paused for too long (proxy.idle_timeout)";
                    return Err(Failure::upstream_slow(message));
                }
            }
        }
    }

    /// The next part of an answer, if it has come by the time that those who are ready have had their
    /// turn; the connection's own task is one of them.
    pub(crate) async fn at_hand(
        &self,
        body: &mut Incoming,
    ) -> Option<Result<Option<Bytes>, Failure>> {
        yield_once().await;
        let frame = poll_fn(|context| Poll::Ready(Pin::new(&mut *body).poll_frame(context))).await;
        match frame {
            Poll::Pending => None,
            Poll::Ready(None) => Some(Ok(None)),
            Poll::Ready(Some(Err(_))) => Some(Err(broke_off())),
            // After trailers nothing follows but the end.
            Poll::Ready(Some(Ok(frame))) => frame.into_data().ok().map(|data| Ok(Some(data))),
        }
    }

    /// All of an answer.
    pub(crate) async fn whole(&self, body: &mut Incoming) -> Result<Bytes, Failure> {
        let mut whole = BytesMut::new();
        while let Some(part) = self.part(body).await? {
            if whole.is_empty() && body.is_end_stream() {
                return Ok(part);
            }
            if whole.len() + part.len() > self.max_body_bytes {
                let message = "the upstream's answer is longer than proxy.max_body_bytes";
                return Err(Failure::upstream(message));
            }
            whole.extend_from_slice(&part);
        }
        Ok(whole.freeze())
    }
}

fn broke_off() -> Failure {
    Failure::upstream("the upstream broke off")
}

/// Whom to trust: those whom the system trusts, else Mozilla's list.
fn roots(needed: bool) -> Result<HttpsConnectorBuilder<WantsSchemes>, ConfigError> {
    let provider = rustls::crypto::ring::default_provider();
    let config = rustls::ClientConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()
        .map_err(|error| ConfigError::new(format!("proxy: TLS: {error}")))?;
    let config = if needed {
        let mozillas = config.clone();
        config.with_native_roots().unwrap_or_else(|_| mozillas.with_webpki_roots())
    } else {
        config.with_root_certificates(rustls::RootCertStore::empty())
    };
    Ok(HttpsConnectorBuilder::new().with_tls_config(config.with_no_client_auth()))
}

/// The headers of an upstream's answer that its client gets to see.
pub(crate) fn shown_headers(headers: &HeaderMap) -> HeaderMap {
    let passed = headers.iter().filter(|(name, _)| !DROPPED.contains(&name.as_str()));
    passed.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Takes a provider's key out of an answer that repeats it.
pub(crate) fn without_key(body: Bytes, upstream: &Upstream) -> Bytes {
    let Some(key) = upstream.section.key.as_ref().filter(|key| !key.0.is_empty()) else {
        return body;
    };
    let finder = memchr::memmem::Finder::new(key.0.as_bytes());
    if finder.find(&body).is_none() {
        return body;
    }
    let (mut clean, mut from) = (BytesMut::new(), 0);
    for at in finder.find_iter(&body) {
        clean.extend_from_slice(&body[from..at]);
        clean.extend_from_slice(b"[key]");
        from = at + key.0.len();
    }
    clean.extend_from_slice(&body[from..]);
    clean.freeze()
}
