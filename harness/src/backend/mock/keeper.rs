//! The mock's keeper: a process that shares the descriptor table and executes the old binary when
//! the VMM dies.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};
use rustix::process::{PidfdFlags, pidfd_open};

use super::checkpoint::Checkpoint;
use super::handover::{Handover, Revived};
use super::{Args, Fault};
use crate::carry;

/// Longer than a guest may be stopped.
const SLOW: Duration = Duration::from_millis(1500);

/// A waiting keeper.
pub struct Keeper {
    pid: i32,
    /// The VMM's process; the keeper waits on this very descriptor.
    _vmm: Option<OwnedFd>,
}

impl Keeper {
    /// Starts a keeper for this process.
    pub fn start(args: &Args, checkpoint: &Checkpoint) -> io::Result<Self> {
        let own = std::process::id() as i32;
        let vmm = pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
        let flags = libc::CLONE_FILES | libc::SIGCHLD;
        // SAFETY: a copy of this process that shares its descriptors. No other thread allocates or
        // takes a lock, so the copy can continue.
        let pid = unsafe { Errno::result(libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0))? };
        if pid == 0 {
            let error = keep(&vmm, own, args, checkpoint);
            eprintln!("mock-vmm: keeper: {error}");
            std::process::exit(1);
        }
        Ok(Self { pid: pid as i32, _vmm: Some(vmm) })
    }

    /// The keeper that the previous program started in this process.
    pub fn inherited(pid: i32) -> Self {
        Self { pid, _vmm: None }
    }

    /// Its PID.
    pub fn pid(&self) -> i32 {
        self.pid
    }
}

impl Drop for Keeper {
    /// Kills the keeper, so that it does not see the VMM's end.
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.pid);
        let _ = kill(pid, Signal::SIGKILL);
        let _ = waitpid(pid, None);
    }
}

/// Waits for the end of process `former`, then becomes the VMM; returns only on failure.
fn keep(vmm: &OwnedFd, former: i32, args: &Args, checkpoint: &Checkpoint) -> io::Error {
    match try_to_keep(vmm, former, args, checkpoint) {
        Ok(error) | Err(error) => error,
    }
}

fn try_to_keep(
    vmm: &OwnedFd,
    former: i32,
    args: &Args,
    checkpoint: &Checkpoint,
) -> io::Result<io::Error> {
    nix::sys::prctl::set_name(c"cpr-keeper")?;
    while poll(&mut [PollFd::new(vmm.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)
        == Err(Errno::EINTR)
    {}
    match args.fault {
        Some(Fault::NoRevival) => return Ok(io::Error::other("revival disabled")),
        Some(Fault::SlowRevival) => std::thread::sleep(SLOW),
        Some(Fault::OtherHeir) => in_a_child(false)?,
        Some(Fault::ReviveTwice) => in_a_child(true)?,
        _ => {}
    }
    let mut handover: Handover = serde_json::from_slice(&checkpoint.read())?;
    let reason = "it was killed by SIGKILL".to_owned();
    handover.revived = Some(Revived { former, reason });
    handover.keeper = None;
    let mut command: Vec<String> = std::env::args().collect();
    command[0] = carry::own_binary()?.to_string_lossy().into_owned();
    // The previous process may have left descriptors inheritable to hand them over.
    crate::process::program::inherit_nothing()?;
    Ok(handover.exec(&command, false))
}

/// Leaves a child behind that looks like a keeper.
pub fn leave_a_false_one() -> io::Result<()> {
    // SAFETY: no other thread allocates or takes a lock.
    if unsafe { fork() }?.is_child() {
        nix::sys::prctl::set_name(c"cpr-keeper")?;
        loop {
            nix::unistd::pause();
        }
    }
    Ok(())
}

/// Continues in a child of this process, which exits; or, with `stay`, continues in this process
/// and leaves another one behind with the same descriptors.
fn in_a_child(stay: bool) -> io::Result<()> {
    // SAFETY: this process has one thread.
    match unsafe { fork() }? {
        ForkResult::Child if stay => {
            // SAFETY: as above.
            if unsafe { fork() }?.is_parent() {
                std::process::exit(0);
            }
            nix::sys::prctl::set_name(c"second")?;
            loop {
                nix::unistd::pause();
            }
        }
        ForkResult::Child => Ok(()),
        ForkResult::Parent { child } if stay => Ok(waitpid(child, None).map(drop)?),
        ForkResult::Parent { .. } => std::process::exit(0),
    }
}
