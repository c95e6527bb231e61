//! Which VMM the cases run on.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};

use super::Stop;
use crate::backend::Backend;
use crate::backend::cpr_vmm::CprVmm;
use crate::backend::mock::{Fault, Mock};
use crate::backend::qemu::{self, Accelerator, ProbeError, Qemu};
use crate::backend::skew::{Course, Skew};

/// The VMM in this binary.
const CARRIED: &str = "cpr-vmm";
/// The QEMU that is found.
const QEMU: &str = "qemu";

#[derive(Args)]
pub(super) struct Vmm {
    /// Another build of the VMM, or a QEMU, instead of the VMM in this binary; `qemu` is the one in
    /// ci/.qemu/bin or $PATH.
    #[arg(long, value_name = "PATH")]
    pub(super) vmm: Option<PathBuf>,
    /// Updates go to this build: a path, `cpr-vmm` for the VMM in this binary, or `qemu`.
    #[arg(long, value_name = "PATH")]
    update_to: Option<String>,
    /// Which of the updates: all, or every other one and the rest back to the first build.
    #[arg(long, value_enum, default_value_t, requires = "update_to")]
    course: Course,
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
    let from = match (vmm.backend, &vmm.vmm) {
        (BackendKind::Mock, _) => Arc::new(Mock::carried(vmm.fault).map_err(own)?),
        (BackendKind::CprVmm, None) => carried(&vmm.vmm_arg)?,
        (BackendKind::CprVmm, Some(path)) => backend_at(path, &vmm.vmm_arg, vmm.accel)?,
    };
    let Some(name) = &vmm.update_to else { return Ok(from) };
    let to = match vmm.backend {
        BackendKind::CprVmm if name == CARRIED => carried(&vmm.vmm_arg)?,
        BackendKind::CprVmm => backend_at(Path::new(name), &vmm.vmm_arg, vmm.accel)?,
        BackendKind::Mock => {
            let mock = Mock::at(Path::new(name), vmm.fault);
            Arc::new(mock.map_err(|e| Stop::usage(format!("cannot find the mock {name}: {e}")))?)
        }
    };
    skewed(from, to, vmm.course)
}

/// A VMM and another build of it.
pub(super) fn skewed(
    from: Arc<dyn Backend>,
    to: Arc<dyn Backend>,
    course: Course,
) -> Result<Arc<dyn Backend>, Stop> {
    Ok(Arc::new(Skew::new(from, to, course).map_err(Stop::usage)?))
}

fn own(e: std::io::Error) -> Stop {
    Stop::environment(format!("cannot find my own binary: {e}"))
}

fn carried(more: &[String]) -> Result<Arc<dyn Backend>, Stop> {
    Ok(Arc::new(CprVmm::carried().map_err(own)?.with(more)))
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
pub(super) fn contender(name: &str) -> Result<Arc<dyn Backend>, Stop> {
    Ok(match name {
        CARRIED => carried(&[])?,
        "mock" => Arc::new(Mock::carried(None).map_err(own)?),
        path => backend_at(Path::new(path), &[], Accelerator::default())?,
    })
}

/// How `replay` is told of it.
pub(super) fn contender_option(name: &str) -> String {
    match name {
        CARRIED => String::new(),
        "mock" => " --backend mock".to_owned(),
        name => format!(" --vmm {name}"),
    }
}

/// How `replay` is told of another build.
pub(super) fn skew_option(name: &str, course: Course) -> String {
    match course {
        Course::There => format!(" --update-to {name}"),
        Course::ThereAndBack => format!(" --update-to {name} --course there-and-back"),
    }
}

pub(super) fn vmm_option(vmm: &Vmm) -> String {
    let mut option = String::new();
    if let Some(path) = &vmm.vmm {
        option.push_str(&format!(" --vmm {}", path.display()));
    }
    if let Some(name) = &vmm.update_to {
        option.push_str(&skew_option(name, vmm.course));
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
