//! `bursar._core`: thin wrappers. A body converts, calls without the GIL, converts.
#![deny(unsafe_code)]

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use bursar_server::config::Config;
use bursar_server::prompt::Prompt;
use bursar_server::{AccountWatch, ApiError, Engine, tokens};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

mod error;
mod lease;
mod server;

use error::{core_error, open_error};

/// The ledger in this process, without a daemon.
#[pyclass(name = "Engine", frozen, module = "bursar._core")]
struct PyEngine(Arc<Engine>);

#[pymethods]
impl PyEngine {
    #[new]
    fn new(py: Python<'_>, config_json: &str) -> PyResult<PyEngine> {
        let config = Config::parse(config_json).map_err(|error| open_error(py, error.into()))?;
        let opened = py.detach(|| Engine::open(config));
        opened.map(PyEngine).map_err(|error| open_error(py, error))
    }

    /// Answers one call; serialized messages in and out.
    fn call<'py>(
        &self,
        py: Python<'py>,
        method: &str,
        request: &[u8],
    ) -> PyResult<Bound<'py, PyBytes>> {
        let answer = py.detach(|| self.0.call(method, request));
        answer.map(|bytes| PyBytes::new(py, &bytes)).map_err(|error| core_error(py, &error))
    }

    /// What has changed since this watch last looked, serialized; None: nothing.
    fn look<'py>(&self, py: Python<'py>, watch: &PyWatch) -> Option<Bound<'py, PyBytes>> {
        let look = || watch.0.lock().unwrap_or_else(PoisonError::into_inner).look(&self.0);
        py.detach(look).map(|bytes| PyBytes::new(py, &bytes))
    }

    #[getter]
    fn recovery(&self) -> String {
        self.0.recovery().to_owned()
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.0.close()).map_err(|error| core_error(py, &error))
    }
}

/// What one watcher of accounts has seen.
#[pyclass(name = "Watch", frozen, module = "bursar._core")]
struct PyWatch(Mutex<AccountWatch>);

#[pymethods]
impl PyWatch {
    #[new]
    fn new(py: Python<'_>, account: String) -> PyResult<PyWatch> {
        let watch = AccountWatch::new(account).map_err(|error| core_error(py, &error))?;
        Ok(PyWatch(Mutex::new(watch)))
    }
}

/// Exact tokens of a text by an encoding (`o200k_base`, `cl100k_base`).
#[pyfunction]
fn count_tokens(py: Python<'_>, encoding: &str, text: &str) -> PyResult<i64> {
    let counted = py.detach(|| {
        let (_, tokenizer) = tokens::encoding(encoding).ok_or_else(|| tokens::unknown(encoding))?;
        tokens::count(tokenizer, text)
    });
    counted.map_err(|error: ApiError| core_error(py, &error))
}

/// The texts of a call's prompt, and about how many tokens come with them.
#[pyfunction]
fn prompt_parts(py: Python<'_>, call: &str) -> PyResult<(Vec<String>, i64, bool)> {
    let prompt = py.detach(|| Prompt::parse(call)).map_err(|error| core_error(py, &error))?;
    let (beside, has_media) = (prompt.beside(), prompt.has_media());
    Ok((prompt.texts, beside, has_media))
}

/// The bytes of each token of a text by an encoding.
#[pyfunction]
fn split_tokens<'py>(
    py: Python<'py>,
    encoding: &str,
    text: &str,
) -> PyResult<Vec<Bound<'py, PyBytes>>> {
    let split = py.detach(|| {
        let (_, tokenizer) = tokens::encoding(encoding).ok_or_else(|| tokens::unknown(encoding))?;
        tokens::split(tokenizer, text)
    });
    let split = split.map_err(|error: ApiError| core_error(py, &error))?;
    Ok(split.iter().map(|token| PyBytes::new(py, token)).collect())
}

/// Whether the ledger knows a time zone.
#[pyfunction]
fn check_time_zone(name: &str) -> bool {
    let day = bursar_ledger::Period::calendar(bursar_ledger::PeriodKind::Day, name);
    bursar_ledger::Calendar::new(&day).is_ok()
}

/// What recovery would find at a store path, as JSON; changes nothing.
#[pyfunction]
fn check_store(py: Python<'_>, path: &str) -> PyResult<String> {
    let diagnosis = py.detach(|| bursar_store::diagnose(std::path::Path::new(path)));
    let diagnosis = diagnosis.map_err(|error| core_error(py, &ApiError::from(error)))?;
    let report = serde_json::to_value(&diagnosis).map(|mut report| {
        report["ok"] = diagnosis.is_well().into();
        report.to_string()
    });
    report.map_err(|error| PyRuntimeError::new_err(error.to_string()))
}

/// Copies a store, in use or not, to a new file, and verifies it; says what is in it, as JSON.
#[pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "PyO3 makes an owned path of what it is given")]
fn copy_store(py: Python<'_>, store: PathBuf, copy: PathBuf) -> PyResult<String> {
    let copied = py.detach(|| bursar_store::copy_store(&store, &copy));
    let copied = copied.map_err(|error| core_error(py, &ApiError::from(error)))?;
    serde_json::to_string(&copied).map_err(|error| PyRuntimeError::new_err(error.to_string()))
}

/// Has a copy go on as a store: ids that were given out after it was made are passed over.
#[pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "PyO3 makes an owned path of what it is given")]
fn adopt_copy(py: Python<'_>, copy: PathBuf) -> PyResult<()> {
    let adopted = py.detach(|| bursar_store::adopt_copy(&copy));
    adopted.map_err(|error| core_error(py, &ApiError::from(error)))
}

/// What the files of `[server.tls]` hold, in words.
#[pyfunction]
fn describe_tls(py: Python<'_>, section_json: &str) -> PyResult<String> {
    bursar_server::tls::describe(section_json).map_err(|error| open_error(py, error.into()))
}

/// From now on a panic is told to `say`, in one line.
#[pyfunction]
fn tell_panics(say: Py<PyAny>) -> PyResult<()> {
    let tell = move |line: String| {
        Python::try_attach(|py| say.call1(py, (line,)).map_err(|error| error.print(py)));
    };
    Ok(bursar_server::tell_panics(tell)?)
}

#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyEngine>()?;
    module.add_class::<PyWatch>()?;
    module.add_class::<server::PyServer>()?;
    module.add_class::<lease::PyLease>()?;
    module.add_function(wrap_pyfunction!(lease::empty_call, module)?)?;
    module.add_function(wrap_pyfunction!(count_tokens, module)?)?;
    module.add_function(wrap_pyfunction!(prompt_parts, module)?)?;
    module.add_function(wrap_pyfunction!(split_tokens, module)?)?;
    module.add_function(wrap_pyfunction!(check_time_zone, module)?)?;
    module.add_function(wrap_pyfunction!(check_store, module)?)?;
    module.add_function(wrap_pyfunction!(copy_store, module)?)?;
    module.add_function(wrap_pyfunction!(adopt_copy, module)?)?;
    module.add_function(wrap_pyfunction!(describe_tls, module)?)?;
    module.add_function(wrap_pyfunction!(tell_panics, module)?)?;
    module.add("CoreError", module.py().get_type::<error::CoreError>())?;
    module.add("version", env!("CARGO_PKG_VERSION"))
}
