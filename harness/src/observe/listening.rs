//! Tells whether a process listens on a socket, without connecting to it.

use std::fs;
use std::path::Path;

use procfs::net::TcpState;

/// The list of all Unix sockets in this network namespace (proc_net(5)).
const SOCKETS: &str = "/proc/net/unix";

/// `__SO_ACCEPTCON` of the kernel (`include/linux/net.h`), in the column of the flags.
const LISTENS: &str = "00010000";

/// Returns true if a process listens on the socket `path`.
pub fn on(path: &Path) -> bool {
    let path = path.to_string_lossy();
    let all = fs::read_to_string(SOCKETS).unwrap_or_default();
    all.lines().any(|line| listens_on(line, &path))
}

/// Returns true if a process listens on this TCP port of an IPv4 address.
pub fn on_port(port: u16) -> bool {
    let all = procfs::net::tcp().unwrap_or_default();
    all.iter().any(|entry| entry.state == TcpState::Listen && entry.local_address.port() == port)
}

/// Whether this line is about a listener on `path`: number, reference count, protocol, flags, type,
/// state, inode, path.
fn listens_on(line: &str, path: &str) -> bool {
    let mut columns = line.split_ascii_whitespace();
    columns.nth(3) == Some(LISTENS) && line.ends_with(&format!(" {path}"))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::{UnixDatagram, UnixListener};

    use super::*;

    #[test]
    fn a_port_is_listened_on_until_its_listener_is_gone() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(on_port(port));
        drop(listener);
        assert!(!on_port(port));
    }

    #[test]
    fn only_a_listener_listens() {
        let folder = tempfile::tempdir().unwrap();
        let (listener, bound) = (folder.path().join("a b"), folder.path().join("b"));
        let _bound = UnixDatagram::bind(&bound).unwrap();
        assert!(!on(&listener) && !on(&bound));
        let listens = UnixListener::bind(&listener).unwrap();
        assert!(on(&listener) && !on(&bound));
        drop(listens);
        assert!(!on(&listener));
    }
}
