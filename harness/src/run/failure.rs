//! Why a step could not be carried out.

use std::time::Duration;

use super::EnvironmentError;
use crate::check::Finding;
use crate::observe::observation::ObserveError;
use crate::observe::qmp::QmpFault;

/// Why a step could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The machine, not the VMM.
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
    /// The conversation failed.
    #[error(transparent)]
    Qmp(#[from] QmpFault),
    /// The VMM cannot be observed.
    #[error(transparent)]
    Observe(#[from] ObserveError),
    /// The guest did not do what was awaited.
    #[error("waited {limit:?} for {what}; seen: {seen}")]
    Guest {
        /// What was awaited.
        what: String,
        /// How long.
        limit: Duration,
        /// What there was instead.
        seen: String,
    },
    /// The VMM ended when it should not, or did not when it should.
    #[error("{0}")]
    Process(String),
    /// Checks failed, in a repetition inside the step.
    #[error("{} checks failed", .0.len())]
    Checks(Vec<Finding>),
}

impl StepError {
    /// As findings; an error of the environment is none.
    pub fn findings(self) -> Result<Vec<Finding>, EnvironmentError> {
        match self {
            Self::Environment(e) => Err(e),
            Self::Checks(findings) => Ok(findings),
            Self::Observe(e @ ObserveError::Ram(_)) => Ok(vec![Finding::new("ram", e.to_string())]),
            other => Ok(vec![Finding::new("step", other.to_string())]),
        }
    }
}
