//! Facts from the small files and links in `/proc/PID`, and the process's arguments and
//! environment.

use std::fs;
use std::os::unix::fs::MetadataExt;

use xxhash_rust::xxh3::xxh3_64;

use super::{UNREADABLE, link, text};
use crate::observe::facts::Facts;

/// Files with one value each.
const FILES: [&str; 11] = [
    "oom_score_adj",
    "cgroup",
    "personality",
    "coredump_filter",
    "autogroup",
    "loginuid",
    "sessionid",
    "attr/current",
    "uid_map",
    "gid_map",
    // POSIX timers.
    "timers",
];

/// Reads these facts of process `pid`.
pub(super) fn read(pid: i32, facts: &mut Facts) {
    let folder = format!("/proc/{pid}");
    for name in FILES {
        facts.insert(name, text(format!("{folder}/{name}")));
    }
    for name in ["cwd", "root"] {
        facts.insert(name, link(format!("{folder}/{name}")));
    }
    // The files of a process that is not dumpable belong to root.
    let owner = fs::metadata(format!("{folder}/environ"));
    let owner = owner.map(|meta| format!("{}:{}", meta.uid(), meta.gid()));
    facts.insert("owner", owner.unwrap_or_else(|_| UNREADABLE.to_owned()));
    for entry in fs::read_dir(format!("{folder}/ns")).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        facts.insert(format!("namespace.{name}"), link(entry.path()));
    }
    // Raw: `procfs` drops empty arguments, and words of the environment without `=`.
    let words = |name: &str| fs::read(format!("{folder}/{name}")).ok();
    let arguments = words("cmdline").unwrap_or_default();
    let arguments = String::from_utf8_lossy(&arguments).into_owned();
    for (number, word) in arguments.trim_end_matches('\0').split('\0').enumerate() {
        facts.insert(format!("argument.{number:02}"), word);
    }
    let environment = words("environ");
    for word in environment.as_deref().unwrap_or_default().split(|byte| *byte == 0) {
        if word.is_empty() {
            continue;
        }
        let at = word.iter().position(|byte| *byte == b'=').unwrap_or(word.len());
        let name = String::from_utf8_lossy(&word[..at]).into_owned();
        // An environment may hold secrets.
        let value = format!("a value of digest {:016x}", xxh3_64(&word[at..]));
        facts.insert(format!("environment.{name}"), value);
    }
}
