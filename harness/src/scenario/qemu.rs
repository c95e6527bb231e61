//! What a scenario asks of QEMU only.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What QEMU is started with besides what the harness needs. A case with any of it needs QEMU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct QemuVm {
    /// The type of the machine, such as `q35` or `microvm`, and its options after commas; none: `pc`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("pattern" = "^[^,=]+(,.+)?$"))]
    pub machine: Option<String>,
    /// Arguments for the QEMU that boots the VM and for each that takes it over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
}

impl QemuVm {
    /// Whether it asks for nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
