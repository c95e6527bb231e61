//! A file that gets its name when it is complete.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::stat::{Mode, fchmod};

use super::borrowed;

/// How the file gets its name.
#[derive(Debug)]
pub enum Unnamed {
    /// By linking its descriptor.
    Descriptor,
    /// By linking its entry in `/proc`, where the kernel requires a privilege to link a descriptor.
    Proc,
    /// By renaming a hidden file, where the file system does not support files without a name.
    Hidden(CString),
}

impl Unnamed {
    /// Creates a file in `dir`, mode 0600.
    pub fn make(dir: &OwnedFd) -> Result<(File, Self), Errno> {
        let flags = libc::O_TMPFILE | libc::O_WRONLY | libc::O_CLOEXEC;
        let made = match open(dir, c".", flags) {
            Ok(file) if can_link(file.as_raw_fd(), c"", libc::AT_EMPTY_PATH) => {
                (file, Self::Descriptor)
            }
            Ok(file) if can_link_by_proc(&file) => (file, Self::Proc),
            // EISDIR, EINVAL: kernels and file systems that do not support O_TMPFILE.
            Ok(_) | Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::EINVAL) => hidden(dir)?,
            Err(errno) => return Err(errno),
        };
        // Independent of the umask.
        fchmod(&made.0, Mode::S_IRUSR | Mode::S_IWUSR)?;
        Ok(made)
    }

    /// Returns the hidden name that it has until then.
    pub fn hidden(&self) -> Option<CString> {
        match self {
            Self::Hidden(name) => Some(name.clone()),
            Self::Descriptor | Self::Proc => None,
        }
    }

    /// Gives the file the name `name` in `dir`, which no other file may have.
    pub fn name(&self, file: &File, dir: RawFd, name: &CStr) -> Result<(), Errno> {
        match self {
            Self::Descriptor => link(file.as_raw_fd(), c"", dir, name, libc::AT_EMPTY_PATH),
            Self::Proc => link(libc::AT_FDCWD, &in_proc(file), dir, name, libc::AT_SYMLINK_FOLLOW),
            Self::Hidden(hidden) => match rename(dir, hidden, name, libc::RENAME_NOREPLACE) {
                // The file system does not support RENAME_NOREPLACE.
                Err(Errno::EINVAL | Errno::ENOSYS) => rename(dir, hidden, name, 0),
                renamed => renamed,
            },
        }
    }
}

fn hidden(dir: &OwnedFd) -> Result<(File, Unnamed), Errno> {
    const MOST_LEFT_BEHIND: u32 = 16;
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW | libc::O_WRONLY | libc::O_CLOEXEC;
    for number in 0..MOST_LEFT_BEHIND {
        let name = CString::new(format!(".cpr-vmm.{}.{number}", std::process::id()));
        let name = name.expect("it has no NUL");
        match open(dir, &name, flags) {
            Err(Errno::EEXIST) => {}
            made => return made.map(|file| (file, Unnamed::Hidden(name))),
        }
    }
    Err(Errno::EEXIST)
}

fn open(dir: &OwnedFd, name: &CStr, flags: libc::c_int) -> Result<File, Errno> {
    // SAFETY: the path is NUL-terminated; the kernel keeps no pointer.
    let fd = unsafe { libc::openat(dir.as_raw_fd(), name.as_ptr(), flags, 0o600) };
    // SAFETY: the system call just returned this descriptor, and nothing else owns it.
    Errno::result(fd).map(|fd| unsafe { File::from_raw_fd(fd) })
}

fn can_link_by_proc(file: &File) -> bool {
    can_link(libc::AT_FDCWD, &in_proc(file), libc::AT_SYMLINK_FOLLOW)
}

/// Tests whether a link could be made, by an attempt that cannot succeed: if it could, it fails
/// late, with EEXIST.
fn can_link(from: RawFd, path: &CStr, flags: libc::c_int) -> bool {
    link(from, path, libc::AT_FDCWD, c".", flags) == Err(Errno::EEXIST)
}

fn in_proc(file: &File) -> CString {
    CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("it has no NUL")
}

fn link(
    from: RawFd,
    path: &CStr,
    dir: RawFd,
    name: &CStr,
    flags: libc::c_int,
) -> Result<(), Errno> {
    // SAFETY: the paths are NUL-terminated; the kernel keeps no pointer.
    let result = unsafe { libc::linkat(from, path.as_ptr(), dir, name.as_ptr(), flags) };
    Errno::result(result).map(drop)
}

fn rename(dir: RawFd, from: &CStr, to: &CStr, flags: libc::c_uint) -> Result<(), Errno> {
    let dir = borrowed(dir).as_raw_fd();
    // SAFETY: the paths are NUL-terminated; the kernel keeps no pointer.
    let result = unsafe { libc::renameat2(dir, from.as_ptr(), dir, to.as_ptr(), flags) };
    Errno::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn named(make: impl FnOnce(&OwnedFd) -> (File, Unnamed)) {
        let dir = tempfile::tempdir().unwrap();
        let opened = OwnedFd::from(File::open(dir.path()).unwrap());
        let (mut file, unnamed) = make(&opened);
        file.write_all(b"content").unwrap();
        let path = dir.path().join("name");
        assert!(!path.exists());
        unnamed.name(&file, opened.as_raw_fd(), c"name").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"content");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let (other, unnamed) = Unnamed::make(&opened).unwrap();
        let again = unnamed.name(&other, opened.as_raw_fd(), c"name");
        assert_eq!(again, Err(Errno::EEXIST));
    }

    #[test]
    fn names_the_file_in_every_way() {
        named(|dir| Unnamed::make(dir).unwrap());
        named(|dir| (Unnamed::make(dir).unwrap().0, Unnamed::Proc));
        named(|dir| hidden(dir).unwrap());
    }
}
