//! What the caller chooses of QEMU's command line.

use super::accelerator::Accelerator;

/// What QEMU is started with besides what the harness needs, in every process.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// The type of the machine, with its options, if not that of the scenario.
    pub machine: Option<String>,
    /// What executes the guest's instructions.
    pub accelerator: Accelerator,
    /// Arguments that follow the harness's own.
    pub arguments: Vec<String>,
    /// The words before QEMU's path: a program that starts QEMU, and its arguments.
    pub wrapper: Vec<String>,
}
