//! The last resort: no binary can continue, so this process only holds the guest's RAM and state.

use std::cell::UnsafeCell;
use std::fmt;
use std::os::fd::RawFd;
use std::ptr;

use super::text::Line;
use crate::end_signals::END_SIGNALS;
use crate::memory::claim;
use crate::sys;

/// Prefix of the reason when a process crashed and continues in itself: the new binary did not
/// fail.
pub const CRASHED: &str = "[crash] ";

/// What is kept for the operator.
pub struct StrandedResources {
    /// The process that runs the guest.
    pub pid: i32,
    /// The keeper, which holds the old address space and descriptors; 0 if there is none.
    pub keeper: libc::pid_t,
    /// The RAM blocks.
    pub ram: Vec<RawFd>,
    /// The saved state.
    pub saved: Option<RawFd>,
    /// The log file.
    pub log: Option<RawFd>,
}

const LENGTH: usize = 4096;

/// The line to print, in static memory: the stack of a signal handler is small.
struct Buffer(UnsafeCell<[u8; LENGTH]>);

// SAFETY: only `strand` uses it, which does not return.
unsafe impl Sync for Buffer {}

static LINE: Buffer = Buffer(UnsafeCell::new([0; LENGTH]));

/// Reports that the guest is stranded, releases everything else, and waits to be killed.
/// Async-signal-safe.
///
/// `first` is why the update failed, `second` why the fallback did.
pub fn strand(kept: &StrandedResources, first: &str, second: fmt::Arguments<'_>) -> ! {
    let pid = sys::process_id();
    close_all_but(kept);
    if kept.keeper != pid {
        end_keeper(kept.keeper);
    }
    kept.ram.iter().copied().for_each(claim::release);
    // SAFETY: a process is stranded once, on one thread.
    let buffer = unsafe { &mut *LINE.0.get() };
    let ram = kept.ram.first().copied().unwrap_or(-1);
    let line = Line::write(
        &mut buffer[..LENGTH - 1],
        format_args!("{}", Stranded { pid, first, second, ram, saved: kept.saved }),
    );
    let length = line.len();
    buffer[length] = b'\n';
    // SAFETY: the buffer is that long; there is no one left to report a failure to. Default
    // dispositions and an empty mask let the operator kill the process even while the write to
    // stderr blocks; `pause` has no precondition.
    unsafe {
        if let Some(log) = kept.log {
            libc::write(log, buffer.as_ptr().cast(), length + 1);
        }
        for signal in END_SIGNALS {
            libc::signal(signal as i32, libc::SIG_DFL);
        }
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut());
        libc::write(2, buffer.as_ptr().cast(), length + 1);
        loop {
            libc::pause();
        }
    }
}

/// The message for the operator, in one line.
struct Stranded<'a> {
    pid: i32,
    first: &'a str,
    second: fmt::Arguments<'a>,
    ram: RawFd,
    saved: Option<RawFd>,
}

impl fmt::Display for Stranded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, second, ram, .. } = self;
        // Without a saved state, there may have been no update at all.
        let (what, first) = match (self.saved, self.first.strip_prefix(CRASHED)) {
            (Some(_), None) => ("the update failed", self.first),
            (_, crash) => ("the VMM failed", crash.unwrap_or(self.first)),
        };
        write!(
            f,
            "cpr-vmm: {what} ({first}), and so did the fallback ({second}): the guest is stopped; \
             process {pid} holds its RAM in /proc/{pid}/fd/{ram}"
        )?;
        match self.saved {
            Some(saved) => write!(
                f,
                " and its state in /proc/{pid}/fd/{saved}: to resume it, start the VMM with its \
                 arguments and --incoming file:/proc/{pid}/fd/{saved} --incoming-ram \
                 /proc/{pid}/fd/{ram}, then kill process {pid}"
            ),
            None => write!(
                f,
                ", but the state of its vCPUs and devices is lost: it cannot be resumed; copy the \
                 RAM if you need it, then kill process {pid}"
            ),
        }
    }
}

/// Closes everything else, so that clients see their connections end and another VMM can listen on
/// the same paths.
fn close_all_but(kept: &StrandedResources) {
    let is_kept = |fd: RawFd| {
        kept.ram.contains(&fd) || kept.saved == Some(fd) || kept.log == Some(fd) || fd <= 2
    };
    let highest = kept.ram.iter().chain(&kept.saved).chain(&kept.log).copied().max().unwrap_or(2);
    for fd in (3..=highest).filter(|fd| !is_kept(*fd)) {
        // SAFETY: nothing in this process uses a descriptor any more.
        unsafe { libc::close(fd) };
    }
    // SAFETY: as above.
    unsafe { libc::close_range(highest as libc::c_uint + 1, libc::c_uint::MAX, 0) };
}

fn end_keeper(pid: libc::pid_t) {
    if pid <= 0 {
        return;
    }
    // SAFETY: system calls on numbers and on a local structure. The number is the keeper's while it
    // is a child that has not been waited for.
    unsafe {
        let mut info = std::mem::zeroed();
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        if libc::waitid(libc::P_PID, pid as libc::id_t, &mut info, flags) == 0 {
            libc::kill(pid, libc::SIGKILL);
            // Not waited for: it takes the old address space with it, which is slow.
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_names_the_files_and_the_next_step() {
        let line = |first, saved| {
            Stranded { pid: 7, first, second: format_args!("ENOMEM"), ram: 11, saved }.to_string()
        };
        let lines = [
            line("it exited with status 1", Some(12)),
            line("[crash] it panicked", Some(12)),
            line("it was killed by SIGKILL", None),
        ];
        insta::assert_snapshot!(lines.join("\n"));
    }
}
