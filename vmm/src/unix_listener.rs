//! A listening Unix socket and its file.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Pid, getpid};
use serde::{Deserialize, Serialize};

/// How long to wait for another VMM that replaces a stale socket.
const LOCK_DEADLINE: Duration = Duration::from_secs(5);

/// Errors from [`Listener::bind`].
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process listens on the path.
    #[error("cannot listen on {path}: another process listens there: end it, or use another path")]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// The file exists and is not a socket.
    #[error("cannot listen on {path}: the file is not a socket: remove it, or use another path")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The system refused a step.
    #[error("cannot listen on {path}: {step}: {} (errno {})", .errno.desc(), *.errno as i32)]
    System {
        /// The path.
        path: PathBuf,
        /// The step that failed.
        step: &'static str,
        /// Why it failed.
        errno: Errno,
    },
}

/// A listening socket, close-on-exec and non-blocking, with its file (mode 0600).
///
/// Dropping it removes the file if this process owns it and it is still the same file.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Device and inode, so that a file that has replaced ours is left alone.
    file: (u64, u64),
    owner: Option<Pid>,
}

/// What a new process needs, besides the descriptor, to restore a [`Listener`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerState {
    /// The name under which the descriptor is handed over.
    pub fd: String,
    /// The path, as bytes: it need not be UTF-8.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    /// The device of the file.
    pub device: u64,
    /// The inode of the file.
    pub inode: u64,
}

impl Listener {
    /// Listens on `path`, replacing a stale file that a dead process left behind.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        let failed = |step| move |errno| BindError::System { path: path.to_owned(), step, errno };
        let address = UnixAddr::new(path).map_err(failed("invalid path"))?;
        let socket = unix_socket(SockType::Stream).map_err(failed("socket"))?;
        // The file is created with the mode of the socket, so it is never accessible to others.
        fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR).map_err(failed("fchmod"))?;
        match socket::bind(socket.as_raw_fd(), &address) {
            Err(Errno::EADDRINUSE) => {
                // Held until it is bound: otherwise, of two that find a stale file, one removes the
                // other's.
                let _lock = lock_directory(path)?;
                remove_stale(path, &address)?;
                match socket::bind(socket.as_raw_fd(), &address) {
                    Err(Errno::EADDRINUSE) => {
                        return Err(BindError::InUse { path: path.to_owned() });
                    }
                    bound => bound.map_err(failed("bind"))?,
                }
            }
            bound => bound.map_err(failed("bind"))?,
        }
        let identity = identity(path).map_err(failed("stat"))?;
        let listener = Self {
            socket: UnixListener::from(socket),
            path: path.to_owned(),
            file: identity,
            owner: Some(getpid()),
        };
        socket::listen(&listener.socket, Backlog::MAXALLOWABLE).map_err(failed("listen"))?;
        Ok(listener)
    }

    /// Restores the listener that another process image saved. The file is not owned yet: see
    /// [`own_file`](Self::own_file).
    pub fn restore(state: &ListenerState, socket: OwnedFd) -> Self {
        Self {
            socket: UnixListener::from(socket),
            path: PathBuf::from(OsString::from_vec(state.path.clone())),
            file: (state.device, state.inode),
            owner: None,
        }
    }

    /// Returns the state to hand over, with `fd` as the descriptor's name.
    pub fn save(&self, fd: &str) -> ListenerState {
        ListenerState {
            fd: fd.to_owned(),
            path: self.path.as_os_str().as_bytes().to_owned(),
            device: self.file.0,
            inode: self.file.1,
        }
    }

    /// Takes ownership of the file: dropping this removes it from now on. Call it once a failed
    /// handover can no longer return to the old process image.
    pub fn own_file(&mut self) {
        self.owner = Some(getpid());
    }

    /// Leaves the file to another process: dropping this no longer removes it.
    pub fn disown_file(&mut self) {
        self.owner = None;
    }

    /// The path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Accepts a waiting client, close-on-exec; `None` if there is none.
    pub fn accept(&self) -> io::Result<Option<OwnedFd>> {
        match self.socket.accept() {
            Ok((client, _)) => Ok(Some(client.into())),
            Err(error) => match error.kind() {
                // The client has gone, or a signal came: the poll loop tries again.
                io::ErrorKind::WouldBlock
                | io::ErrorKind::Interrupted
                | io::ErrorKind::ConnectionAborted => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// Removes the file, if it is ours.
    pub fn remove_file(&mut self) {
        // A forked child has a copy of this, but does not own the file.
        if self.owner.take() == Some(getpid()) {
            remove_if_same(&self.path, self.file);
        }
    }
}

fn remove_if_same(path: &Path, file: (u64, u64)) {
    if identity(path) != Ok(file) {
        return;
    }
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "cannot remove the socket's file");
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.remove_file();
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn unix_socket(kind: SockType) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket::socket(AddressFamily::Unix, kind, flags, None)
}

fn identity(path: &Path) -> Result<(u64, u64), Errno> {
    let file = std::fs::symlink_metadata(path).map_err(errno)?;
    Ok((file.dev(), file.ino()))
}

/// Keeps other VMMs from removing a file in the same directory, for as long as the lock lives.
/// `None` if the directory cannot be opened or locked; binding then goes ahead without the lock.
fn lock_directory(path: &Path) -> Result<Option<Flock<File>>, BindError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let Ok(mut directory) = File::open(parent.unwrap_or(Path::new("."))) else { return Ok(None) };
    let until = Instant::now() + LOCK_DEADLINE;
    loop {
        match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(Some(lock)),
            Err((unlocked, Errno::EWOULDBLOCK | Errno::EINTR)) if Instant::now() < until => {
                directory = unlocked;
                // Poll interval: the lock is held for some microseconds.
                std::thread::sleep(Duration::from_millis(1));
            }
            Err((_, errno @ (Errno::EWOULDBLOCK | Errno::EINTR))) => {
                let (path, step) = (path.to_owned(), "lock its directory");
                return Err(BindError::System { path, step, errno });
            }
            Err(_) => return Ok(None),
        }
    }
}

/// Removes the socket at `path` if no process has it open any more.
fn remove_stale(path: &Path, address: &UnixAddr) -> Result<(), BindError> {
    let failed = |step| move |errno| BindError::System { path: path.to_owned(), step, errno };
    let file = match std::fs::symlink_metadata(path).map_err(errno) {
        // Its owner has removed it in the meantime.
        Err(Errno::ENOENT) => return Ok(()),
        file => file.map_err(failed("stat"))?,
    };
    if !file.file_type().is_socket() {
        return Err(BindError::NotASocket { path: path.to_owned() });
    }
    // A stream probe would also be refused by a socket that is bound but not yet listening. The
    // kernel rejects the type of a datagram probe before it checks that, and no client shows up.
    let probe = unix_socket(SockType::Datagram).map_err(failed("socket"))?;
    match socket::connect(probe.as_raw_fd(), address) {
        Err(Errno::ECONNREFUSED) => {
            std::fs::remove_file(path).map_err(errno).map_err(failed("unlink"))
        }
        Ok(()) | Err(Errno::EPROTOTYPE) => Err(BindError::InUse { path: path.to_owned() }),
        Err(errno) => Err(failed("connect")(errno)),
    }
}

fn errno(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tempfile::tempdir;

    use super::*;

    fn refusal(path: &Path) -> String {
        Listener::bind(path).unwrap_err().to_string()
    }

    #[test]
    fn file_is_private_and_removed_with_listener() {
        let dir = tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = Listener::bind(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn stale_socket_is_replaced_and_live_one_is_not() {
        let dir = tempdir().unwrap();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let _listener = Listener::bind(&path).unwrap();
        let expected =
            format!("cannot listen on {}: another process listens there: ", path.display());
        assert!(refusal(&path).starts_with(&expected));
        assert!(path.exists());
    }

    #[test]
    fn bound_socket_that_does_not_listen_yet_is_left_alone() {
        let dir = tempdir().unwrap();
        let path = dir.path().join("s");
        let bound = unix_socket(SockType::Stream).unwrap();
        socket::bind(bound.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        assert!(refusal(&path).contains("another process listens there"));
        assert!(path.exists());
        drop(bound);
        Listener::bind(&path).unwrap();
    }

    #[test]
    fn only_one_of_many_starters_binds_a_stale_path() {
        const STARTERS: usize = 8;
        for _ in 0..50 {
            let dir = tempdir().unwrap();
            let path = dir.path().join("s");
            drop(UnixListener::bind(&path).unwrap());
            let start = std::sync::Barrier::new(STARTERS);
            let bind = || {
                start.wait();
                Listener::bind(&path)
            };
            let bound: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..STARTERS).map(|_| scope.spawn(bind)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            let ours: Vec<_> = bound.iter().flatten().collect();
            assert_eq!(ours.len(), 1, "{bound:?}");
            let client = std::os::unix::net::UnixStream::connect(&path).unwrap();
            assert!(ours[0].accept().unwrap().is_some());
            drop(client);
        }
    }

    #[test]
    fn foreign_file_is_left_alone() {
        let dir = tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = Listener::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "precious").unwrap();
        let expected = format!("cannot listen on {}: the file is not a socket: ", path.display());
        assert!(refusal(&path).starts_with(&expected));
        drop(listener);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn error_names_the_reason_for_a_bad_path() {
        let dir = tempdir().unwrap();
        let missing = dir.path().join("missing").join("s");
        let expected = format!(
            "cannot listen on {}: bind: No such file or directory (errno 2)",
            missing.display()
        );
        assert_eq!(refusal(&missing), expected);
        let long = refusal(&dir.path().join("x".repeat(200)));
        assert!(long.ends_with(": invalid path: File name too long (errno 36)"), "{long}");
    }
}
