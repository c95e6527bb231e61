//! The keeper's process: how it starts, what it watches, and when it acts.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
use nix::sys::timer::{Expiration, TimerSetTimeFlags};
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};
use nix::unistd::{Pid, getpid};

use super::child::{Child, open_pidfd, send_kill};
use super::commit::{Claim, CommitPage, TakeOver, claim};
use super::stack::Stack;
use crate::sys;

/// Size of the keeper's stack, in bytes. Continuing a guest may save many vCPUs, but by system
/// calls only.
const STACK: usize = 256 << 10;
/// The name of the process.
const NAME: &std::ffi::CStr = c"cpr-keeper";
/// How many milliseconds a process that was killed at its deadline may take to end. One that does
/// not is blocked in the kernel, and never returns to its program.
const END_OF_THE_OTHER: u32 = 2000;
/// How many bytes of `/proc/PID/stat` are read.
const STAT: usize = 1024;

/// The error of a keeper that cannot be started. An update works without one, but a process that
/// dies in it takes the guest with it.
#[derive(Debug, thiserror::Error)]
#[error("cannot start a keeper: {call}: {source}")]
pub struct KeeperError {
    call: &'static str,
    source: io::Error,
}

/// Why the watched process is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It has ended, with this wait status if that could be read.
    Ended(Option<i32>),
    /// Its deadline passed.
    Deadline,
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Self::Deadline => f.write_str("its deadline passed"),
            Self::Ended(None) => f.write_str("it ended"),
            Self::Ended(Some(status)) if libc::WIFSIGNALED(status) => {
                match nix::sys::signal::Signal::try_from(libc::WTERMSIG(status)) {
                    Ok(signal) => write!(f, "it was killed by {signal}"),
                    Err(_) => write!(f, "it was killed by signal {}", libc::WTERMSIG(status)),
                }
            }
            Self::Ended(Some(status)) => {
                write!(f, "it exited with status {}", libc::WEXITSTATUS(status))
            }
        }
    }
}

/// Continues the guest in the calling process. It may only make system calls on memory that exists
/// already: it runs in the address space of a process that died at an arbitrary point.
pub type ContinueGuest = fn(Ending, &CommitPage) -> !;

/// The timer after which a process that hangs is replaced. The process keeps it over exec.
#[derive(Debug)]
pub struct Watch(TimerFd);

/// The name of the timer's descriptor.
pub const TIMER_FD: &str = "keeper.timer";

impl Watch {
    /// Adopts the timer that an update handed over.
    pub fn adopt(fd: OwnedFd) -> Self {
        // SAFETY: it owns the descriptor; setting a descriptor that is not a timer fails.
        Self(unsafe { TimerFd::from_owned_fd(fd) })
    }

    /// Sets the time after which the process is replaced; `None`: never.
    pub fn set(&self, after: Option<Duration>) -> Result<(), Errno> {
        match after {
            None => self.0.unset(),
            Some(after) => {
                let after = Expiration::OneShot(after.max(Duration::from_millis(1)).into());
                self.0.set(after, TimerSetTimeFlags::empty())
            }
        }
    }

    /// Returns the timer's descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.0.as_fd()
    }
}

/// Sets the timer that has this descriptor.
pub fn set_timer(fd: RawFd, after: Duration) -> Result<(), Errno> {
    let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let value =
        libc::timespec { tv_sec: after.as_secs() as i64, tv_nsec: after.subsec_nanos().into() };
    let setting = libc::itimerspec { it_interval: zero, it_value: value };
    // SAFETY: the structure lives for the call; a descriptor that is not a timer gives EINVAL.
    Errno::result(unsafe { libc::timerfd_settime(fd, 0, &setting, std::ptr::null_mut()) }).map(drop)
}

/// What the keeper's process watches and uses.
struct Watched {
    process: RawFd,
    pid: i32,
    timer: RawFd,
    /// The parent of the watched process, if the process is to end when that dies.
    parent: Option<RawFd>,
    death_signal: i32,
    page: *const CommitPage,
    /// How the watched process takes the guest over, before which others act.
    before: Option<TakeOver>,
    continue_guest: ContinueGuest,
}

/// The keeper, in the process that started it. Dropping it ends and reaps it.
pub struct Keeper {
    // Field order is drop order: the child uses the stack and the rest until it ends.
    child: Child,
    _stack: Stack,
    _watched: Box<Watched>,
    page: Arc<CommitPage>,
    watch: Watch,
    _process: OwnedFd,
    _parent: Option<OwnedFd>,
}

impl Keeper {
    /// Starts the keeper. Until the process has passed the commit point `before`, the keeper there
    /// acts.
    ///
    /// Call it on the main thread: the calling thread becomes the keeper's parent.
    pub fn start(
        continue_guest: ContinueGuest,
        before: Option<TakeOver>,
    ) -> Result<Self, KeeperError> {
        let error = |call| move |source| KeeperError { call, source };
        let errno = |call| move |errno: Errno| KeeperError { call, source: errno.into() };
        let page = Arc::new(CommitPage::create().map_err(error("memfd_create"))?);
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer =
            TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).map_err(errno("timerfd_create"))?;
        let watch = Watch(timer);
        let process = open_pidfd(getpid()).map_err(errno("pidfd_open"))?;
        let death_signal = nix::sys::prctl::get_pdeathsig().ok().flatten();
        let parent = death_signal.and_then(|_| open_pidfd(nix::unistd::getppid()).ok());
        let stack = Stack::map(STACK).map_err(errno("mmap"))?;
        let watched = Box::new(Watched {
            process: process.as_raw_fd(),
            pid: getpid().as_raw(),
            timer: watch.fd().as_raw_fd(),
            parent: parent.as_ref().map(AsRawFd::as_raw_fd),
            death_signal: death_signal.map_or(0, |signal| signal as i32),
            page: Arc::as_ptr(&page),
            before,
            continue_guest,
        });
        // One of our handlers running in the keeper would work on our memory.
        let mut before = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))
            .map_err(errno("sigprocmask"))?;
        let flags = libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_PIDFD | libc::SIGCHLD;
        let argument = (&raw const *watched).cast_mut().cast::<c_void>();
        let mut fd = -1;
        // SAFETY: `keeper_main` uses only its stack, `watched`, and system calls; both outlive it
        // (see `Keeper`, or are lost with this address space).
        let pid = Errno::result(unsafe {
            libc::clone(keeper_main, stack.top(), flags, argument, &raw mut fd)
        });
        if let Ok(pid) = pid {
            // Before a signal can make this process execute another program.
            NEWEST_PID.store(pid, Ordering::SeqCst);
            NEWEST_PAGE.store(Arc::as_ptr(&page).cast_mut(), Ordering::SeqCst);
        }
        let restored = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
        let pid = Pid::from_raw(pid.map_err(errno("clone"))?);
        // SAFETY: CLONE_PIDFD has just made this descriptor, close-on-exec.
        let child = Child::new(pid, unsafe { OwnedFd::from_raw_fd(fd) });
        let keeper = Self {
            child,
            _stack: stack,
            _watched: watched,
            page,
            watch,
            _process: process,
            _parent: parent,
        };
        restored.map_err(errno("sigprocmask"))?;
        Ok(keeper)
    }

    /// Returns the process ID.
    pub fn pid(&self) -> Pid {
        self.child.pid()
    }

    /// Returns the pidfd, which becomes readable when the keeper has ended.
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.child.ended()
    }

    /// Returns the page with the commit point.
    pub fn page(&self) -> &Arc<CommitPage> {
        &self.page
    }

    /// Returns the timer that the keeper watches.
    pub fn watch(&self) -> &Watch {
        &self.watch
    }
}

/// The keeper that this process image started last, unless it has been dropped.
static NEWEST_PID: AtomicI32 = AtomicI32::new(0);
static NEWEST_PAGE: AtomicPtr<CommitPage> = AtomicPtr::new(std::ptr::null_mut());

/// Ends the keeper that this process image has started, if any: the image is about to be replaced,
/// and another keeper has the guest. Async-signal-safe.
pub fn abandon_newest() {
    // SAFETY: null, or the page of a keeper that has not been dropped.
    if let Some(page) = unsafe { NEWEST_PAGE.load(Ordering::SeqCst).as_ref() } {
        claim(page.word(), Claim::Released);
        let pid = NEWEST_PID.load(Ordering::SeqCst) as usize;
        // SAFETY: numbers only. It is a child of this process, so the number is not reused, and it
        // ends at once: the address space stays with this process.
        unsafe {
            let _ = sys::call(libc::SYS_kill, [pid, libc::SIGKILL as usize, 0, 0, 0, 0]);
            let _ = sys::call(libc::SYS_wait4, [pid, 0, libc::__WALL as usize, 0, 0, 0]);
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        NEWEST_PAGE.store(std::ptr::null_mut(), Ordering::SeqCst);
        self.page.dismiss_or_end();
    }
}

/// The keeper's main function. It runs on memory that another process is using.
extern "C" fn keeper_main(watched: *mut c_void) -> i32 {
    // SAFETY: it lives as long as this process, and nothing changes it.
    let watched = unsafe { &*watched.cast::<Watched>() };
    let name = NAME.as_ptr() as usize;
    // SAFETY: the name is NUL-terminated.
    let _ = unsafe { sys::call(libc::SYS_prctl, [libc::PR_SET_NAME as usize, name, 0, 0, 0, 0]) };
    loop {
        let Some(ending) = watched.wait() else { continue };
        if watched.parent.is_some_and(|parent| sys::readable_within(parent, 0)) {
            // The watched process was to end with its parent.
            return 0;
        }
        discard_signals();
        if watched.before.as_ref().is_some_and(|before| !before.has_happened()) {
            return 0;
        }
        // SAFETY: the page is mapped as long as this address space exists, see `Keeper`.
        let page = unsafe { &*watched.page };
        if !claim(page.word(), Claim::Keeper) {
            return 0;
        }
        if ending == Ending::Deadline {
            send_kill(watched.process);
            sys::readable_within(watched.process, END_OF_THE_OTHER);
        }
        let death_signal = watched.death_signal as usize;
        let arguments = [libc::PR_SET_PDEATHSIG as usize, death_signal, 0, 0, 0, 0];
        // SAFETY: numbers only.
        let _ = unsafe { sys::call(libc::SYS_prctl, arguments) };
        (watched.continue_guest)(ending, page)
    }
}

/// Discards pending signals: they were sent to the keeper, not to the VMM that it becomes.
fn discard_signals() {
    let all = u64::MAX;
    let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let arguments = [(&raw const all) as usize, 0, (&raw const at_once) as usize, size_of::<u64>()];
    // SAFETY: the structures live for the call. It fails when nothing is pending.
    while unsafe { sys::call(libc::SYS_rt_sigtimedwait, arguments) }.is_ok() {}
}

impl Watched {
    /// Waits for the end of the process or its deadline; `None` if neither has happened.
    fn wait(&self) -> Option<Ending> {
        let poll = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut fds = [poll(self.process), poll(self.timer)];
        // SAFETY: the structures live for the call; neither a timeout nor a mask is given.
        unsafe {
            sys::call(libc::SYS_ppoll, [(&raw mut fds) as usize, fds.len(), 0, 0, 8, 0]).ok()?
        };
        if fds[0].revents != 0 {
            return Some(Ending::Ended(wait_status(self.pid)));
        }
        (fds[1].revents != 0).then_some(Ending::Deadline)
    }
}

/// Reads the wait status of a process that has ended and is not reaped: the last number in
/// `/proc/PID/stat`.
fn wait_status(pid: i32) -> Option<i32> {
    let mut path = [0_u8; 32];
    // The last byte stays zero.
    io::Write::write_fmt(&mut &mut path[..31], format_args!("/proc/{pid}/stat")).ok()?;
    let mut text = [0_u8; STAT];
    let open = [libc::AT_FDCWD as usize, path.as_ptr() as usize, libc::O_CLOEXEC as usize, 0, 0, 0];
    // SAFETY: the path is NUL-terminated, and the buffer is as long as stated.
    let read = unsafe {
        let fd = sys::call(libc::SYS_openat, open).ok()?;
        let read = sys::call(libc::SYS_read, [fd, text.as_mut_ptr() as usize, STAT, 0, 0, 0]);
        let _ = sys::call(libc::SYS_close, [fd, 0, 0, 0, 0, 0]);
        read.ok()?
    };
    last_number(&text[..read])
}

fn last_number(line: &[u8]) -> Option<i32> {
    let line = line.trim_ascii_end();
    let last = line.iter().rposition(|byte| *byte == b' ').map_or(line, |at| &line[at + 1..]);
    str::from_utf8(last).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_continuation(_: Ending, _: &CommitPage) -> ! {
        // SAFETY: ends this process, which is the keeper's.
        unsafe { libc::_exit(7) }
    }

    #[test]
    fn keeper_blocks_every_signal_and_is_reaped() {
        let keeper = Keeper::start(no_continuation, None).unwrap();
        let pid = keeper.pid();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:\t")).unwrap();
        assert!(blocked.starts_with("fffffffe7ffbfeff") || blocked.starts_with("ffff"), "{status}");
        drop(keeper);
        assert!(!super::super::child::is_child(nix::sys::wait::Id::Pid(pid)));
    }

    #[test]
    fn displays_endings() {
        let texts = [
            Ending::Deadline,
            Ending::Ended(None),
            Ending::Ended(Some(libc::SIGKILL)),
            Ending::Ended(Some(64)),
            Ending::Ended(Some(3 << 8)),
        ];
        insta::assert_debug_snapshot!(texts.map(|ending| ending.to_string()), @r#"
        [
            "its deadline passed",
            "it ended",
            "it was killed by SIGKILL",
            "it was killed by signal 64",
            "it exited with status 3",
        ]
        "#);
    }

    #[test]
    fn wait_status_is_the_last_number() {
        assert_eq!(last_number(b"1 (a b) Z 0 9\n"), Some(9));
        assert_eq!(last_number(b""), None);
    }
}
