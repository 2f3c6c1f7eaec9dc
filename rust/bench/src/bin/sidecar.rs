//! The sidecar without Python, for measuring.
//!
//! `sidecar --serve CONFIG.json` prints a line when it serves, until its standard input ends, and
//! drains.
//! `sidecar --open CONFIG.json` opens the engine, prints how long that took and closes it.
#![forbid(unsafe_code)]

use std::io::Write;

use bursar_bench::{Arguments, Failure, now};
use bursar_server::Engine;
use bursar_server::config::Config;

fn main() -> Result<(), Failure> {
    let arguments = Arguments::of_process(&["serve", "open"])?;
    let mut out = std::io::stdout();
    if let Some(path) = arguments.parsed::<String>("open")? {
        let config = read(&path)?;
        let start = now();
        let engine = Engine::open(config)?;
        let seconds = start.elapsed().as_secs_f64();
        let line = serde_json::json!({ "seconds": seconds, "recovery": engine.recovery() });
        writeln!(out, "{line}")?;
        return engine.close().map_err(|error| format!("{error:?}").into());
    }
    let running = bursar_server::serve(read(arguments.required("serve")?)?)?;
    writeln!(out, "{}", serde_json::json!({ "recovery": running.engine().recovery() }))?;
    out.flush()?;
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    running.shutdown().map_err(|error| format!("{error:?}").into())
}

fn read(path: &str) -> Result<Config, Failure> {
    let json = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    Ok(Config::parse(&json)?)
}
