//! Tells whether a process listens on a Unix socket, without connecting to it.

use std::fs;
use std::path::Path;

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

/// Whether this line is about a listener on `path`: number, reference count, protocol, flags, type,
/// state, inode, path.
fn listens_on(line: &str, path: &str) -> bool {
    let mut columns = line.split_ascii_whitespace();
    columns.nth(3) == Some(LISTENS) && line.ends_with(&format!(" {path}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixListener};

    use super::*;

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
