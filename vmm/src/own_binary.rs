//! Keeps track of the binary of this process so that it can be executed again, even if `/proc` is
//! not mounted, or was unmounted since.

use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

const LINK: &str = "/proc/self/exe";

/// What was recorded about the binary at startup.
static NOTED: OnceLock<Noted> = OnceLock::new();

#[derive(Debug)]
enum Noted {
    /// Device and inode: the path can be used as long as it leads to them.
    Identity(u64, u64),
    /// The open file, if there was no `/proc` to read them from.
    Held(OwnedFd),
}

/// Records the binary. Must be called first, while the executed path still leads to it.
///
/// `executed` is the descriptor that it was executed from, if this process was started that way.
pub fn note(executed: Option<RawFd>) {
    let noted = match std::fs::metadata(LINK) {
        Ok(meta) => Some(Noted::Identity(meta.dev(), meta.ino())),
        Err(_) => match executed {
            Some(fd) => duplicate(fd).ok().map(Noted::Held),
            None => path().and_then(|path| hold(&path).ok()).map(Noted::Held),
        },
    };
    if let Some(noted) = noted {
        // Only the first record counts: later the path may lead elsewhere.
        let _ = NOTED.set(noted);
    }
}

/// Opens the binary, for `execveat` only.
pub fn open() -> io::Result<OwnedFd> {
    let missing = match hold(Path::new(LINK)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => error,
        opened => return opened,
    };
    match NOTED.get() {
        Some(Noted::Held(fd)) => fd.try_clone(),
        Some(Noted::Identity(device, inode)) => {
            let file = File::from(hold(&path().ok_or(missing)?)?);
            let meta = file.metadata()?;
            if (meta.dev(), meta.ino()) != (*device, *inode) {
                return Err(io::Error::other("its path now leads to another file"));
            }
            Ok(file.into())
        }
        None => Err(missing),
    }
}

/// Returns the device and inode of the binary.
pub fn identity() -> Option<(u64, u64)> {
    let meta = File::from(open().ok()?).metadata().ok()?;
    Some((meta.dev(), meta.ino()))
}

fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: a number that is not open gives EBADF.
    unsafe { BorrowedFd::borrow_raw(fd.max(0)) }.try_clone_to_owned()
}

fn hold(path: &Path) -> io::Result<OwnedFd> {
    File::options().read(true).custom_flags(libc::O_PATH).open(path).map(OwnedFd::from)
}

/// Returns the path that was executed, which the kernel passes to every program (`AT_EXECFN`).
fn path() -> Option<PathBuf> {
    // SAFETY: the value is null or a NUL-terminated string that lives as long as the process.
    let text = unsafe {
        let value = libc::getauxval(libc::AT_EXECFN) as *const libc::c_char;
        (!value.is_null()).then(|| CStr::from_ptr(value))
    };
    text.map(|text| OsStr::from_bytes(text.to_bytes()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binary_is_found_by_proc_and_by_path() {
        let by_proc = std::fs::metadata(LINK).unwrap();
        let by_path = std::fs::metadata(path().unwrap()).unwrap();
        assert_eq!((by_proc.dev(), by_proc.ino()), (by_path.dev(), by_path.ino()));
        assert_eq!(identity(), Some((by_proc.dev(), by_proc.ino())));
    }
}
