//! Every thread is one that the VMM is known to have, and QMP names those of the vCPUs.

use std::collections::BTreeMap;
use std::fs;

use super::{Check, Scene};
use crate::audit::process::OF_KVM;
use crate::observe::poll::{self, Deadline};

/// The check.
pub const CHECK: Check = Check {
    name: "threads",
    claim: "one thread a vCPU, which `query-cpus-fast` names, and no other but the main thread",
    run,
};

fn run(scene: &Scene<'_>) -> Result<(), String> {
    let mut wrong = look(scene);
    if wrong.is_err() {
        // One that is not needed any more may be on its way out.
        poll::until(Deadline::after(scene.patience.settle), || {
            wrong = look(scene);
            wrong.is_ok().then_some(())
        });
    }
    wrong
}

fn look(scene: &Scene<'_>) -> Result<(), String> {
    let mut threads = threads(scene.pid());
    let wanted = scene.vm.cpus as usize;
    let cpus = &scene.after.cpus;
    if cpus.len() != wanted {
        return Err(format!("query-cpus-fast has {} vCPUs, must have {wanted}", cpus.len()));
    }
    for cpu in cpus {
        let (index, number) = (cpu.cpu_index, cpu.thread_id);
        let Some(name) = threads.remove(&number) else {
            return Err(format!(
                "query-cpus-fast names thread {number} for vCPU {index}, which is no thread of the VMM's, or another vCPU's"
            ));
        };
        let prefix = scene.dialect.vcpu_threads;
        if let Some(wanted) = prefix.map(|prefix| format!("{prefix}{index}"))
            && wanted != name
        {
            return Err(format!("the thread of vCPU {index} is named {name}, must be {wanted}"));
        }
    }
    // Others than ours have threads for what they do besides.
    if scene.dialect.vcpu_threads.is_none() {
        return Ok(());
    }
    threads.remove(&i64::from(scene.pid()));
    threads.retain(|_, name| !name.starts_with(OF_KVM));
    match threads.values().next() {
        Some(name) => Err(format!("the VMM has a thread named {name}, which nothing asks for")),
        None => Ok(()),
    }
}

/// Names by number.
fn threads(pid: i32) -> BTreeMap<i64, String> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let thread = |entry: fs::DirEntry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        let name = fs::read(entry.path().join("comm")).ok()?;
        Some((number, String::from_utf8_lossy(&name).trim_end().to_owned()))
    };
    entries.filter_map(thread).collect()
}
