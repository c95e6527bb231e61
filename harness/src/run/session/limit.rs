//! Sets soft resource limits of the running VMM from outside.

use procfs::FromRead;
use procfs::process::{LimitValue, Limits};
use rustix::io::Errno;
use rustix::process::Resource::{As, Fsize, Nofile, Nproc};
use rustix::process::{Pid, Rlimit};

use crate::observe::fds::FdTable;
use crate::observe::observation::NotAudited;
use crate::observe::proc_error::ProcError;
use crate::observe::{process, process_facts};
use crate::process::environment::{EnvironmentError, RlimitError};
use crate::run::failure::StepError;
use crate::run::session::Session;
use crate::scenario::{Amount, Limit};

/// A limit before it was changed.
#[derive(Clone, Copy)]
pub struct Saved {
    resource: Resource,
    limit: Rlimit,
}

/// A resource, and the kernel's name for its limit.
#[derive(Clone, Copy)]
struct Resource {
    number: rustix::process::Resource,
    name: &'static str,
}

impl Session<'_> {
    /// Sets a limit, or restores all.
    pub(super) fn limit(&mut self, limit: Limit) -> Result<(), StepError> {
        let (number, name, amount) = match limit {
            Limit::Restore => {
                while let Some(Saved { resource, limit }) = self.limits.pop() {
                    self.set_limit(resource, limit)?;
                }
                return Ok(());
            }
            Limit::Nofile(amount) => (Nofile, "Max open files", amount),
            Limit::As(amount) => (As, "Max address space", amount),
            Limit::Nproc(amount) => (Nproc, "Max processes", amount),
            Limit::Fsize(amount) => (Fsize, "Max file size", amount),
        };
        let resource = Resource { number, name };
        let before = current(self.vm.pid(), resource)?;
        let wanted = self.wanted(limit, amount)?;
        self.limits.push(Saved { resource, limit: before });
        let wanted = before.maximum.map_or(wanted, |maximum| wanted.min(maximum));
        self.set_limit(resource, Rlimit { current: Some(wanted), ..before })
    }

    /// Returns why the VMM cannot be audited now, if so: an audit reads thousands of values from
    /// KVM.
    pub(super) fn not_audited(&self) -> Option<NotAudited> {
        if self.start_pends {
            return Some(NotAudited::StartPending);
        }
        let limited = self.limits.iter().any(|saved| saved.resource.number == As);
        limited.then_some(NotAudited::LittleAddressSpace)
    }

    /// Sets the memory limit of the VMM's own cgroup, if it has one.
    pub(super) fn limit_memory(&mut self) -> Result<(), EnvironmentError> {
        if let (Some(cgroup), Some(amount)) = (&self.vm.cgroup, self.case.vm.memory_limit) {
            let limit = cgroup.limit(amount)?;
            self.evidence.timeline.say("harness", format!("memory cgroup: {limit} bytes"));
        }
        Ok(())
    }

    /// Returns the limit that leaves the VMM what it uses now plus `amount`.
    fn wanted(&mut self, limit: Limit, amount: Amount) -> Result<u64, StepError> {
        Ok(match (limit, amount) {
            (Limit::Nofile(_), Amount::Above(more)) => lowest_free(&self.observe()?.fds, more),
            (Limit::As(_), Amount::Above(_)) => {
                let used = process::address_space(self.vm.pid());
                amount.of(used.map_err(|e| StepError::Process(e.to_string()))?)
            }
            _ => amount.of(0),
        })
    }

    fn set_limit(&mut self, resource: Resource, new: Rlimit) -> Result<(), StepError> {
        prlimit(self.vm.pid(), resource, new)?;
        let value = new.current.map_or("unlimited".to_owned(), |value| value.to_string());
        self.evidence.timeline.say("harness", format!("{}: {value}", resource.name));
        if let Some(seen) = &mut self.seen {
            seen.facts.insert(process_facts::soft_limit(resource.name), value);
        }
        Ok(())
    }
}

/// Returns the limit of process `pid`. If the process is gone, that is a finding, not an error of
/// the environment.
fn current(pid: i32, resource: Resource) -> Result<Rlimit, StepError> {
    let path = format!("/proc/{pid}/limits");
    let limits = Limits::from_file(&path)
        .map_err(|error| StepError::Process(ProcError::parsing(path, error).to_string()))?;
    let limit = match resource.number {
        Nofile => limits.max_open_files,
        As => limits.max_address_space,
        Nproc => limits.max_processes,
        _ => limits.max_file_size,
    };
    let value = |value| match value {
        LimitValue::Unlimited => None,
        LimitValue::Value(value) => Some(value),
    };
    Ok(Rlimit { current: value(limit.soft_limit), maximum: value(limit.hard_limit) })
}

/// Sets a limit of process `pid`. If the process is gone, that is a finding, as above.
fn prlimit(pid: i32, resource: Resource, new: Rlimit) -> Result<(), StepError> {
    match rustix::process::prlimit(Pid::from_raw(pid), resource.number, new) {
        Ok(_) => Ok(()),
        Err(Errno::SRCH) => Err(StepError::Process(format!(
            "cannot set the limit `{}` of the VMM: process {pid} is gone",
            resource.name
        ))),
        Err(source) => {
            Err(EnvironmentError::from(RlimitError { name: resource.name, source }).into())
        }
    }
}

/// Returns the limit below which `more` descriptor numbers are free, counting gaps.
fn lowest_free(fds: &FdTable, more: u64) -> u64 {
    let mut free = (0..).filter(|number| !fds.0.contains_key(number));
    free.nth(more as usize).map_or(0, |number| number as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[test]
    fn limit_of_exited_vmm_is_a_finding() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let resource = Resource { number: Nofile, name: "Max open files" };
        let error = current(child.id() as i32, resource).err().unwrap();
        let findings = error.findings().expect("a finding, not an error of the environment");
        assert_eq!(findings[0].check, "step");
        let message = &findings[0].message;
        assert!(message.contains("/limits: No such file"), "{message}");
    }

    #[rstest]
    #[case(0, 2)]
    #[case(1, 4)]
    #[case(2, 5)]
    fn lowest_free_counts_gaps(#[case] more: u64, #[case] limit: u64) {
        let open = FdTable::read(std::process::id() as i32).unwrap().0[&0].clone();
        let fds = FdTable([0, 1, 3, 9].map(|number| (number, open.clone())).into());
        assert_eq!(lowest_free(&fds, more), limit);
    }
}
