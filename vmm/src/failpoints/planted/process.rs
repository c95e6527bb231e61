//! Planted bugs in the process: in one that has just taken over, and in one whose update failed.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};

use super::{Planted, planted};
use crate::{descriptors, sys};

/// The last of the standard descriptors, which stay open across exec anyway.
const STANDARD: i32 = 2;

/// Makes the planted mistakes of a process that has taken over. It found the CPR state by
/// `variable`, in `state`.
pub(in super::super) fn change_taken_over(variable: &str, state: BorrowedFd<'_>) {
    if planted(Planted::KeepVariable) {
        let written = write_variable(&format!("{variable}={}", state.as_raw_fd()));
        written.expect("the variable was there at exec");
    }
    if planted(Planted::KeepStateFd) {
        leak(state);
    }
    if planted(Planted::KeepMask) {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGTERM);
        mask.thread_block().expect("the signal exists");
    }
    if planted(Planted::LowerLimit) {
        let limited = getrlimit(Resource::RLIMIT_NOFILE)
            .and_then(|(soft, hard)| setrlimit(Resource::RLIMIT_NOFILE, soft - 1, hard));
        limited.expect("a limit can be lowered");
    }
    if planted(Planted::ForgetCloseOnExec) {
        clear_close_on_exec();
    }
}

/// Makes the planted mistakes of a process whose update failed.
pub(in super::super) fn change_failed() {
    if planted(Planted::LeakFd) {
        std::mem::forget(File::open("/dev/null"));
    }
    if planted(Planted::KeepInheritable) {
        clear_close_on_exec();
    }
}

fn leak(fd: BorrowedFd<'_>) {
    std::mem::forget(fd.try_clone_to_owned().expect("a descriptor can be duplicated"));
}

fn clear_close_on_exec() {
    for fd in descriptors::open().into_iter().filter(|fd| *fd > STANDARD) {
        // Another thread may have closed it.
        let _ = sys::set_close_on_exec(fd, false);
    }
}

/// Writes `text` back into the initial environment, where a variable as long was erased. Libraries
/// do not see it, but `/proc/PID/environ` shows it.
fn write_variable(text: &str) -> io::Result<()> {
    const ENV_START: usize = 50;
    let environ = fs::read("/proc/self/environ")?;
    let gap = environ.windows(text.len()).enumerate().find(|(at, bytes)| {
        bytes.iter().all(|byte| *byte == 0) && (*at == 0 || environ[at - 1] == 0)
    });
    let stat = fs::read_to_string("/proc/self/stat")?;
    // The name of the process, the second field, may contain spaces.
    let after_name = stat.rsplit(") ").next().unwrap_or_default();
    let start = after_name.split_whitespace().nth(ENV_START - 3).and_then(|n| n.parse().ok());
    let (Some((gap, _)), Some(start)) = (gap, start) else {
        return Err(io::Error::other("no erased variable in /proc/self/environ"));
    };
    let memory = File::options().write(true).open("/proc/self/mem")?;
    let start: u64 = start;
    memory.write_all_at(text.as_bytes(), start + gap as u64)
}
