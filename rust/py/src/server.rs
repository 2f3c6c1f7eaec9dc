//! `bursar._core.Server`: the daemon, and the watchdog's end of `ProcessService`.

use std::collections::HashMap;
use std::time::Duration;

use bursar_server::config::Config;
use bursar_server::{ApiError, Running};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::error::{core_error, open_error};

/// A call of `ProcessService` as Python takes it.
type Taken<'py> =
    (u64, &'static str, Bound<'py, PyBytes>, Option<(u32, u32, u64)>, (String, String));

/// The daemon in this process; its threads never take the GIL.
#[pyclass(name = "Server", frozen, module = "bursar._core")]
pub(crate) struct PyServer {
    running: Running,
    stopped: std::sync::Mutex<bool>,
    stop: std::sync::Condvar,
}

#[pymethods]
impl PyServer {
    #[new]
    fn new(py: Python<'_>, config_json: &str) -> PyResult<PyServer> {
        let config = Config::parse(config_json).map_err(|error| open_error(py, error.into()))?;
        let running = py.detach(|| bursar_server::serve(config));
        let running = running.map_err(|error| open_error(py, error))?;
        Ok(PyServer {
            running,
            stopped: std::sync::Mutex::new(false),
            stop: std::sync::Condvar::new(),
        })
    }

    #[getter]
    fn addresses(&self) -> Vec<String> {
        self.running.addresses().to_vec()
    }

    /// Where the proxy listens, if there is one.
    #[getter]
    fn proxy_address(&self) -> Option<String> {
        self.running.proxy_address().map(|address| address.to_string())
    }

    /// Where the dashboard listens, if there is one.
    #[getter]
    fn dashboard_address(&self) -> Option<String> {
        self.running.dashboard_address().map(|address| address.to_string())
    }

    /// Where metrics are served, if they are.
    #[getter]
    fn metrics_address(&self) -> Option<String> {
        self.running.metrics_address().map(|address| address.to_string())
    }

    #[getter]
    fn recovery(&self) -> String {
        self.running.engine().recovery().to_owned()
    }

    /// The configured limits that do not count, a line each.
    #[getter]
    fn overruled(&self) -> Vec<String> {
        self.running.engine().overruled().to_vec()
    }

    /// Why only reads are answered any more, if so.
    #[getter]
    fn failure(&self) -> Option<String> {
        self.running.engine().failure()
    }

    /// Whether so little room is left for the store that nothing is held anew.
    #[getter]
    fn is_store_nearly_full(&self) -> bool {
        self.running.engine().is_store_nearly_full()
    }

    /// How many connections found no place.
    #[getter]
    fn turned_away(&self) -> u64 {
        self.running.turned_away()
    }

    /// How many descriptors of Envoy's were refused since no rule fits them.
    #[getter]
    fn unmatched_descriptors(&self) -> u64 {
        self.running.unmatched_descriptors()
    }

    /// Puts what the receivers of notifications tell of themselves, as OpenMetrics, on the page.
    fn set_receiver_figures(&self, families: &str) {
        self.running.set_receiver_figures(families);
    }

    /// Takes over certificates that have changed; returns what there is to tell.
    fn refresh_tls(&self, py: Python<'_>) -> Option<String> {
        py.detach(|| self.running.refresh_tls())
    }

    /// Answers one call that came by no socket; serialized messages in and out.
    fn call<'py>(
        &self,
        py: Python<'py>,
        method: &str,
        request: &[u8],
    ) -> PyResult<Bound<'py, PyBytes>> {
        let answer = py.detach(|| self.running.engine().call_of_sidecar(method, request));
        answer.map(|bytes| PyBytes::new(py, &bytes)).map_err(|error| core_error(py, &error))
    }

    /// From now on the calls of `ProcessService` wait for `next_process_call`.
    fn attach_watchdog(&self) {
        self.running.processes().attach();
    }

    /// Takes a call: its id, its method, the request, the pid, user and start time of its caller, and
    /// what that is called, with the account that it is bound to.
    /// None when there is none in time, or the daemon drains.
    fn next_process_call<'py>(&self, py: Python<'py>, timeout_s: f64) -> Option<Taken<'py>> {
        let call = py.detach(|| self.running.processes().next(seconds(timeout_s)))?;
        let caller = call.caller.map(|caller| (caller.pid, caller.uid, caller.start_ticks));
        let by = (call.by.to_string(), call.within.to_string());
        Some((call.id, call.method, PyBytes::new(py, &call.request), caller, by))
    }

    /// Answers a call.
    fn answer_process_call(&self, id: u64, response: &[u8]) {
        self.running.processes().answer(id, Ok(response.to_vec()));
    }

    /// Fails a call with a reason out of the error table.
    fn fail_process_call(
        &self,
        id: u64,
        reason: &str,
        message: &str,
        metadata: HashMap<String, String>,
    ) {
        self.running.processes().answer(id, Err(ApiError::of_name(reason, message, metadata)));
    }

    /// Sends a `WatchProcessesResponse` to those who watch.
    fn publish_process_event(&self, py: Python<'_>, event: &[u8]) -> PyResult<()> {
        self.running.processes().publish(event).map_err(|error| core_error(py, &error))
    }

    /// Names the processes that NVML lists, by pid and start time: their capacity is not returned.
    fn set_gpu_processes(&self, processes: Vec<(u32, u64)>) {
        self.running.engine().set_gpu_processes(processes);
    }

    /// Waits for the shutdown, at most so long; true once it has stopped.
    #[pyo3(signature = (timeout_s=None))]
    fn wait(&self, py: Python<'_>, timeout_s: Option<f64>) -> PyResult<bool> {
        py.detach(|| {
            let stopped = self.stopped.lock().map_err(poisoned)?;
            let longest = seconds(timeout_s.unwrap_or(f64::MAX));
            let waited = self.stop.wait_timeout_while(stopped, longest, |stopped| !*stopped);
            waited.map(|(stopped, _)| *stopped).map_err(poisoned)
        })
    }

    /// Drains: takes no new calls, finishes those under way, closes the store. Holds are kept.
    fn shutdown(&self, py: Python<'_>) -> PyResult<()> {
        let ended = py.detach(|| self.running.shutdown());
        *self.stopped.lock().map_err(poisoned)? = true;
        self.stop.notify_all();
        ended.map_err(|error| core_error(py, &error))
    }
}

fn poisoned<T>(_error: T) -> PyErr {
    PyRuntimeError::new_err("a thread died while it held the server's lock")
}

/// A time to wait, within what clocks can add.
fn seconds(timeout_s: f64) -> Duration {
    Duration::from_secs_f64(timeout_s.max(0.0).min(f64::from(u32::MAX)))
}
