//! Facts from `fdinfo` and from the descriptors themselves that the check `fds` does not compare.
//! They are grouped by kind, as descriptors that a new process image creates have other numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::OwnedFd;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::socket::{getsockopt, sockopt};
use nix::sys::time::TimeVal;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::{UNREADABLE, counted, words};
use crate::observe::facts::Facts;
use crate::observe::fds::{Descriptor, FdTable};
use crate::observe::process::Stat;

/// Fields that the check `fds` compares, that identify an object which differs in another process,
/// or that depend on the moment.
const LEFT_OUT: [&str; 7] = ["pos", "flags", "mnt_id", "ino", "eventfd-id", "NSpid", "it_value"];

/// Target of an io_uring descriptor.
const IO_URING: &str = "anon_inode:[io_uring]";

/// Reads the descriptor facts of process `pid`.
pub(super) fn read(pid: i32, fds: &FdTable, facts: &mut Facts) {
    let process = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    let copy = |fd: &Descriptor| {
        let copy = pidfd_getfd(process.as_ref()?, fd.number, PidfdGetfdFlags::empty()).ok()?;
        Some((fd.number, copy))
    };
    // The copies share the open file descriptions, and are closed at the end of this function.
    let looked_at = fds.iter().filter(|fd| is_socket(fd) || is_memfd(fd));
    let copies: BTreeMap<i32, OwnedFd> = looked_at.filter_map(copy).collect();
    let kinds: BTreeMap<i32, String> =
        fds.iter().map(|fd| (fd.number, kind(fd, copies.get(&fd.number)))).collect();
    let mut values: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for fd in fds.iter() {
        let path = format!("/proc/{pid}/fdinfo/{}", fd.number);
        let mut shown: Vec<String> = match fs::read_to_string(path) {
            // Its fdinfo has only counters.
            Ok(_) if fd.target == IO_URING => Vec::new(),
            Ok(info) => info.lines().filter_map(|line| describe(line, pid, &kinds)).collect(),
            Err(_) => vec![UNREADABLE.to_owned()],
        };
        if is_socket(fd) || is_memfd(fd) {
            let copy = copies.get(&fd.number);
            shown.push(copy.map_or_else(|| UNREADABLE.to_owned(), |copy| inspect(fd, copy)));
        }
        // The targets of epoll are unordered, and there may be many of a kind.
        values.entry(&kinds[&fd.number]).or_default().insert(counted(shown));
    }
    for (kind, values) in values {
        // The check `fds` compares how many there are.
        let values: Vec<String> = values.into_iter().collect();
        facts.insert(format!("descriptor.{kind}"), values.join(" or "));
    }
}

fn is_socket(fd: &Descriptor) -> bool {
    fd.target.starts_with("socket:")
}

fn is_memfd(fd: &Descriptor) -> bool {
    fd.target.starts_with("/memfd:")
}

/// A name for the kind of `fd` that is the same after an update.
fn kind(fd: &Descriptor, copy: Option<&OwnedFd>) -> String {
    let listens = copy.is_some_and(|copy| getsockopt(copy, sockopt::AcceptConn) == Ok(true));
    match fd.socket_path.as_deref() {
        Some("") => "socket pair".to_owned(),
        Some(path) if listens => format!("{path} (listening)"),
        Some(path) => path.to_owned(),
        None if fd.is_anonymous() => fd.target.clone(),
        // The number of a pipe or of another socket is its inode.
        None => fd.target.split_once(":[").map_or(&*fd.target, |(kind, _)| kind).to_owned(),
    }
}

fn describe(line: &str, pid: i32, kinds: &BTreeMap<i32, String>) -> Option<String> {
    let (field, value) = line.split_once(':')?;
    if LEFT_OUT.contains(&field) {
        return None;
    }
    let value = words(value);
    Some(match field {
        "tfd" => {
            let mut parts = value.split_whitespace();
            let target = parts.next()?.parse().ok().and_then(|number: i32| kinds.get(&number));
            let events = parts.nth(1)?;
            let target = target.map_or("what is not open any more", String::as_str);
            format!("waits for {events} of {target}")
        }
        "Pid" => format!("process {}", process_name(&value, pid)),
        // Number, kind, advisory or mandatory, access, owner, file, range.
        "lock" => {
            let mut parts: Vec<&str> = value.split_whitespace().skip(1).collect();
            // A lock that belongs to the open file description has owner -1.
            if let Some(owner) = parts.get_mut(3).filter(|owner| **owner == pid.to_string()) {
                *owner = "own";
            }
            format!("lock {}", parts.join(" "))
        }
        _ => format!("{field} {value}"),
    })
}

fn process_name(number: &str, pid: i32) -> String {
    match number.parse() {
        Ok(own) if own == pid => "own".to_owned(),
        Ok(other) => Stat::read(other).map_or("gone".to_owned(), |stat| stat.comm),
        Err(_) => number.to_owned(),
    }
}

/// Reads what only a copy of the descriptor shows.
fn inspect(fd: &Descriptor, copy: &OwnedFd) -> String {
    if is_memfd(fd) {
        let seals = fcntl(copy, FcntlArg::F_GET_SEALS);
        return seals.map_or(UNREADABLE.to_owned(), |seals| format!("seals {seals:x}"));
    }
    macro_rules! options {
        ($($option:ident),*) => {
            [$(match getsockopt(copy, sockopt::$option) {
                Ok(value) => format!("{} {value:?}", stringify!($option)),
                Err(_) => format!("{} {UNREADABLE}", stringify!($option)),
            }),*]
        };
    }
    let plain = options!(SockType, SndBuf, RcvBuf, KeepAlive, PassCred, Priority, Mark).join(" ");
    let timeout = |value: nix::Result<TimeVal>| {
        value.map_or(UNREADABLE.to_owned(), |value| value.to_string())
    };
    let sends = timeout(getsockopt(copy, sockopt::SendTimeout));
    let receives = timeout(getsockopt(copy, sockopt::ReceiveTimeout));
    format!("{plain} timeouts {sends}, {receives}")
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixListener;

    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

    use super::*;

    #[test]
    fn reports_a_listener_and_the_epoll_that_waits_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, 0)).unwrap();
        let pid = std::process::id() as i32;
        let mut fds = FdTable::read(pid).unwrap();
        fds.0.retain(|number, _| [listener.as_raw_fd(), epoll.0.as_raw_fd()].contains(number));
        let mut facts = Facts::default();
        read(pid, &fds, &mut facts);
        let name = format!("{} (listening)", path.display());
        let options = facts.get(&format!("descriptor.{name}")).unwrap();
        assert!(options.starts_with("SockType Stream SndBuf "), "{options}");
        let waits = facts.get("descriptor.anon_inode:[eventpoll]");
        assert_eq!(waits, Some(&*format!("waits for 19 of {name}")));
    }
}
