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
use crate::run::case::quoted;

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
    let kind = vmm.backend.unwrap_or(BackendKind::CprVmm);
    let more = More { all: &vmm.vmm_arg, new: &vmm.new_vmm_arg };
    let from = match (kind, &vmm.vmm) {
        (BackendKind::Mock, _) => Arc::new(Mock::carried(vmm.fault).map_err(own)?),
        (BackendKind::CprVmm, None) => carried(more)?,
        (BackendKind::CprVmm, Some(path)) => backend_at(path, more, vmm.accel)?,
    };
    let Some(name) = &vmm.update_to else { return Ok(from) };
    let to = match kind {
        BackendKind::CprVmm if name == CARRIED => carried(more)?,
        BackendKind::CprVmm => backend_at(Path::new(name), more, vmm.accel)?,
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

/// More arguments of our VMM.
#[derive(Clone, Copy, Default)]
pub(super) struct More<'a> {
    all: &'a [String],
    new: &'a [String],
}

fn carried(more: More<'_>) -> Result<Arc<dyn Backend>, Stop> {
    Ok(Arc::new(CprVmm::carried().map_err(own)?.with(more.all).with_new(more.new)))
}

/// A QEMU, if it answers as one, else our VMM.
pub(super) fn backend_at(
    path: &Path,
    more: More<'_>,
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
        Ok(backend) => Ok(Arc::new(backend.with(more.all).with_new(more.new))),
        Err(e) => Err(Stop::usage(format!("cannot find the VMM {}: {e}", path.display()))),
    }
}

/// The VMM that is called so on the command line.
pub(super) fn contender(name: &str, accelerator: Accelerator) -> Result<Arc<dyn Backend>, Stop> {
    Ok(match name {
        CARRIED => carried(More::default())?,
        "mock" => Arc::new(Mock::carried(None).map_err(own)?),
        path => backend_at(Path::new(path), More::default(), accelerator)?,
    })
}

/// How `replay` is told of it.
pub(super) fn contender_option(name: &str, accelerator: Accelerator) -> String {
    match name {
        CARRIED => String::new(),
        "mock" => " --backend mock".to_owned(),
        name if accelerator == Accelerator::default() => format!(" --vmm {}", quoted(name)),
        name => format!(" --vmm {} --accel {}", quoted(name), accelerator.name()),
    }
}

/// How `replay` is told of another build.
pub(super) fn skew_option(name: &str, course: Course) -> String {
    match course {
        Course::There => format!(" --update-to {}", quoted(name)),
        Course::ThereAndBack => format!(" --update-to {} --course there-and-back", quoted(name)),
    }
}

pub(super) fn vmm_option(vmm: &Vmm) -> String {
    let mut option = String::new();
    if let Some(path) = &vmm.vmm {
        option.push_str(&format!(" --vmm {}", quoted(&path.to_string_lossy())));
    }
    if let Some(name) = &vmm.update_to {
        option.push_str(&skew_option(name, vmm.course));
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
