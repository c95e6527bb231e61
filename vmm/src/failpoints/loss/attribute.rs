//! Losing an attribute of the process, of a descriptor or of a file.

use std::fs::{self, Permissions};
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::sys::stat::{Mode, umask};
use nix::unistd::Pid;

use super::draw::Draw;

/// The last of the standard descriptors, which are left alone.
const STANDARD: RawFd = 2;

/// Ways to lose an attribute; each returns what it did, or `None` if there is nothing to lose.
const WAYS: &[fn(&mut Draw) -> Option<String>] = &[
    lose_umask,
    lose_nice_value,
    lose_mask,
    lose_disposition,
    lose_limit,
    lose_oom_score,
    lose_timer_slack,
    lose_dump_filter,
    lose_name,
    lose_directory,
    lose_affinity,
    lose_dumpability,
    lose_privileges,
    lose_huge_pages,
    lose_policy,
    lose_close_on_exec,
    lose_status_flag,
    leak_descriptor,
    leak_child,
    leak_thread,
    leak_mapping,
    lose_mode,
    lose_content,
    leak_file,
];

/// Loses an attribute; returns which.
pub(super) fn lose(draw: &mut Draw) -> Option<String> {
    draw.all_below(WAYS.len()).find_map(|way| WAYS[way](draw))
}

fn lose_umask(draw: &mut Draw) -> Option<String> {
    let new = Mode::from_bits_truncate([0o000, 0o002, 0o027, 0o077][draw.below(4)]);
    let was = umask(new);
    (was != new).then(|| format!("the umask was {was:?}, is {new:?}"))
}

fn lose_nice_value(draw: &mut Draw) -> Option<String> {
    let by = 1 + draw.below(5) as i32;
    // SAFETY: it takes a plain number.
    unsafe { libc::nice(by) };
    Some(format!("the main thread is nicer by {by}"))
}

fn any_signal(draw: &mut Draw) -> Signal {
    [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGWINCH, Signal::SIGCONT]
        [draw.below(5)]
}

fn lose_mask(draw: &mut Draw) -> Option<String> {
    let signal = any_signal(draw);
    let mut set = SigSet::empty();
    set.add(signal);
    set.thread_block().ok()?;
    Some(format!("{signal} is blocked"))
}

fn lose_disposition(draw: &mut Draw) -> Option<String> {
    let signal_number = any_signal(draw);
    // SAFETY: the kernel ignores it; no handler runs.
    unsafe { signal(signal_number, SigHandler::SigIgn) }.ok()?;
    Some(format!("{signal_number} is ignored"))
}

fn lose_limit(draw: &mut Draw) -> Option<String> {
    const LIMITS: [Resource; 6] = [
        Resource::RLIMIT_NOFILE,
        Resource::RLIMIT_CORE,
        Resource::RLIMIT_MEMLOCK,
        Resource::RLIMIT_STACK,
        Resource::RLIMIT_SIGPENDING,
        Resource::RLIMIT_MSGQUEUE,
    ];
    draw.all_below(LIMITS.len()).find_map(|at| {
        let (soft, hard) = getrlimit(LIMITS[at]).ok()?;
        let new = (soft / 2).min(1 << 40);
        setrlimit(LIMITS[at], new, hard).ok()?;
        (new != soft).then(|| format!("{:?} was {soft}, is {new}", LIMITS[at]))
    })
}

fn write(path: &str, text: &str, what: &str) -> Option<String> {
    let was = fs::read_to_string(path).ok()?;
    fs::write(path, text).ok()?;
    let is = fs::read_to_string(path).ok()?;
    (was != is).then(|| format!("{what} was {}, is {}", was.trim(), is.trim()))
}

fn lose_oom_score(draw: &mut Draw) -> Option<String> {
    let text = (100 + draw.below(900)).to_string();
    write("/proc/self/oom_score_adj", &text, "oom_score_adj")
}

fn lose_timer_slack(draw: &mut Draw) -> Option<String> {
    let text = (1 + draw.below(1000)).to_string();
    write("/proc/self/timerslack_ns", &text, "the timer slack")
}

fn lose_dump_filter(_: &mut Draw) -> Option<String> {
    write("/proc/self/coredump_filter", "0x7f", "the core dump filter")
}

fn lose_name(_: &mut Draw) -> Option<String> {
    write("/proc/self/comm", "vmm", "the name")
}

fn lose_directory(_: &mut Draw) -> Option<String> {
    let was = std::env::current_dir().ok()?;
    std::env::set_current_dir("/").ok()?;
    (was != Path::new("/")).then(|| "the current directory is /".to_owned())
}

fn lose_affinity(draw: &mut Draw) -> Option<String> {
    let cpus = std::thread::available_parallelism().ok()?.get();
    let mut set = CpuSet::new();
    set.set(draw.below(cpus)).ok()?;
    sched_setaffinity(Pid::from_raw(0), &set).ok()?;
    (cpus > 1).then(|| "the main thread has one CPU".to_owned())
}

fn prctl(option: libc::c_int, argument: libc::c_ulong) -> bool {
    // SAFETY: none of the options used here takes a pointer.
    unsafe { libc::prctl(option, argument, 0, 0, 0) == 0 }
}

fn lose_dumpability(_: &mut Draw) -> Option<String> {
    prctl(libc::PR_SET_DUMPABLE, 0).then(|| "the process is not dumpable".to_owned())
}

fn lose_privileges(_: &mut Draw) -> Option<String> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1).then(|| "no_new_privs is set".to_owned())
}

fn lose_huge_pages(_: &mut Draw) -> Option<String> {
    prctl(libc::PR_SET_THP_DISABLE, 1).then(|| "transparent huge pages are disabled".to_owned())
}

fn lose_policy(_: &mut Draw) -> Option<String> {
    // SAFETY: a structure of integers, for which all zeros is a value.
    let parameters: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: it reads the structure, which outlives the call.
    let set = unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &parameters) };
    (set == 0).then(|| "the main thread is SCHED_BATCH".to_owned())
}

/// Returns the open descriptors and their targets.
fn descriptors() -> Vec<(RawFd, PathBuf)> {
    let entries = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let found = entries.filter_map(|entry| {
        let number: RawFd = entry.file_name().to_str()?.parse().ok()?;
        Some((number, fs::read_link(entry.path()).ok()?))
    });
    let mut found: Vec<_> = found.filter(|(number, _)| *number > STANDARD).collect();
    found.sort();
    found
}

fn borrow(number: RawFd) -> BorrowedFd<'static> {
    // SAFETY: it was open a moment ago; if it no longer is, the call fails, which does no harm.
    unsafe { BorrowedFd::borrow_raw(number) }
}

fn lose_close_on_exec(draw: &mut Draw) -> Option<String> {
    let found = descriptors();
    draw.all_below(found.len()).find_map(|at| {
        let (number, target) = &found[at];
        fcntl(borrow(*number), FcntlArg::F_SETFD(FdFlag::empty())).ok()?;
        Some(format!("descriptor {number} ({}) is without close-on-exec", target.display()))
    })
}

fn lose_status_flag(draw: &mut Draw) -> Option<String> {
    let found = descriptors();
    draw.all_below(found.len()).find_map(|at| {
        let (number, target) = &found[at];
        let flags = OFlag::from_bits_truncate(fcntl(borrow(*number), FcntlArg::F_GETFL).ok()?);
        let lost = flags & (OFlag::O_APPEND | OFlag::O_NONBLOCK);
        if lost.is_empty() {
            return None;
        }
        fcntl(borrow(*number), FcntlArg::F_SETFL(flags - lost)).ok()?;
        Some(format!("descriptor {number} ({}) is without {lost:?}", target.display()))
    })
}

fn leak_descriptor(_: &mut Draw) -> Option<String> {
    std::mem::forget(fs::File::open("/dev/null").ok()?);
    Some("a descriptor of /dev/null is left".to_owned())
}

fn leak_child(_: &mut Draw) -> Option<String> {
    std::process::Command::new("sleep").arg("20").spawn().ok()?;
    Some("a child is left".to_owned())
}

fn leak_thread(_: &mut Draw) -> Option<String> {
    std::thread::Builder::new()
        .name("left".to_owned())
        .spawn(|| {
            loop {
                std::thread::park();
            }
        })
        .ok()?;
    Some("a thread is left".to_owned())
}

fn leak_mapping(draw: &mut Draw) -> Option<String> {
    let (shared, what) =
        [(libc::MAP_SHARED, "shared"), (libc::MAP_PRIVATE, "private")][draw.below(2)];
    // SAFETY: a new mapping, which replaces no other.
    let mapped = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            1 << 20,
            libc::PROT_READ | libc::PROT_WRITE,
            shared | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    (mapped != libc::MAP_FAILED).then(|| format!("a {what} mapping of 1 MiB is left"))
}

/// Returns the VM's own files: those named on the command line in the folder of the PID file.
fn files() -> Vec<PathBuf> {
    let args: Vec<String> = std::env::args().collect();
    let Some(folder) = pid_file(&args).and_then(|path| Some(path.parent()?.to_owned())) else {
        return Vec::new();
    };
    let path =
        |word: &String| PathBuf::from(word.split_once(':').map_or(&**word, |(_, path)| path));
    args.iter().map(path).filter(|path| path.parent() == Some(&folder) && path.exists()).collect()
}

fn pid_file(args: &[String]) -> Option<PathBuf> {
    let at = args.iter().position(|word| word == "--pid-file")?;
    args.get(at + 1).map(PathBuf::from)
}

fn lose_mode(draw: &mut Draw) -> Option<String> {
    let files = files();
    let bit = [0o002, 0o020, 0o004, 0o040][draw.below(4)];
    draw.all_below(files.len()).find_map(|at| {
        let path = &files[at];
        let was = fs::metadata(path).ok()?.permissions().mode() & 0o7777;
        fs::set_permissions(path, Permissions::from_mode(was ^ bit)).ok()?;
        Some(format!("the mode of {} was {was:o}, is {:o}", path.display(), was ^ bit))
    })
}

fn lose_content(_: &mut Draw) -> Option<String> {
    let path = pid_file(&std::env::args().collect::<Vec<_>>())?;
    fs::write(&path, "").ok()?;
    Some("the PID file is empty".to_owned())
}

fn leak_file(_: &mut Draw) -> Option<String> {
    let path = pid_file(&std::env::args().collect::<Vec<_>>())?;
    fs::write(path.with_file_name("left"), "").ok()?;
    Some("a file is left in the VM's folder".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vmm_without_a_pid_file_has_no_files_to_lose() {
        assert_eq!(pid_file(&["--pid-file", "/a/pid"].map(str::to_owned)), Some("/a/pid".into()));
        assert_eq!(pid_file(&["--pid-file"].map(str::to_owned)), None);
        assert_eq!(files(), Vec::<PathBuf>::new());
    }

    #[test]
    fn descriptors_have_their_targets() {
        let file = fs::File::open("/dev/null").unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&file);
        assert!(descriptors().contains(&(number, "/dev/null".into())));
    }
}
