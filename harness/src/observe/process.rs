//! A process as `/proc` shows it: identity, executable, children, environment.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

use super::proc_error::ProcError;

/// The fields of `/proc/PID/stat` that tell one process from another.
#[derive(Clone, Debug, PartialEq, Eq)]
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
        let text = fs::read_to_string(&path).map_err(|e| ProcError::new(&path, e))?;
        Self::parse(&text).ok_or_else(|| {
            ProcError::new(&path, io::Error::new(io::ErrorKind::InvalidData, "not a stat line"))
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let (pid, comm, fields) = fields(text)?;
        Some(Self {
            pid: pid.parse().ok()?,
            comm: comm.to_owned(),
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            group: fields.get(2)?.parse().ok()?,
            start_time: fields.get(19)?.parse().ok()?,
        })
    }

    /// Returns false for a zombie: it has ended and waits to be reaped.
    pub fn is_alive(&self) -> bool {
        !matches!(self.state, 'Z' | 'X')
    }
}

/// Splits `/proc/PID/stat` into PID, command name and the other fields.
pub(crate) fn fields(text: &str) -> Option<(&str, &str, Vec<&str>)> {
    // The command name is in brackets and may itself contain any character, brackets too.
    let (pid, rest) = text.split_once(" (")?;
    let (comm, rest) = rest.rsplit_once(") ")?;
    Some((pid, comm, rest.split_ascii_whitespace().collect()))
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
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut listed = None;
    for thread in threads {
        if let Ok(text) = fs::read_to_string(thread.path().join("children")) {
            listed.get_or_insert_with(String::new).push_str(&text);
        }
    }
    let mut found: Vec<Stat> = match listed {
        Some(text) => {
            let children = text.split_ascii_whitespace().filter_map(|word| word.parse().ok());
            children.filter_map(|child| Stat::read(child).ok()).collect()
        }
        None => children(pid).unwrap_or_default(),
    };
    found.retain(Stat::is_keeper);
    found
}

/// Returns the live processes, other than this one, that have the file with this device and inode
/// open or mapped, in order of PID. Processes of other users are not seen.
pub fn holders(file: (u64, u64)) -> Result<Vec<Stat>, ProcError> {
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
    let entries = fs::read_dir("/proc").map_err(|e| ProcError::new("/proc", e))?;
    let mut found: Vec<Stat> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        // Skips processes that end meanwhile.
        .filter_map(|candidate| Stat::read(candidate).ok())
        .filter(wanted)
        .collect();
    found.sort_by_key(|stat| stat.pid);
    Ok(found)
}

/// Returns resident anonymous memory in KiB: a process's own memory, without guest RAM.
pub fn anonymous_kib(pid: i32) -> Result<u64, ProcError> {
    status_kib(pid, "RssAnon:")
}

/// Returns the mapped address space in bytes.
pub fn address_space(pid: i32) -> Result<u64, ProcError> {
    Ok(status_kib(pid, "VmSize:")? << 10)
}

fn status_kib(pid: i32, field: &str) -> Result<u64, ProcError> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).map_err(|e| ProcError::new(&path, e))?;
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    Ok(line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0))
}

/// Returns the environment as the kernel shows it: the memory that held it at `execve`.
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
        let line = "42 (a) b (c) S 7 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 12345 4096 99 0";
        let stat = Stat::parse(line).unwrap();
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
