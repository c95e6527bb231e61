//! Starting a program that dies with this one, without a copy of the address space: a fork would
//! write-protect it, and make the vCPUs wait.

use std::ffi::{c_char, c_void};
use std::os::fd::RawFd;
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, getpid};

use crate::keeper::stack::Stack;

/// The last signal there is.
const LAST_SIGNAL: i32 = 64;

/// What a child does between clone and exec. It runs on our memory while this thread waits: nothing
/// in it allocates or locks.
pub struct Call<'a> {
    /// Executes the program; returns only if it cannot be.
    pub execute: &'a (dyn Fn() -> Errno + 'a),
    /// Which descriptor becomes which. The targets must not be sources of later ones.
    pub descriptors: &'a [(RawFd, RawFd)],
}

struct Shared<'a> {
    call: &'a Call<'a>,
    parent: Pid,
    mask: SigSet,
    /// Why it was not executed; 0 if it was.
    errno: AtomicI32,
}

/// Starts it in a process group of its own. It gets SIGKILL when this thread ends.
pub fn spawn(call: &Call<'_>) -> Result<Pid, Errno> {
    let stack = Stack::map(64 << 10)?;
    let mut before = SigSet::empty();
    // A handler of ours that ran in the child would run on our memory.
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
    let mut shared = Shared { call, parent: getpid(), mask: before, errno: AtomicI32::new(0) };
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the stack and `shared` are there until the child has executed or ended, which is when
    // this call returns (CLONE_VFORK); `child_main` keeps to what is async-signal-safe.
    let pid = unsafe { libc::clone(child_main, stack.top(), flags, (&raw mut shared).cast()) };
    let pid = Errno::result(pid).map(Pid::from_raw);
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    let pid = pid?;
    match shared.errno.load(Ordering::SeqCst) {
        0 => Ok(pid),
        errno => {
            while waitpid(pid, None) == Err(Errno::EINTR) {}
            Err(Errno::from_raw(errno))
        }
    }
}

extern "C" fn child_main(shared: *mut c_void) -> i32 {
    // SAFETY: the parent waits, and nobody else knows of it.
    let shared = unsafe { &*shared.cast::<Shared<'_>>() };
    let errno = prepare(shared).err().unwrap_or_else(|| (shared.call.execute)());
    shared.errno.store(errno as i32, Ordering::SeqCst);
    127
}

fn prepare(shared: &Shared<'_>) -> Result<(), Errno> {
    // SAFETY: system calls on numbers and structures of our own. The dispositions are the child's:
    // they were copied (no CLONE_SIGHAND).
    unsafe {
        for signal in 1..=LAST_SIGNAL {
            let mut action: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(signal, ptr::null(), &mut action) == 0
                && action.sa_sigaction != libc::SIG_IGN
            {
                action.sa_sigaction = libc::SIG_DFL;
                libc::sigaction(signal, &action, ptr::null_mut());
            }
        }
        Errno::result(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
        if libc::getppid() != shared.parent.as_raw() {
            return Err(Errno::ESRCH);
        }
        Errno::result(libc::setpgid(0, 0))?;
        for &(from, to) in shared.call.descriptors {
            let moved = match from == to {
                true => libc::fcntl(to, libc::F_SETFD, 0),
                false => libc::dup2(from, to),
            };
            Errno::result(moved)?;
        }
        libc::sigprocmask(libc::SIG_SETMASK, shared.mask.as_ref(), ptr::null_mut());
    }
    Ok(())
}

/// Executes the first candidate that can be. Async-signal-safe; the arrays end with a null.
pub fn execute(
    candidates: &[*const c_char],
    argv: &[*const c_char],
    environment: &[*const c_char],
) -> Errno {
    let mut denied = false;
    let mut last = Errno::ENOENT;
    for candidate in candidates.iter().take_while(|candidate| !candidate.is_null()) {
        // SAFETY: the caller's are NUL-terminated strings and null-terminated arrays of such, and
        // live until the call returns or this program is gone.
        unsafe { libc::execve(*candidate, argv.as_ptr(), environment.as_ptr()) };
        last = Errno::last();
        match last {
            Errno::EACCES => denied = true,
            // Not here: the next directory may have it.
            Errno::ENOENT | Errno::ENOTDIR | Errno::ESTALE | Errno::ENODEV | Errno::ETIMEDOUT => {}
            _ => return last,
        }
    }
    // A file that may not be executed says more than its absence elsewhere.
    if denied { Errno::EACCES } else { last }
}
