//! A process as `/proc` shows it: identity, executable, children, environment.

use serde::{Deserialize, Serialize};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use procfs::FromRead;
use procfs::process::{Process, Status};

use super::proc_error::ProcError;

/// The fields of `/proc/PID/stat` that tell one process from another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stat {
    /// Its PID.
    pub pid: i32,
    /// Its command name; after an update the new binary's.
    pub comm: String,
    /// `R`, `S`, `Z`, …
    pub state: char,
    /// PID of its parent.
    pub parent: i32,
    /// Its process group.
    pub group: i32,
    /// When it was started, in clock ticks since boot: two processes with the same PID differ here.
    pub start_time: u64,
}

impl Stat {
    /// Reads `/proc/PID/stat`.
    pub fn read(pid: i32) -> Result<Self, ProcError> {
        let path = format!("/proc/{pid}/stat");
        let stat = procfs::process::Stat::from_file(&path);
        stat.map(Self::from).map_err(|e| ProcError::parsing(path, e))
    }

    /// Returns false for a zombie: it has ended and waits to be reaped.
    pub fn is_alive(&self) -> bool {
        !matches!(self.state, 'Z' | 'X')
    }
}

impl From<procfs::process::Stat> for Stat {
    fn from(stat: procfs::process::Stat) -> Self {
        Self {
            pid: stat.pid,
            comm: stat.comm,
            state: stat.state,
            parent: stat.ppid,
            group: stat.pgrp,
            start_time: stat.starttime,
        }
    }
}

/// The executable of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executable {
    /// Its path, with ` (deleted)` appended by the kernel if it is.
    pub path: PathBuf,
    /// Device and inode.
    pub inode: (u64, u64),
}

impl Executable {
    /// Reads the executable of process `pid`.
    pub fn of(pid: i32) -> Result<Self, ProcError> {
        let link = PathBuf::from(format!("/proc/{pid}/exe"));
        let path = fs::read_link(&link).map_err(|e| ProcError::new(&link, e))?;
        let meta = fs::metadata(&link).map_err(|e| ProcError::new(&link, e))?;
        Ok(Self { path, inode: (meta.dev(), meta.ino()) })
    }

    /// Reads the file at `path` as if a process ran it.
    pub fn at(path: &Path) -> Result<Self, ProcError> {
        let meta = fs::metadata(path).map_err(|e| ProcError::new(path, e))?;
        let path = fs::canonicalize(path).map_err(|e| ProcError::new(path, e))?;
        Ok(Self { path, inode: (meta.dev(), meta.ino()) })
    }
}

/// Returns the name that the kernel gives a process that executes `file`.
pub fn name_of(file: &Path) -> String {
    // TASK_COMM_LEN is 16, with the NUL.
    const LONGEST: usize = 15;
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    name.char_indices().take_while(|(at, c)| at + c.len_utf8() <= LONGEST).map(|(_, c)| c).collect()
}

/// Returns the child processes of `pid`, zombies too, in order of PID.
///
/// Reads all of `/proc`: `/proc/PID/task/TID/children` omits children whose creating thread has
/// ended, and is not in every kernel.
pub fn children(pid: i32) -> Result<Vec<Stat>, ProcError> {
    find(|stat| stat.parent == pid)
}

/// Returns the descendants of `pid`, nearer ones first.
pub fn descendants(pid: i32) -> Result<Vec<Stat>, ProcError> {
    let mut found = children(pid)?;
    let mut next = 0;
    while let Some(pid) = found.get(next).map(|stat| stat.pid) {
        found.extend(children(pid)?);
        next += 1;
    }
    Ok(found)
}

/// Name of a keeper: a process that waits for the end of a VMM's process to continue its VM.
pub const KEEPER: &str = "cpr-keeper";

impl Stat {
    /// Whether it has the name of a keeper.
    pub fn is_keeper(&self) -> bool {
        self.comm == KEEPER
    }
}

/// Returns the keepers of process `pid`; fast, as it reads no other processes if the kernel can
/// list children.
pub fn keepers(pid: i32) -> Vec<Stat> {
    let threads = Process::new(pid).and_then(|process| process.tasks());
    let of_threads = threads.into_iter().flatten().filter_map(|task| task.ok()?.children().ok());
    let listed: Vec<Vec<u32>> = of_threads.collect();
    let mut found: Vec<Stat> = match listed.is_empty() {
        true => children(pid).unwrap_or_default(),
        false => {
            let listed = listed.into_iter().flatten();
            listed.filter_map(|child| Stat::read(child as i32).ok()).collect()
        }
    };
    found.retain(Stat::is_keeper);
    found
}

/// Returns the live processes, other than this one, that have the file with this device and inode
/// open or mapped, in order of PID. Processes of other users are not seen.
pub fn holders(file: (u64, u64)) -> Result<Vec<Stat>, ProcError> {
    // `procfs` reads where a descriptor leads, but not its device and inode.
    let opened = |pid: i32| {
        let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        entries.into_iter().any(|entry| {
            fs::metadata(entry.path()).is_ok_and(|meta| (meta.dev(), meta.ino()) == file)
        })
    };
    // A mapping shows its device in another format; a memfd's inode is unique among memfds.
    let mapped = |pid: i32| {
        let maps = super::maps::read(pid).unwrap_or_default();
        maps.iter().any(|mapping| mapping.inode == file.1 && mapping.path.starts_with("/memfd:"))
    };
    let own = std::process::id() as i32;
    find(|stat| stat.pid != own && stat.is_alive() && (opened(stat.pid) || mapped(stat.pid)))
}

/// Returns the live processes of process group `group`, in order of PID.
pub fn group(group: i32) -> Result<Vec<Stat>, ProcError> {
    find(|stat| stat.group == group && stat.is_alive())
}

/// Returns the live processes, other than this one, that have `word` in their environment, in order
/// of PID. Every descendant inherits the word, whatever it does afterwards.
pub fn with_environment(word: &[u8]) -> Result<Vec<Stat>, ProcError> {
    let has = |pid: i32| {
        // Empty if we may not read it, or the process is gone.
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.windows(word.len()).any(|part| part == word)
    };
    let own = std::process::id() as i32;
    find(|stat| stat.pid != own && stat.is_alive() && has(stat.pid))
}

fn find(wanted: impl Fn(&Stat) -> bool) -> Result<Vec<Stat>, ProcError> {
    let all = procfs::process::all_processes().map_err(|e| ProcError::parsing("/proc", e))?;
    let mut found: Vec<Stat> = all
        // Skips processes that end meanwhile.
        .filter_map(|process| process.ok()?.stat().ok())
        .map(Stat::from)
        .filter(wanted)
        .collect();
    found.sort_by_key(|stat| stat.pid);
    Ok(found)
}

/// Returns resident anonymous memory in KiB: a process's own memory, without guest RAM.
pub fn anonymous_kib(pid: i32) -> Result<u64, ProcError> {
    Ok(status(pid)?.rssanon.unwrap_or(0))
}

/// Returns the mapped address space in bytes.
pub fn address_space(pid: i32) -> Result<u64, ProcError> {
    Ok(status(pid)?.vmsize.unwrap_or(0) << 10)
}

fn status(pid: i32) -> Result<Status, ProcError> {
    let path = format!("/proc/{pid}/status");
    Status::from_file(&path).map_err(|e| ProcError::parsing(path, e))
}

/// Returns the environment as the kernel shows it: the memory that held it at `execve`. `procfs`
/// would drop words without `=`, such as the rest of an erased variable.
pub fn environ(pid: i32) -> Result<Vec<String>, ProcError> {
    let path = format!("/proc/{pid}/environ");
    let bytes = fs::read(&path).map_err(|e| ProcError::new(&path, e))?;
    Ok(bytes
        .split(|b| *b == 0)
        .filter(|word| !word.is_empty())
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_names_are_truncated() {
        assert_eq!(name_of(Path::new("/a/a-very-long-name-of-a-vmm")), "a-very-long-nam");
    }

    #[test]
    fn a_command_name_may_contain_brackets() {
        let rest = "4096 99 0 0 0 0 0 0 0 0 0 0 0 0 0";
        let line = format!("42 (a) b (c) S 7 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 12345 {rest}");
        let stat = Stat::from(procfs::process::Stat::from_read(line.as_bytes()).unwrap());
        assert_eq!(
            (stat.pid, stat.comm.as_str(), stat.state, stat.parent, stat.start_time),
            (42, "a) b (c", 'S', 7, 12345)
        );
    }

    #[test]
    fn own_process_is_alive_and_runs_its_executable() {
        let pid = std::process::id() as i32;
        assert!(Stat::read(pid).unwrap().is_alive());
        let exe = Executable::of(pid).unwrap();
        assert_eq!(exe, Executable::at(&std::env::current_exe().unwrap()).unwrap());
    }
}
