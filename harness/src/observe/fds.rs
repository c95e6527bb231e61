//! The descriptor table of a process.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::{fs, io};

use procfs::process::Process;

use super::proc_error::ProcError;

/// Target of a KVM VM's descriptor.
pub const VM: &str = "anon_inode:kvm-vm";

/// `O_CLOEXEC` as `/proc/PID/fdinfo` shows it.
const CLOSE_ON_EXEC: u32 = libc::O_CLOEXEC as u32;

/// One open descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Its number.
    pub number: i32,
    /// What it refers to, as `/proc/PID/fd` shows it.
    pub target: String,
    /// Device and inode.
    pub inode: (u64, u64),
    /// Size of the file behind it, if it has one.
    pub size: u64,
    /// `O_…` flags without close-on-exec.
    pub flags: u32,
    /// Close-on-exec.
    pub close_on_exec: bool,
    /// File offset.
    pub offset: u64,
    /// For a Unix socket, what it is bound or connected to; empty for one end of a pair.
    pub socket_path: Option<String>,
}

impl Descriptor {
    fn read(pid: i32, number: i32, sockets: &UnixSockets) -> io::Result<Self> {
        let link = format!("/proc/{pid}/fd/{number}");
        let target = fs::read_link(&link)?.to_string_lossy().into_owned();
        // `procfs` does not parse it.
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}"))?;
        let meta = fs::metadata(&link)?;
        let field = |name: &str| {
            info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
        };
        let flags = field("flags").and_then(|s| u32::from_str_radix(s, 8).ok()).unwrap_or(0);
        Ok(Self {
            number,
            inode: (meta.dev(), meta.ino()),
            size: meta.len(),
            flags: flags & !CLOSE_ON_EXEC,
            close_on_exec: flags & CLOSE_ON_EXEC != 0,
            offset: field("pos").and_then(|s| s.parse().ok()).unwrap_or(0),
            socket_path: sockets
                .get(&meta.ino())
                .filter(|_| target.starts_with("socket:"))
                .cloned(),
            target,
        })
    }

    /// Returns true for `anon_inode:` descriptors, which all share one inode and so have no
    /// identity.
    pub fn is_anonymous(&self) -> bool {
        self.target.starts_with("anon_inode:")
    }

    /// Returns true for one end of a `socketpair`, which connects a process to itself.
    pub fn is_socket_pair(&self) -> bool {
        self.socket_path.as_deref() == Some("")
    }
}

impl fmt::Display for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.number, self.target)?;
        match self.socket_path.as_deref() {
            None | Some("") => Ok(()),
            Some(path) => write!(f, " {path}"),
        }
    }
}

/// All open descriptors, by number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FdTable(pub BTreeMap<i32, Descriptor>);

impl FdTable {
    /// Reads the table of process `pid`; descriptors closed meanwhile are left out.
    pub fn read(pid: i32) -> Result<Self, ProcError> {
        let path = format!("/proc/{pid}/fd");
        let entries = fs::read_dir(&path).map_err(|e| ProcError::new(&path, e))?;
        let numbers = entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok());
        let sockets = unix_sockets(pid);
        Ok(Self(
            numbers
                .filter_map(|n: i32| Some((n, Descriptor::read(pid, n, &sockets).ok()?)))
                .collect(),
        ))
    }

    /// The descriptors, in order of number.
    pub fn iter(&self) -> impl Iterator<Item = &Descriptor> {
        self.0.values()
    }

    /// Counts the descriptors whose target starts with `prefix`.
    pub fn count(&self, prefix: &str) -> usize {
        self.iter().filter(|d| d.target.starts_with(prefix)).count()
    }
}

/// Paths of Unix sockets by inode.
type UnixSockets = BTreeMap<u64, String>;

/// The Unix sockets in the network namespace of `pid`; accepted ones have their listener's path.
fn unix_sockets(pid: i32) -> UnixSockets {
    let sockets = Process::new(pid).and_then(|process| process.unix()).unwrap_or_default();
    let path = |path: PathBuf| path.to_string_lossy().into_owned();
    sockets.into_iter().map(|s| (s.inode, s.path.map_or_else(String::new, path))).collect()
}

impl fmt::Display for FdTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for d in self.iter() {
            writeln!(
                f,
                "{:>4} {:<44} {} inode {}:{} size {} flags {:o}{} offset {}",
                d.number,
                d.target,
                d.socket_path.as_deref().unwrap_or("-"),
                d.inode.0,
                d.inode.1,
                d.size,
                d.flags,
                if d.close_on_exec { " cloexec" } else { "" },
                d.offset
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn sees_flags_offset_and_inode() {
        let file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut &file, b"12345").unwrap();
        let table = FdTable::read(std::process::id() as i32).unwrap();
        let seen = &table.0[&file.as_raw_fd()];
        assert!(seen.close_on_exec);
        assert_eq!((seen.offset, seen.size), (5, 5));
        assert_eq!(seen.inode.1, file.metadata().unwrap().ino());
    }
}
