//! Facts from `/proc/PID/status`, `stat` and `limits`.
//!
//! `status` and `limits` are split into lines here: `procfs` has only the fields that it knows, and
//! a newer kernel's must not get lost.

use std::fs;

use procfs::FromRead;
use procfs::process::Stat;

use super::{UNREADABLE, words};
use crate::observe::facts::Facts;

/// Name of the fact with the process's name, which an update may change to that of the new binary.
pub const NAME: &str = "status.Name";

/// `SigBlk` with all of libc's signals blocked: all but SIGKILL, SIGSTOP and libc's own two.
const ALL_SIGNALS: &str = "fffffffe7ffbfeff";

/// Whether the main thread blocks all signals.
pub(super) fn blocks_all(facts: &Facts) -> bool {
    facts.get("status.SigBlk") == Some(ALL_SIGNALS)
}

/// Fields of `status` that count, depend on the moment, or are covered elsewhere: identity by the
/// check `pid`; threads and limits by other facts; masks by the matching lists.
const LEFT_OUT: &[&str] = &[
    "State",
    "Tgid",
    "Ngid",
    "Pid",
    "NStgid",
    "NSpid",
    "FDSize",
    "VmPeak",
    "VmSize",
    "VmHWM",
    "VmRSS",
    "RssAnon",
    "RssFile",
    "RssShmem",
    "VmData",
    "VmStk",
    "VmExe",
    "VmLib",
    "VmPTE",
    "VmSwap",
    "HugetlbPages",
    "Threads",
    "SigQ",
    "Cpus_allowed",
    "Mems_allowed",
    "voluntary_ctxt_switches",
    "nonvoluntary_ctxt_switches",
];

/// Fields in which a thread may differ from the main thread.
const OF_THREAD: &[&str] = &[
    "priority",
    "nice",
    "realtime_priority",
    "policy",
    "SigPnd",
    "SigBlk",
    "Uid",
    "Gid",
    "Groups",
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
    "NoNewPrivs",
    "Seccomp",
    "Seccomp_filters",
    "Speculation_Store_Bypass",
    "SpeculationIndirectBranch",
    "Cpus_allowed_list",
    "Mems_allowed_list",
];

/// Column at which the names of limits end in `limits`.
const LIMIT_NAME: usize = 26;

/// Reads these facts of process `pid`.
pub(super) fn read(pid: i32, facts: &mut Facts) {
    let folder = format!("/proc/{pid}");
    for (field, value) in status(&folder) {
        facts.insert(format!("status.{field}"), value);
    }
    for (field, value) in stat(&folder) {
        facts.insert(format!("stat.{field}"), value);
    }
    let Ok(limits) = fs::read_to_string(format!("{folder}/limits")) else {
        return facts.insert("limits", UNREADABLE);
    };
    for line in limits.lines().skip(1) {
        let Some((name, values)) = line.split_at_checked(LIMIT_NAME) else { continue };
        let mut values = values.split_whitespace();
        for kind in ["soft", "hard"] {
            facts.insert(limit(kind, name.trim()), values.next().unwrap_or_default());
        }
    }
}

/// Reads the name of one thread and the fields in which it may differ.
pub(super) fn of_thread(folder: &str) -> Option<(String, Vec<(String, String)>)> {
    let mut facts = status(folder);
    let name = facts.iter().position(|(field, _)| field == "Name")?;
    let (_, name) = facts.remove(name);
    facts.extend(stat(folder));
    facts.retain(|(field, _)| OF_THREAD.contains(&&**field));
    Some((name, facts))
}

/// Returns the name of the fact for the soft limit that the kernel calls `name`.
pub fn soft_limit(name: &str) -> String {
    limit("soft", name)
}

fn limit(kind: &str, name: &str) -> String {
    format!("limit.{kind}.{name}")
}

fn status(folder: &str) -> Vec<(String, String)> {
    let text = fs::read_to_string(format!("{folder}/status")).unwrap_or_default();
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    let kept = fields.filter(|(field, _)| !LEFT_OUT.contains(field));
    kept.map(|(field, value)| (field.to_owned(), words(value))).collect()
}

/// Reads the fields of `stat` that are not in `status`.
fn stat(folder: &str) -> Vec<(String, String)> {
    let Ok(stat) = Stat::from_file(format!("{folder}/stat")) else { return Vec::new() };
    let always = [
        ("group", i64::from(stat.pgrp)),
        ("session", stat.session.into()),
        ("terminal", stat.tty_nr.into()),
        ("priority", stat.priority),
        ("nice", stat.nice),
    ];
    let if_known = [
        ("exit_signal", stat.exit_signal.map(i64::from)),
        ("realtime_priority", stat.rt_priority.map(i64::from)),
        ("policy", stat.policy.map(i64::from)),
        ("exit_code", stat.exit_code.map(i64::from)),
    ];
    let known = if_known.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let all = always.into_iter().chain(known);
    all.map(|(name, value)| (name.to_owned(), value.to_string())).collect()
}
