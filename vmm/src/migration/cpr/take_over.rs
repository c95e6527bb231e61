//! The first thing a process does: find out whether it is the new half of an update.

use std::os::fd::{FromRawFd, OwnedFd};

use super::named_fds::{AdoptError, AdoptedFds};
use super::state::{self, CprState, ENV_NAME, ReadError};

/// What came over exec.
#[derive(Debug)]
pub struct Adopted {
    /// What the old process said.
    pub state: CprState,
    /// The descriptors.
    pub fds: AdoptedFds,
}

/// Why what came over exec is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum TakeOverError {
    /// The variable has a value that is no text.
    #[error(
        "environment variable {ENV_NAME} is not valid: it is no text; unset it to boot a new VM"
    )]
    Text,
    /// The state.
    #[error("environment variable {ENV_NAME} is not valid: {0}; unset it to boot a new VM")]
    Read(#[from] ReadError),
    /// The descriptors.
    #[error("the CPR state named by environment variable {ENV_NAME} is not valid: {0}")]
    Adopt(#[from] AdoptError),
}

/// Takes over, if the environment says so; the variable is gone afterwards in any case.
///
/// # Safety
/// The process has one thread, and owns no descriptor but the first three.
pub unsafe fn adopt() -> Result<Option<Adopted>, TakeOverError> {
    let Some(value) = std::env::var_os(ENV_NAME) else { return Ok(None) };
    // SAFETY: there is one thread: the caller's promise.
    unsafe { forget_variable() };
    let value = value.to_str().ok_or(TakeOverError::Text)?;
    let (state, memfd) = state::read(value)?;
    // SAFETY: `read` found the CPR state there, and nobody owns it yet: the caller's promise.
    drop(unsafe { OwnedFd::from_raw_fd(memfd) });
    // SAFETY: the caller's promise.
    let fds = unsafe { AdoptedFds::adopt(&state.fds) }?;
    Ok(Some(Adopted { state, fds }))
}

/// Removes the variable from the environment, and its text from `/proc/PID/environ`.
///
/// # Safety
/// The process has one thread.
unsafe fn forget_variable() {
    unsafe extern "C" {
        static environ: *const *mut libc::c_char;
    }
    let prefix = format!("{ENV_NAME}=");
    let mut text = None;
    // SAFETY: `environ` is a null-terminated array of NUL-terminated strings, which nobody changes
    // meanwhile; those of the initial environment, as this one, are in writable memory and stay
    // there when `remove_var` drops the pointer to them.
    unsafe {
        let mut entry = environ;
        while text.is_none() && !entry.is_null() && !(*entry).is_null() {
            let bytes = std::slice::from_raw_parts_mut((*entry).cast::<u8>(), libc::strlen(*entry));
            text = bytes.starts_with(prefix.as_bytes()).then_some(bytes);
            entry = entry.add(1);
        }
        std::env::remove_var(ENV_NAME);
    }
    if let Some(text) = text {
        text.fill(0);
    }
}
