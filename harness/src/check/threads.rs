//! Checks that the VMM has only known threads, and that QMP names those of the vCPUs.

use std::collections::BTreeMap;

use procfs::ProcResult;
use procfs::process::{Process, Task};

use super::{Check, Scene};
use crate::observe::poll::{self, Deadline};
use crate::observe::process_facts::OF_KVM;

/// The `threads` check.
pub const CHECK: Check = Check {
    name: "threads",
    claim: "one thread per vCPU, which `query-cpus-fast` names, one per device behind PCI, and no other than the main thread",
    run,
};

fn run(scene: &Scene<'_>) -> Result<(), String> {
    let mut wrong = judge(scene);
    if wrong.is_err() {
        // A thread that is no longer needed may still be exiting.
        poll::until(Deadline::after(scene.patience.settle), || {
            wrong = judge(scene);
            wrong.is_ok().then_some(())
        });
    }
    wrong
}

fn judge(scene: &Scene<'_>) -> Result<(), String> {
    let mut threads = threads(scene.pid());
    let wanted = scene.vm.cpus as usize;
    let cpus = &scene.after.cpus;
    if cpus.len() != wanted {
        return Err(format!("query-cpus-fast lists {} vCPUs, expected {wanted}", cpus.len()));
    }
    for cpu in cpus {
        let (index, number) = (cpu.cpu_index, cpu.thread_id);
        let Some(name) = threads.remove(&number) else {
            return Err(format!(
                "query-cpus-fast names thread {number} for vCPU {index}, which is not a thread of the VMM or belongs to another vCPU"
            ));
        };
        let prefix = scene.dialect.vcpu_threads;
        if let Some(wanted) = prefix.map(|prefix| format!("{prefix}{index}"))
            && wanted != name
        {
            return Err(format!("the thread of vCPU {index} is named {name}, must be {wanted}"));
        }
    }
    // Other VMMs have threads for other work too.
    if scene.dialect.vcpu_threads.is_none() {
        return Ok(());
    }
    threads.remove(&i64::from(scene.pid()));
    threads.retain(|_, name| !name.starts_with(OF_KVM));
    for (slot, device) in (1..).zip(&scene.vm.devices) {
        let wanted = format!("{}.{slot}", device.kind());
        let thread = threads.iter().find(|(_, name)| **name == wanted).map(|(number, _)| *number);
        let thread = thread.ok_or_else(|| format!("the VMM has no thread named {wanted}"))?;
        threads.remove(&thread);
    }
    match threads.values().next() {
        Some(name) => Err(format!("the VMM has an unexpected thread named {name}")),
        None => Ok(()),
    }
}

/// The names of the threads of process `pid`, by TID.
fn threads(pid: i32) -> BTreeMap<i64, String> {
    let tasks = Process::new(pid).and_then(|process| process.tasks());
    let thread = |task: ProcResult<Task>| {
        let task = task.ok()?;
        Some((task.tid.into(), task.stat().ok()?.comm))
    };
    tasks.into_iter().flatten().filter_map(thread).collect()
}
