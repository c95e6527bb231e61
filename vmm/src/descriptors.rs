//! Which descriptors this process has open, with `/proc` or without.

use std::collections::BTreeSet;
use std::os::fd::RawFd;

use nix::sys::resource::{Resource, getrlimit};

/// Without `/proc` numbers are tried up to the hard limit, and never beyond this, which is the
/// highest that kernels allow unless they are told otherwise (`fs.nr_open`).
const MOST_TRIED: u64 = 1 << 20;

/// The open descriptors, the first three included.
pub fn open() -> BTreeSet<RawFd> {
    match std::fs::read_dir("/proc/self/fd") {
        Ok(entries) => {
            let number = |entry: std::fs::DirEntry| entry.file_name().to_str()?.parse().ok();
            let mut listed: BTreeSet<_> = entries.filter_map(|entry| number(entry.ok()?)).collect();
            // That of the directory itself is closed now.
            listed.retain(|fd| is_open(*fd));
            listed
        }
        Err(_) => probe(),
    }
}

fn probe() -> BTreeSet<RawFd> {
    let most = getrlimit(Resource::RLIMIT_NOFILE).map_or(MOST_TRIED, |(soft, hard)| soft.max(hard));
    (0..most.min(MOST_TRIED) as RawFd).filter(|fd| is_open(*fd)).collect()
}

fn is_open(fd: RawFd) -> bool {
    flags(fd).is_some()
}

/// Whether it crosses an exec; `None` if it is not open.
pub fn crosses_exec(fd: RawFd) -> Option<bool> {
    flags(fd).map(|flags| flags & libc::FD_CLOEXEC == 0)
}

fn flags(fd: RawFd) -> Option<libc::c_int> {
    // SAFETY: only asks for the flags of a number; a closed one gives an error.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    (flags >= 0).then_some(flags)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;

    #[test]
    fn both_ways_find_an_open_descriptor_and_not_a_closed_one() {
        let file = File::open("/dev/null").unwrap();
        let path_only = File::options().read(true).custom_flags(libc::O_PATH).open("/").unwrap();
        // Other tests open and close meanwhile: a number that none of them gets.
        let high = nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(700);
        let high = nix::fcntl::fcntl(&file, high).unwrap();
        for found in [open(), probe()] {
            assert!(found.contains(&file.as_raw_fd()) && found.contains(&path_only.as_raw_fd()));
            assert!(found.contains(&high) && !found.contains(&(high + 100)));
        }
        assert_eq!(crosses_exec(high), Some(false));
        nix::unistd::close(high).unwrap();
        assert_eq!(crosses_exec(high + 100), None);
    }
}
