//! The boot files, held in memory so that a reset long after the boot, or after an update, starts
//! the same guest even if the files have changed.

use std::fs::File;
use std::io::{self, Seek};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sys::memfd::MFdFlags;

use crate::memfd;

/// Largest kernel or initial RAM disk: more is a mistake.
const MAX_SIZE: u64 = 1 << 30;

/// Errors from reading a boot image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file cannot be read.
    #[error("cannot read {what} {path}: {source}")]
    Read {
        /// Kernel or initrd.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The underlying error.
        source: io::Error,
    },
    /// The file is not a regular file, is empty, or is too large.
    #[error("{what} {path} is not a regular file of 1 byte to 1 GiB")]
    Kind {
        /// Kernel or initrd.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
}

/// Kernel and initial RAM disk, each in a memfd.
#[derive(Debug)]
pub struct BootImage {
    kernel: File,
    initrd: Option<File>,
}

impl BootImage {
    /// Reads the files.
    pub fn open(kernel: &Path, initrd: Option<&Path>) -> Result<Self, ImageError> {
        let initrd = initrd.map(|path| copy("initrd", path)).transpose()?;
        Ok(Self { kernel: copy("kernel", kernel)?, initrd })
    }

    /// Adopts the memfds of an image that another process read.
    pub fn adopt(kernel: OwnedFd, initrd: Option<OwnedFd>) -> Self {
        for image in initrd.iter().chain([&kernel]) {
            // An older binary may have left it unsealed; if sealing fails, it is used as it is.
            if let Err(error) = memfd::seal_content(image) {
                tracing::warn!(%error, "cannot seal a boot image");
            }
        }
        Self { kernel: kernel.into(), initrd: initrd.map(File::from) }
    }

    /// The kernel's memfd.
    pub fn kernel_fd(&self) -> BorrowedFd<'_> {
        self.kernel.as_fd()
    }

    /// The initial RAM disk's memfd.
    pub fn initrd_fd(&self) -> Option<BorrowedFd<'_>> {
        self.initrd.as_ref().map(AsFd::as_fd)
    }

    pub(super) fn kernel(&self) -> &File {
        &self.kernel
    }

    pub(super) fn initrd(&self) -> Option<&File> {
        self.initrd.as_ref()
    }
}

fn copy(what: &'static str, path: &Path) -> Result<File, ImageError> {
    let read = |source| ImageError::Read { what, path: path.to_owned(), source };
    let meta = std::fs::metadata(path).map_err(read)?;
    if !meta.is_file() || !(1..=MAX_SIZE).contains(&meta.len()) {
        return Err(ImageError::Kind { what, path: path.to_owned() });
    }
    let mut from = File::open(path).map_err(read)?;
    let name = std::ffi::CString::new(format!("boot.{what}")).expect("no NUL in a literal");
    let memfd = memfd::create(&name, MFdFlags::empty()).map_err(|errno| read(errno.into()))?;
    let mut to = File::from(memfd);
    io::copy(&mut from, &mut to).map_err(read)?;
    to.rewind().map_err(read)?;
    memfd::seal_content(&to).map_err(read)?;
    Ok(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_kernel_is_named() {
        insta::assert_snapshot!(BootImage::open(Path::new("nowhere.elf"), None).unwrap_err(), @"cannot read kernel nowhere.elf: No such file or directory (os error 2)");
    }

    #[test]
    fn image_is_sealed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kernel");
        std::fs::write(&path, "image").unwrap();
        let image = BootImage::open(&path, None).unwrap();
        assert!(image.kernel.set_len(0).is_err());
        let unsealed = memfd::create(c"test", MFdFlags::empty()).unwrap();
        let image = BootImage::adopt(unsealed, None);
        assert!(image.kernel.set_len(1).is_err());
    }

    #[test]
    fn rejects_directory_as_kernel() {
        let dir = tempfile::tempdir().unwrap();
        let error = BootImage::open(dir.path(), None).unwrap_err().to_string();
        assert!(error.ends_with("is not a regular file of 1 byte to 1 GiB"), "{error}");
    }
}
