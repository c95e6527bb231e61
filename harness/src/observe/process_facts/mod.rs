//! The audit of a process: everything that `/proc` and a few system calls show of it, except
//! counters and values that differ at each look. That something is unreadable is a fact, too.

mod descriptors;
mod files;
mod mappings;
mod status;
mod threads;

use std::path::Path;
use std::time::Duration;
use std::{fs, io};

use crate::observe::facts::Facts;
use crate::observe::fds::FdTable;
use crate::observe::patience::patient;
use crate::observe::poll::{self, Deadline};
pub use status::{NAME, soft_limit};
pub use threads::OF_KVM;

/// Value of a fact that cannot be read.
const UNREADABLE: &str = "unreadable";

/// Prefixes of facts that depend on the build, not on how it was started: compared only within a
/// build.
const OF_BUILD: [&str; 3] = ["thread.", "mapping.", "descriptor."];

/// How long a VMM may take to start a child process on a busy host.
const STARTS_ONE: Duration = Duration::from_secs(1);

/// Reads the facts of process `pid`, whose descriptors are `fds`. Waits while it is starting a
/// child process, during which its main thread blocks all signals.
pub fn read(pid: i32, fds: &FdTable) -> Facts {
    let mut facts = once(pid, fds);
    poll::until(Deadline::after(patient(STARTS_ONE)), || {
        if status::blocks_all(&facts) {
            facts = once(pid, fds);
        }
        (!status::blocks_all(&facts)).then_some(())
    });
    facts
}

fn once(pid: i32, fds: &FdTable) -> Facts {
    let mut facts = Facts::default();
    status::read(pid, &mut facts);
    files::read(pid, &mut facts);
    threads::read(pid, &mut facts);
    mappings::read(pid, &mut facts);
    descriptors::read(pid, fds, &mut facts);
    facts
}

/// Whether `item` may differ between builds.
pub fn is_of_build(item: &str) -> bool {
    OF_BUILD.iter().any(|prefix| item.starts_with(prefix))
}

/// Reads a text file, with white space normalised.
fn text(path: impl AsRef<Path>) -> String {
    // Some files hold arbitrary bytes, such as the name of a thread.
    let read = fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    readable(read.map(|text| words(&text)))
}

/// Reads the target of a link.
fn link(path: impl AsRef<Path>) -> String {
    readable(fs::read_link(path).map(|target| target.to_string_lossy().into_owned()))
}

fn readable(read: io::Result<String>) -> String {
    read.unwrap_or_else(|_| UNREADABLE.to_owned())
}

fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Joins the values in order, each with its count if there are several.
fn counted(mut values: Vec<String>) -> String {
    values.sort();
    let parts = values.chunk_by(|a, b| a == b).map(|same| match same.len() {
        1 => same[0].clone(),
        n => format!("{n}x {}", same[0]),
    });
    parts.collect::<Vec<_>>().join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_facts_are_all_there() {
        let pid = std::process::id() as i32;
        let own = read(pid, &FdTable::read(pid).unwrap());
        let number = |item: &str| own.get(item).unwrap_or(item).parse::<i64>();
        assert!(number(&soft_limit("Max open files")).is_ok(), "{own:?}");
        assert!(number("stat.nice").is_ok() && number("oom_score_adj").is_ok(), "{own:?}");
        let folder = std::env::current_dir().unwrap();
        assert_eq!(own.get("cwd"), folder.to_str());
        assert!(own.get("thread.main").is_some() && own.get("namespace.mnt").is_some(), "{own:?}");
        assert!(own.iter().any(|(item, _)| item.starts_with("mapping.[stack]")), "{own:?}");
    }

    #[test]
    fn an_unreadable_value_is_a_fact() {
        assert_eq!(text("/proc/self/no-such-file"), UNREADABLE);
        assert_eq!(link("/proc/self/no-such-link"), UNREADABLE);
    }

    #[test]
    fn equal_values_are_counted() {
        assert_eq!(counted(["b", "a", "b"].map(str::to_owned).to_vec()), "a | 2x b");
        assert_eq!(counted(Vec::new()), "");
    }
}
