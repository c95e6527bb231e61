//! memfds: never executable, and sealed against what would take their content away.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// `<linux/memfd.h>`, since Linux 6.3: not executable, and never again; it may be sealed.
const MFD_NOEXEC_SEAL: libc::c_uint = 8;

/// Makes an empty memfd, close-on-exec, that can be sealed.
///
/// `vm.memfd_noexec=2` refuses those that do not ask to be kept from being executed.
pub fn create(name: &CStr, flags: MFdFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | MFdFlags::MFD_CLOEXEC;
    match memfd_create(name, flags | MFdFlags::from_bits_retain(MFD_NOEXEC_SEAL)) {
        // A kernel that does not know the flag, or one without the kind of pages.
        Err(Errno::EINVAL) => memfd_create(name, flags | MFdFlags::MFD_ALLOW_SEALING),
        made => made,
    }
}

/// Fixes the size of `file`, and that no other seal can be added: one against future writing would
/// keep the next binary from mapping it.
///
/// What is no memfd, or was made without sealing, stays as it is.
pub fn seal_size(file: &impl AsFd) -> io::Result<()> {
    seal(file, SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL)
}

/// Fixes the content of `file`; of the same exceptions as in [`seal_size`].
pub fn seal_content(file: &impl AsFd) -> io::Result<()> {
    seal(file, all_seals())
}

/// The seals of what nobody may change any more.
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
    fn a_memfd_is_not_executable() {
        let mode = memfd().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o111, 0, "{mode:o}");
    }

    #[test]
    fn a_sealed_size_is_fixed_and_the_content_is_not() {
        let mut file = memfd();
        seal_size(&file).unwrap();
        assert!(file.set_len(0).is_err() && file.set_len(4096).is_err());
        assert!(seal(&file, SealFlag::F_SEAL_WRITE).is_ok(), "it is refused, and that is no error");
        use std::io::Seek;
        file.rewind().unwrap();
        file.write_all(b"CONTENT").unwrap();
    }

    #[test]
    fn a_sealed_content_is_fixed() {
        let mut file = memfd();
        seal_content(&file).unwrap();
        assert!(file.set_len(0).is_err());
        assert!(file.write_all(b"more").is_err());
    }

    #[test]
    fn what_cannot_be_sealed_stays_as_it_is() {
        seal_size(&tempfile::tempfile().unwrap()).unwrap();
        let unsealable = memfd_create(c"test", MFdFlags::MFD_CLOEXEC).unwrap();
        seal_size(&unsealable).unwrap();
    }
}
