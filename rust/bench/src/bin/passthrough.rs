//! The floor of the proxy: hyper's server and client with nothing between them, set up as the
//! proxy's are.
//!
//! `passthrough --listen IP:PORT --upstream IP:PORT`. Prints a line when it listens, and ends when its
//! standard input does.
#![forbid(unsafe_code)]

use bursar_bench::{Arguments, Failure, serving};
use hyper::body::Incoming;
use hyper::http::uri::{Authority, Scheme};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};

fn main() -> Result<(), Failure> {
    let arguments = Arguments::of_process(&["listen", "upstream"])?;
    let upstream: Authority = arguments.required("upstream")?.parse()?;
    let mut http = HttpConnector::new();
    http.set_nodelay(true);
    let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(64).build(http);
    serving(arguments.required("listen")?, move |connection| {
        let (client, upstream) = (client.clone(), upstream.clone());
        async move {
            let _slower_without = connection.set_nodelay(true);
            let service = service_fn(|mut request: Request<Incoming>| {
                let mut parts = std::mem::take(request.uri_mut()).into_parts();
                parts.scheme = Some(Scheme::HTTP);
                parts.authority = Some(upstream.clone());
                *request.uri_mut() = Uri::from_parts(parts).expect("a path came, the rest is set");
                client.request(request)
            });
            let connection = TokioIo::new(connection);
            let _client_gone = http1::Builder::new().serve_connection(connection, service).await;
        }
    })
}
