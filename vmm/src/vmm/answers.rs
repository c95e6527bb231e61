//! Answers to QMP commands.

use cpr_qmp::info::Empty;
use cpr_qmp::message::QmpError;
use serde::Serialize;
use serde_json::Value;

pub(super) fn generic(error: impl std::error::Error) -> QmpError {
    QmpError::generic(error.to_string())
}

pub(super) fn done() -> Result<Value, QmpError> {
    answer(&Empty {})
}

pub(super) fn answer(of: &(impl Serialize + ?Sized)) -> Result<Value, QmpError> {
    serde_json::to_value(of).map_err(generic)
}
