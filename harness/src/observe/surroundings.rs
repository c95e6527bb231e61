//! What a process has around it: signals, limits, priority, folders, relations, rights.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use super::poll::{self, Deadline};
use super::process::{ProcError, fields};

/// Fields of `/proc/PID/status`, and what they are called here.
const STATUS: &[(&str, &str)] = &[
    ("Umask", "the umask"),
    ("Uid", "the user IDs"),
    ("Gid", "the group IDs"),
    ("Groups", "the supplementary groups"),
    ("SigBlk", "the set of blocked signals"),
    ("SigIgn", "the set of ignored signals"),
    ("SigCgt", "the set of caught signals"),
    ("CapInh", "the inheritable capabilities"),
    ("CapPrm", "the permitted capabilities"),
    ("CapEff", "the effective capabilities"),
    ("CapBnd", "the capability bounding set"),
    ("CapAmb", "the ambient capabilities"),
    ("NoNewPrivs", "no_new_privs"),
    ("Seccomp", "the seccomp mode"),
    ("Seccomp_filters", "the number of seccomp filters"),
    ("Cpus_allowed_list", "the CPU affinity"),
    ("Mems_allowed_list", "the memory affinity"),
];

/// Fields of `/proc/PID/stat` after the command name, counted from 0.
const STAT: &[(usize, &str)] = &[
    (1, "the parent"),
    (2, "the process group"),
    (3, "the session"),
    (4, "the controlling terminal"),
    (16, "the nice value"),
    (37, "the realtime priority"),
    (38, "the scheduling policy"),
];

/// What `SigBlk` is called, and its value where libc has blocked all signals but its own two.
const BLOCKED: &str = "the set of blocked signals";
const ALL_BLOCKED: &str = "fffffffe7ffbfeff";

/// How long starting a process may take on a busy host.
const STARTS_ONE: Duration = Duration::from_secs(1);

/// Where the names of limits end in `/proc/PID/limits`.
const LIMIT_NAME: usize = 26;

/// The surroundings of a process, by name; the signals and affinities are those of its main thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Surroundings(BTreeMap<String, String>);

impl Surroundings {
    /// Those of process `pid`, when it does not start another one just now: a thread blocks all
    /// signals for that long.
    pub fn of(pid: i32) -> Result<Self, ProcError> {
        let mut found = Self::read(pid);
        let blocks_all =
            |found: &Self| found.0.get(BLOCKED).is_some_and(|mask| mask == ALL_BLOCKED);
        poll::until(Deadline::after(STARTS_ONE), || {
            if found.as_ref().is_ok_and(blocks_all) {
                found = Self::read(pid);
            }
            (!found.as_ref().is_ok_and(blocks_all)).then_some(())
        });
        found
    }

    fn read(pid: i32) -> Result<Self, ProcError> {
        let folder = PathBuf::from(format!("/proc/{pid}"));
        let read = |name: &str| {
            let path = folder.join(name);
            fs::read_to_string(&path).map_err(|e| ProcError::new(&path, e))
        };
        let link = |name: &str| {
            let path = folder.join(name);
            let target = fs::read_link(&path).map_err(|e| ProcError::new(&path, e))?;
            Ok::<String, ProcError>(target.to_string_lossy().into_owned())
        };
        let mut facts = BTreeMap::new();
        let status = read("status")?;
        for (field, name) in STATUS {
            let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
            // Older kernels have fewer.
            if let Some(value) = line {
                facts.insert((*name).to_owned(), words(value));
            }
        }
        let stat = read("stat")?;
        let (_, _, fields) = fields(&stat).ok_or_else(|| {
            let not = io::Error::new(io::ErrorKind::InvalidData, "not a stat line");
            ProcError::new(folder.join("stat"), not)
        })?;
        for (index, name) in STAT {
            facts.insert((*name).to_owned(), fields.get(*index).copied().unwrap_or("").to_owned());
        }
        for line in read("limits")?.lines().skip(1) {
            let Some((name, values)) = line.split_at_checked(LIMIT_NAME) else { continue };
            let mut values = values.split_whitespace();
            for kind in ["soft", "hard"] {
                let value = values.next().unwrap_or_default().to_owned();
                facts.insert(limit_name(kind, name.trim()), value);
            }
        }
        facts.insert("oom_score_adj".into(), words(&read("oom_score_adj")?));
        facts.insert("the cgroup".into(), words(&read("cgroup")?));
        facts.insert("the current directory".into(), link("cwd")?);
        facts.insert("the root directory".into(), link("root")?);
        Ok(Self(facts))
    }

    /// Notes that the soft limit that the kernel calls `name` was changed on purpose.
    pub fn note_limit(&mut self, name: &str, value: u64) {
        let value = if value == u64::MAX { "unlimited".to_owned() } else { value.to_string() };
        self.0.insert(limit_name("soft", name), value);
    }

    /// What `after` has otherwise, in words.
    pub fn changes(&self, after: &Self) -> Vec<String> {
        let names: std::collections::BTreeSet<_> = self.0.keys().chain(after.0.keys()).collect();
        let tell = |facts: &BTreeMap<String, String>, name: &str| match facts.get(name) {
            None => "not there".to_owned(),
            Some(value) if value.is_empty() => "empty".to_owned(),
            Some(value) => value.clone(),
        };
        names
            .into_iter()
            .filter(|name| self.0.get(*name) != after.0.get(*name))
            .map(|name| format!("{name} was {}, is {}", tell(&self.0, name), tell(&after.0, name)))
            .collect()
    }
}

/// The name that the kernel gives a process which executes `file`.
pub fn process_name(file: &Path) -> String {
    // TASK_COMM_LEN is 16, with the NUL.
    const LONGEST: usize = 15;
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    name.char_indices().take_while(|(at, c)| at + c.len_utf8() <= LONGEST).map(|(_, c)| c).collect()
}

fn limit_name(kind: &str, name: &str) -> String {
    format!("the {kind} limit `{name}`")
}

fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_surroundings_are_all_there() {
        let own = Surroundings::of(std::process::id() as i32).unwrap();
        assert!(own.0["the soft limit `Max open files`"].parse::<u64>().is_ok(), "{own:?}");
        assert_eq!(
            own.0["the current directory"],
            std::env::current_dir().unwrap().display().to_string()
        );
        assert_eq!(own.0["the process group"], nix::unistd::getpgrp().to_string());
        assert!(own.0["the nice value"].parse::<i32>().is_ok(), "{own:?}");
        assert_eq!(own.changes(&own), [""; 0]);
    }

    #[test]
    fn a_change_is_told() {
        let before = Surroundings([("a".into(), "1".into()), ("b".into(), "".into())].into());
        let after = Surroundings([("a".into(), "2".into()), ("c".into(), "3".into())].into());
        let told = ["a was 1, is 2", "b was empty, is not there", "c was not there, is 3"];
        assert_eq!(before.changes(&after), told);
    }

    #[test]
    fn an_intended_change_is_none() {
        let own = Surroundings::of(std::process::id() as i32).unwrap();
        let mut noted = own.clone();
        noted.note_limit("Max open files", 7);
        assert_eq!(noted.changes(&own).len(), 1);
    }

    #[test]
    fn process_names_are_cut() {
        assert_eq!(process_name(Path::new("/a/a-very-long-name-of-a-vmm")), "a-very-long-nam");
    }
}
