//! The files that hold RAM: a memfd, or an unlinked file on a tmpfs of huge pages.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::memfd::MFdFlags;
use nix::sys::statfs::fstatfs;

use crate::memfd;
use crate::memory::PageKind;

const SHMEM_ENABLED: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

/// Errors from creating the file for RAM.
#[derive(Debug, thiserror::Error)]
pub enum BackingError {
    /// The file could not be created.
    #[error("cannot create a memfd for RAM block {block}: {source}")]
    Create {
        /// The RAM block.
        block: String,
        /// The underlying error.
        source: io::Error,
    },
    /// The file could not be given its size.
    #[error("cannot set the size of RAM block {block} to {size} bytes: {source}")]
    Size {
        /// The RAM block.
        block: String,
        /// Bytes.
        size: u64,
        /// The underlying error.
        source: io::Error,
    },
    /// The host has too few reserved huge pages.
    #[error(
        "cannot reserve {need} pages of 2 MiB for RAM block {block}: {source}; raise \
         vm.nr_hugepages, or use pages=thp or pages=4k"
    )]
    NoHugePages {
        /// The RAM block.
        block: String,
        /// Pages.
        need: u64,
        /// The underlying error.
        source: io::Error,
    },
    /// The host gives no transparent huge pages to shared memory.
    #[error(
        "no transparent huge pages for RAM block {block}: {SHMEM_ENABLED} is \"{setting}\" and a \
         private tmpfs with huge=always failed: {source}; write \"advise\" to that file, run with \
         CAP_SYS_ADMIN, or use pages=4k"
    )]
    NoThp {
        /// The RAM block.
        block: String,
        /// The host's setting.
        setting: String,
        /// Why the tmpfs failed.
        source: io::Error,
    },
}

/// Creates the file that holds `size` bytes of RAM block `block`, close-on-exec, not yet mapped.
pub fn create(block: &str, size: u64, pages: PageKind) -> Result<File, BackingError> {
    let fd = match pages {
        PageKind::Small => ram_memfd(block, MFdFlags::empty())?,
        PageKind::Huge2M => ram_memfd(block, MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB)?,
        PageKind::Thp => thp_file(block)?,
    };
    let file = File::from(fd);
    let sized = |source| BackingError::Size { block: block.to_owned(), size, source };
    file.set_len(size).map_err(&sized)?;
    if pages == PageKind::Huge2M {
        // Fail now, with an errno, instead of by SIGBUS when the guest touches a page.
        nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, size as i64).map_err(
            |errno| BackingError::NoHugePages {
                block: block.to_owned(),
                need: size >> 21,
                source: errno.into(),
            },
        )?;
    }
    // Otherwise a process that opens it through /proc could truncate the guest's RAM.
    memfd::seal_size(&file).map_err(sized)?;
    Ok(file)
}

fn ram_memfd(block: &str, flags: MFdFlags) -> Result<OwnedFd, BackingError> {
    let create =
        |errno: Errno| BackingError::Create { block: block.to_owned(), source: errno.into() };
    let name = CString::new(block).map_err(|_| create(Errno::EINVAL))?;
    memfd::create(&name, flags).map_err(create)
}

fn thp_file(block: &str) -> Result<OwnedFd, BackingError> {
    let setting = shmem_setting();
    if matches!(setting.as_str(), "always" | "within_size" | "advise" | "force") {
        return ram_memfd(block, MFdFlags::empty());
    }
    huge_tmpfs_file().map_err(|errno| BackingError::NoThp {
        block: block.to_owned(),
        setting,
        source: errno.into(),
    })
}

fn shmem_setting() -> String {
    let text = std::fs::read_to_string(SHMEM_ENABLED).unwrap_or_default();
    let chosen = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    chosen.map_or_else(|| "missing".to_owned(), |(word, _)| word.to_owned())
}

/// An unlinked file on a tmpfs mounted nowhere: `fsopen`, `fsmount`, `O_TMPFILE`.
fn huge_tmpfs_file() -> Result<OwnedFd, Errno> {
    let fs = syscall_fd(|| {
        // SAFETY: the name is a NUL-terminated string; the kernel keeps no pointer.
        unsafe { libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), FSOPEN_CLOEXEC) }
    })?;
    let configure = |command: u32, key: *const libc::c_char, value: *const libc::c_char| {
        // SAFETY: key and value are null or NUL-terminated; the kernel keeps no pointer.
        let ret =
            unsafe { libc::syscall(libc::SYS_fsconfig, fs.as_raw_fd(), command, key, value, 0) };
        Errno::result(ret).map(drop)
    };
    configure(FSCONFIG_SET_STRING, c"huge".as_ptr(), c"always".as_ptr())?;
    // The default limit is half of the host's RAM; RAM blocks have their own size.
    configure(FSCONFIG_SET_STRING, c"size".as_ptr(), c"0".as_ptr())?;
    configure(FSCONFIG_CMD_CREATE, std::ptr::null(), std::ptr::null())?;
    let mount = syscall_fd(|| {
        // SAFETY: plain integers.
        unsafe { libc::syscall(libc::SYS_fsmount, fs.as_raw_fd(), FSMOUNT_CLOEXEC, 0) }
    })?;
    fstatfs(&mount)?;
    let flags = libc::O_TMPFILE | libc::O_RDWR | libc::O_CLOEXEC;
    syscall_fd(|| {
        // SAFETY: the path is NUL-terminated; the kernel keeps no pointer.
        i64::from(unsafe { libc::openat(mount.as_raw_fd(), c".".as_ptr(), flags, 0o600) })
    })
}

// <linux/mount.h>
const FSOPEN_CLOEXEC: u32 = 1;
const FSMOUNT_CLOEXEC: u32 = 1;
const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_CMD_CREATE: u32 = 6;

fn syscall_fd(call: impl FnOnce() -> i64) -> Result<OwnedFd, Errno> {
    let fd = Errno::result(call())?;
    // SAFETY: the system call just returned this descriptor, nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn small_pages_come_from_a_named_memfd() {
        let file = create("pc.ram", 1 << 20, PageKind::Small).unwrap();
        let target = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
        assert_eq!(target.to_str(), Some("/memfd:pc.ram (deleted)"));
        assert_eq!(file.metadata().unwrap().size(), 1 << 20);
    }

    #[test]
    fn its_size_is_sealed() {
        let file = create("pc.ram", 1 << 20, PageKind::Small).unwrap();
        assert!(file.set_len(0).is_err() && file.set_len(2 << 20).is_err());
    }

    #[test]
    fn too_few_huge_pages_error_says_what_to_do() {
        let error = create("pc.ram", 1 << 40, PageKind::Huge2M).unwrap_err().to_string();
        assert!(error.contains("raise vm.nr_hugepages") || error.contains("memfd"), "{error}");
    }
}
