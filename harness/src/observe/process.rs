//! A process as `/proc` shows it: identity, executable, children, environment.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// What was read and why that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path}: {source}")]
pub struct ProcError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl ProcError {
    /// The failure to read `path`.
    pub fn new(path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self { path: path.into(), source }
    }
}

/// The fields of `/proc/PID/stat` that tell one process from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Its PID.
    pub pid: i32,
    /// Its command name, in which an update shows the new binary's.
    pub comm: String,
    /// `R`, `S`, `Z`, …
    pub state: char,
    /// Its parent.
    pub parent: i32,
    /// Its process group.
    pub group: i32,
    /// When it was started, in clock ticks since boot: two processes of one PID differ here.
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

    /// False for a zombie: it has ended and waits to be reaped.
    pub fn is_alive(&self) -> bool {
        !matches!(self.state, 'Z' | 'X')
    }
}

/// PID, command name, and the other fields of a line of `/proc/PID/stat`.
pub(crate) fn fields(text: &str) -> Option<(&str, &str, Vec<&str>)> {
    // The command name stands in brackets and may itself hold any character, brackets too.
    let (pid, rest) = text.split_once(" (")?;
    let (comm, rest) = rest.rsplit_once(") ")?;
    Some((pid, comm, rest.split_ascii_whitespace().collect()))
}

/// The executable of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executable {
    /// Its path, with ` (deleted)` where that is so.
    pub path: PathBuf,
    /// Device and inode.
    pub inode: (u64, u64),
}

impl Executable {
    /// That of process `pid`.
    pub fn of(pid: i32) -> Result<Self, ProcError> {
        let link = PathBuf::from(format!("/proc/{pid}/exe"));
        let path = fs::read_link(&link).map_err(|e| ProcError::new(&link, e))?;
        let meta = fs::metadata(&link).map_err(|e| ProcError::new(&link, e))?;
        Ok(Self { path, inode: (meta.dev(), meta.ino()) })
    }

    /// The file at `path`, as a process that runs it would show it.
    pub fn at(path: &Path) -> Result<Self, ProcError> {
        let meta = fs::metadata(path).map_err(|e| ProcError::new(path, e))?;
        let path = fs::canonicalize(path).map_err(|e| ProcError::new(path, e))?;
        Ok(Self { path, inode: (meta.dev(), meta.ino()) })
    }
}

/// The name that the kernel gives a process which executes `file`.
pub fn name_of(file: &Path) -> String {
    // TASK_COMM_LEN is 16, with the NUL.
    const LONGEST: usize = 15;
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    name.char_indices().take_while(|(at, c)| at + c.len_utf8() <= LONGEST).map(|(_, c)| c).collect()
}

/// The child processes of `pid`, zombies too, in order of PID.
///
/// Looks at all of `/proc`: `/proc/PID/task/TID/children` knows nothing of children whose
/// creating thread is gone, and is not in every kernel.
pub fn children(pid: i32) -> Result<Vec<Stat>, ProcError> {
    find(|stat| stat.parent == pid)
}

/// What a process is called that waits for the end of a VMM's, to continue the VM in its place.
pub const KEEPER: &str = "cpr-keeper";

impl Stat {
    /// It is called as a keeper is.
    pub fn is_keeper(&self) -> bool {
        self.comm == KEEPER
    }
}

/// The keepers of process `pid`, fast: without a look at other processes, where the kernel can
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

/// The living processes, other than this one, that have the file with this device and inode open
/// or mapped, in order of PID. Those of other users are not seen.
pub fn holders(file: (u64, u64)) -> Result<Vec<Stat>, ProcError> {
    let opened = |pid: i32| {
        let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        entries.into_iter().any(|entry| {
            fs::metadata(entry.path()).is_ok_and(|meta| (meta.dev(), meta.ino()) == file)
        })
    };
    // The device of a mapping is written otherwise; a memfd's inode is unique among memfds.
    let mapped = |pid: i32| {
        let maps = super::maps::read(pid).unwrap_or_default();
        maps.iter().any(|mapping| mapping.inode == file.1 && mapping.path.starts_with("/memfd:"))
    };
    let own = std::process::id() as i32;
    find(|stat| stat.pid != own && stat.is_alive() && (opened(stat.pid) || mapped(stat.pid)))
}

/// The living processes of process group `group`, in order of PID.
pub fn group(group: i32) -> Result<Vec<Stat>, ProcError> {
    find(|stat| stat.group == group && stat.is_alive())
}

/// The living processes, other than this one, that have `word` in their environment, in order of
/// PID: whoever is started by a process that has it has it too, whatever it does afterwards.
pub fn with_environment(word: &[u8]) -> Result<Vec<Stat>, ProcError> {
    let has = |pid: i32| {
        // Not ours to read, or gone.
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
        // A process that ends while we look is no child any more.
        .filter_map(|candidate| Stat::read(candidate).ok())
        .filter(wanted)
        .collect();
    found.sort_by_key(|stat| stat.pid);
    Ok(found)
}

/// Resident anonymous memory in KiB: what a process has for itself, guest RAM not counted.
pub fn anonymous_kib(pid: i32) -> Result<u64, ProcError> {
    status_kib(pid, "RssAnon:")
}

/// Bytes of address space that are mapped.
pub fn address_space(pid: i32) -> Result<u64, ProcError> {
    Ok(status_kib(pid, "VmSize:")? << 10)
}

fn status_kib(pid: i32, field: &str) -> Result<u64, ProcError> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).map_err(|e| ProcError::new(&path, e))?;
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    Ok(line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0))
}

/// The environment as the kernel shows it: the memory that held it when the binary was executed.
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
    fn process_names_are_cut() {
        assert_eq!(name_of(Path::new("/a/a-very-long-name-of-a-vmm")), "a-very-long-nam");
    }

    #[test]
    fn a_command_name_may_hold_brackets() {
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
