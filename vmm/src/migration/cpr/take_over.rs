//! The first step of every process: find out whether it is the new side of an update, or the old
//! binary after a fallback.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use super::deadlines::{GRACE, WAY_BACK};
use super::fall_back::{self, ArmError, Armed, FAILED_NAME, Role};
use super::held_signals::HeldSignals;
use super::named_fds::{AdoptError, AdoptedFds, CheckedFds};
use super::state::{self, CprState, ReadError};
use super::variables::STATE;
use crate::keeper::{self, TIMER_FD};

/// What came over exec.
#[derive(Debug)]
pub struct Adopted {
    /// The CPR state from the old process.
    pub state: CprState,
    /// The descriptors.
    pub fds: AdoptedFds,
    /// The memfd that held the state.
    pub memfd: OwnedFd,
    /// What a fallback needs.
    pub fallback: Fallback,
}

/// What is needed for a fallback until the guest runs.
pub struct Fallback {
    /// What triggers the fallback.
    pub armed: Armed,
    /// How to fall back.
    pub record: fall_back::Record,
    /// Why the new binary failed; set in an old binary after a fallback.
    pub returned: Option<String>,
    /// The process that ran the guest before; set in the keeper that continues it.
    pub former: Option<i32>,
}

impl std::fmt::Debug for Fallback {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WayBack").field("returned", &self.returned).finish_non_exhaustive()
    }
}

/// Errors from accepting what came over exec.
#[derive(Debug, thiserror::Error)]
pub enum TakeOverError {
    /// A fail point fired.
    #[cfg(feature = "failpoints")]
    #[error(transparent)]
    Injected(#[from] crate::failpoints::Injected),
    /// The variable is invalid, and no descriptor holds a CPR state.
    #[error("{0}; unset it to boot a new VM")]
    Stray(Box<TakeOverError>),
    /// The value of the variable is not UTF-8.
    #[error("environment variable {STATE} is not valid: it is not UTF-8")]
    Text,
    /// The variable is missing, but a descriptor holds a CPR state.
    #[error(
        "environment variable {STATE} was removed on the way to the new VMM: a wrapper must \
         pass on its environment"
    )]
    Removed,
    /// The CPR state cannot be read.
    #[error("environment variable {STATE} is not valid: {0}")]
    Read(#[from] ReadError),
    /// A listed descriptor is invalid.
    #[error("the CPR state named by environment variable {STATE} is not valid: {0}")]
    Adopt(#[from] AdoptError),
    /// The fallback cannot be armed.
    #[error(transparent)]
    Arm(#[from] ArmError),
}

/// Takes over if the environment says so, and removes the variables in any case. If it fails,
/// [`fall_back::is_armed`] tells whether there is an old binary to fall back to.
///
/// # Safety
/// The process has one thread, and owns no descriptor except the first three.
pub unsafe fn adopt() -> Result<Option<Adopted>, TakeOverError> {
    let value = std::env::var_os(STATE);
    let failed = std::env::var_os(FAILED_NAME);
    // SAFETY: there is one thread: the caller's promise.
    unsafe {
        scrub_variable(STATE);
        scrub_variable(FAILED_NAME);
    }
    let role = match &failed {
        Some(why) => Role::Returned(why.to_string_lossy().into_owned()),
        None => Role::New,
    };
    let sealed = match value.map(|value| value.into_string()) {
        Some(Ok(value)) => state::open(&value).map_err(TakeOverError::from),
        Some(Err(_)) => Err(TakeOverError::Text),
        None => match state::find() {
            None => return Ok(None),
            Some(found) => {
                fall_back::arm(&found.record, role)?;
                return Err(TakeOverError::Removed);
            }
        },
    };
    let sealed = match (sealed, role.clone()) {
        (Ok(sealed), _) => sealed,
        (Err(error), role) => match state::find() {
            Some(found) => {
                // The error to report is the first one.
                let _ = fall_back::arm(&found.record, role);
                return Err(error);
            }
            None => return Err(TakeOverError::Stray(Box::new(error))),
        },
    };
    // SAFETY: the caller's promise; the record lists what crossed.
    unsafe { sealed.record.close_strays() };
    let record = &sealed.record;
    let patience = match role {
        Role::Returned(_) => WAY_BACK,
        _ => record.time_left() + GRACE,
    };
    if let Some(timer) = record.fds.iter().find(|named| named.name == TIMER_FD) {
        // The update created this timer. If the descriptor is not a timer, setting it fails
        // harmlessly.
        let _ = keeper::set_timer(timer.fd, patience);
    }
    let armed = fall_back::arm(record, role.clone())?;
    // If the binary was rehearsed, they are blocked already.
    HeldSignals::hold().until_release();
    #[cfg(feature = "failpoints")]
    crate::failpoints::set_helper(sealed.record.helper);
    fail_point!(Adopt);
    let state = sealed.state()?;
    let mut record = sealed.record;
    if matches!(role, Role::Returned(_)) {
        // If a client disconnected after the record was made, its descriptor is closed.
        record.fds.retain(|named| is_open(named.fd) || !is_client(&named.name));
    }
    let checked = CheckedFds::check(&record.fds)?;
    set_close_on_exec(record.state);
    // Before anything is owned and could be closed.
    armed.reserve()?;
    // SAFETY: `open` found the CPR state there, and nothing owns it yet: the caller's promise.
    let memfd = unsafe { OwnedFd::from_raw_fd(record.state) };
    // SAFETY: the caller's promise.
    let fds = unsafe { AdoptedFds::own(checked) };
    let returned = failed.map(|why| why.to_string_lossy().into_owned());
    let former = Some(record.pid).filter(|pid| *pid != std::process::id() as i32);
    let fallback = Fallback { armed, record, returned, former };
    Ok(Some(Adopted { state, fds, memfd, fallback }))
}

fn is_client(name: &str) -> bool {
    name.starts_with("qmp.client.") || name == "serial.client"
}

fn is_open(fd: RawFd) -> bool {
    // SAFETY: only reads the flags of a number; a closed one gives an error.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

fn set_close_on_exec(fd: RawFd) {
    // SAFETY: a number that was just read from.
    unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
}

/// Removes the variable from the environment, and its text from `/proc/PID/environ`.
///
/// # Safety
/// The process has one thread.
unsafe fn scrub_variable(name: &str) {
    unsafe extern "C" {
        static environ: *const *mut libc::c_char;
    }
    let prefix = format!("{name}=");
    let mut text = None;
    // SAFETY: `environ` is a null-terminated array of NUL-terminated strings, which nothing changes
    // meanwhile; those of the initial environment, like this one, are in writable memory and stay
    // there when `remove_var` drops the pointer to them.
    unsafe {
        let mut entry = environ;
        while text.is_none() && !entry.is_null() && !(*entry).is_null() {
            let bytes = std::slice::from_raw_parts_mut((*entry).cast::<u8>(), libc::strlen(*entry));
            text = bytes.starts_with(prefix.as_bytes()).then_some(bytes);
            entry = entry.add(1);
        }
        std::env::remove_var(name);
    }
    if let Some(text) = text {
        text.fill(0);
    }
}
