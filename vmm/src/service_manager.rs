//! Tells a service manager, such as systemd, which process is the VMM (sd_notify(3)).

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

const VARIABLE: &str = "NOTIFY_SOCKET";

/// Announces this process as the main one of its service, if there is a service manager. Never
/// blocks.
pub fn tell_main_pid() -> io::Result<()> {
    match std::env::var_os(VARIABLE) {
        Some(socket) => tell(&socket, std::process::id()),
        None => Ok(()),
    }
}

fn tell(socket: &OsStr, pid: u32) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        path => SocketAddr::from_pathname(OsStr::from_bytes(path))?,
    };
    let sender = UnixDatagram::unbound()?;
    sender.set_nonblocking(true)?;
    sender.send_to_addr(format!("MAINPID={pid}\n").as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manager_is_told_the_new_pid() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        tell(path.as_os_str(), 7).unwrap();
        let mut buffer = [0; 64];
        let length = manager.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"MAINPID=7\n");
        let name = format!("cpr-test-{}", std::process::id());
        let abstract_one = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&abstract_one).unwrap();
        tell(OsStr::new(&format!("@{name}")), 8).unwrap();
        let length = manager.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"MAINPID=8\n");
    }
}
