//! The one table of errors: from the ledger's and the store's to gRPC code and `ErrorInfo`.

use std::borrow::Cow;
use std::collections::HashMap;

use bursar_ledger::{LedgerError, State};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::v1::ErrorReason;

/// The domain of every `ErrorInfo`.
pub const DOMAIN: &str = "bursar";

/// Why a call failed, as the caller hears it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// The machine-readable reason.
    pub reason: ErrorReason,
    /// For a person to read.
    pub message: String,
    /// What varies in the message.
    pub metadata: Vec<(Cow<'static, str>, String)>,
}

impl ApiError {
    pub(crate) fn new(reason: ErrorReason, message: impl Into<String>) -> ApiError {
        ApiError { reason, message: message.into(), metadata: Vec::new() }
    }

    /// The error with this number of an `ErrorReason`, as a lease socket answers it.
    pub fn of_number(reason: i32, message: &str) -> ApiError {
        ApiError::new(ErrorReason::try_from(reason).unwrap_or_default(), message)
    }

    /// The error with this name of an `ErrorReason`, without the enum's prefix; one that is unknown
    /// becomes unspecified.
    pub fn of_name(reason: &str, message: &str, metadata: HashMap<String, String>) -> ApiError {
        let reason = ErrorReason::from_str_name(&format!("ERROR_REASON_{reason}"));
        let mut error = ApiError::new(reason.unwrap_or_default(), message);
        error.metadata.extend(metadata.into_iter().map(|(name, value)| (name.into(), value)));
        error
    }

    /// The daemon takes no new work.
    pub(crate) fn shutting_down() -> ApiError {
        let message = "the sidecar is shutting down: connect again";
        ApiError::new(ErrorReason::ShuttingDown, message)
    }

    /// A field out of its bounds.
    pub(crate) fn field(name: &'static str, message: impl Into<String>) -> ApiError {
        ApiError::new(ErrorReason::InvalidField, format!("{name}: {}", message.into()))
            .with("field", name)
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> ApiError {
        self.metadata.push((name.into(), value.into()));
        self
    }

    /// The reason as it travels: without the enum's prefix.
    pub fn reason_name(&self) -> &'static str {
        let name = self.reason.as_str_name();
        name.strip_prefix("ERROR_REASON_").unwrap_or(name)
    }

    /// The gRPC code.
    pub fn code(&self) -> Code {
        match self.reason {
            ErrorReason::Unspecified => Code::Unknown,
            ErrorReason::InvalidAccount
            | ErrorReason::InvalidAmount
            | ErrorReason::UnknownUnit
            | ErrorReason::InvalidKey
            | ErrorReason::InvalidField => Code::InvalidArgument,
            ErrorReason::NotTheOwner | ErrorReason::NotAllowed => Code::PermissionDenied,
            ErrorReason::Unauthenticated => Code::Unauthenticated,
            ErrorReason::AccountNotFound
            | ErrorReason::ReservationNotFound
            | ErrorReason::ProcessNotFound
            | ErrorReason::TokenNotFound => Code::NotFound,
            ErrorReason::ReservationEnded
            | ErrorReason::ReservationExpired
            | ErrorReason::ReservationLeased
            | ErrorReason::UnpricedModel
            | ErrorReason::UnknownTokenizer
            | ErrorReason::ProcessProtected
            | ErrorReason::AccountInUse => Code::FailedPrecondition,
            ErrorReason::IdempotencyMismatch => Code::AlreadyExists,
            ErrorReason::AmountOverflow => Code::OutOfRange,
            ErrorReason::AccountLimitReached
            | ErrorReason::ReservationLimitReached
            | ErrorReason::LeaseLimitReached
            | ErrorReason::SliceLimitReached
            | ErrorReason::JobLimitReached
            | ErrorReason::TokenLimitReached
            | ErrorReason::StoreNearlyFull => Code::ResourceExhausted,
            ErrorReason::StoreUnavailable
            | ErrorReason::ShuttingDown
            | ErrorReason::WatchdogUnavailable => Code::Unavailable,
        }
    }

    /// The code's name as gRPC writes it.
    pub fn code_name(&self) -> &'static str {
        match self.code() {
            Code::InvalidArgument => "INVALID_ARGUMENT",
            Code::NotFound => "NOT_FOUND",
            Code::FailedPrecondition => "FAILED_PRECONDITION",
            Code::AlreadyExists => "ALREADY_EXISTS",
            Code::PermissionDenied => "PERMISSION_DENIED",
            Code::Unauthenticated => "UNAUTHENTICATED",
            Code::OutOfRange => "OUT_OF_RANGE",
            Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
            Code::Unavailable => "UNAVAILABLE",
            _ => "UNKNOWN",
        }
    }
}

impl From<LedgerError> for ApiError {
    fn from(error: LedgerError) -> ApiError {
        let message = error.to_string();
        let new = |reason| ApiError::new(reason, message.clone());
        match error {
            LedgerError::InvalidAccount { path } => {
                new(ErrorReason::InvalidAccount).with("account", path)
            }
            LedgerError::AccountNotFound { path } => {
                new(ErrorReason::AccountNotFound).with("account", path)
            }
            LedgerError::AccountInUse { path, .. } => {
                new(ErrorReason::AccountInUse).with("account", path)
            }
            LedgerError::ReservationNotFound => new(ErrorReason::ReservationNotFound),
            LedgerError::ReservationEnded(State::Expired) => new(ErrorReason::ReservationExpired),
            LedgerError::ReservationEnded(_) => new(ErrorReason::ReservationEnded),
            LedgerError::ReservationLeased => new(ErrorReason::ReservationLeased),
            LedgerError::IdempotencyMismatch(_) => new(ErrorReason::IdempotencyMismatch),
            LedgerError::NotTheOwner => new(ErrorReason::NotTheOwner),
            LedgerError::Overflow => new(ErrorReason::AmountOverflow),
            LedgerError::InvalidAmount { unit, .. } => {
                new(ErrorReason::InvalidAmount).with("unit", unit.name())
            }
            LedgerError::AccountLimit { max, .. } => {
                new(ErrorReason::AccountLimitReached).with("max", max.to_string())
            }
            LedgerError::ReservationLimit { max } => {
                new(ErrorReason::ReservationLimitReached).with("max", max.to_string())
            }
            LedgerError::StoreNearlyFull => new(ErrorReason::StoreNearlyFull),
            LedgerError::SliceLimit { max } => {
                new(ErrorReason::SliceLimitReached).with("max", max.to_string())
            }
            LedgerError::ParentElsewhere { .. } => {
                new(ErrorReason::InvalidField).with("field", "parent_reservation")
            }
            LedgerError::Period(_) => new(ErrorReason::InvalidField).with("field", "period"),
            LedgerError::Rate(error) => match error {
                bursar_ledger::rates::RateError::Overflow => new(ErrorReason::AmountOverflow),
                _ => new(ErrorReason::InvalidField).with("field", "usage"),
            },
        }
    }
}

impl From<bursar_store::StoreError> for ApiError {
    fn from(error: bursar_store::StoreError) -> ApiError {
        ApiError::new(ErrorReason::StoreUnavailable, format!("the store failed: {error}"))
    }
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Status {
        let metadata: HashMap<String, String> = error
            .metadata
            .iter()
            .map(|(name, value)| (name.clone().into_owned(), value.clone()))
            .collect();
        let details = ErrorDetails::with_error_info(error.reason_name(), DOMAIN, metadata);
        Status::with_error_details(error.code(), error.message, details)
    }
}
