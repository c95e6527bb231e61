//! Which VMM the cases run on.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};

use super::Stop;
use crate::backend::Backend;
use crate::backend::cpr_vmm::CprVmm;
use crate::backend::mock::{Fault, Mock};
use crate::backend::qemu::{self, Accelerator, ProbeError, Qemu};

/// The QEMU that is found.
const QEMU: &str = "qemu";

#[derive(Args)]
pub(super) struct Vmm {
    /// Another build of the VMM, or a QEMU, instead of the VMM in this binary; `qemu` is the one in
    /// ci/.qemu/bin or $PATH.
    #[arg(long, value_name = "PATH")]
    pub(super) vmm: Option<PathBuf>,
    /// What QEMU runs guests with.
    #[arg(long, value_enum, default_value_t)]
    accel: Accelerator,
    /// One more argument for our VMM; can be repeated.
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    vmm_arg: Vec<String>,
    /// What to run scenarios on.
    #[arg(long, value_enum, default_value_t = BackendKind::CprVmm)]
    backend: BackendKind,
    /// What the mock does wrong.
    #[arg(long, value_enum, hide = true)]
    fault: Option<Fault>,
    /// Leave the VM of a failed case up and print its PID and socket.
    #[arg(long)]
    pub(super) keep: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BackendKind {
    /// Our VMM.
    CprVmm,
    /// A process that only plays a VMM.
    Mock,
}

pub(super) fn backend(vmm: &Vmm) -> Result<Arc<dyn Backend>, Stop> {
    let own = |e: std::io::Error| Stop::environment(format!("cannot find my own binary: {e}"));
    match (vmm.backend, &vmm.vmm) {
        (BackendKind::Mock, _) => Ok(Arc::new(Mock::carried(vmm.fault).map_err(own)?)),
        (BackendKind::CprVmm, None) => {
            Ok(Arc::new(CprVmm::carried().map_err(own)?.with(&vmm.vmm_arg)))
        }
        (BackendKind::CprVmm, Some(path)) => backend_at(path, &vmm.vmm_arg, vmm.accel),
    }
}

/// A QEMU, if it answers as one, else our VMM.
pub(super) fn backend_at(
    path: &Path,
    more: &[String],
    accelerator: Accelerator,
) -> Result<Arc<dyn Backend>, Stop> {
    if path.as_os_str() == QEMU {
        let why = "no QEMU in ci/.qemu/bin or $PATH: run ci/install-qemu, or give its path";
        let path = qemu::find().ok_or_else(|| Stop::environment(why))?;
        return Ok(Arc::new(Qemu::at(&path, accelerator).map_err(Stop::environment)?));
    }
    match Qemu::at(path, accelerator) {
        Ok(qemu) => return Ok(Arc::new(qemu)),
        Err(e @ (ProbeError::TooOld { .. } | ProbeError::Lacks { .. })) => {
            return Err(Stop::environment(e));
        }
        Err(ProbeError::Start { .. } | ProbeError::NotQemu { .. }) => {}
    }
    match CprVmm::at(path) {
        Ok(backend) => Ok(Arc::new(backend.with(more))),
        Err(e) => Err(Stop::usage(format!("cannot find the VMM {}: {e}", path.display()))),
    }
}

/// The VMM that is called so on the command line.
pub(super) fn contender(name: &str, accelerator: Accelerator) -> Result<Arc<dyn Backend>, Stop> {
    let own = |e: std::io::Error| Stop::environment(format!("cannot find my own binary: {e}"));
    Ok(match name {
        "cpr-vmm" => Arc::new(CprVmm::carried().map_err(own)?),
        "mock" => Arc::new(Mock::carried(None).map_err(own)?),
        path => backend_at(Path::new(path), &[], accelerator)?,
    })
}

/// How `replay` is told of it.
pub(super) fn contender_option(name: &str, accelerator: Accelerator) -> String {
    match name {
        "cpr-vmm" => String::new(),
        "mock" => " --backend mock".to_owned(),
        name if accelerator == Accelerator::default() => format!(" --vmm {name}"),
        name => format!(" --vmm {name} --accel {}", accelerator.name()),
    }
}

pub(super) fn vmm_option(vmm: &Vmm) -> String {
    let mut option = String::new();
    if let Some(path) = &vmm.vmm {
        option.push_str(&format!(" --vmm {}", path.display()));
    }
    if vmm.accel != Accelerator::default() {
        option.push_str(&format!(" --accel {}", vmm.accel.name()));
    }
    for argument in &vmm.vmm_arg {
        option.push_str(&format!(" --vmm-arg={argument}"));
    }
    if vmm.backend == BackendKind::Mock {
        option.push_str(" --backend mock");
    }
    if let Some(fault) = vmm.fault {
        option.push_str(&format!(" --fault {fault}"));
    }
    option
}
