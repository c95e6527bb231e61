//! The actions of fail points.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid};

use super::{HELPER, Injected, Point};

/// What happens at a fail point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Disarms the point.
    Off,
    /// Makes the step fail with this errno.
    Errno(Errno),
    /// Panics.
    Panic,
    /// Aborts.
    Abort,
    /// Writes to an unmapped address.
    Segv,
    /// Kills the helper that holds the old address space.
    KillHelper,
    /// Sends SIGKILL to the process.
    Sigkill,
    /// Hangs this thread.
    Hang,
    /// Writes only half of the data, without an error.
    ShortWrite,
    /// Lets no descriptor be opened until the update is over.
    NoFds,
    /// Lets no memory be allocated until the update is over.
    NoMemory,
    /// Sends this signal to the process.
    Signal(Signal),
    /// Waits until this FIFO has been opened for writing and closed again.
    Hold(PathBuf),
}

/// The action is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid fail point action \"{0}\": use off, errno=NAME, panic, abort, segv, sigkill, \
     kill-helper, hang, short-write, no-fds, no-memory, signal=SIGTERM|SIGINT|SIGHUP or hold=FIFO"
)]
pub struct ActionError(String);

impl FromStr for Action {
    type Err = ActionError;

    fn from_str(text: &str) -> Result<Self, ActionError> {
        let error = || ActionError(text.to_owned());
        Ok(match text.split_once('=') {
            None => match text {
                "off" => Self::Off,
                "panic" => Self::Panic,
                "abort" => Self::Abort,
                "segv" => Self::Segv,
                "sigkill" => Self::Sigkill,
                "kill-helper" => Self::KillHelper,
                "hang" => Self::Hang,
                "short-write" => Self::ShortWrite,
                "no-fds" => Self::NoFds,
                "no-memory" => Self::NoMemory,
                _ => return Err(error()),
            },
            Some(("errno", name)) => Self::Errno(errno(name).ok_or_else(error)?),
            Some(("signal", name)) => match name.parse() {
                Ok(signal @ (Signal::SIGTERM | Signal::SIGINT | Signal::SIGHUP)) => {
                    Self::Signal(signal)
                }
                _ => return Err(error()),
            },
            Some(("hold", path)) => Self::Hold(path.into()),
            Some(_) => return Err(error()),
        })
    }
}

fn errno(name: &str) -> Option<Errno> {
    let known = (1..200).map(Errno::from_raw).filter(|errno| *errno != Errno::UnknownErrno);
    known.into_iter().find(|errno| format!("{errno:?}") == name)
}

impl Action {
    pub(super) fn act(self, point: Point) -> Result<(), Injected> {
        match tracing::dispatcher::has_been_set() {
            true => tracing::warn!(%point, action = ?self, "failpoint"),
            // The first points of a new process come before its log.
            false => eprintln!("failpoint point={point} action={self:?}"),
        }
        match self {
            Self::Errno(errno) => return Err(Injected { point, errno }),
            Self::Panic => panic!("fail point {point}"),
            Self::Abort => std::process::abort(),
            Self::Segv => {
                // SAFETY: none: nothing is mapped there, and that is the point.
                unsafe { std::ptr::without_provenance_mut::<u8>(8).write_volatile(1) };
            }
            Self::Sigkill => kill(getpid(), Signal::SIGKILL).expect("the signal exists"),
            Self::KillHelper => {
                let pid = HELPER.load(Ordering::SeqCst);
                if pid > 0 {
                    // It may already be gone.
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
            }
            Self::Hang => loop {
                nix::unistd::pause();
            },
            Self::NoFds => limit(libc::RLIMIT_NOFILE, 0),
            Self::NoMemory => limit(libc::RLIMIT_AS, address_space()),
            // To the process, like an operator's signal: any of its threads may handle it.
            Self::Signal(signal) => kill(getpid(), signal).expect("the signal exists"),
            Self::Hold(path) => {
                let mut fifo = File::open(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
                let _ = fifo.read_to_end(&mut Vec::new());
            }
            Self::Off | Self::ShortWrite => {}
        }
        Ok(())
    }
}

/// Soft limits to restore.
static BEFORE: [(AtomicBool, AtomicU64); 2] =
    [const { (AtomicBool::new(false), AtomicU64::new(0)) }; 2];
const RESOURCES: [libc::__rlimit_resource_t; 2] = [libc::RLIMIT_NOFILE, libc::RLIMIT_AS];

fn limit(resource: libc::__rlimit_resource_t, soft: u64) {
    let Some(slot) = RESOURCES.iter().position(|known| *known == resource) else { return };
    if let Some(before) = set_soft(resource, soft) {
        let (limited, value) = &BEFORE[slot];
        value.store(before, Ordering::SeqCst);
        limited.store(true, Ordering::SeqCst);
    }
}

/// Restores every limit, and forgets the helper. Async-signal-safe.
pub fn relieve() {
    HELPER.store(0, Ordering::SeqCst);
    for (resource, (limited, before)) in RESOURCES.iter().zip(&BEFORE) {
        if limited.swap(false, Ordering::SeqCst) {
            set_soft(*resource, before.load(Ordering::SeqCst));
        }
    }
}

fn set_soft(resource: libc::__rlimit_resource_t, soft: u64) -> Option<u64> {
    // SAFETY: system calls that read and write a structure of our own.
    unsafe {
        let mut limits: libc::rlimit = std::mem::zeroed();
        if libc::getrlimit(resource, &mut limits) != 0 {
            return None;
        }
        let before = std::mem::replace(&mut limits.rlim_cur, soft.min(limits.rlim_max));
        (libc::setrlimit(resource, &limits) == 0).then_some(before)
    }
}

/// Returns the bytes that are mapped now.
fn address_space() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0);
    pages * 4096
}
