//! The file that this process executes, so that it can be executed again: also where `/proc` is not
//! mounted, or no more.

use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

const LINK: &str = "/proc/self/exe";

/// What was known of it at the start.
static NOTED: OnceLock<Noted> = OnceLock::new();

#[derive(Debug)]
enum Noted {
    /// Device and inode: its path can be trusted as long as it leads there.
    Identity(u64, u64),
    /// The file itself, where there was no `/proc` to learn them from.
    Held(OwnedFd),
}

/// To be called first thing, when the path that was executed still leads to it.
///
/// `executed` is the descriptor that it was executed by, if that is how this process was started.
pub fn note(executed: Option<RawFd>) {
    let noted = match std::fs::metadata(LINK) {
        Ok(meta) => Some(Noted::Identity(meta.dev(), meta.ino())),
        Err(_) => match executed {
            Some(fd) => duplicate(fd).ok().map(Noted::Held),
            None => path().and_then(|path| hold(&path).ok()).map(Noted::Held),
        },
    };
    if let Some(noted) = noted {
        // Only the first counts: later the path may lead elsewhere.
        let _ = NOTED.set(noted);
    }
}

/// Opens it, for `execveat` only.
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
                return Err(io::Error::other("its path leads to another file by now"));
            }
            Ok(file.into())
        }
        None => Err(missing),
    }
}

/// Device and inode of it.
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

/// The path that was executed, which the kernel tells every program.
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
    fn it_is_found_by_proc_and_by_its_path() {
        let by_proc = std::fs::metadata(LINK).unwrap();
        let by_path = std::fs::metadata(path().unwrap()).unwrap();
        assert_eq!((by_proc.dev(), by_proc.ino()), (by_path.dev(), by_path.ino()));
        assert_eq!(identity(), Some((by_proc.dev(), by_proc.ino())));
    }
}
