//! The client: a closed loop over one Unix socket or port; prints one line of JSON.
//!
//! `load (--socket PATH | --address IP:PORT) --mode MODE [--concurrency N] [--seconds S] [--warm-up S]
//! [--calls N] [--keep true] [--request-bytes N] [--window N]`. Modes over gRPC: echo; reserve,
//! commit, pair and debit of the ledger; rate-limit and hits of other rate limiters. With Redis:
//! redis-debit, redis-pair. Over HTTP: stream-N, a chat completion of
//! N events. Fails when an answer was an error or did not say OK.
#![forbid(unsafe_code)]

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use bursar_bench::plan::Plan;
use bursar_bench::{Address, Arguments, Failure, driver, redis, runtime, stream};

fn main() -> Result<(), Failure> {
    let arguments = Arguments::of_process(&[
        "socket",
        "address",
        "mode",
        "concurrency",
        "seconds",
        "warm-up",
        "calls",
        "keep",
        "request-bytes",
        "window",
    ])?;
    let address = match arguments.parsed("address")? {
        Some(address) => Address::Tcp(address),
        None => Address::Unix(PathBuf::from(arguments.required("socket")?)),
    };
    let plan = Plan {
        concurrency: arguments.parsed("concurrency")?.unwrap_or(1),
        window: arguments.parsed("window")?.unwrap_or(1),
        warm_up: Duration::from_secs_f64(arguments.parsed("warm-up")?.unwrap_or(0.2)),
        measured: Duration::from_secs_f64(arguments.parsed("seconds")?.unwrap_or(1.0)),
        calls: arguments.parsed("calls")?,
        keep: arguments.parsed("keep")?.unwrap_or(false),
        request_bytes: arguments.parsed("request-bytes")?.unwrap_or(100),
    };
    let mode = arguments.required("mode")?;
    let report = if let Some(script) = mode.strip_prefix("redis-") {
        runtime()?.block_on(redis::run(&address, script.parse()?, &plan))?
    } else if let Some(events) = mode.strip_prefix("stream-") {
        runtime()?.block_on(stream::run(&address, events.parse()?, &plan))?
    } else {
        runtime()?.block_on(driver::run(&address, mode.parse()?, &plan))?
    };
    writeln!(std::io::stdout(), "{}", report.line(plan.concurrency, plan.measured))?;
    report.check()
}
