//! The right to run a guest: a lock on the file of its RAM.
//!
//! The lock belongs to the open file description, so it crosses exec with the descriptor and ends
//! with the last duplicate of it. Another process that opens the file by `/proc/PID/fd` has a
//! description of its own, and cannot take the lock meanwhile.

use std::os::fd::{AsFd, AsRawFd, RawFd};

use nix::errno::Errno;

/// Takes the lock for this open file description; taking it again changes nothing.
///
/// Fails with EAGAIN if another description has it.
pub fn claim(file: &impl AsFd) -> Result<(), Errno> {
    set(file.as_fd().as_raw_fd(), libc::F_WRLCK)
}

/// Releases the lock, for the process that takes over the guest. Async-signal-safe.
pub fn release(file: RawFd) {
    // It fails only if the descriptor is not open, and then there is no lock of ours.
    let _ = set(file, libc::F_UNLCK);
}

fn set(file: RawFd, kind: libc::c_int) -> Result<(), Errno> {
    let whole = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the structure outlives the call; a number that is not open gives EBADF.
    Errno::result(unsafe { libc::fcntl(file, libc::F_OFD_SETLK, &whole) }).map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn only_one_description_has_the_lock() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (first, duplicate) = (file.as_file(), file.as_file().try_clone().unwrap());
        let second = File::options().read(true).write(true).open(file.path()).unwrap();
        claim(first).unwrap();
        claim(&duplicate).unwrap();
        assert_eq!(claim(&second), Err(Errno::EAGAIN));
        release(duplicate.as_raw_fd());
        claim(&second).unwrap();
        assert_eq!(claim(first), Err(Errno::EAGAIN));
    }
}
