//! The client: closed loop over one Unix socket; prints one line of JSON.
//!
//! `load --socket PATH --mode echo|reserve|commit|debit [--concurrency N] [--seconds S] [--warm-up S]
//! [--calls N] [--keep true] [--request-bytes N]`. Fails when an answer was an error or did not say OK.
#![forbid(unsafe_code)]

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use bursar_bench::driver::{Mode, Plan, run};
use bursar_bench::{Arguments, Failure, runtime};

fn main() -> Result<(), Failure> {
    let arguments = Arguments::of_process(&[
        "socket",
        "mode",
        "concurrency",
        "seconds",
        "warm-up",
        "calls",
        "keep",
        "request-bytes",
    ])?;
    let socket = arguments.required("socket")?;
    let mode: Mode = arguments.required("mode")?.parse()?;
    let seconds: f64 = arguments.parsed("seconds")?.unwrap_or(1.0);
    let concurrency: usize = arguments.parsed("concurrency")?.unwrap_or(1);
    let plan = Plan {
        mode,
        concurrency,
        warm_up: Duration::from_secs_f64(arguments.parsed("warm-up")?.unwrap_or(0.2)),
        measured: Duration::from_secs_f64(seconds),
        calls: arguments.parsed("calls")?,
        keep: arguments.parsed("keep")?.unwrap_or(false),
        request_bytes: arguments.parsed("request-bytes")?.unwrap_or(100),
    };
    let report = runtime()?.block_on(run(Path::new(socket), plan))?;
    let latencies = &report.latencies;
    let (least, most, sum) = report.response_bytes;
    let line = serde_json::json!({
        "concurrency": concurrency,
        "calls": latencies.len(),
        "rate": per_second(latencies.len(), seconds),
        "p50_ns": latencies.value_at_quantile(0.50),
        "p90_ns": latencies.value_at_quantile(0.90),
        "p99_ns": latencies.value_at_quantile(0.99),
        "max_ns": latencies.max(),
        "request_bytes": report.request_bytes,
        "response_bytes": sum.checked_div(report.answers),
        "response_bytes_min": least,
        "response_bytes_max": most,
        "failed": report.failed,
    });
    writeln!(std::io::stdout(), "{line}")?;
    match report.first_failure {
        Some(first) => Err(format!("{} answers failed, the first: {first}", report.failed).into()),
        None => Ok(()),
    }
}

#[expect(clippy::cast_precision_loss, reason = "far fewer calls than a float can count")]
fn per_second(count: u64, seconds: f64) -> f64 {
    count as f64 / seconds
}
