//! Facts about the threads, by name, as their TIDs change in an update.

use std::collections::BTreeMap;

use procfs::process::Process;

use super::{counted, status, text};
use crate::observe::facts::Facts;

/// `IOPRIO_WHO_PROCESS`, which selects a single thread despite its name.
const IOPRIO_WHO_PROCESS: libc::c_int = 1;

/// Name for the thread whose TID is the PID.
const MAIN: &str = "main";

/// Prefix of the names of threads that KVM starts in the process when a vCPU first runs.
pub const OF_KVM: &str = "kvm-";

/// Reads the thread facts of process `pid`.
pub(super) fn read(pid: i32, facts: &mut Facts) {
    let folder = format!("/proc/{pid}/task");
    let tasks = Process::new(pid).and_then(|process| process.tasks());
    let numbers = tasks.into_iter().flatten().filter_map(|task| Some(task.ok()?.tid));
    let mut threads: BTreeMap<String, BTreeMap<String, Vec<String>>> = BTreeMap::new();
    for number in numbers {
        let folder = format!("{folder}/{number}");
        // Skips threads that end meanwhile.
        let Some((name, mut own)) = status::of_thread(&folder) else { continue };
        if name.starts_with(OF_KVM) {
            continue;
        }
        let name = if number == pid { MAIN.to_owned() } else { name };
        if name == MAIN {
            // The other fields are facts of the process.
            own.clear();
        }
        own.push(("io_priority".to_owned(), io_priority(number)));
        own.push(("cgroup".to_owned(), text(format!("{folder}/cgroup"))));
        own.push(("timer_slack".to_owned(), text(format!("/proc/{number}/timerslack_ns"))));
        let known = threads.entry(name).or_default();
        for (field, value) in own {
            known.entry(field).or_default().push(value);
        }
    }
    for (name, fields) in threads {
        let number = fields.values().map(Vec::len).max().unwrap_or(0);
        facts.insert(format!("thread.{name}"), number);
        for (field, values) in fields {
            facts.insert(format!("thread.{name}.{field}"), counted(values));
        }
    }
}

fn io_priority(number: i32) -> String {
    // SAFETY: plain numbers.
    let got = unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, number) };
    match got {
        0.. => got.to_string(),
        _ => super::UNREADABLE.to_owned(),
    }
}
