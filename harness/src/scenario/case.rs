//! One run of a scenario: what a TOML scenario compiles to and Rust tests build directly.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::step::Step;
use super::vm::Vm;

/// One run of one scenario, with every parameter fixed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Case {
    /// `theme/scenario[key=value,…]`.
    pub name: String,
    /// What the case shows, in one line.
    pub summary: String,
    /// The guest's seed.
    pub seed: u64,
    /// The time in milliseconds after which the watchdog ends the case.
    #[serde(rename = "time-limit-ms")]
    pub deadline_ms: u64,
    /// The longest blackout of a successful update, in milliseconds; none: the check's own limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_blackout_ms: Option<u64>,
    /// Whether the case runs only when it is requested by name.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub on_request: bool,
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// The virtual machine.
    pub vm: Vm,
}

impl Case {
    /// Whether the host is restarted during the case.
    pub fn restarts_host(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::RestartHost(_)))
    }
}
