//! What the mock may change of its surroundings.

use std::io;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{Mode, umask};

use super::Fault;

/// Changes what `fault` says, if that is any of it.
pub fn change(fault: Fault) -> io::Result<()> {
    match fault {
        Fault::ChangeUmask => drop(umask(Mode::S_IRWXO)),
        Fault::BlockSignal => SigSet::from(Signal::SIGWINCH).thread_block()?,
        Fault::IgnoreSignal => {
            // SAFETY: no handler, so nothing of ours is called.
            let before = unsafe { libc::signal(libc::SIGWINCH, libc::SIG_IGN) };
            if before == libc::SIG_ERR {
                return Err(io::Error::last_os_error());
            }
        }
        Fault::Renice => {
            // SAFETY: plain integers.
            Errno::result(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 7) })?;
        }
        Fault::LowerLimit => {
            let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
            setrlimit(Resource::RLIMIT_NOFILE, soft - 1, hard)?;
        }
        Fault::ChangeDirectory => std::env::set_current_dir("/proc")?,
        Fault::Rename => nix::sys::prctl::set_name(c"another-name")?,
        _ => {}
    }
    Ok(())
}
