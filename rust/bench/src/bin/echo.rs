//! The floor: a tonic server that answers every call with a constant, set up as the sidecar's is.
//!
//! `echo --socket PATH --response-bytes N`. Prints a line when it listens, and ends when its standard
//! input does.
#![forbid(unsafe_code)]

use std::io::Write;

use bursar_bench::echo::echo_service_server::{EchoService, EchoServiceServer};
use bursar_bench::echo::{EchoRequest, EchoResponse};
use bursar_bench::{
    Arguments, Failure, KEEPALIVE, MAX_CONCURRENT_CALLS_PER_CONNECTION, MAX_MESSAGE_BYTES, calls,
    runtime,
};
use bytes::Bytes;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

struct Echo(Bytes);

#[tonic::async_trait]
impl EchoService for Echo {
    async fn echo(&self, request: Request<EchoRequest>) -> Result<Response<EchoResponse>, Status> {
        let _not_looked_at = request.get_ref();
        Ok(Response::new(EchoResponse { body: self.0.clone() }))
    }
}

fn main() -> Result<(), Failure> {
    let arguments = Arguments::of_process(&["socket", "response-bytes"])?;
    let listener = std::os::unix::net::UnixListener::bind(arguments.required("socket")?)?;
    listener.set_nonblocking(true)?;
    let length = arguments.parsed("response-bytes")?.unwrap_or(200);
    let echo = Echo(Bytes::from(vec![b'~'; calls::echo_body(length)]));
    let server = move || {
        let served = runtime().and_then(|runtime| {
            runtime.block_on(async {
                let incoming = UnixListenerStream::new(UnixListener::from_std(listener)?);
                let service = EchoServiceServer::new(echo);
                tonic::transport::Server::builder()
                    .max_concurrent_streams(MAX_CONCURRENT_CALLS_PER_CONNECTION)
                    .http2_keepalive_interval(Some(KEEPALIVE.0))
                    .http2_keepalive_timeout(Some(KEEPALIVE.1))
                    .add_service(service.max_decoding_message_size(MAX_MESSAGE_BYTES))
                    .serve_with_incoming(incoming)
                    .await
                    .map_err(std::io::Error::other)
            })
        });
        if let Err(error) = served {
            let _nobody_reads = writeln!(std::io::stderr(), "echo: {error}");
        }
    };
    std::thread::Builder::new().name("echo".into()).spawn(server)?;
    writeln!(std::io::stdout(), "{{}}")?;
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}
