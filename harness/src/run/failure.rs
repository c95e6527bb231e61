//! Errors from carrying out a step.

use std::time::Duration;

use crate::check::Finding;
use crate::observe::observation::ObserveError;
use crate::observe::qmp::QmpFault;
use crate::process::environment::EnvironmentError;

/// An error from carrying out a step.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The machine failed, not the VMM.
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
    /// The QMP connection failed.
    #[error(transparent)]
    Qmp(#[from] QmpFault),
    /// The VMM cannot be observed.
    #[error(transparent)]
    Observe(#[from] ObserveError),
    /// The guest did not do what the step waited for.
    #[error("waited {limit:?} for {what}; seen: {seen}")]
    Guest {
        /// What the step waited for.
        what: String,
        /// How long.
        limit: Duration,
        /// What was seen instead.
        seen: String,
    },
    /// The step failed for another reason, such as a VMM that exited or did not exit.
    #[error("{0}")]
    Process(String),
    /// Checks failed, in a repetition inside the step.
    #[error("{} checks failed", .0.len())]
    Checks(Vec<Finding>),
}

impl StepError {
    /// Converts the error to findings; returns an error of the environment as an error.
    pub fn findings(self) -> Result<Vec<Finding>, EnvironmentError> {
        match self {
            Self::Environment(e) => Err(e),
            Self::Checks(findings) => Ok(findings),
            Self::Observe(e @ ObserveError::Ram(_)) => Ok(vec![Finding::new("ram", e.to_string())]),
            other => Ok(vec![Finding::new("step", other.to_string())]),
        }
    }
}
