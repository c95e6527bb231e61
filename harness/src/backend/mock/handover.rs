//! The state that the mock hands over across `exec`: a memfd whose number is in the environment.

use std::ffi::{CString, c_char};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use cpr_qmp::migration::MigrationStatus;
use cpr_qmp::run_state::RunState;
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The environment variable with the memfd's number.
const VARIABLE: &str = "CPR_EXEC_STATE";

/// A QMP connection, and input that was read from it but not yet executed.
#[derive(Debug, Serialize, Deserialize)]
pub struct Peer {
    pub number: RawFd,
    pub input: Vec<u8>,
}

/// The process that died, and the reason, when its keeper continues the VM.
#[derive(Debug, Serialize, Deserialize)]
pub struct Revived {
    pub former: i32,
    pub reason: String,
}

/// An update in progress.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct UnderWay {
    /// The run state before it.
    pub before: RunState,
    /// Whether clients were told that the guest stopped for it.
    pub stopped: bool,
}

/// The state that is handed over.
#[derive(Debug, Serialize, Deserialize)]
pub struct Handover {
    pub ram: RawFd,
    pub listener: RawFd,
    /// The listener of the serial port, if that is a socket.
    pub serial: Option<RawFd>,
    /// Updates so far.
    pub updates: usize,
    pub log: RawFd,
    pub checkpoint: RawFd,
    pub clients: Vec<Peer>,
    pub run_state: RunState,
    pub events: bool,
    pub status: MigrationStatus,
    pub error: Option<String>,
    pub under_way: Option<UnderWay>,
    /// A pending request: connection and ID.
    pub asked: Option<(RawFd, Value)>,
    /// The keeper of the previous program in this process.
    pub keeper: Option<i32>,
    /// Set if the previous process died and this is its keeper.
    pub revived: Option<Revived>,
}

impl Handover {
    fn descriptors(&self) -> Vec<RawFd> {
        let mut all = vec![self.ram, self.listener, self.log, self.checkpoint];
        all.extend(self.serial);
        all.extend(self.clients.iter().map(|peer| peer.number));
        all
    }

    /// Executes `command`; returns only if that fails.
    ///
    /// With `leave_one`, close-on-exec is not restored on the listener.
    pub fn exec(&self, command: &[String], leave_one: bool) -> io::Error {
        match self.try_exec(command, leave_one) {
            Ok(never) => match never {},
            Err(e) => e,
        }
    }

    fn try_exec(
        &self,
        command: &[String],
        leave_one: bool,
    ) -> io::Result<std::convert::Infallible> {
        let mut state = File::from(memfd_create(c"cpr-state", MFdFlags::empty())?);
        serde_json::to_writer(&state, self)?;
        state.rewind()?;
        let words = command
            .iter()
            .map(|word| Ok(CString::new(word.as_str())?))
            .collect::<io::Result<Vec<CString>>>()?;
        let variable = CString::new(format!("{VARIABLE}={}", state.as_raw_fd()))?;
        let environment: Vec<CString> = std::env::vars()
            .filter_map(|(k, v)| CString::new(format!("{k}={v}")).ok())
            .chain([variable])
            .collect();
        self.descriptors().into_iter().for_each(|fd| set_close_on_exec(fd, false));
        let mut error = Errno::ENOENT;
        for path in candidates(&command[0]) {
            let Ok(path) = CString::new(path) else { continue };
            let Err(e) = nix::unistd::execve(&path, &words, &environment);
            if error == Errno::ENOENT {
                error = e;
            }
        }
        let restored =
            self.descriptors().into_iter().filter(|fd| !leave_one || *fd != self.listener);
        restored.for_each(|fd| set_close_on_exec(fd, true));
        Err(error.into())
    }
}

fn candidates(word: &str) -> Vec<String> {
    if word.contains('/') {
        return vec![word.to_owned()];
    }
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').map(|folder| format!("{folder}/{word}")).collect()
}

/// Takes over the state that the previous program left, if there is any.
pub fn adopt(keep_variable: bool) -> io::Result<Option<(Handover, OwnedFd)>> {
    let Ok(number) = std::env::var(VARIABLE) else { return Ok(None) };
    let number: RawFd = number.parse().map_err(io::Error::other)?;
    if !keep_variable {
        erase_variable();
    }
    // SAFETY: the previous program left this descriptor open for us, and nothing else owns it.
    let mut state = unsafe { File::from_raw_fd(number) };
    let mut text = String::new();
    state.read_to_string(&mut text)?;
    set_close_on_exec(number, true);
    Ok(Some((serde_json::from_str(&text)?, state.into())))
}

/// Removes the variable, and erases its text from the memory that `/proc/PID/environ` shows.
fn erase_variable() {
    let Ok(name) = CString::new(VARIABLE) else { return };
    // SAFETY: called before any thread exists. The text lies in memory that the kernel gave this
    // process for its environment, is followed by a NUL, and has the name and `=` before it.
    unsafe {
        let value: *mut c_char = libc::getenv(name.as_ptr());
        std::env::remove_var(VARIABLE);
        if !value.is_null() {
            let length = libc::strlen(value);
            let before = VARIABLE.len() + 1;
            std::ptr::write_bytes(value.sub(before), 0, before + length);
        }
    }
}

/// Sets or clears close-on-exec.
pub fn set_close_on_exec(fd: RawFd, set: bool) {
    // SAFETY: changes one flag of a descriptor of this process; a bad number is an error.
    unsafe { libc::fcntl(fd, libc::F_SETFD, if set { libc::FD_CLOEXEC } else { 0 }) };
}
