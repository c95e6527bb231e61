//! Checks what is at the path before it is written.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::unistd::geteuid;

use super::{PrivateFileError, identity, identity_of, status};
use crate::switch::Switch;
use crate::{descriptors, own_binary};

/// A path, split into directory and name.
pub struct Target {
    /// The directory.
    pub dir: OwnedFd,
    /// The last component.
    pub name: CString,
    /// The existing file, if it may be replaced or overwritten.
    pub found: Option<Found>,
}

/// An existing file, or a symbolic link to follow.
pub struct Found {
    /// Device and inode.
    pub identity: (u64, u64),
    /// Whether it is a symbolic link, which is followed.
    pub is_symlink: bool,
}

impl Target {
    /// Checks `path`, and changes nothing.
    pub fn look(path: &Path, follow: Switch) -> Result<Self, PrivateFileError> {
        let name = match path.file_name() {
            Some(name) => CString::new(name.as_bytes()).map_err(io::Error::from)?,
            None if path.as_os_str().is_empty() => return Err(Errno::ENOENT.into()),
            None => return Err(Errno::EISDIR.into()),
        };
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let dir = nix::fcntl::open(parent.unwrap_or(Path::new(".")), flags, Mode::empty())?;
        let found = match status(dir.as_raw_fd(), &name) {
            Err(Errno::ENOENT) => None,
            Err(errno) => return Err(errno.into()),
            Ok(status) if kind(&status) == SFlag::S_IFLNK => match follow {
                Switch::On => Some(Found { identity: identity(&status), is_symlink: true }),
                Switch::Off => return Err(PrivateFileError::Symlink),
            },
            Ok(status) => {
                check(&status, None)?;
                Some(Found { identity: identity(&status), is_symlink: false })
            }
        };
        Ok(Self { dir, name, found })
    }
}

impl Found {
    /// Opens the file for writing, without blocking.
    pub fn open(&self, dir: &OwnedFd, name: &CStr) -> Result<File, PrivateFileError> {
        let mut flags = OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        flags.set(OFlag::O_NOFOLLOW, !self.is_symlink);
        let file = File::from(openat(dir, name, flags, Mode::empty())?);
        check(&fstat(&file)?, Some(&file))?;
        if !self.is_symlink && identity_of(&file)? != self.identity {
            return Err(PrivateFileError::Replaced);
        }
        Ok(file)
    }
}

/// Checks that a file with this `status` may be overwritten or replaced; `opened` is the file
/// itself, if it is open.
fn check(status: &FileStat, opened: Option<&File>) -> Result<(), PrivateFileError> {
    const BY_OTHERS: u32 = 0o002;
    match kind(status) {
        SFlag::S_IFREG => {}
        SFlag::S_IFDIR => return Err(Errno::EISDIR.into()),
        _ => return Err(PrivateFileError::NotRegular),
    }
    let opened = opened.map(AsRawFd::as_raw_fd);
    let others = descriptors::open().into_iter().filter(|fd| Some(*fd) != opened);
    for fd in others {
        if fstat(super::borrowed(fd)).is_ok_and(|own| identity(&own) == identity(status)) {
            return Err(PrivateFileError::InUse(fd));
        }
    }
    if own_binary::identity() == Some(identity(status)) {
        return Err(PrivateFileError::Program);
    }
    if status.st_uid != 0 && status.st_uid != geteuid().as_raw() {
        return Err(PrivateFileError::Foreign(status.st_uid));
    }
    match status.st_mode & 0o7777 {
        mode if mode & BY_OTHERS != 0 => Err(PrivateFileError::Open(mode)),
        _ => Ok(()),
    }
}

fn kind(status: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(status.st_mode & SFlag::S_IFMT.bits())
}
