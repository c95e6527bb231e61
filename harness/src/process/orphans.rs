//! Adopts and reaps the children of VMMs that have died: not every init reaps them in time, and an
//! unreaped process looks like one that the VMM leaked.

use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::prctl;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::observe::process;
use crate::process::{program, signals};

static ADOPTS: AtomicBool = AtomicBool::new(false);

/// Makes orphans children of this process, which must have no other children than VMMs.
pub fn adopt() {
    ADOPTS.store(become_subreaper(), Ordering::Relaxed);
}

/// Makes orphans children of this process, which may have other children: only those known to have
/// become VMMs are reaped. Returns false if that fails; orphans then become children of init.
pub fn become_subreaper() -> bool {
    prctl::set_child_subreaper(true).is_ok()
}

/// Reaps the orphans of all cases that have exited: nothing else waits for them.
pub fn reap() {
    if !ADOPTS.load(Ordering::Relaxed) {
        return;
    }
    program::exclusively(|| {
        let children = process::children(std::process::id() as i32).unwrap_or_default();
        for child in children.iter().filter(|c| !c.is_alive() && !signals::is_registered(c.pid)) {
            let _ = waitpid(Pid::from_raw(child.pid), Some(WaitPidFlag::WNOHANG));
        }
    });
}
