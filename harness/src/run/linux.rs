//! The kernel that a Linux guest boots.

use std::path::PathBuf;

use crate::kernels::{KernelError, Kernels};
use crate::scenario::Vm;

/// Returns the kernel that the guest of `vm` boots.
pub fn kernel(vm: &Vm) -> Result<PathBuf, KernelError> {
    let kernels = Kernels::find()?;
    let kernel = match &vm.kernel {
        Some(series) => kernels.of_series(series)?,
        None => kernels.newest(),
    };
    Ok(kernel.vmlinuz.clone())
}
