//! Faults that change the mock's process attributes.

use std::io;
use std::num::NonZeroUsize;

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{Mode, umask};
use rustix::process::setpriority_process;

use super::Fault;

/// Applies `fault`, if it is one of these.
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
        Fault::Renice => setpriority_process(None, 7)?,
        Fault::LowerLimit => {
            let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
            setrlimit(Resource::RLIMIT_NOFILE, soft - 1, hard)?;
        }
        Fault::ChangeDirectory => std::env::set_current_dir("/proc")?,
        Fault::ChangeTimerSlack => nix::sys::prctl::set_timerslack(123_456)?,
        Fault::ChangeOomScore => std::fs::write("/proc/self/oom_score_adj", "777")?,
        Fault::StrayMapping => {
            let length = NonZeroUsize::MIN.saturating_add(4095);
            let (protection, flags) = (ProtFlags::PROT_EXEC, MapFlags::MAP_PRIVATE);
            // SAFETY: a new mapping at an address of the kernel's choice.
            unsafe { mmap_anonymous(None, length, protection, flags) }?;
        }
        Fault::Rename => nix::sys::prctl::set_name(c"another-name")?,
        _ => {}
    }
    Ok(())
}
