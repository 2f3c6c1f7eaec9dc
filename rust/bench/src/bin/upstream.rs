//! What stands behind the proxies that are measured: a provider that answers at once.
//!
//! `upstream --listen IP:PORT`. Prints a line when it listens, and ends when its standard input does.
#![forbid(unsafe_code)]

use bursar_bench::{Arguments, Failure, serving, stream};

fn main() -> Result<(), Failure> {
    let arguments = Arguments::of_process(&["listen"])?;
    serving(arguments.required("listen")?, |connection| async move {
        let _client_gone = stream::serve(connection).await;
    })
}
