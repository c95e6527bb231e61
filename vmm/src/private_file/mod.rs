//! A file that only its owner can access, at a path that another user may have prepared.
//!
//! Nothing at the path changes before [`PrivateFile::clear_target`]. If the directory allows it, the
//! content is written to a file without a name, which gets its name when it is complete; otherwise
//! an existing file is overwritten in place.

mod target;
mod unnamed;

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{FileStat, Mode, fchmod, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::switch::Switch;
use target::Target;
use unnamed::Unnamed;

/// Errors from writing a file, without its path.
#[derive(Debug, thiserror::Error)]
pub enum PrivateFileError {
    /// A system call failed.
    #[error(transparent)]
    System(#[from] io::Error),
    /// The path is a device, a FIFO or a socket.
    #[error("it is not a regular file")]
    NotRegular,
    /// The path is a symbolic link that is not followed.
    #[error(
        "it is a symbolic link: name the file it points to, or start the VMM with \
         --follow-symlinks on"
    )]
    Symlink,
    /// The file belongs to another user.
    #[error("it belongs to user {0}: remove it, or use another path")]
    Foreign(u32),
    /// The file is world-writable.
    #[error("every user may write to it (mode {0:04o}): remove it, or chmod o-w")]
    Open(u32),
    /// The file is one of the VMM's own, such as RAM, a boot image or the log.
    #[error("this VMM itself has it open (descriptor {0}): use another path")]
    InUse(RawFd),
    /// The file is the VMM's program.
    #[error("it is the program that this VMM executes: use another path")]
    Program,
    /// The path now leads to another file.
    #[error("another file has taken its place in the meantime")]
    Replaced,
}

impl From<Errno> for PrivateFileError {
    fn from(errno: Errno) -> Self {
        Self::System(errno.into())
    }
}

/// A file to write to. Dropped before [`PrivateFile::keep`], it leaves nothing behind that could be
/// mistaken for the complete file.
#[derive(Debug)]
pub struct PrivateFile {
    file: File,
    /// Keeps the directory open, which `retraction` names by number.
    _dir: OwnedFd,
    path: PathBuf,
    /// How the file gets its name, if it has none.
    unnamed: Option<Unnamed>,
    /// Device and inode of the file at the path until then.
    replaces: Option<(u64, u64)>,
    retraction: Retraction,
    keep: bool,
}

impl PrivateFile {
    /// Creates or opens a file for `path`; an existing file stays unchanged.
    pub fn open(path: PathBuf, follow: Switch) -> Result<Self, PrivateFileError> {
        let target = Target::look(&path, follow)?;
        let made = match &target.found {
            // The target of the link is in another directory.
            Some(found) if found.is_symlink => Err(Errno::ELOOP),
            _ => Unnamed::make(&target.dir),
        };
        Self::new(path, target, made)
    }

    fn new(
        path: PathBuf,
        target: Target,
        made: Result<(File, Unnamed), Errno>,
    ) -> Result<Self, PrivateFileError> {
        let Target { dir, name, found } = target;
        let (file, unnamed) = match (made, &found) {
            (Ok((file, unnamed)), _) => (file, Some(unnamed)),
            // The directory may be read-only to us while the file in it is not.
            (Err(_), Some(found)) => (found.open(&dir, &name)?, None),
            (Err(errno), None) => return Err(errno.into()),
        };
        let retraction = Retraction {
            file: file.as_raw_fd(),
            dir: dir.as_raw_fd(),
            name,
            hidden: unnamed.as_ref().and_then(Unnamed::hidden),
            in_place: unnamed.is_none(),
            touched: Arc::default(),
        };
        let replaces = found.map(|found| found.identity);
        Ok(Self { file, _dir: dir, path, unnamed, replaces, retraction, keep: false })
    }

    /// Returns the path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the file to write to, after [`clear_target`](Self::clear_target).
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Returns whether an existing file is overwritten in place.
    pub fn is_in_place(&self) -> bool {
        self.unnamed.is_none()
    }

    /// Opens the directory, to write its entries to disk.
    pub fn open_directory(&self) -> io::Result<File> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(nix::fcntl::openat(borrowed(self.retraction.dir), c".", flags, Mode::empty())?.into())
    }

    /// Returns the descriptors of the file and of its directory.
    pub fn fds(&self) -> [RawFd; 2] {
        [self.retraction.file, self.retraction.dir]
    }

    /// Returns the [`Retraction`], which undoes the write without this object.
    pub fn retraction(&self) -> &Retraction {
        &self.retraction
    }

    /// Removes or empties what is at the path. A file system takes several times as long for that
    /// as for writing the new content.
    pub fn clear_target(&self) -> Result<(), PrivateFileError> {
        let Retraction { dir, name, touched, .. } = &self.retraction;
        if self.unnamed.is_none() {
            touched.store(true, Ordering::SeqCst);
            self.file.set_len(0)?;
            return match fchmod(&self.file, Mode::S_IRUSR | Mode::S_IWUSR) {
                // The file belongs to root, who is responsible for its mode.
                Ok(()) | Err(Errno::EPERM) => Ok(()),
                Err(errno) => Err(errno.into()),
            };
        }
        let Some(replaces) = self.replaces else { return Ok(()) };
        match status(*dir, name) {
            Err(Errno::ENOENT) => Ok(()),
            Ok(now) if identity(&now) == replaces => {
                touched.store(true, Ordering::SeqCst);
                Ok(unlink(*dir, name)?)
            }
            Ok(_) => Err(PrivateFileError::Replaced),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Puts the written file at the path.
    pub fn put_in_place(&mut self) -> Result<(), PrivateFileError> {
        if let Some(unnamed) = &self.unnamed {
            unnamed.name(&self.file, self.retraction.dir, &self.retraction.name)?;
        }
        Ok(())
    }

    /// Keeps the file in place.
    pub fn keep(mut self) {
        self.keep = true;
    }
}

impl AsFd for PrivateFile {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for PrivateFile {
    fn drop(&mut self) {
        if !self.keep {
            self.retraction.carry_out();
        }
    }
}

/// Undoes a [`PrivateFile`], by descriptors: another file that is at the path by now is left alone.
#[derive(Clone, Debug)]
pub struct Retraction {
    file: RawFd,
    dir: RawFd,
    name: CString,
    hidden: Option<CString>,
    in_place: bool,
    touched: Arc<AtomicBool>,
}

impl Retraction {
    /// Empties the file, if it has been touched, and removes its names. Async-signal-safe; call it
    /// while the descriptors are open.
    pub fn carry_out(&self) {
        if self.in_place && !self.touched.load(Ordering::SeqCst) {
            return;
        }
        // On failure an incomplete file remains, which a reader must be able to detect anyway.
        // SAFETY: system calls on a descriptor's number and on a structure of this frame.
        let own = unsafe {
            libc::ftruncate(self.file, 0);
            let mut own: FileStat = std::mem::zeroed();
            if libc::fstat(self.file, &mut own) != 0 {
                return;
            }
            identity(&own)
        };
        for name in self.hidden.iter().chain([&self.name]).filter(|_| !self.in_place) {
            if status(self.dir, name).is_ok_and(|here| identity(&here) == own) {
                let _ = unlink(self.dir, name);
            }
        }
    }
}

fn borrowed(fd: RawFd) -> std::os::fd::BorrowedFd<'static> {
    // SAFETY: a number that is not open gives EBADF; nothing is closed by this.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) }
}

fn status(dir: RawFd, name: &CStr) -> Result<FileStat, Errno> {
    fstatat(borrowed(dir), name, AtFlags::AT_SYMLINK_NOFOLLOW)
}

fn unlink(dir: RawFd, name: &CStr) -> Result<(), Errno> {
    unlinkat(borrowed(dir), name, UnlinkatFlags::NoRemoveDir)
}

fn identity(status: &FileStat) -> (u64, u64) {
    (status.st_dev, status.st_ino)
}

fn identity_of(file: &File) -> io::Result<(u64, u64)> {
    file.metadata().map(|meta| (meta.dev(), meta.ino()))
}

#[cfg(test)]
mod tests;
