//! Creates memfds that are never executable, and seals them so that their content cannot be lost.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// From `<linux/memfd.h>`, since Linux 6.3: not executable, for good; allows sealing.
const MFD_NOEXEC_SEAL: libc::c_uint = 8;

/// Creates an empty, close-on-exec memfd that can be sealed.
///
/// `vm.memfd_noexec=2` rejects memfds that are not created with `MFD_NOEXEC_SEAL`.
pub fn create(name: &CStr, flags: MFdFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | MFdFlags::MFD_CLOEXEC;
    match memfd_create(name, flags | MFdFlags::from_bits_retain(MFD_NOEXEC_SEAL)) {
        // A kernel that does not know the flag, or does not support the kind of pages.
        Err(Errno::EINVAL) => memfd_create(name, flags | MFdFlags::MFD_ALLOW_SEALING),
        made => made,
    }
}

/// Seals the size of `file`, and forbids further seals: a seal against future writes would keep the
/// next binary from mapping it.
///
/// Leaves a file alone that is not a memfd, or was created without sealing.
pub fn seal_size(file: &impl AsFd) -> io::Result<()> {
    seal(file, SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL)
}

/// Seals the content of `file`, with the same exceptions as [`seal_size`].
pub fn seal_content(file: &impl AsFd) -> io::Result<()> {
    seal(file, all_seals())
}

/// Returns the seals that make a memfd immutable.
pub fn all_seals() -> SealFlag {
    SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE
}

fn seal(file: &impl AsFd, seals: SealFlag) -> io::Result<()> {
    match fcntl(file, FcntlArg::F_ADD_SEALS(seals)) {
        Ok(_) | Err(Errno::EINVAL | Errno::EPERM) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn memfd() -> File {
        let mut file = File::from(create(c"test", MFdFlags::empty()).unwrap());
        file.write_all(b"content").unwrap();
        file
    }

    #[test]
    fn memfd_is_not_executable() {
        let mode = memfd().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o111, 0, "{mode:o}");
    }

    #[test]
    fn sealed_size_leaves_content_writable() {
        let mut file = memfd();
        seal_size(&file).unwrap();
        assert!(file.set_len(0).is_err() && file.set_len(4096).is_err());
        assert!(seal(&file, SealFlag::F_SEAL_WRITE).is_ok(), "a refused seal is not an error");
        use std::io::Seek;
        file.rewind().unwrap();
        file.write_all(b"CONTENT").unwrap();
    }

    #[test]
    fn sealed_content_is_immutable() {
        let mut file = memfd();
        seal_content(&file).unwrap();
        assert!(file.set_len(0).is_err());
        assert!(file.write_all(b"more").is_err());
    }

    #[test]
    fn unsealable_files_are_left_alone() {
        seal_size(&tempfile::tempfile().unwrap()).unwrap();
        let unsealable = memfd_create(c"test", MFdFlags::MFD_CLOEXEC).unwrap();
        seal_size(&unsealable).unwrap();
    }
}
