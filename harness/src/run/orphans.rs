//! The children of VMMs that have died become ours, and are reaped: not every init does that in
//! time, and what waits for it looks like something the VMM has left behind.

use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::prctl;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use super::{program, signals};
use crate::observe::process;

static ADOPTS: AtomicBool = AtomicBool::new(false);

/// Lets orphans become children of this process, which must have no other children than VMs.
pub fn adopt() {
    ADOPTS.store(let_in(), Ordering::Relaxed);
}

/// Lets orphans become children of this process, whatever others it has: only those that are known
/// to have become VMMs are waited for. False: they are init's.
pub fn let_in() -> bool {
    prctl::set_child_subreaper(true).is_ok()
}

/// Reaps those that have ended, of whichever case: nobody else waits for them.
pub fn reap() {
    if !ADOPTS.load(Ordering::Relaxed) {
        return;
    }
    program::alone(|| {
        let children = process::children(std::process::id() as i32).unwrap_or_default();
        for child in children.iter().filter(|c| !c.is_alive() && !signals::is_registered(c.pid)) {
            let _ = waitpid(Pid::from_raw(child.pid), Some(WaitPidFlag::WNOHANG));
        }
    });
}
