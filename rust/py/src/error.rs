//! The one border for errors: `CoreError` with code, reason, message and metadata as attributes.

use std::collections::HashMap;

use bursar_server::{ApiError, OpenError};
use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyOSError};
use pyo3::prelude::*;

create_exception!(bursar._core, CoreError, PyException, "A call or a start that failed.");

/// A failed call.
pub(crate) fn core_error(py: Python<'_>, error: &ApiError) -> PyErr {
    let metadata: HashMap<&str, &str> =
        error.metadata.iter().map(|(name, value)| (&**name, value.as_str())).collect();
    build(py, error.code_name(), error.reason_name(), &error.message, metadata)
}

/// A lease that the daemon has refused; `reason` is the number of an `ErrorReason`.
pub(crate) fn lease_error(py: Python<'_>, reason: u16, message: &str) -> PyErr {
    core_error(py, &ApiError::of_number(reason.into(), message))
}

/// A failed start.
pub(crate) fn open_error(py: Python<'_>, error: OpenError) -> PyErr {
    let message = error.to_string();
    match error {
        OpenError::Io(_, source) => match source.raw_os_error() {
            Some(number) => PyOSError::new_err((number, message)),
            None => PyOSError::new_err(message),
        },
        OpenError::Config(_) => {
            build(py, "INVALID_ARGUMENT", "INVALID_FIELD", &message, HashMap::new())
        }
        OpenError::Store(_) => {
            build(py, "UNAVAILABLE", "STORE_UNAVAILABLE", &message, HashMap::new())
        }
        OpenError::Accounts(error) => core_error(py, &ApiError::from(error)),
    }
}

fn build(
    py: Python<'_>,
    code: &str,
    reason: &str,
    message: &str,
    metadata: HashMap<&str, &str>,
) -> PyErr {
    let error = CoreError::new_err(message.to_owned());
    let value = error.value(py);
    let set = value
        .setattr("code", code)
        .and_then(|()| value.setattr("reason", reason))
        .and_then(|()| value.setattr("message", message))
        .and_then(|()| value.setattr("metadata", metadata));
    match set {
        Ok(()) => error,
        Err(failed) => failed,
    }
}
