//! Listening sockets whose path is free again when they are done.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};
use nix::sys::stat::{Mode, fchmod};

/// Why a path cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody answers there.
    #[error("cannot listen on {0}: another process is listening there")]
    Taken(PathBuf),
    /// There is a file that is no socket.
    #[error("cannot listen on {0}: the file is no socket")]
    NoSocket(PathBuf),
    /// A system call failed.
    #[error("cannot listen on {path}: {call}: {source}")]
    System {
        /// The path.
        path: PathBuf,
        /// The system call.
        call: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// A listening Unix socket, non-blocking, close-on-exec, mode 0600. Dropping it removes its file.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// Listens on `path`; a socket that a dead process left there is replaced.
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        remove_stale(path)?;
        let error = |call| {
            move |errno: Errno| ListenError::System {
                path: path.to_owned(),
                call,
                source: errno.into(),
            }
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)
            .map_err(error("socket"))?;
        // Linux gives the file the mode of the socket's inode: there is no moment in which others
        // could connect.
        fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR).map_err(error("fchmod"))?;
        let address = UnixAddr::new(path).map_err(error("address"))?;
        bind(fd.as_raw_fd(), &address).map_err(error("bind"))?;
        let listener = Self { socket: fd.into(), path: path.to_owned() };
        listen(&listener.socket, Backlog::MAXALLOWABLE).map_err(error("listen"))?;
        Ok(listener)
    }

    /// Goes on with a socket that listens on `path` already.
    pub fn adopt(fd: OwnedFd, path: &Path) -> Self {
        Self { socket: fd.into(), path: path.to_owned() }
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next client, non-blocking and close-on-exec; `None` where nobody waits.
    pub fn accept(&self) -> io::Result<Option<UnixStream>> {
        match self.socket.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true)?;
                Ok(Some(stream))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Somebody may have removed it already; then the path is free, which is all that counts.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let Ok(meta) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !meta.file_type().is_socket() {
        return Err(ListenError::NoSocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|source| ListenError::System {
                path: path.to_owned(),
                call: "unlink of a stale socket",
                source,
            })
        }
        _ => Err(ListenError::Taken(path.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_file_is_private_and_goes_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = Listener::bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        assert!(matches!(Listener::bind(&path), Err(ListenError::Taken(_))));
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(Listener::bind(&path).unwrap());
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(Listener::bind(&path), Err(ListenError::NoSocket(_))));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }
}
