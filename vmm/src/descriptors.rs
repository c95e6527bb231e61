//! Lists the open descriptors of this process, with or without `/proc`.

use std::collections::BTreeSet;
use std::os::fd::RawFd;

use nix::sys::resource::{Resource, getrlimit};

/// Without `/proc`, numbers are probed up to the hard limit, but never beyond this value, which is
/// the kernel's default maximum (`fs.nr_open`).
const MOST_TRIED: u64 = 1 << 20;

/// Returns the open descriptors, including the first three.
pub fn open() -> BTreeSet<RawFd> {
    match std::fs::read_dir("/proc/self/fd") {
        Ok(entries) => {
            let number = |entry: std::fs::DirEntry| entry.file_name().to_str()?.parse().ok();
            let mut listed: BTreeSet<_> = entries.filter_map(|entry| number(entry.ok()?)).collect();
            // The descriptor of the directory itself is closed by now.
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

/// Returns whether the descriptor stays open across exec; `None` if it is not open.
pub fn crosses_exec(fd: RawFd) -> Option<bool> {
    flags(fd).map(|flags| flags & libc::FD_CLOEXEC == 0)
}

fn flags(fd: RawFd) -> Option<libc::c_int> {
    // SAFETY: only reads the flags of a number; a closed descriptor gives an error.
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
    fn listing_and_probing_find_open_descriptors_only() {
        let file = File::open("/dev/null").unwrap();
        let path_only = File::options().read(true).custom_flags(libc::O_PATH).open("/").unwrap();
        // Other tests open and close descriptors concurrently: use a number that none of them gets.
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
