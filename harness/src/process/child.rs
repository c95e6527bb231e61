//! How a child ends.

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, getppid};

/// Kills a process group; ignores that it may be gone already.
pub fn kill_group(pid: i32) {
    let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
}

/// In a child: makes it die with `parent`, which started it. Async-signal-safe.
pub(crate) fn die_with(parent: Pid) -> std::io::Result<()> {
    // The signal comes when the starting thread exits, which outlives its children.
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // If the parent died before that, no signal comes any more.
    if getppid() == parent { Ok(()) } else { Err(Errno::ESRCH.into()) }
}
