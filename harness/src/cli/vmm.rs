//! Which VMM the cases run on.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};

use super::Stop;
use crate::backend::Backend;
use crate::backend::cpr_vmm::CprVmm;
use crate::backend::mock::{Fault, Mock};
use crate::backend::qemu::{self, Accelerator, ProbeError, Qemu};
use crate::run::case::quoted;

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
    /// One more argument for our VMM where it takes a VM over; can be repeated.
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    new_vmm_arg: Vec<String>,
    /// What to run scenarios on [default: cpr-vmm].
    #[arg(long, value_enum)]
    backend: Option<BackendKind>,
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

impl Vmm {
    /// Some other VMM than the default is asked for, or the default by name.
    pub(super) fn is_chosen(&self) -> bool {
        self.backend.is_some() || !vmm_option(self).is_empty()
    }
}

pub(super) fn backend(vmm: &Vmm) -> Result<Arc<dyn Backend>, Stop> {
    let own = |e: std::io::Error| Stop::environment(format!("cannot find my own binary: {e}"));
    let kind = vmm.backend.unwrap_or(BackendKind::CprVmm);
    match (kind, &vmm.vmm) {
        (BackendKind::Mock, _) => Ok(Arc::new(Mock::carried(vmm.fault).map_err(own)?)),
        (BackendKind::CprVmm, None) => {
            let carried = CprVmm::carried().map_err(own)?;
            Ok(Arc::new(carried.with(&vmm.vmm_arg).with_new(&vmm.new_vmm_arg)))
        }
        (BackendKind::CprVmm, Some(path)) => {
            backend_at(path, &vmm.vmm_arg, &vmm.new_vmm_arg, vmm.accel)
        }
    }
}

/// A QEMU, if it answers as one, else our VMM.
pub(super) fn backend_at(
    path: &Path,
    more: &[String],
    more_of_new: &[String],
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
        Ok(backend) => Ok(Arc::new(backend.with(more).with_new(more_of_new))),
        Err(e) => Err(Stop::usage(format!("cannot find the VMM {}: {e}", path.display()))),
    }
}

/// The VMM that is called so on the command line.
pub(super) fn contender(name: &str) -> Result<Arc<dyn Backend>, Stop> {
    let own = |e: std::io::Error| Stop::environment(format!("cannot find my own binary: {e}"));
    Ok(match name {
        "cpr-vmm" => Arc::new(CprVmm::carried().map_err(own)?),
        "mock" => Arc::new(Mock::carried(None).map_err(own)?),
        path => backend_at(Path::new(path), &[], &[], Accelerator::default())?,
    })
}

/// How `replay` is told of it.
pub(super) fn contender_option(name: &str) -> String {
    match name {
        "cpr-vmm" => String::new(),
        "mock" => " --backend mock".to_owned(),
        name => format!(" --vmm {}", quoted(name)),
    }
}

pub(super) fn vmm_option(vmm: &Vmm) -> String {
    let mut option = String::new();
    if let Some(path) = &vmm.vmm {
        option.push_str(&format!(" --vmm {}", quoted(&path.to_string_lossy())));
    }
    if vmm.accel != Accelerator::default() {
        option.push_str(&format!(" --accel {}", vmm.accel.name()));
    }
    for argument in &vmm.vmm_arg {
        option.push_str(&format!(" {}", quoted(&format!("--vmm-arg={argument}"))));
    }
    for argument in &vmm.new_vmm_arg {
        option.push_str(&format!(" {}", quoted(&format!("--new-vmm-arg={argument}"))));
    }
    if vmm.backend == Some(BackendKind::Mock) {
        option.push_str(" --backend mock");
    }
    if let Some(fault) = vmm.fault {
        option.push_str(&format!(" --fault {fault}"));
    }
    option
}
