//! Options that choose the VMM to run cases on.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, ValueEnum};

use super::CliError;
use super::starting::Starting;
use crate::backend::cpr_vmm::CprVmm;
use crate::backend::mock::{Fault, Mock};
use crate::backend::qemu::{self, ProbeError, Qemu};
use crate::backend::skew::{Course, CrossVersion};
use crate::backend::{Backend, CloudHypervisor};
use crate::observe::patience;
use crate::run::case::quoted;
use crate::run::requirements;

/// Name of the VMM in this binary.
const CARRIED: &str = "cpr-vmm";
/// Name of the QEMU in `ci/.qemu/bin` or `$PATH`.
const QEMU: &str = "qemu";

#[derive(Args)]
pub(super) struct Vmm {
    /// Test this build of the VMM, this QEMU or this Cloud Hypervisor, instead of the VMM in this
    /// binary; `qemu` is the one in ci/.qemu/bin or $PATH.
    #[arg(long, value_name = "PATH")]
    pub(super) vmm: Option<PathBuf>,
    /// Update to this build: a path, `cpr-vmm` for the VMM in this binary, or `qemu`.
    #[arg(long, value_name = "PATH")]
    update_to: Option<String>,
    /// Which updates go to that build: all, or every other one, with the rest going back.
    #[arg(long, value_enum, default_value_t, requires = "update_to")]
    course: Course,
    #[command(flatten)]
    starting: Starting,
    /// Extra argument for the VMM; can be repeated.
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    vmm_arg: Vec<String>,
    /// Extra argument for the VMM in the process that takes over a VM; can be repeated.
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    new_vmm_arg: Vec<String>,
    /// Kind of VMM to test [default: cpr-vmm].
    #[arg(long, value_enum)]
    backend: Option<BackendKind>,
    /// Fault of the mock.
    #[arg(long, value_enum, hide = true)]
    fault: Option<Fault>,
    /// Keep the VM of a failed case running, and print its PID and socket.
    #[arg(long)]
    pub(super) keep: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BackendKind {
    /// Our VMM.
    CprVmm,
    /// A process that only simulates a VMM.
    Mock,
}

impl Vmm {
    /// True if a VMM was chosen explicitly, even if it is the default.
    pub(super) fn is_chosen(&self) -> bool {
        self.backend.is_some() || !vmm_option(self).is_empty()
    }
}

/// Creates the backend that the options describe.
pub(super) fn backend(vmm: &Vmm) -> Result<Arc<dyn Backend>, CliError> {
    let kind = vmm.backend.unwrap_or(BackendKind::CprVmm);
    let more = More { all: &vmm.vmm_arg, new: &vmm.new_vmm_arg, starting: &vmm.starting };
    let must_be_qemu = vmm.starting.qemu.first();
    if kind == BackendKind::Mock {
        more.none_for_the_mock()?;
    }
    let from = match (kind, &vmm.vmm) {
        (BackendKind::Mock, _) => Arc::new(Mock::carried(vmm.fault).map_err(own)?),
        (BackendKind::CprVmm, None) => carried(more)?,
        (BackendKind::CprVmm, Some(path)) => backend_at(path, more, must_be_qemu)?,
    };
    vmm.starting.qemu.check([&*from])?;
    let Some(name) = &vmm.update_to else { return Ok(from) };
    let to = match kind {
        BackendKind::CprVmm if name == CARRIED => carried(more)?,
        BackendKind::CprVmm => backend_at(Path::new(name), more, must_be_qemu)?,
        BackendKind::Mock => {
            let mock = Mock::at(Path::new(name), vmm.fault);
            Arc::new(
                mock.map_err(|e| CliError::usage(format!("cannot find the mock {name}: {e}")))?,
            )
        }
    };
    cross_version(from, to, vmm.course)
}

/// Combines a VMM with the build that it is updated to.
pub(super) fn cross_version(
    from: Arc<dyn Backend>,
    to: Arc<dyn Backend>,
    course: Course,
) -> Result<Arc<dyn Backend>, CliError> {
    Ok(Arc::new(CrossVersion::new(from, to, course).map_err(CliError::usage)?))
}

fn own(e: std::io::Error) -> CliError {
    CliError::environment(format!("cannot find my own binary: {e}"))
}

/// What a VMM is started with: extra arguments for every process, and for those that take over.
#[derive(Clone, Copy)]
struct More<'a> {
    all: &'a [String],
    new: &'a [String],
    starting: &'a Starting,
}

impl More<'_> {
    /// An error if there is anything: the mock has no use for it.
    fn none_for_the_mock(self) -> Result<(), CliError> {
        if !self.starting.wrapper().is_empty() {
            return Err(CliError::usage("cannot use --wrap: the mock takes no wrapper"));
        }
        match self.all.iter().chain(self.new).next() {
            Some(argument) => {
                Err(CliError::usage(format!("the mock takes no argument such as {argument}")))
            }
            None => Ok(()),
        }
    }
}

fn carried(more: More<'_>) -> Result<Arc<dyn Backend>, CliError> {
    Ok(Arc::new(ours(CprVmm::carried().map_err(own)?, more)))
}

fn ours(vmm: CprVmm, more: More<'_>) -> CprVmm {
    expect_the_wrapper(more);
    vmm.with(more.all).with_new(more.new).under(more.starting.wrapper())
}

fn expect_the_wrapper(more: More<'_>) {
    if !more.starting.wrapper().is_empty() {
        patience::expect_a_wrapper();
    }
}

/// Creates a backend for QEMU if `path` is one, else for our VMM; `must_be_qemu` is an option that only
/// QEMU takes.
fn backend_at(
    path: &Path,
    more: More<'_>,
    must_be_qemu: Option<&str>,
) -> Result<Arc<dyn Backend>, CliError> {
    if path.as_os_str() == QEMU {
        let why = "no QEMU in ci/.qemu/bin or $PATH: run ci/install-qemu, or give its path";
        let path = qemu::find().ok_or_else(|| CliError::environment(why))?;
        let qemu = Qemu::at(&path, more.starting.setup()).map_err(CliError::environment)?;
        return qemu_that_starts(qemu, more);
    }
    match Qemu::at(path, more.starting.setup()) {
        Ok(qemu) => return qemu_that_starts(qemu, more),
        Err(ProbeError::Start { .. } | ProbeError::NotQemu { .. }) if must_be_qemu.is_none() => {}
        Err(e @ (ProbeError::Start { .. } | ProbeError::NotQemu { .. })) => {
            let option = must_be_qemu.unwrap_or_default();
            return Err(CliError::usage(format!(
                "cannot use {option}, which only QEMU takes: {e}"
            )));
        }
        Err(e) => return Err(CliError::environment(e)),
    }
    // What cannot be executed is reported as our own VMM.
    if let Ok(Some(other)) = CloudHypervisor::at(path) {
        expect_the_wrapper(more);
        let other = other.with(more.all).with_new(more.new).under(more.starting.wrapper());
        return Ok(Arc::new(other));
    }
    match CprVmm::at(path) {
        Ok(backend) => Ok(Arc::new(ours(backend, more))),
        Err(e) => Err(CliError::usage(format!("cannot find the VMM {}: {e}", path.display()))),
    }
}

/// Checks that QEMU starts with all of its arguments. Where it has no KVM, all its cases are ignored.
fn qemu_that_starts(qemu: Qemu, more: More<'_>) -> Result<Arc<dyn Backend>, CliError> {
    expect_the_wrapper(more);
    let qemu = qemu.with(more.all).with_new(more.new);
    if !qemu.uses_kvm() || requirements::no_kvm().is_none() {
        qemu.try_out().map_err(CliError::environment)?;
    }
    Ok(Arc::new(qemu))
}

/// Returns the values of `--vmm-arg` for each of the VMMs of a command that takes several: those
/// that follow its `--vmm`.
pub(super) fn arguments_by_vmm(matches: &ArgMatches) -> Result<Vec<Vec<String>>, CliError> {
    let at = |id| matches.indices_of(id).into_iter().flatten();
    let vmms: Vec<usize> = at("vmm").collect();
    let chosen = matches.value_source("vmm") == Some(ValueSource::CommandLine);
    let mut all = vec![Vec::new(); vmms.len().max(1)];
    let values = matches.get_many::<String>("vmm_arg").into_iter().flatten();
    for (index, value) in at("vmm_arg").zip(values) {
        let before = match chosen {
            true => vmms.iter().filter(|vmm| **vmm < index).count(),
            false => 1,
        };
        let of = before.checked_sub(1).and_then(|vmm| all.get_mut(vmm));
        let why = "give --vmm-arg after the --vmm that it is for";
        of.ok_or_else(|| CliError::usage(why))?.push(value.clone());
    }
    Ok(all)
}

/// Creates the backend for a VMM named on the command line, with these extra arguments. Options that
/// only QEMU takes do not reach another VMM.
pub(super) fn candidate(
    name: &str,
    starting: &Starting,
    arguments: &[String],
) -> Result<Arc<dyn Backend>, CliError> {
    let more = More { all: arguments, new: &[], starting };
    Ok(match name {
        CARRIED => carried(more)?,
        "mock" => {
            more.none_for_the_mock()?;
            Arc::new(Mock::carried(None).map_err(own)?)
        }
        path => backend_at(Path::new(path), more, None)?,
    })
}

/// The options with which `replay` uses the same VMM, `backend`.
pub(super) fn candidate_option(
    name: &str,
    backend: &dyn Backend,
    starting: &Starting,
    arguments: &[String],
) -> String {
    let option = match name {
        CARRIED => String::new(),
        "mock" => " --backend mock".to_owned(),
        name => format!(" --vmm {}", quoted(name)),
    };
    option + &starting.option(backend) + &argument_options("--vmm-arg", arguments)
}

/// The options that pass `arguments` to the VMM.
fn argument_options(option: &str, arguments: &[String]) -> String {
    let options = arguments.iter();
    options.map(|argument| format!(" {}", quoted(&format!("{option}={argument}")))).collect()
}

/// The options with which `replay` updates to the same build.
pub(super) fn skew_option(name: &str, course: Course) -> String {
    match course {
        Course::There => format!(" --update-to {}", quoted(name)),
        Course::ThereAndBack => format!(" --update-to {} --course there-and-back", quoted(name)),
    }
}

/// The options with which `replay` uses what `vmm` chooses.
pub(super) fn vmm_option(vmm: &Vmm) -> String {
    let mut option = String::new();
    if let Some(path) = &vmm.vmm {
        option.push_str(&format!(" --vmm {}", quoted(&path.to_string_lossy())));
    }
    if let Some(name) = &vmm.update_to {
        option.push_str(&skew_option(name, vmm.course));
    }
    option.push_str(&vmm.starting.all());
    option.push_str(&argument_options("--vmm-arg", &vmm.vmm_arg));
    option.push_str(&argument_options("--new-vmm-arg", &vmm.new_vmm_arg));
    if vmm.backend == Some(BackendKind::Mock) {
        option.push_str(" --backend mock");
    }
    if let Some(fault) = vmm.fault {
        option.push_str(&format!(" --fault {fault}"));
    }
    option
}

#[cfg(test)]
mod tests {
    use super::super::command;
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("conform --vmm a --vmm-arg=-x --vmm b --vmm-arg y --vmm-arg=z", &["-x", "y z"])]
    #[case("bench --vmm-arg=-x", &["-x"])]
    #[case("bench", &[""])]
    #[case("conform --vmm a --vmm b", &["", ""])]
    fn arguments_belong_to_the_vmm_before_them(#[case] line: &str, #[case] expected: &[&str]) {
        let words = ["cpr-harness"].into_iter().chain(line.split(' '));
        let matches = command().get_matches_from(words);
        let all = arguments_by_vmm(matches.subcommand().unwrap().1);
        let all = all.map_err(|CliError(why, _)| why).unwrap();
        assert_eq!(all.iter().map(|of| of.join(" ")).collect::<Vec<_>>(), expected);
    }
}
