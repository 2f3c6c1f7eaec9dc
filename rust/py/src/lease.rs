//! A lease for Python: one step on shared memory, and everything else left to the subclass in Python.

use std::path::Path;
use std::time::Duration;

use bursar_lease::client::{Debit, Lease, Unattached};
use bursar_lease::frame::{Attach, Counts};
use pyo3::exceptions::{PyConnectionError, PyOverflowError};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::error::lease_error;

/// `max_new_tokens`, `temperature`, `repetition_penalty`, `fallback_model`, `notice`.
type Advised = (Option<i64>, Option<f64>, Option<f64>, Option<String>, Option<String>);

/// A lease; `bursar.lease` has the class that people see.
#[pyclass(name = "Lease", frozen, subclass, module = "bursar._core")]
pub(crate) struct PyLease {
    lease: Lease,
    /// OK, WARN, DEGRADE, STOP, as Python has them.
    verdicts: [Py<PyAny>; 4],
    patience: Duration,
}

#[pymethods]
impl PyLease {
    /// Attaches. `unit`: its index, or `usage`: input, cached, cache-written tokens and GPU
    /// milliseconds.
    #[new]
    #[pyo3(signature = (socket, reservation, unit, usage, claim, ahead, at_most, verdicts, patience_s))]
    #[expect(clippy::too_many_arguments, reason = "called in one place, by name")]
    fn new(
        py: Python<'_>,
        socket: &str,
        reservation: String,
        unit: Option<u8>,
        usage: (i64, i64, i64, i64),
        claim: u64,
        ahead: i64,
        at_most: i64,
        verdicts: [Py<PyAny>; 4],
        patience_s: f64,
    ) -> PyResult<PyLease> {
        let (input_tokens, cached_input_tokens, cache_write_tokens, gpu_ms) = usage;
        let output =
            Counts::Output { input_tokens, cached_input_tokens, cache_write_tokens, gpu_ms };
        let counts = unit.map_or(output, Counts::Unit);
        let terms = Attach { reservation, counts, claim, ahead, at_most };
        let patience = Duration::try_from_secs_f64(patience_s).unwrap_or_default();
        match py.detach(|| Lease::attach(Path::new(socket), terms)) {
            Ok(lease) => Ok(PyLease { lease, verdicts, patience }),
            Err(error) => Err(unattached(py, error)),
        }
    }

    /// Debits `count` and returns the verdict.
    #[pyo3(signature = (count = 1))]
    fn debit<'py>(slf: &Bound<'py, PyLease>, count: i64) -> PyResult<Bound<'py, PyAny>> {
        let this = slf.get();
        let steps = u64::try_from(count);
        let steps = steps.map_err(|_| PyOverflowError::new_err("a debit is never negative"))?;
        match this.lease.try_debit(steps) {
            Some(Debit::Debited(verdict)) => Ok(this.verdict(slf.py(), verdict)),
            other => Self::debit_slowly(slf, steps, other),
        }
    }

    /// Debits `count` if it fits what is granted; `None`: it does not, or the lease is over.
    fn try_debit<'py>(&self, py: Python<'py>, count: u64) -> Option<Bound<'py, PyAny>> {
        match py.detach(|| self.lease.debit(count, self.patience)) {
            Debit::Debited(verdict) => Some(self.verdict(py, verdict)),
            _ => None,
        }
    }

    /// What is debited.
    #[getter]
    fn used(&self) -> u64 {
        self.lease.used()
    }

    /// What may be debited in all.
    #[getter]
    fn granted(&self) -> u64 {
        self.lease.control().granted
    }

    /// How to go on, as the daemon said last.
    #[getter]
    fn verdict_now<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        let control = self.lease.control();
        self.verdict(py, if control.ended { 3 } else { control.verdict })
    }

    /// Whether it is over.
    #[getter]
    fn ended(&self) -> bool {
        self.lease.control().ended
    }

    /// What to change, or `None`.
    #[getter]
    fn advice_now(&self) -> Option<Advised> {
        let advice = self.lease.advice()?;
        let (tokens, model) = (advice.max_new_tokens, advice.fallback_model);
        Some((tokens, advice.temperature, advice.repetition_penalty, model, advice.notice))
    }

    /// Ends the lease and returns what was debited; the reservation stays.
    fn detach(&self, py: Python<'_>) -> PyResult<u64> {
        py.detach(|| self.lease.detach()).map_err(|error| unattached(py, error))
    }
}

impl Drop for PyLease {
    fn drop(&mut self) {
        // A daemon that hangs is waited for, and other threads need not.
        let _detached = Python::try_attach(|py| py.detach(|| self.lease.detach()));
    }
}

impl PyLease {
    fn verdict<'py>(&self, py: Python<'py>, verdict: u8) -> Bound<'py, PyAny> {
        self.verdicts[usize::from(verdict & 3)].bind(py).clone()
    }

    #[cold]
    fn debit_slowly<'py>(
        slf: &Bound<'py, PyLease>,
        count: u64,
        seen: Option<Debit>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (py, this) = (slf.py(), slf.get());
        let seen = seen.unwrap_or_else(|| py.detach(|| this.lease.debit(count, this.patience)));
        let why = match seen {
            Debit::Debited(verdict) => return Ok(this.verdict(py, verdict)),
            Debit::Exhausted { .. } => "exhausted",
            Debit::Ended => "ended",
            Debit::Away => "away",
            Debit::Forked => "forked",
        };
        let arguments = PyTuple::new(
            py,
            [count.into_pyobject(py)?.into_any(), why.into_pyobject(py)?.into_any()],
        )?;
        slf.call_method1("_stuck", arguments)
    }
}

fn unattached(py: Python<'_>, error: Unattached) -> PyErr {
    match error {
        Unattached::Refused { reason, message } => lease_error(py, reason, &message),
        Unattached::Away(_) | Unattached::Protocol(_) => {
            PyConnectionError::new_err(error.to_string())
        }
    }
}

/// Does nothing with one argument: what any call from Python costs, the floor of `Lease.debit`.
#[pyfunction]
#[pyo3(signature = (count = 1))]
pub(crate) fn empty_call(count: i64) -> i64 {
    count
}
