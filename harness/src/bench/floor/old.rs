//! The stage before `exec`: prepares RAM and a saved state, in memfds that are kept across it.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{PROBE, ProbeError, new, system};
use crate::carry;
use crate::scenario::Pages;

/// Prepares everything and executes the new stage.
pub(super) fn run(bytes: u64, cpus: u8, pages: &str) -> Result<(), ProbeError> {
    let binary = carry::own_binary().map_err(system("readlink /proc/self/exe"))?;
    // A separate process, so that its VM is not torn down within the measured `execve`.
    let saved = Command::new(&binary)
        .args([PROBE, "state", &cpus.to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(system("start the process that saves"))?;
    let flags = match pages == Pages::Reserved.as_str() {
        true => MFdFlags::MFD_HUGETLB,
        false => MFdFlags::empty(),
    };
    let ram = File::from(memfd_create(c"floor-ram", flags).map_err(system("memfd_create"))?);
    ram.set_len(bytes).map_err(system("set the length of RAM"))?;
    let state = memfd_create(c"floor-state", MFdFlags::empty()).map_err(system("memfd_create"))?;
    let mut state = File::from(state);
    state.write_all(&saved.stdout).map_err(system("write the state"))?;
    let path = CString::new(binary.as_os_str().as_bytes())
        .map_err(|_| ProbeError::Arguments(vec![binary.display().to_string()]))?;
    let fds = [ram.as_raw_fd(), state.as_raw_fd()].map(|fd| fd.to_string());
    let [bytes, cpus] = [bytes.to_string(), cpus.to_string()];
    let mut words: Vec<CString> = Vec::with_capacity(8);
    for word in
        ["floor", PROBE, "new", &fds[0], &fds[1], &bytes, &cpus, &new::monotonic_ns().to_string()]
    {
        words.push(CString::new(word).map_err(|_| ProbeError::Arguments(vec![word.to_owned()]))?);
    }
    let failed: Result<Infallible, _> = nix::unistd::execv(&path, &words);
    let Err(errno) = failed;
    Err(system("execv")(errno))
}
