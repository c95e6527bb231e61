//! The first process in a lab: sets the host up, runs the command, and reports its end.

mod command;
mod devices;
mod kexec;
mod mounts;
mod ports;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::sys::reboot::{RebootMode, reboot};
use thiserror::Error;

use super::messages::{self, Report};
use super::restart;
use super::settings::Settings;

/// First argument that makes the binary the first process in a lab.
pub const NAME: &str = "lab-init";

/// How often a command may have the kernel restarted: more than any case does.
const MOST_RESTARTS: u32 = 100;

/// A step of the setup failed.
#[derive(Debug, Error)]
#[error("cannot {what}: {why}")]
struct InitError {
    what: String,
    why: String,
}

impl InitError {
    fn new(what: impl Into<String>, why: impl ToString) -> Self {
        Self { what: what.into(), why: why.to_string() }
    }

    /// Returns a function for `map_err` that reports the failed step `what`.
    fn step<E: ToString>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |why| Self::new(what, why.to_string())
    }
}

/// Runs as the first process, with the file of its settings as argument; powers the lab off at the end.
pub fn main(arguments: &[OsString]) -> ExitCode {
    if std::process::id() != 1 {
        eprintln!("{NAME} runs only as the first process of a lab: use cpr-harness lab");
        return ExitCode::from(2);
    }
    if let Err(e) = run(arguments) {
        // To the console, which the harness outside shows.
        eprintln!("{NAME}: {e}");
    }
    let _ = reboot(RebootMode::RB_POWER_OFF);
    ExitCode::FAILURE
}

fn run(arguments: &[OsString]) -> Result<(), InitError> {
    let [file] = arguments else {
        return Err(InitError::new("begin", "expected the file of settings as only argument"));
    };
    let settings = read(Path::new(file))?;
    mounts::system()?;
    let ports = ports::open()?;
    let control = ports.control.try_clone().map_err(InitError::step("copy the control port"))?;
    let ran = prepare(&settings).and_then(|shares| {
        let ended = command::run(&settings.command, ports)?;
        shares.iter().try_for_each(mounts::Shared::sync)?;
        after(ended, settings, &control)
    });
    let report = match ran {
        Ok(ended) => ended,
        Err(e) => {
            eprintln!("{NAME}: {e}");
            Report::Failed(e.to_string())
        }
    };
    messages::send(control, &report).map_err(InitError::step("report the end"))?;
    // The harness outside ends the lab when it has read all of that; QEMU does not outlive it.
    loop {
        std::thread::park();
    }
}

/// Returns the report on a command that has ended, unless it asked for a restart of the kernel.
fn after(ended: Report, mut settings: Settings, control: &File) -> Result<Report, InitError> {
    let Report::Ended { status, written } = ended else { return Ok(ended) };
    let all = [0, 1].map(|stream| settings.written_before[stream] + written[stream]);
    let request =
        restart::requested().map_err(InitError::step("read the request for a restart"))?;
    match request {
        Some(request) if status == 0 => {
            if settings.restarts == MOST_RESTARTS {
                let why = format!("the command has asked for it {MOST_RESTARTS} times already");
                return Err(InitError::new("restart the kernel", why));
            }
            (settings.written_before, settings.restarts) = (all, settings.restarts + 1);
            messages::send(control, &Report::Restarting)
                .map_err(InitError::step("report the restart"))?;
            match kexec::into(&request, settings)? {}
        }
        _ => Ok(Report::Ended { status, written: all }),
    }
}

fn read(file: &Path) -> Result<Settings, InitError> {
    let what = || format!("read {}", file.display());
    let text = fs::read(file).map_err(|e| InitError::new(what(), e))?;
    serde_json::from_slice(&text).map_err(|e| InitError::new(what(), e))
}

fn prepare(settings: &Settings) -> Result<Vec<mounts::Shared>, InitError> {
    let cpus = fs::read_to_string("/proc/cpuinfo").map_err(InitError::step("read the CPUs"))?;
    for path in settings.modules.iter().filter(|path| suits(path, &cpus)) {
        load(path)?;
    }
    if !Path::new("/dev/kvm").exists() {
        let why = "its CPU has neither SVM nor VMX, or its kernel has no KVM for it";
        return Err(InitError::new("use KVM in the lab", why));
    }
    if settings.keeps_memory {
        mounts::keep_memory(settings.restarts == 0)?;
    }
    let shares = settings.shares.iter().map(mounts::share).collect::<Result<_, _>>()?;
    devices::reserve_huge_pages(settings.huge_pages)?;
    settings.devices.iter().try_for_each(|address| devices::bind(address))?;
    Ok(shares)
}

/// Whether a module is for these CPUs, as `/proc/cpuinfo` describes them.
fn suits(module: &Path, cpus: &str) -> bool {
    let has = |flag: &str| cpus.split_ascii_whitespace().any(|word| word == flag);
    match module.file_stem().and_then(|name| name.to_str()) {
        Some("kvm_amd") => has("svm"),
        Some("kvm_intel") => has("vmx"),
        _ => true,
    }
}

/// Loads a module. Those for another kind of CPU or device are left out.
fn load(path: &Path) -> Result<(), InitError> {
    let what = || format!("load the module {}", path.display());
    let file = File::open(path).map_err(|e: io::Error| InitError::new(what(), e))?;
    match finit_module(file.as_fd(), c"", ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST | Errno::ENODEV | Errno::EOPNOTSUPP) => Ok(()),
        Err(e) => Err(InitError::new(what(), e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_for_the_cpu_is_loaded() {
        let flags = "flags\t\t: fpu svm nrip_save\n";
        let suits = |name: &str| suits(Path::new(name), flags);
        assert!(suits("/lab/modules/kvm_amd.ko") && suits("/lab/modules/kvm.ko"));
        assert!(!suits("/lab/modules/kvm_intel.ko"));
    }
}
