//! The socket of a service manager, on which a VMM reports its main PID.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

/// A buffer size in bytes that exceeds any message.
const LONGEST: usize = 4096;

/// A bound notification socket.
pub struct Notify {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Notify {
    /// Binds the socket in `folder`, replacing an existing one.
    pub fn bind(folder: &Path) -> io::Result<Self> {
        let path = folder.join("notify.sock");
        // One exists if another VMM was started here before.
        let _ = std::fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, path })
    }

    /// Returns the socket's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the messages received since the last call.
    pub fn received(&self) -> Vec<String> {
        let mut message = [0; LONGEST];
        let next = || {
            let length = self.socket.recv(&mut message).ok()?;
            Some(String::from_utf8_lossy(&message[..length]).into_owned())
        };
        std::iter::from_fn(next).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn returns_each_message_once() {
        let folder = tempfile::tempdir().unwrap();
        let notify = Notify::bind(folder.path()).unwrap();
        let teller = UnixDatagram::unbound().unwrap();
        for message in ["MAINPID=1\n", "READY=1"] {
            teller.send_to(message.as_bytes(), notify.path()).unwrap();
        }
        assert_eq!(notify.received(), ["MAINPID=1\n", "READY=1"]);
        assert_eq!(notify.received(), [""; 0]);
        assert!(Notify::bind(folder.path()).is_ok());
    }
}
