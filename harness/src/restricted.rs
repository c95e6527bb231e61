//! A wrapper that takes a system call or the descriptors away from its process and then executes
//! the VMM in it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::BorrowedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use clap::ValueEnum;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

use crate::process::program;

/// Environment variables that hold the number of a descriptor to keep open.
const NAMED: [&str; 2] = ["CPR_REHEARSAL", "CPR_EXEC_STATE"];

/// What the wrapper takes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Restriction {
    /// `ioctl` fails with EPERM.
    NoIoctl,
    /// `clone3` fails with EPERM.
    NoClone3,
    /// `eventfd2` fails with EPERM.
    NoEventfd2,
    /// `timer_create` fails with EPERM.
    NoTimerCreate,
    /// Every descriptor is closed on exec, except the first three and those that the environment
    /// names.
    NoDescriptors,
}

impl Restriction {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoIoctl => "no-ioctl",
            Self::NoClone3 => "no-clone3",
            Self::NoEventfd2 => "no-eventfd2",
            Self::NoTimerCreate => "no-timer-create",
            Self::NoDescriptors => "no-descriptors",
        }
    }

    fn apply(self) -> Result<(), Box<dyn std::error::Error>> {
        match self {
            Self::NoIoctl => filter(libc::SYS_ioctl),
            Self::NoClone3 => filter(libc::SYS_clone3),
            Self::NoEventfd2 => filter(libc::SYS_eventfd2),
            Self::NoTimerCreate => filter(libc::SYS_timer_create),
            Self::NoDescriptors => close_unnamed(),
        }
    }
}

/// Runs `LOWERING VMM ARGUMENT…`; returns only on failure.
pub fn main(words: &[OsString]) -> ExitCode {
    let [lowering, vmm, arguments @ ..] = words else {
        eprintln!("usage: LOWERING VMM [ARGUMENT]...");
        return ExitCode::from(2);
    };
    let lowering = match Restriction::from_str(&lowering.to_string_lossy(), false) {
        Ok(lowering) => lowering,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    if let Err(error) = lowering.apply() {
        eprintln!("cannot apply {}: {error}", lowering.name());
        return ExitCode::FAILURE;
    }
    let error = Command::new(vmm).args(arguments).exec();
    eprintln!("cannot execute {}: {error}", vmm.display());
    ExitCode::FAILURE
}

fn filter(call: i64) -> Result<(), Box<dyn std::error::Error>> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let denied = SeccompAction::Errno(libc::EPERM as u32);
    let calls = BTreeMap::from([(call, Vec::new())]);
    let filter = SeccompFilter::new(calls, SeccompAction::Allow, denied, arch)?;
    let program: BpfProgram = filter.try_into()?;
    Ok(seccompiler::apply_filter(&program)?)
}

fn close_unnamed() -> Result<(), Box<dyn std::error::Error>> {
    let named =
        |name: &&str| std::env::var(name).ok()?.parse::<i32>().ok().filter(|number| *number >= 0);
    program::inherit_nothing()?;
    for fd in NAMED.iter().filter_map(named) {
        // SAFETY: only a flag of the descriptor is changed.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        // The variable may name a descriptor that is not open.
        let _ = fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_command_line() {
        for lowering in Restriction::value_variants() {
            assert_eq!(Restriction::from_str(lowering.name(), false), Ok(*lowering));
        }
    }
}
