//! A RAM file at a path, which outlives the process (`--memory SIZE,file=PATH`).

use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::geteuid;

use super::allocate::allocate;
use super::claim;
use super::stamp::Stamp;

/// Errors from opening a RAM file. The file is as before.
#[derive(Debug, thiserror::Error)]
pub enum RamFileError {
    /// It cannot be opened or created.
    #[error("cannot open the RAM file {}: {source}", .path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It is a symbolic link.
    #[error(
        "cannot use the RAM file {}: it is a symbolic link; name the file it points to", .0.display()
    )]
    Symlink(PathBuf),
    /// It is a directory or a device.
    #[error("cannot use the RAM file {}: it is not a regular file", .0.display())]
    NotRegular(PathBuf),
    /// It belongs to another user.
    #[error(
        "cannot use the RAM file {}: it belongs to user {uid}; use a file of the VMM's user",
        .path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// Every user may write to it.
    #[error(
        "cannot use the RAM file {}: every user may write to it (mode {mode:04o}); chmod o-w",
        .path.display()
    )]
    WorldWritable {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It has another size than the RAM.
    #[error(
        "cannot use the RAM file {}: it has {found} bytes, --memory says {expected}; correct the \
         size, or use another file",
        .path.display()
    )]
    Size {
        /// The file.
        path: PathBuf,
        /// Bytes of the file.
        found: u64,
        /// Bytes of RAM.
        expected: u64,
    },
    /// Another process has the guest.
    #[error(
        "cannot lock the RAM file {}: another process runs its guest; end that VMM, or use another \
         file",
        .0.display()
    )]
    InUse(PathBuf),
    /// It cannot be locked.
    #[error("cannot lock the RAM file {}: {source}", .path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// There is no room for it.
    #[error("cannot allocate {size} bytes for the RAM file {}: {source}", .path.display())]
    Allocate {
        /// The file.
        path: PathBuf,
        /// Bytes.
        size: u64,
        /// The cause.
        source: io::Error,
    },
}

/// Opens the file of `size` bytes at `path` and locks it. A missing file is created with zeroes and
/// mode 0600, if `create` says so. Neither the content nor the time of modification of an existing
/// file changes.
pub fn open(path: &Path, size: u64, create: bool) -> Result<File, RamFileError> {
    let error = |source: io::Error| RamFileError::Open { path: path.to_owned(), source };
    match options().open(path) {
        Ok(file) => prepare(path, file, size, false),
        Err(missing) if missing.kind() == io::ErrorKind::NotFound && create => {
            let file = options().create_new(true).mode(0o600).open(path).map_err(error)?;
            prepare(path, file, size, true).inspect_err(|_| {
                // Nothing but an incomplete file of ours is lost.
                let _ = std::fs::remove_file(path);
            })
        }
        Err(link) if link.raw_os_error() == Some(libc::ELOOP) => {
            Err(RamFileError::Symlink(path.to_owned()))
        }
        Err(other) => Err(error(other)),
    }
}

fn options() -> std::fs::OpenOptions {
    let mut options = File::options();
    options.read(true).write(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    options
}

fn prepare(path: &Path, file: File, size: u64, created: bool) -> Result<File, RamFileError> {
    const BY_OTHERS: u32 = 0o002;
    let error = |source| RamFileError::Open { path: path.to_owned(), source };
    let meta = file.metadata().map_err(error)?;
    if !meta.is_file() {
        return Err(RamFileError::NotRegular(path.to_owned()));
    }
    // Another owner's file can be neither trusted nor given a time of modification.
    if !geteuid().is_root() && meta.uid() != geteuid().as_raw() {
        return Err(RamFileError::Foreign { path: path.to_owned(), uid: meta.uid() });
    }
    if !created && meta.mode() & BY_OTHERS != 0 {
        let mode = meta.mode() & 0o7777;
        return Err(RamFileError::WorldWritable { path: path.to_owned(), mode });
    }
    match claim::claim(&file) {
        Ok(()) => {}
        Err(Errno::EAGAIN | Errno::EACCES) => return Err(RamFileError::InUse(path.to_owned())),
        Err(errno) => {
            return Err(RamFileError::Lock { path: path.to_owned(), source: errno.into() });
        }
    }
    if created {
        // Independent of the umask.
        fchmod(&file, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|errno| error(errno.into()))?;
    } else {
        let found = file.metadata().map_err(error)?.size();
        if found != size {
            return Err(RamFileError::Size { path: path.to_owned(), found, expected: size });
        }
    }
    let failed = |source| RamFileError::Allocate { path: path.to_owned(), size, source };
    let before = Stamp::of(&file).map_err(error)?;
    // Fail now, with an errno, instead of by SIGBUS when the guest touches a page.
    let allocated = allocate(&file, size);
    // Some file systems change it even if that fails.
    before.set(&file).map_err(error)?;
    allocated.map_err(failed)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    const SIZE: u64 = 4 << 20;

    fn refused(path: &Path) -> String {
        let dir = path.parent().unwrap().display().to_string();
        open(path, SIZE, true).unwrap_err().to_string().replace(&dir, "DIR")
    }

    #[test]
    fn new_file_is_private_allocated_and_locked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ram");
        let file = open(&path, SIZE, true).unwrap();
        let meta = file.metadata().unwrap();
        assert_eq!((meta.size(), meta.mode() & 0o7777), (SIZE, 0o600));
        assert!(meta.blocks() * 512 >= SIZE, "{}", meta.blocks());
        insta::assert_snapshot!(refused(&path), @"cannot lock the RAM file DIR/ram: another process runs its guest; end that VMM, or use another file");
        drop(file);
        open(&path, SIZE, false).unwrap();
    }

    #[test]
    fn existing_file_keeps_its_content_and_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ram");
        let sparse = File::create(&path).unwrap();
        sparse.set_len(SIZE).unwrap();
        let before = Stamp::renew(&sparse).unwrap();
        let file = open(&path, SIZE, false).unwrap();
        assert_eq!(Stamp::of(&file).unwrap(), before);
        assert!(file.metadata().unwrap().blocks() * 512 >= SIZE);
    }

    #[test]
    fn unusable_files_are_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("short"), [1; 8192]).unwrap();
        std::fs::write(path("open"), []).unwrap();
        std::fs::set_permissions(path("open"), PermissionsExt::from_mode(0o666)).unwrap();
        symlink("target", path("link")).unwrap();
        nix::unistd::mkfifo(&path("fifo"), Mode::S_IRWXU).unwrap();
        std::fs::create_dir(path("dir")).unwrap();
        let names = ["short", "open", "link", "fifo", "dir", "missing/ram"];
        let mut texts: Vec<_> = names.iter().map(|name| refused(&path(name))).collect();
        texts.push(open(&path("new"), SIZE, false).unwrap_err().to_string());
        texts.push(open(&path("new"), 1 << 60, true).unwrap_err().to_string());
        let dir = dir.path().display().to_string();
        insta::assert_snapshot!(texts.join("\n").replace(&dir, "DIR"));
        assert_eq!(std::fs::read(path("short")).unwrap(), [1; 8192]);
        assert!(!path("target").exists() && !path("new").exists());
    }
}
