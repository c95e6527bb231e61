//! Descriptors that cross `exec`, by name.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use serde::{Deserialize, Serialize};

/// A descriptor as the CPR state lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedFd {
    /// Its purpose, such as `ram.pc.ram`.
    pub name: String,
    /// Distinguishes descriptors of the same name.
    pub id: u32,
    /// Its number, the same in both processes.
    pub fd: RawFd,
}

impl NamedFd {
    /// Creates the entry for `fd`.
    pub fn new(name: String, id: u32, fd: BorrowedFd<'_>) -> Self {
        Self { name, id, fd: fd.as_raw_fd() }
    }
}

/// The descriptors that an update hands over, borrowed from their owners.
#[derive(Debug, Default)]
pub struct OutgoingFds<'a> {
    fds: Vec<(String, u32, BorrowedFd<'a>)>,
}

impl<'a> OutgoingFds<'a> {
    /// Adds a descriptor.
    pub fn add(&mut self, name: impl Into<String>, id: u32, fd: BorrowedFd<'a>) {
        self.fds.push((name.into(), id, fd));
    }

    /// Returns the list for the CPR state.
    pub fn list(&self) -> Vec<NamedFd> {
        let named =
            |(name, id, fd): &(String, u32, BorrowedFd<'_>)| NamedFd::new(name.clone(), *id, *fd);
        self.fds.iter().map(named).collect()
    }

    /// Iterates over the descriptors.
    pub fn iter(&self) -> impl Iterator<Item = BorrowedFd<'a>> {
        self.fds.iter().map(|&(_, _, fd)| fd)
    }
}

/// Errors from checking a list of descriptors.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// A descriptor that is listed is not open.
    #[error("descriptor {} ({}.{}) was handed over but is not open: {source}", .named.fd, .named.name, .named.id)]
    NotOpen {
        /// The entry.
        named: NamedFd,
        /// The cause.
        source: std::io::Error,
    },
    /// A descriptor or a name is listed twice.
    #[error("descriptor {} ({}.{}) is listed twice", .0.fd, .0.name, .0.id)]
    Twice(NamedFd),
    /// A descriptor is one of the first three, which have no owner.
    #[error("descriptor {} ({}.{}) is one of stdin, stdout and stderr", .0.fd, .0.name, .0.id)]
    Standard(NamedFd),
}

/// A checked list: each descriptor is open, listed once, and close-on-exec.
#[derive(Debug)]
pub struct CheckedFds<'a>(&'a [NamedFd]);

impl<'a> CheckedFds<'a> {
    /// Checks `list`, and sets close-on-exec on each descriptor.
    pub fn check(list: &'a [NamedFd]) -> Result<Self, AdoptError> {
        for (at, named) in list.iter().enumerate() {
            let same = |other: &&NamedFd| {
                other.fd == named.fd || (&other.name, other.id) == (&named.name, named.id)
            };
            if list[..at].iter().any(|other| same(&other)) {
                return Err(AdoptError::Twice(named.clone()));
            }
            if (0..=2).contains(&named.fd) {
                return Err(AdoptError::Standard(named.clone()));
            }
            // SAFETY: only checks whether the number is open; a closed one gives EBADF.
            let fd = unsafe { BorrowedFd::borrow_raw(named.fd.max(0)) };
            let closed =
                |errno: Errno| AdoptError::NotOpen { named: named.clone(), source: errno.into() };
            if named.fd < 0 {
                return Err(closed(Errno::EBADF));
            }
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(closed)?;
        }
        Ok(Self(list))
    }
}

/// The descriptors that came over exec, until their new owners take them by name.
#[derive(Debug, Default)]
pub struct AdoptedFds {
    fds: Vec<(String, u32, OwnedFd)>,
}

impl AdoptedFds {
    /// Takes ownership of the descriptors in `list`.
    ///
    /// # Safety
    /// Nothing in this process may own one of these descriptors: call it before any is opened.
    pub unsafe fn own(list: CheckedFds<'_>) -> Self {
        let own = |named: &NamedFd| {
            // SAFETY: it is open, listed once, and nothing else owns it: the caller's promise.
            let fd = unsafe { OwnedFd::from_raw_fd(named.fd) };
            (named.name.clone(), named.id, fd)
        };
        let fds = list.0.iter().map(own).collect();
        Self { fds: seam!(adopted(fds)) }
    }

    /// Hands the descriptor called `name`, `id` to its new owner.
    pub fn take(&mut self, name: &str, id: u32) -> Option<OwnedFd> {
        let at = self.fds.iter().position(|(n, i, _)| n == name && *i == id)?;
        Some(self.fds.swap_remove(at).2)
    }

    /// Returns the descriptors that were not taken.
    pub fn leftover(self) -> Vec<(String, OwnedFd)> {
        self.fds.into_iter().map(|(name, id, fd)| (format!("{name}.{id}"), fd)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, IntoRawFd};

    use super::*;

    fn open(name: &str, id: u32) -> NamedFd {
        let file = std::fs::File::open("/dev/null").unwrap();
        NamedFd { name: name.to_owned(), id, fd: file.into_raw_fd() }
    }

    #[test]
    fn descriptors_are_found_by_name_in_any_order() {
        let list = [open("a", 0), open("b", 0), open("a", 1)];
        // SAFETY: `open` gave up their ownership.
        let mut fds = unsafe { AdoptedFds::own(CheckedFds::check(&list).unwrap()) };
        assert_eq!(fds.take("a", 1).unwrap().as_raw_fd(), list[2].fd);
        assert_eq!(fds.take("a", 0).unwrap().as_raw_fd(), list[0].fd);
        assert!(fds.take("a", 0).is_none());
        let leftover: Vec<_> = fds.leftover().into_iter().map(|(name, _)| name).collect();
        assert_eq!(leftover, ["b.0"]);
    }

    #[test]
    fn adopted_descriptors_close_on_exec() {
        let list = [open("a", 0)];
        // SAFETY: `open` gave up its ownership.
        let mut fds = unsafe { AdoptedFds::own(CheckedFds::check(&list).unwrap()) };
        let fd = fds.take("a", 0).unwrap();
        let flags = fcntl(fd.as_fd(), FcntlArg::F_GETFD).unwrap();
        assert_eq!(flags, FdFlag::FD_CLOEXEC.bits());
    }

    #[test]
    fn rejects_invalid_lists() {
        let real = open("a", 0);
        let lie = |fd| NamedFd { name: "b".to_owned(), id: 0, fd };
        let texts: Vec<_> = [
            vec![lie(-1)],
            vec![lie(999_999)],
            vec![lie(1)],
            vec![real.clone(), lie(real.fd)],
            vec![real.clone(), NamedFd { fd: real.fd + 500, ..real.clone() }],
        ]
        .iter()
        .map(|list| CheckedFds::check(list).unwrap_err().to_string())
        .map(|text| text.replace(&format!("descriptor {} ", real.fd), "descriptor N "))
        .map(|text| text.replace(&format!("descriptor {} ", real.fd + 500), "descriptor M "))
        .collect();
        insta::assert_debug_snapshot!(texts);
    }
}
