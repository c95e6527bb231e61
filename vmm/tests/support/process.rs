//! Reads the state of a process from `/proc`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Returns the process's open descriptors: number, target, and whether it is close-on-exec.
///
/// Reliable only for an idle VMM: one that opens and closes descriptors concurrently gives a
/// mixture.
pub fn descriptors(pid: u32) -> BTreeMap<i32, (String, bool)> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("the process exists");
    let look = |entry: fs::DirEntry| {
        let number: i32 = entry.file_name().to_str()?.parse().ok()?;
        let target = fs::read_link(entry.path()).ok()?.display().to_string();
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).ok()?;
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?.trim();
        let flags = i32::from_str_radix(flags, 8).ok()?;
        Some((number, (target, flags & libc::O_CLOEXEC != 0)))
    };
    entries.filter_map(|entry| look(entry.ok()?)).collect()
}

/// Returns the signal mask and dispositions of the main thread, as bit sets.
pub fn signals(pid: u32) -> BTreeMap<String, u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process exists");
    let set = |line: &str| {
        let (name, set) = line.split_once(":\t")?;
        let wanted = ["SigBlk", "SigIgn", "SigCgt"].contains(&name);
        wanted.then(|| (name.to_owned(), u64::from_str_radix(set, 16).expect("a bit mask")))
    };
    status.lines().filter_map(set).collect()
}

/// Returns the signals that each thread of this name blocks, as bit sets.
pub fn blocked_by(pid: u32, name: &str) -> Vec<u64> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the process exists");
    let look = |task: fs::DirEntry| {
        let status = fs::read_to_string(task.path().join("status")).ok()?;
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        let set = u64::from_str_radix(field("SigBlk:\t")?, 16).expect("a bit mask");
        (field("Name:\t")? == name).then_some(set)
    };
    tasks.filter_map(|task| look(task.ok()?)).collect()
}

/// Returns the process's children, including zombies.
pub fn children(pid: u32) -> Vec<u32> {
    let parent = |stat: &str| -> Option<u32> {
        // The name may itself contain spaces and parentheses.
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
    };
    let look = |entry: fs::DirEntry| -> Option<u32> {
        let child: u32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        (parent(&stat) == Some(pid)).then_some(child)
    };
    let entries = fs::read_dir("/proc").expect("/proc is mounted");
    entries.filter_map(|entry| look(entry.ok()?)).collect()
}

/// Returns the command line of a process. It is empty for kernel threads and zombies, briefly for a
/// process that is about to execute a program, and for a process that has removed its own.
fn command_line(process: &Path) -> Option<Vec<u8>> {
    const LOOKS: u32 = 100;
    for _ in 0..LOOKS {
        let words = fs::read(process.join("cmdline")).ok()?;
        if !words.is_empty() || fs::read_link(process.join("exe")).is_err() {
            return Some(words);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    None
}

/// Returns the running processes whose command line contains `path`, or a path in it.
pub fn naming(path: &Path) -> Vec<u32> {
    let path = path.as_os_str().as_encoded_bytes();
    let look = |entry: fs::DirEntry| -> Option<u32> {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let words = command_line(&entry.path())?;
        words.windows(path.len()).any(|part| part == path).then_some(pid)
    };
    let entries = fs::read_dir("/proc").expect("/proc is mounted");
    entries.filter_map(|entry| look(entry.ok()?)).collect()
}

/// Returns the initial environment of the process's program, as `NAME=VALUE`.
pub fn environment(pid: u32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).expect("the process exists");
    let texts = bytes.split(|&byte| byte == 0).filter(|text| !text.is_empty());
    texts.map(|text| String::from_utf8_lossy(text).into_owned()).collect()
}

/// Returns device, inode and modification time, which identify a file and its content.
pub fn identity(path: &Path) -> (u64, u64, i64, i64) {
    let file = fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    (file.dev(), file.ino(), file.mtime(), file.mtime_nsec())
}

/// Sends a signal.
pub fn send(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid as i32), signal)
        .unwrap_or_else(|error: Errno| panic!("cannot send {signal} to {pid}: {error}"));
}
